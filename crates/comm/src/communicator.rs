//! The seam: what every process group can do, whatever carries the bytes.

use std::fmt;
use std::sync::Arc;

#[cfg(doc)]
use crate::Error;
use crate::{Buffer, BufferMut, OwnedBuffer, Result};

/// A process's index in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rank(pub usize);

/// Tells apart the messages between one pair of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(pub u16);

/// How elements of several ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// Sum.
    Sum,
    /// Largest.
    Max,
    /// Smallest.
    Min,
    /// Sum divided by the group's size; floating-point kinds only.
    Avg,
}

/// A group of ranks that communicate together.
///
/// Calls on one group must be made in the same order by all its ranks; non-blocking collectives count where they are
/// started, and do not match blocking ones. Messages between two ranks with one tag arrive in the order in which they were
/// sent, and receives get them in the order in which they were started.
///
/// # Reductions
/// bfloat16 accumulates in `f32` and is rounded once. Integers wrap. Every rank gets the same bits. What Max and Min make
/// of NaN is up to the backend.
///
/// # Errors
/// Every call refuses bad arguments of its own before anything is sent, with the errors named below. Besides these a call
/// may fail with what its backend meets: [`Error::PeerGone`], [`Error::Mismatch`] and [`Error::PeerRefused`] over threads,
/// [`Error::Mpi`] over MPI. Ranks that disagree about a call are an error on all of them over threads; MPI does not detect
/// it (see the module of the backend).
pub trait Communicator: Send + Sync + fmt::Debug {
    /// Returns the group's name, `"tp"` for instance.
    fn name(&self) -> &str;
    /// Returns this process's index in the group.
    fn rank(&self) -> Rank;
    /// Returns the group's length.
    fn size(&self) -> usize;
    /// Returns this process's index among those of the group on the same node.
    fn local_rank(&self) -> Rank;
    /// Returns how many processes of the group share this node.
    fn local_size(&self) -> usize;

    /// Says whether blocking calls take buffers on a device, as addresses: of memory that no queued work is using, and that
    /// is free to be used when the call returns.
    ///
    /// [`Staged`](crate::staged::Staged) asks this of the communicator inside. Not so uneven all-to-alls, averages and
    /// reductions of bfloat16, which are never asked for.
    fn takes_device_pointers(&self) -> bool {
        false
    }

