//! A decorator that adds up how long callers are held up, and nothing else.
//!
//! Costs two clock readings and one addition a call, so that it can stay in every run; [`crate::ledger`] says which calls
//! they were.
//!
//! Where buffers lie on a device, a call only queues work, and who is held up is the caller's stream. With a [`Clock`] of that
//! device each call is marked there before and after: what lies between the two marks is what the stream stood still for, whether
//! the host waited or not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crate::communicator::Pending;
use crate::{Buffer, BufferMut, Clock, Communicator, Mark, OwnedBuffer, Rank, ReduceOp, Request, Result, Tag};

/// How long callers were held up, shared by a stopwatch and the groups split from it.
#[derive(Debug, Default)]
pub struct Waited {
    nanoseconds: AtomicU64,
    clock: OnceLock<Arc<dyn Clock>>,
    marked: Mutex<Marked>,
}

/// Calls between two marks.
#[derive(Debug, Default)]
struct Marked {
    /// The time of those that are no longer kept.
    seconds: f64,
    calls: Vec<(Box<dyn Mark>, Box<dyn Mark>)>,
}

/// So many calls are kept before the first half of them is added up. By then they are long over.
const MOST_CALLS: usize = 4096;

impl Marked {
    fn add_up(&mut self, count: usize) -> Result<()> {
        for (mut begun, mut ended) in self.calls.drain(..count) {
            self.seconds += begun.seconds_until(&mut *ended)?;
        }
        Ok(())
    }
}

/// What was waited for, all in all.
#[derive(Debug)]
pub struct Wait(Marked);

impl Wait {
    /// Returns the time, and waits for a device to come to the end of it.
    ///
    /// # Units
    /// Seconds.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where a device refuses.
    pub fn seconds(mut self) -> Result<f64> {
        let count = self.0.calls.len();
        self.0.add_up(count)?;
        Ok(self.0.seconds)
    }
}

impl Waited {
    /// Reads the time on a device from now on; a second clock is not taken.
    pub fn read_on(&self, clock: Arc<dyn Clock>) {
        _ = self.clock.set(clock);
    }

    /// Returns what has been added since the last call, and starts again from zero. Nothing is waited for.
    pub fn take(&self) -> Wait {
        let mut marked = std::mem::take(&mut *self.marked());
        marked.seconds += self.nanoseconds.swap(0, Ordering::Relaxed) as f64 * 1e-9;
        Wait(marked)
    }

    fn marked(&self) -> MutexGuard<'_, Marked> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `body`, and adds how long that took.
    fn during<R>(&self, body: impl FnOnce() -> Result<R>) -> Result<R> {
        if let Some(clock) = self.clock.get() {
            let begun = clock.mark()?;
            let result = body()?;
            let ended = clock.mark()?;
            let mut marked = self.marked();
            marked.calls.push((begun, ended));
            if marked.calls.len() >= MOST_CALLS {
                marked.add_up(MOST_CALLS / 2)?;
            }
            return Ok(result);
        }
        let begun = Instant::now();
        let result = body();
        let nanoseconds = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        result
    }

    /// Runs a question that holds no stream up.
    fn during_poll<R>(&self, body: impl FnOnce() -> Result<R>) -> Result<R> {
        match self.clock.get() {
            Some(_) => body(),
            None => self.during(body),
        }
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
/// assert!(waited.take().seconds()? > 0.0);
/// assert_eq!(waited.take().seconds()?, 0.0);
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
        self.waited.during_poll(|| self.request.is_complete())
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
    fn start_send_receive(
        &self,
        send: OwnedBuffer,
        to: Rank,
        receive: OwnedBuffer,
        from: Rank,
        tag: Tag,
    ) -> Result<Request> {
        self.started(|| self.inner.start_send_receive(send, to, receive, from, tag))
    }

    fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>> {
        let part = self.waited.during(|| self.inner.split(color, key, name))?;
        Ok(part.map(|inner| Arc::new(Self::new(inner, Arc::clone(&self.waited))) as Arc<dyn Communicator>))
    }
}
