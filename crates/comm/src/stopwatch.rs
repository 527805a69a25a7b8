//! A decorator that adds up how long callers are held up, and nothing else.
//!
//! Costs two clock readings and one addition a call, so that it can stay in every run; [`crate::ledger`] says which calls
//! they were.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

use crate::communicator::Pending;
use crate::{Buffer, BufferMut, Communicator, OwnedBuffer, Rank, ReduceOp, Request, Result, Tag};

/// How long callers were held up, shared by a stopwatch and the groups split from it.
#[derive(Debug, Default)]
pub struct Waited(AtomicU64);

impl Waited {
    /// Returns what has been added since the last call, and starts again from zero.
    ///
    /// # Units
    /// Seconds.
    pub fn take(&self) -> f64 {
        self.0.swap(0, Ordering::Relaxed) as f64 * 1e-9
    }

    /// Runs `body`, and adds how long that took.
    fn during<R>(&self, body: impl FnOnce() -> R) -> R {
        let begun = Instant::now();
        let result = body();
        let nanoseconds = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanoseconds, Ordering::Relaxed);
        result
    }
}

/// Adds up how long callers are inside calls of the communicator inside and of the groups split from it, and how long they
/// wait for calls that they started. What lies between start and wait is theirs.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use mp_comm::{solo::Solo, stopwatch::{Stopwatch, Waited}, BufferMut, Communicator, ReduceOp};
///
/// let waited = Arc::new(Waited::default());
/// let comm = Stopwatch::new(Arc::new(Solo::new("tp")), Arc::clone(&waited));
/// comm.all_reduce(BufferMut::new(&mut [1.0f32; 8]), ReduceOp::Sum)?;
/// assert!(waited.take() > 0.0);
/// assert_eq!(waited.take(), 0.0);
/// # Ok::<(), mp_comm::Error>(())
/// ```
#[derive(Debug)]
pub struct Stopwatch {
    inner: Arc<dyn Communicator>,
    waited: Arc<Waited>,
}

impl Stopwatch {
    /// Decorates a communicator; several may add to one sum.
    pub fn new(inner: Arc<dyn Communicator>, waited: Arc<Waited>) -> Self {
        Self { inner, waited }
    }

    fn started(&self, body: impl FnOnce() -> Result<Request>) -> Result<Request> {
        let request = self.waited.during(body)?;
        Ok(Request::new(Timed { request, waited: Arc::clone(&self.waited) }))
    }
}

/// A started call.
struct Timed {
    request: Request,
    waited: Arc<Waited>,
}

impl Pending for Timed {
    fn poll(&mut self) -> Result<bool> {
        self.waited.during(|| self.request.is_complete())
    }

    fn finish(self: Box<Self>) -> Result<OwnedBuffer> {
        let Self { request, waited } = *self;
        waited.during(|| request.wait())
    }
}

impl Communicator for Stopwatch {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn rank(&self) -> Rank {
        self.inner.rank()
    }
    fn size(&self) -> usize {
        self.inner.size()
    }
    fn local_rank(&self) -> Rank {
        self.inner.local_rank()
    }
    fn local_size(&self) -> usize {
        self.inner.local_size()
    }
    fn takes_device_pointers(&self) -> bool {
        self.inner.takes_device_pointers()
    }

    fn all_reduce(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        self.waited.during(|| self.inner.all_reduce(buffer, op))
    }
    fn reduce_scatter(&self, send: Buffer<'_>, receive: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        self.waited.during(|| self.inner.reduce_scatter(send, receive, op))
    }
    fn all_gather(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        self.waited.during(|| self.inner.all_gather(send, receive))
    }
    fn all_to_all(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        self.waited.during(|| self.inner.all_to_all(send, receive))
    }
    fn all_to_all_v(
        &self,
        send: Buffer<'_>,
        send_counts: &[usize],
        receive: BufferMut<'_>,
        receive_counts: &[usize],
    ) -> Result<()> {
        self.waited.during(|| self.inner.all_to_all_v(send, send_counts, receive, receive_counts))
    }
    fn broadcast(&self, buffer: BufferMut<'_>, root: Rank) -> Result<()> {
        self.waited.during(|| self.inner.broadcast(buffer, root))
    }
    fn send(&self, buffer: Buffer<'_>, to: Rank, tag: Tag) -> Result<()> {
        self.waited.during(|| self.inner.send(buffer, to, tag))
    }
    fn receive(&self, buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<()> {
        self.waited.during(|| self.inner.receive(buffer, from, tag))
    }
    fn barrier(&self) -> Result<()> {
        self.waited.during(|| self.inner.barrier())
    }

    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        self.started(|| self.inner.start_all_reduce(buffer, op))
    }
    fn start_reduce_scatter(&self, send: OwnedBuffer, receive: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        self.started(|| self.inner.start_reduce_scatter(send, receive, op))
    }
    fn start_all_gather(&self, send: OwnedBuffer, receive: OwnedBuffer) -> Result<Request> {
        self.started(|| self.inner.start_all_gather(send, receive))
    }
    fn start_send(&self, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Request> {
        self.started(|| self.inner.start_send(buffer, to, tag))
    }
    fn start_receive(&self, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Request> {
        self.started(|| self.inner.start_receive(buffer, from, tag))
    }

    fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>> {
        let part = self.waited.during(|| self.inner.split(color, key, name))?;
        Ok(part.map(|inner| Arc::new(Self::new(inner, Arc::clone(&self.waited))) as Arc<dyn Communicator>))
    }
}