    /// Reduces elementwise in place; every rank ends with the result.
    ///
    /// # Errors
    /// [`Error::UnsupportedOp`] for an average of integers.
    ///
    /// # Source
    /// MPI 4.1, §6.9.6 MPI_Allreduce; Avg is ours.
    fn all_reduce(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()>;
    /// Reduces `size · n` elements elementwise; rank `i` receives the `i`-th run of `n`.
    ///
    /// # Shapes
    /// - `send`: `size · n`
    /// - `receive`: `n`
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NotDivisible`], [`Error::Kind`], [`Error::UnsupportedOp`].
    ///
    /// # Source
    /// MPI 4.1, §6.10.1 MPI_Reduce_scatter_block.
    fn reduce_scatter(&self, send: Buffer<'_>, receive: BufferMut<'_>, op: ReduceOp) -> Result<()>;
    /// Joins every rank's `n` elements, in rank order, on every rank.
    ///
    /// # Shapes
    /// - `send`: `n`
    /// - `receive`: `size · n`
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Kind`].
    ///
    /// # Source
    /// MPI 4.1, §6.7 MPI_Allgather.
    fn all_gather(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()>;
    /// Sends the `i`-th of `size` equal runs to rank `i`.
    ///
    /// # Shapes
    /// - `send`, `receive`: `size · n`
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NotDivisible`], [`Error::Kind`].
    ///
    /// # Source
    /// MPI 4.1, §6.8 MPI_Alltoall.
    fn all_to_all(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()>;
    /// Sends `send_counts[i]` elements to rank `i` and receives `receive_counts[i]` from it, runs packed in rank order.
    ///
    /// # Shapes
    /// - `send`: the sum of `send_counts`
    /// - `receive`: the sum of `receive_counts`
    ///
    /// # Errors
    /// [`Error::Length`] also for lists that do not hold one count a rank; [`Error::Kind`].
    ///
    /// # Source
    /// MPI 4.1, §6.8 MPI_Alltoallv, without displacements.
    fn all_to_all_v(
        &self,
        send: Buffer<'_>,
        send_counts: &[usize],
        receive: BufferMut<'_>,
        receive_counts: &[usize],
    ) -> Result<()>;
    /// Copies the root's elements to every rank.
    ///
    /// # Errors
    /// [`Error::NoSuchRank`].
    ///
    /// # Source
    /// MPI 4.1, §6.4 MPI_Bcast.
    fn broadcast(&self, buffer: BufferMut<'_>, root: Rank) -> Result<()>;
    /// Sends to one rank; may return before the peer has received.
    ///
    /// # Errors
    /// [`Error::NoSuchRank`]; [`Error::ToItself`], where [`start_send`](Self::start_send) serves.
    ///
    /// # Source
    /// MPI 4.1, §3.2 MPI_Send.
    fn send(&self, buffer: Buffer<'_>, to: Rank, tag: Tag) -> Result<()>;
    /// Receives from one rank exactly `buffer.len()` elements.
    ///
    /// # Errors
    /// [`Error::NoSuchRank`]; [`Error::Length`] or [`Error::Kind`] for another message than expected.
    ///
    /// # Source
    /// MPI 4.1, §3.2 MPI_Recv.
    fn receive(&self, buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<()>;
    /// Returns once every rank has called it.
    ///
    /// # Source
    /// MPI 4.1, §6.3 MPI_Barrier.
    fn barrier(&self) -> Result<()>;

    /// Starts an [`all_reduce`](Self::all_reduce); the request gives the buffer back.
    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request>;
    /// Starts a [`reduce_scatter`](Self::reduce_scatter); the request gives `receive` back.
    fn start_reduce_scatter(&self, send: OwnedBuffer, receive: OwnedBuffer, op: ReduceOp) -> Result<Request>;
    /// Starts an [`all_gather`](Self::all_gather); the request gives `receive` back.
    fn start_all_gather(&self, send: OwnedBuffer, receive: OwnedBuffer) -> Result<Request>;
    /// Starts a [`send`](Self::send); the request gives the buffer back.
    fn start_send(&self, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Request>;
    /// Starts a [`receive`](Self::receive); the request gives the buffer back.
    fn start_receive(&self, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Request>;
    /// Starts a send to one rank and a receive from one, as one operation; the request gives `receive` back, once both are
    /// over.
    ///
    /// Counts among the group's collectives, other than messages: all ranks start it, in the same order among them and with
    /// the same tag, and the rank that a rank sends to names that rank in `from`. So a backend may go by the order alone. One
    /// that knows tags may carry messages instead: while it is under way no [`send`](Self::send) and no
    /// [`receive`](Self::receive) of the group has this tag. Several may be under way, with one tag or with several.
    ///
    /// Both ranks may be this one. What is sent and what is received may differ in length and kind, and either may be empty;
    /// the buffers of all ranks lie alike, on the host or on a device each.
    ///
    /// # Errors
    /// [`Error::NoSuchRank`]; [`Error::Unpaired`]; [`Error::Length`] or [`Error::Kind`] for another message than expected,
    /// which over threads is [`Error::Mismatch`] on all ranks.
    ///
    /// # Source
    /// MPI 4.1, §3.10 MPI_Isendrecv; that it is collective is ours.
    fn start_send_receive(
        &self,
        send: OwnedBuffer,
        to: Rank,
        receive: OwnedBuffer,
        from: Rank,
        tag: Tag,
    ) -> Result<Request>;

    /// Cuts the group: ranks with the same color form a new one, ordered by `key` then old rank.
    ///
    /// Collective over the group. `None` joins no new group and gets `None`.
    ///
    /// # Errors
    /// What the backend meets; refusals are collective too.
    ///
    /// # Source
    /// MPI 4.1, §7.4.2 MPI_Comm_split.
    fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>>;
}

/// What a backend keeps of an operation under way. It owns the buffers.
pub trait Pending: Send {
    /// Moves the operation forward without blocking; says whether it is complete.
    fn poll(&mut self) -> Result<bool>;
    /// Blocks until complete and gives the buffer back.
    fn finish(self: Box<Self>) -> Result<OwnedBuffer>;
}

/// An operation under way, with its buffers.
#[must_use = "an operation completes when its request is waited for"]
pub struct Request(Box<dyn Pending>);

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request")
    }
}

impl Request {
    /// Wraps a backend's own state.
    pub fn new(pending: impl Pending + 'static) -> Self {
        Self(Box::new(pending))
    }

    /// Makes a request that is complete already.
    pub fn ready(buffer: OwnedBuffer) -> Self {
        Self::new(Ready(buffer))
    }

    /// Says whether the operation is complete, and moves it forward.
    ///
    /// # Errors
    /// What the operation fails with; [`wait`](Self::wait) then fails as well.
    pub fn is_complete(&mut self) -> Result<bool> {
        self.0.poll()
    }

    /// Waits for completion and gives the buffer back.
    ///
    /// A request that is dropped instead still completes, for the peers' sake; its buffer is lost.
    ///
    /// # Errors
    /// What the operation fails with; its buffer is lost.
    pub fn wait(self) -> Result<OwnedBuffer> {
        self.0.finish()
    }
}

/// A send and a receive as one operation, whose buffer is the received one.
pub(crate) struct Both {
    pub(crate) sent: Request,
    pub(crate) received: Request,
}

impl Pending for Both {
    fn poll(&mut self) -> Result<bool> {
        // Both are asked, so that both move.
        let (sent, received) = (self.sent.is_complete()?, self.received.is_complete()?);
        Ok(sent && received)
    }
    fn finish(self: Box<Self>) -> Result<OwnedBuffer> {
        let Self { sent, received } = *self;
        // Should the receive fail, the send goes on as any that is dropped.
        let buffer = received.wait()?;
        sent.wait()?;
        Ok(buffer)
    }
}

/// An operation that was over when it started.
struct Ready(OwnedBuffer);

impl Pending for Ready {
    fn poll(&mut self) -> Result<bool> {
        Ok(true)
    }
    fn finish(self: Box<Self>) -> Result<OwnedBuffer> {
        Ok(self.0)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Is complete at its n-th poll; counts who waits for it.
    struct Slow {
        polls: usize,
        waited: Arc<AtomicUsize>,
        mark: u8,
    }

    impl Pending for Slow {
        fn poll(&mut self) -> Result<bool> {
            self.polls = self.polls.saturating_sub(1);
            Ok(self.polls == 0)
        }
        fn finish(self: Box<Self>) -> Result<OwnedBuffer> {
            self.waited.fetch_add(1, Ordering::Relaxed);
            Ok(vec![self.mark].into())
        }
    }

    #[test]
    fn a_pair_moves_and_waits_for_both_of_its_ends() {
        for (sent, received) in [(1, 4), (4, 1), (3, 3)] {
            let waited = Arc::new(AtomicUsize::new(0));
            let slow = |polls, mark| Request::new(Slow { polls, waited: Arc::clone(&waited), mark });
            let mut pair = Request::new(Both { sent: slow(sent, 1), received: slow(received, 2) });
            for poll in 1..=5 {
                assert_eq!(pair.is_complete(), Ok(poll >= sent.max(received)), "poll {poll} of {sent} and {received}");
            }
            assert_eq!(pair.wait().expect("both are over").to_vec::<u8>(), [2]);
            assert_eq!(waited.load(Ordering::Relaxed), 2);
        }
    }
}
