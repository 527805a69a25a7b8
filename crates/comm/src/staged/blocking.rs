//! Blocking calls: two steps under way at a time.

use super::slots::Slot;
use super::steps::Step;
use super::Shared;
use crate::accelerator::order;
use crate::{DeviceRun, Result};

/// The host's memory of one step.
pub(super) struct Lane {
    pub(super) send: Slot,
    /// `None` where a call has one buffer.
    pub(super) receive: Option<Slot>,
}

impl Lane {
    /// Waits until the host may touch it.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.send.settle()?;
        self.receive.as_mut().map_or(Ok(()), Slot::settle)
    }

    /// Returns the memory that the result is in, and the other.
    fn result(self) -> (Slot, Option<Slot>) {
        match self.receive {
            Some(receive) => (receive, Some(self.send)),
            None => (self.send, None),
        }
    }

    /// Says whether the host may touch it.
    pub(super) fn is_settled(&mut self) -> Result<bool> {
        Ok(self.send.is_settled()? && self.receive.as_mut().map_or(Ok(true), Slot::is_settled)?)
    }
}

impl Shared {
    /// Runs a call's steps; `host` makes one of them with the host's buffers. Stream-ordered for the caller.
    pub(super) fn run(
        &self,
        steps: &[Step],
        (from, to): (Option<DeviceRun<'_>>, Option<DeviceRun<'_>>),
        host: impl FnMut(&Step, &mut [u8], &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let caller = self.accelerator.current()?;
        order(&*self.accelerator, caller, self.side)?;
        let outcome = self.steps(steps, (from, to), host);
        // Also after a failure: copies that are queued still use the caller's memory.
        self.keep(from, to)?;
        outcome.and(order(&*self.accelerator, self.side, caller))
    }

    /// Keeps the memory of a call for the stream of copies; one buffer counts once.
    pub(super) fn keep(&self, from: Option<DeviceRun<'_>>, to: Option<DeviceRun<'_>>) -> Result<()> {
        let other = to.filter(|to| from.is_none_or(|from| from.address() != to.address()));
        from.into_iter().chain(other).try_for_each(|run| self.accelerator.keep(run.memory(), self.side))
    }

    fn steps(
        &self,
        steps: &[Step],
        (from, to): (Option<DeviceRun<'_>>, Option<DeviceRun<'_>>),
        mut host: impl FnMut(&Step, &mut [u8], &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut next = steps.first().map(|step| self.descend(step, from)).transpose()?;
        for (i, step) in steps.iter().enumerate() {
            let Some(mut lane) = next.take() else { unreachable!("the step before has sent this one down") };
            // On its way while this one is communicated.
            next = steps.get(i + 1).map(|step| self.descend(step, from)).transpose()?;
            lane.settle()?;
            let mine = &mut lane.send.pinned.bytes_mut()[..step.send];
            let theirs = lane.receive.as_mut().map_or(&mut [][..], |slot| &mut slot.pinned.bytes_mut()[..step.receive]);
            host(step, mine, theirs)?;
            let (result, spare) = lane.result();
            spare.into_iter().for_each(|slot| self.slots.put(slot));
            self.ascend(step, result, to)?;
        }
        Ok(())
    }

    /// Queues a step's copies to the host.
    pub(super) fn descend(&self, step: &Step, from: Option<DeviceRun<'_>>) -> Result<Lane> {
        let mut send = self.slots.take(&*self.accelerator, step.send)?;
        let receive = (step.receive > 0).then(|| self.slots.take(&*self.accelerator, step.receive)).transpose()?;
        if let Some(from) = from.filter(|_| !step.down.is_empty()) {
            for (run, at) in &step.down {
                self.accelerator.copy_down(from.part(run.clone()), &mut *send.pinned, *at, self.side)?;
            }
            send.mark(self.side)?;
        }
        Ok(Lane { send, receive })
    }

    /// Queues a step's copies from the host, and gives its memory back.
    pub(super) fn ascend(&self, step: &Step, mut slot: Slot, to: Option<DeviceRun<'_>>) -> Result<()> {
        if let Some(to) = to.filter(|_| !step.up.is_empty()) {
            for (at, run) in &step.up {
                self.accelerator.copy_up(&mut *slot.pinned, *at, to.part(run.clone()), self.side)?;
            }
            slot.mark(self.side)?;
        }
        self.slots.put(slot);
        Ok(())
    }
}
