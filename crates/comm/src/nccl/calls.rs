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
        let purpose = Purpose { call, function: "ncclGroupEnd", bytes: from.bytes() };
        let (sends, receives) = (packed(from, sent, kind), packed(to, received, kind));
        self.queue(purpose, &[from, to], |Site { nccl, comm, stream }| {
            // SAFETY: takes nothing; `group_end` follows on this thread.
            let mut code = unsafe { (nccl.group_start)() };
            // The first failure, or else what the last call said.
            let mut note = |now: Code| code = if code == SUCCESS || code == IN_PROGRESS { now } else { code };
            for (peer, run, count) in sends {
                // SAFETY: as for `all_reduce`; the runs are parts of the confirmed memory.
                note(unsafe { (nccl.send)(pointer(run), count, datatype(kind), peer, comm, stream) });
            }
            for (peer, run, count) in receives {
                // SAFETY: as above.
                note(unsafe { (nccl.receive)(pointer(run), count, datatype(kind), peer, comm, stream) });
            }
            // SAFETY: closes what `group_start` opened, also after a failure.
            note(unsafe { (nccl.group_end)() });
            code
        })
    }
}

/// The runs of a buffer that are packed in rank order, without those that are empty on both ends.
fn packed<'a>(buffer: DeviceRun<'a>, counts: &[usize], kind: Kind) -> Vec<(c_int, DeviceRun<'a>, usize)> {
    let (mut start, mut runs) = (0, Vec::new());
    for (peer, count) in counts.iter().enumerate() {
        let end = start + count * kind.bytes();
        if *count > 0 {
            runs.push((peer as c_int, buffer.part(start..end), *count));
        }
        start = end;
    }
    runs
}
