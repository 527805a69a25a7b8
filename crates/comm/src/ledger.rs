//! A decorator that records what a group's ranks call, how much they send, and how long it takes.
//!
//! Costs one clock reading and one short lock at each end of a call; nothing is formatted unless a `tracing` subscriber
//! asks for the spans.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::communicator::Pending;
use crate::{Buffer, BufferMut, Call, Communicator, OwnedBuffer, Rank, ReduceOp, Request, Result, Tag};

/// One call, as a rank made it.
///
/// # Units
/// `bytes`: what this rank handed over, in bytes. `seconds`: from the start of the call to its end, or to the end of
/// the wait for a started one. `blocked_seconds`: the part of it that the caller spent inside the call and the wait.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Entry {
    /// Position among the calls recorded in the log, from 0, in the order in which they were made.
    pub sequence: u64,
    /// The call.
    pub call: Call,
    /// The group's name.
    pub group: Arc<str>,
    /// How many bytes this rank sent, or received where it only receives.
    pub bytes: u64,
    /// How long the call took, from its start to its completion as the caller saw it.
    pub seconds: f64,
    /// How long the caller was held up.
    pub blocked_seconds: f64,
    /// Whether it ended without an error.
    pub succeeded: bool,
}

/// The sum of a group's calls of one sort.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Total {
    /// How many.
    pub calls: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their seconds.
    pub seconds: f64,
    /// The seconds that the caller was held up.
    pub blocked_seconds: f64,
}

/// What was recorded, shared by a ledger and the groups split from it.
#[derive(Debug, Default)]
pub struct Log(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    entries: Vec<Entry>,
}

impl Log {
    /// Makes an empty log.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> u64 {
        let mut state = self.lock();
        state.next += 1;
        state.next - 1
    }

    /// Takes the completed calls out, ordered by sequence number. Calls under way are recorded when they complete.
    pub fn take(&self) -> Vec<Entry> {
        let mut entries = std::mem::take(&mut self.lock().entries);
        entries.sort_unstable_by_key(|entry| entry.sequence);
        entries
    }

    /// Sums the completed calls that have not been taken, by group and call.
    pub fn totals(&self) -> BTreeMap<(Arc<str>, Call), Total> {
        let mut totals: BTreeMap<_, Total> = BTreeMap::new();
        for entry in &self.lock().entries {
            let total = totals.entry((Arc::clone(&entry.group), entry.call)).or_default();
            total.calls += 1;
            total.bytes += entry.bytes;
            total.seconds += entry.seconds;
            total.blocked_seconds += entry.blocked_seconds;
        }
        totals
    }
}

/// Records every call of the communicator inside, and of the groups split from it.
///
/// Each call also is a `tracing` span at trace level, target `mp_comm`, with the fields `group`, `bytes` and `sequence`.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use mp_comm::{ledger::{Ledger, Log}, solo::Solo, BufferMut, Call, Communicator, ReduceOp};
///
/// let log = Arc::new(Log::new());
/// let comm = Ledger::new(Arc::new(Solo::new("tp")), Arc::clone(&log));
/// comm.all_reduce(BufferMut::new(&mut [1.0f32; 8]), ReduceOp::Sum)?;
/// assert_eq!(log.totals()[&("tp".into(), Call::AllReduce)].bytes, 32);
/// # Ok::<(), mp_comm::Error>(())
/// ```
#[derive(Debug)]
pub struct Ledger {
    inner: Arc<dyn Communicator>,
    log: Arc<Log>,
    group: Arc<str>,
}

impl Ledger {
    /// Decorates a communicator; several may share one log.
    pub fn new(inner: Arc<dyn Communicator>, log: Arc<Log>) -> Self {
        let group = inner.name().into();
        Self { inner, log, group }
    }

    fn open(&self, call: Call, bytes: usize) -> Open {
        let (log, group) = (Arc::clone(&self.log), Arc::clone(&self.group));
        Open { sequence: log.number(), log, group, call, bytes: bytes as u64, start: Instant::now(), blocked: 0.0 }
    }

    fn record<R>(&self, call: Call, bytes: usize, body: impl FnOnce() -> Result<R>) -> Result<R> {
        let open = self.open(call, bytes);
        let result = open.span().in_scope(body);
        open.close(None, result.is_ok());
        result
    }

    fn started(&self, call: Call, bytes: usize, body: impl FnOnce() -> Result<Request>) -> Result<Request> {
        let mut open = self.open(call, bytes);
        let result = open.span().in_scope(body);
        open.blocked = open.start.elapsed().as_secs_f64();
        match result {
            Ok(request) => Ok(Request::new(Watched { request: Some(request), open: Some(open) })),
            Err(error) => {
                open.close(None, false);
                Err(error)
            }
        }
    }
}

/// A call that has not ended.
struct Open {
    log: Arc<Log>,
    sequence: u64,
    group: Arc<str>,
    call: Call,
    bytes: u64,
    start: Instant,
    /// What a started call has cost its caller so far.
    blocked: f64,
}

