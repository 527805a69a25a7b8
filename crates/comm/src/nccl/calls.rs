//! The collectives: each queued on the group's stream, between two events.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use super::handle::Purpose;
use super::raw::{self, datatype, operation, Code, IN_PROGRESS, SUCCESS};
use super::watch::Watched;
use super::Group;
use crate::accelerator::order;
use crate::{Call, DeviceRun, Event, Kind, Rank, ReduceOp, Result};

/// Where a queued call finds the library's communicator and the stream.
#[derive(Clone, Copy)]
struct Site<'a> {
    nccl: &'a raw::Nccl,
    comm: *mut c_void,
    stream: *mut c_void,
}

/// An address, for NCCL alone.
fn pointer(run: DeviceRun<'_>) -> *mut c_void {
    std::ptr::without_provenance_mut(run.address())
}

impl Group {
    /// Queues a call after what the caller has queued; returns the event of its end.
    fn queue(
        &self,
        purpose: Purpose,
        runs: &[DeviceRun<'_>],
        call: impl FnOnce(Site<'_>) -> Code,
    ) -> Result<Box<dyn Event>> {
        let accelerator = &*self.shared.accelerator;
        self.handle.failure()?;
        // Peers may come to this call only once they have what was started before it; and from here on the device waits for
        // them, and with it whoever waits for the device and calls nobody meanwhile.
        self.staged.flush();
        for run in runs {
            self.shared.library.driver.verify(*run)?;
        }
        order(accelerator, accelerator.current()?, self.stream)?;
        runs.iter().try_for_each(|run| accelerator.keep(run.memory(), self.stream))?;
        let (mut begun, mut ended, mut told) = (accelerator.event()?, accelerator.event()?, accelerator.event()?);
        begun.record(self.stream)?;
        let stream = std::ptr::without_provenance_mut(accelerator.handle(self.stream)?);
        let nccl = &self.shared.library.nccl;
        self.handle.invoke(purpose, |comm| call(Site { nccl, comm, stream }))?;
        ended.record(self.stream)?;
        told.record(self.stream)?;
        let handle = std::sync::Arc::clone(&self.handle);
        self.shared.watch.add(Watched { handle, call: purpose.call, begun, ended: told, since: None });
        Ok(ended)
    }

    pub(super) fn all_reduce(
        &self,
        call: Call,
        run: DeviceRun<'_>,
        kind: Kind,
        op: ReduceOp,
    ) -> Result<Box<dyn Event>> {
        let purpose = Purpose { call, function: "ncclAllReduce", bytes: run.bytes() };
        let (memory, count) = (pointer(run), run.bytes() / kind.bytes());
        self.queue(purpose, &[run], |Site { nccl, comm, stream }| {
            // SAFETY: a live communicator and stream of this device; `count` elements of device memory, which the driver
            // has confirmed, in place.
            unsafe { (nccl.all_reduce)(memory, memory, count, datatype(kind), operation(op), comm, stream) }
        })
    }

    pub(super) fn reduce_scatter(
        &self,
        call: Call,
        (from, to): (DeviceRun<'_>, DeviceRun<'_>),
        kind: Kind,
        op: ReduceOp,
    ) -> Result<Box<dyn Event>> {
        let purpose = Purpose { call, function: "ncclReduceScatter", bytes: from.bytes() };
        let (send, receive, count) = (pointer(from), pointer(to), to.bytes() / kind.bytes());
        self.queue(purpose, &[from, to], |Site { nccl, comm, stream }| {
            // SAFETY: as for `all_reduce`; `count` elements in `receive` and as many for every rank in `send`.
            unsafe { (nccl.reduce_scatter)(send, receive, count, datatype(kind), operation(op), comm, stream) }
        })
    }

    pub(super) fn all_gather(
        &self,
        call: Call,
        (from, to): (DeviceRun<'_>, DeviceRun<'_>),
        kind: Kind,
    ) -> Result<Box<dyn Event>> {
        let purpose = Purpose { call, function: "ncclAllGather", bytes: from.bytes() };
        let (send, receive, count) = (pointer(from), pointer(to), from.bytes() / kind.bytes());
        self.queue(purpose, &[from, to], |Site { nccl, comm, stream }| {
            // SAFETY: as for `all_reduce`; `count` elements in `send` and as many for every rank in `receive`.
            unsafe { (nccl.all_gather)(send, receive, count, datatype(kind), comm, stream) }
        })
    }

    pub(super) fn broadcast(&self, run: DeviceRun<'_>, kind: Kind, root: Rank) -> Result<Box<dyn Event>> {
        let purpose = Purpose { call: Call::Broadcast, function: "ncclBroadcast", bytes: run.bytes() };
        let (memory, count) = (pointer(run), run.bytes() / kind.bytes());
        self.queue(purpose, &[run], |Site { nccl, comm, stream }| {
            // SAFETY: as for `all_reduce`; the root is of this group, by the call's checks.
            unsafe { (nccl.broadcast)(memory, memory, count, datatype(kind), root.0 as c_int, comm, stream) }
        })
    }

    /// Sends each rank its run and receives one from it, all at once.
    pub(super) fn exchange(
        &self,
        call: Call,
        (from, sent): (DeviceRun<'_>, &[usize]),
        (to, received): (DeviceRun<'_>, &[usize]),
        kind: Kind,
    ) -> Result<Box<dyn Event>> {
        self.at_once(call, (from, packed(from, sent, kind)), (to, packed(to, received, kind)))
    }

    /// Sends one rank all of a buffer and fills another from one rank, at once.
    pub(super) fn send_receive(
        &self,
        call: Call,
        (from, sent, to_rank): (DeviceRun<'_>, Kind, Rank),
        (to, received, from_rank): (DeviceRun<'_>, Kind, Rank),
    ) -> Result<Box<dyn Event>> {
        let send = End { peer: to_rank.0 as c_int, run: from, kind: sent };
        let receive = End { peer: from_rank.0 as c_int, run: to, kind: received };
        self.at_once(call, (from, [send]), (to, [receive]))
    }

    /// Queues sends out of one buffer and receives into another as one group, within which none waits for another.
    fn at_once<'a>(
        &self,
        call: Call,
        (from, sends): (DeviceRun<'_>, impl IntoIterator<Item = End<'a>>),
        (to, receives): (DeviceRun<'_>, impl IntoIterator<Item = End<'a>>),
    ) -> Result<Box<dyn Event>> {
        let purpose = Purpose { call, function: "ncclGroupEnd", bytes: from.bytes() };
        // Of nothing, nothing is sent, and its receiver asks for nothing.
        let some = |end: &End<'_>| end.run.bytes() > 0;
        let (sends, receives) = (sends.into_iter().filter(some), receives.into_iter().filter(some));
        self.queue(purpose, &[from, to], |Site { nccl, comm, stream }| {
            // SAFETY: takes nothing; `group_end` follows on this thread.
            let mut code = unsafe { (nccl.group_start)() };
            // The first failure, or else what the last call said.
            let mut note = |now: Code| code = if code == SUCCESS || code == IN_PROGRESS { now } else { code };
            for end @ End { peer, run, kind } in sends {
                // SAFETY: as for `all_reduce`; the runs are parts of the confirmed memory, the peers of this group.
                note(unsafe { (nccl.send)(pointer(run), end.count(), datatype(kind), peer, comm, stream) });
            }
            for end @ End { peer, run, kind } in receives {
                // SAFETY: as above.
                note(unsafe { (nccl.receive)(pointer(run), end.count(), datatype(kind), peer, comm, stream) });
            }
            // SAFETY: closes what `group_start` opened, also after a failure.
            note(unsafe { (nccl.group_end)() });
            code
        })
    }
}

/// This rank's end of what goes to or comes from one rank.
#[derive(Clone, Copy)]
struct End<'a> {
    peer: c_int,
    run: DeviceRun<'a>,
    kind: Kind,
}

impl End<'_> {
    /// Returns the length in elements.
    fn count(&self) -> usize {
        self.run.bytes() / self.kind.bytes()
    }
}

/// The runs of a buffer that are packed in rank order.
fn packed<'a>(buffer: DeviceRun<'a>, counts: &'a [usize], kind: Kind) -> impl Iterator<Item = End<'a>> {
    let mut start = 0;
    let run = move |(peer, count): (usize, &usize)| {
        let run = start..start + count * kind.bytes();
        start = run.end;
        End { peer: peer as c_int, run: buffer.part(run), kind }
    };
    counts.iter().enumerate().map(run)
}
