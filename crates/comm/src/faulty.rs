//! A decorator that fails on purpose, for tests of what others do then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Buffer, BufferMut, Call, Communicator, Error, OwnedBuffer, Rank, ReduceOp, Request, Result, Tag};

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This one call fails; peers may be left waiting for it, as they would be by a bug.
    Fail,
    /// This call and all later ones fail, and the handle inside is dropped: the rank is gone for its peers.
    Die,
}

/// Passes calls on until the `k`-th, which does not reach the communicator inside.
///
/// Groups split from it are plain ones: decorate them too where they are to fail.
///
/// # Examples
/// ```
/// use mp_comm::{faulty::{Fault, Faulty}, threads, Communicator, Error};
///
/// let outcomes = threads::try_run(2, |comm| {
///     let k = if comm.rank().0 == 1 { 3 } else { u64::MAX };
///     let comm = Faulty::new(comm, k, Fault::Die);
///     (0..5).try_for_each(|_| comm.barrier())
/// });
/// assert!(outcomes.iter().all(|outcome| outcome.is_err()));
/// ```
#[derive(Debug)]
pub struct Faulty {
    /// Emptied by death.
    inner: Mutex<Option<Arc<dyn Communicator>>>,
    identity: Identity,
    calls: AtomicU64,
    k: u64,
    fault: Fault,
}

/// What the handle says of itself, also when it is dead.
#[derive(Debug)]
struct Identity {
    name: String,
    rank: Rank,
    size: usize,
    local_rank: Rank,
    local_size: usize,
    takes_device_pointers: bool,
}

impl Faulty {
    /// Decorates a communicator so that its `k`-th call, counted from 1, goes wrong.
    pub fn new(inner: Arc<dyn Communicator>, k: u64, fault: Fault) -> Self {
        let identity = Identity {
            name: inner.name().into(),
            rank: inner.rank(),
            size: inner.size(),
            local_rank: inner.local_rank(),
            local_size: inner.local_size(),
            takes_device_pointers: inner.takes_device_pointers(),
        };
        Self { inner: Mutex::new(Some(inner)), identity, calls: AtomicU64::new(0), k, fault }
    }

    /// Counts a call and hands out the communicator inside, unless this is where it goes wrong.
    fn pass(&self, call: Call) -> Result<Arc<dyn Communicator>> {
        let count = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if count == self.k && self.fault == Fault::Die {
            *inner = None;
        }
        let injected = || Error::Injected { call, group: self.identity.name.clone(), count };
        if count == self.k {
            return Err(injected());
        }
        inner.clone().ok_or_else(injected)
    }
}

impl Communicator for Faulty {
    fn name(&self) -> &str {
        &self.identity.name
    }
    fn rank(&self) -> Rank {
        self.identity.rank
    }
    fn size(&self) -> usize {
        self.identity.size
    }
    fn local_rank(&self) -> Rank {
        self.identity.local_rank
    }
    fn local_size(&self) -> usize {
        self.identity.local_size
    }
    fn takes_device_pointers(&self) -> bool {
        self.identity.takes_device_pointers
    }

    fn all_reduce(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        self.pass(Call::AllReduce)?.all_reduce(buffer, op)
    }
    fn reduce_scatter(&self, send: Buffer<'_>, receive: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        self.pass(Call::ReduceScatter)?.reduce_scatter(send, receive, op)
    }
    fn all_gather(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        self.pass(Call::AllGather)?.all_gather(send, receive)
    }
    fn all_to_all(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        self.pass(Call::AllToAll)?.all_to_all(send, receive)
    }
    fn all_to_all_v(
        &self,
        send: Buffer<'_>,
        send_counts: &[usize],
        receive: BufferMut<'_>,
        receive_counts: &[usize],
    ) -> Result<()> {
        self.pass(Call::AllToAllV)?.all_to_all_v(send, send_counts, receive, receive_counts)
    }
    fn broadcast(&self, buffer: BufferMut<'_>, root: Rank) -> Result<()> {
        self.pass(Call::Broadcast)?.broadcast(buffer, root)
    }
    fn send(&self, buffer: Buffer<'_>, to: Rank, tag: Tag) -> Result<()> {
        self.pass(Call::Send)?.send(buffer, to, tag)
    }
    fn receive(&self, buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<()> {
        self.pass(Call::Receive)?.receive(buffer, from, tag)
    }
    fn barrier(&self) -> Result<()> {
        self.pass(Call::Barrier)?.barrier()
    }

    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        self.pass(Call::StartAllReduce)?.start_all_reduce(buffer, op)
    }
    fn start_reduce_scatter(&self, send: OwnedBuffer, receive: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        self.pass(Call::StartReduceScatter)?.start_reduce_scatter(send, receive, op)
    }
    fn start_all_gather(&self, send: OwnedBuffer, receive: OwnedBuffer) -> Result<Request> {
        self.pass(Call::StartAllGather)?.start_all_gather(send, receive)
    }
    fn start_send(&self, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Request> {
        self.pass(Call::StartSend)?.start_send(buffer, to, tag)
    }
    fn start_receive(&self, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Request> {
        self.pass(Call::StartReceive)?.start_receive(buffer, from, tag)
    }
    fn start_send_receive(
        &self,
        send: OwnedBuffer,
        to: Rank,
        receive: OwnedBuffer,
        from: Rank,
        tag: Tag,
    ) -> Result<Request> {
        self.pass(Call::StartSendReceive)?.start_send_receive(send, to, receive, from, tag)
    }

    fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>> {
        self.pass(Call::Split)?.split(color, key, name)
    }
}