impl Open {
    fn span(&self) -> tracing::Span {
        let Self { call, group, bytes, sequence, .. } = self;
        tracing::trace_span!(target: "mp_comm", "communicate", call = call.name(), %group, bytes, sequence)
    }

    /// Notes the end; a blocking call, without `blocked_seconds`, held its caller up throughout.
    fn close(self, blocked_seconds: Option<f64>, succeeded: bool) {
        let seconds = self.start.elapsed().as_secs_f64();
        let Self { log, sequence, group, call, bytes, .. } = self;
        let blocked_seconds = blocked_seconds.unwrap_or(seconds);
        log.lock().entries.push(Entry { sequence, call, group, bytes, seconds, blocked_seconds, succeeded });
    }
}

/// A started call. One that is dropped is recorded as not having succeeded.
struct Watched {
    request: Option<Request>,
    open: Option<Open>,
}

impl Pending for Watched {
    fn poll(&mut self) -> Result<bool> {
        self.request.as_mut().map_or(Ok(true), Request::is_complete)
    }

    fn finish(mut self: Box<Self>) -> Result<OwnedBuffer> {
        let (Some(request), Some(open)) = (self.request.take(), self.open.take()) else {
            unreachable!("a request finishes once")
        };
        let waiting = Instant::now();
        let result = open.span().in_scope(|| request.wait());
        let blocked = open.blocked + waiting.elapsed().as_secs_f64();
        open.close(Some(blocked), result.is_ok());
        result
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            let blocked = open.blocked;
            open.close(Some(blocked), false);
        }
    }
}

impl Communicator for Ledger {
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
        self.record(Call::AllReduce, buffer.byte_len(), || self.inner.all_reduce(buffer, op))
    }
    fn reduce_scatter(&self, send: Buffer<'_>, receive: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        self.record(Call::ReduceScatter, send.byte_len(), || self.inner.reduce_scatter(send, receive, op))
    }
    fn all_gather(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        self.record(Call::AllGather, send.byte_len(), || self.inner.all_gather(send, receive))
    }
    fn all_to_all(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        self.record(Call::AllToAll, send.byte_len(), || self.inner.all_to_all(send, receive))
    }
    fn all_to_all_v(
        &self,
        send: Buffer<'_>,
        send_counts: &[usize],
        receive: BufferMut<'_>,
        receive_counts: &[usize],
    ) -> Result<()> {
        self.record(Call::AllToAllV, send.byte_len(), || {
            self.inner.all_to_all_v(send, send_counts, receive, receive_counts)
        })
    }
    fn broadcast(&self, buffer: BufferMut<'_>, root: Rank) -> Result<()> {
        self.record(Call::Broadcast, buffer.byte_len(), || self.inner.broadcast(buffer, root))
    }
    fn send(&self, buffer: Buffer<'_>, to: Rank, tag: Tag) -> Result<()> {
        self.record(Call::Send, buffer.byte_len(), || self.inner.send(buffer, to, tag))
    }
    fn receive(&self, buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<()> {
        self.record(Call::Receive, buffer.byte_len(), || self.inner.receive(buffer, from, tag))
    }
    fn barrier(&self) -> Result<()> {
        self.record(Call::Barrier, 0, || self.inner.barrier())
    }

    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        let bytes = buffer.byte_len();
        self.started(Call::StartAllReduce, bytes, || self.inner.start_all_reduce(buffer, op))
    }
    fn start_reduce_scatter(&self, send: OwnedBuffer, receive: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        let bytes = send.byte_len();
        self.started(Call::StartReduceScatter, bytes, || self.inner.start_reduce_scatter(send, receive, op))
    }
    fn start_all_gather(&self, send: OwnedBuffer, receive: OwnedBuffer) -> Result<Request> {
        let bytes = send.byte_len();
        self.started(Call::StartAllGather, bytes, || self.inner.start_all_gather(send, receive))
    }
    fn start_send(&self, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Request> {
        let bytes = buffer.byte_len();
        self.started(Call::StartSend, bytes, || self.inner.start_send(buffer, to, tag))
    }
    fn start_receive(&self, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Request> {
        let bytes = buffer.byte_len();
        self.started(Call::StartReceive, bytes, || self.inner.start_receive(buffer, from, tag))
    }
    fn start_send_receive(
        &self,
        send: OwnedBuffer,
        to: Rank,
        receive: OwnedBuffer,
        from: Rank,
        tag: Tag,
    ) -> Result<Request> {
        let bytes = send.byte_len();
        self.started(Call::StartSendReceive, bytes, || self.inner.start_send_receive(send, to, receive, from, tag))
    }

    fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>> {
        let part = self.record(Call::Split, 0, || self.inner.split(color, key, name))?;
        Ok(part.map(|inner| Arc::new(Ledger::new(inner, Arc::clone(&self.log))) as Arc<dyn Communicator>))
    }
}
