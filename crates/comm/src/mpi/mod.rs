//! Ranks as processes, over an MPI library.
//!
//! [`Mpi::initialize`] starts MPI and returns the guard [`MpiWorld`]; groups come from its communicator by
//! [`split`](Communicator::split). Every MPI call's return code is checked, and an error names the call, the group, the
//! peer and the size.
//!
//! # Threads
//! MPI_THREAD_MULTIPLE is asked for. A library that grants MPI_THREAD_SERIALIZED only is used through one lock, with
//! blocking calls replaced by started ones that are polled, so that a waiting thread keeps no other out. Less is refused.
//!
//! # Large transfers
//! Long transfers are cut: MPI counts are C `int`s, and Open MPI's algorithms slow down beyond the cache. Measured with
//! Open MPI 5.0.11 on two ranks of a two-core machine, a loop of MPI_Allreduce over 64 MiB of `f32`: 0.6 GB/s in one
//! call, 2.3 in chunks of 256 KiB, 2.8 in chunks of 1 MiB, 2.1 in chunks of 4 MiB; at 4 MiB one call and chunks of 1 MiB
//! reach 5.5 GB/s alike. MPI_Iallreduce stays at 0.3 to 0.6 GB/s there however it is cut, as long as all chunks are in
//! flight at once: started collectives therefore keep two in flight. `examples/bandwidth.rs` measures the outcome.
//!
//! Splits alone have no started form: on such a library only one thread of a process may split at a time, or two that
//! hold the lock on two ranks wait for each other.
//!
//! # Progress
//! Requests move while any thread of the process is inside a call of this crate: a wait, a poll, a blocking call. What a
//! rank that computes has started moves no further than the library carries it alone (short messages do arrive), so that
//! a long computation should poll now and then. Requests that are dropped go on moving; the end of MPI waits for them.
//!
//! # What is not detected
//! MPI does not compare what the ranks of a collective pass. Calls that differ between ranks in kind, length, reduction,
//! root or the call itself may hang, or return wrong elements; run the same code over [`threads`](crate::threads), which
//! detects all of these.
//!
//! Of a message its bytes arrive, in chunks of [`MESSAGE_CHUNK_BYTES`] with the odd one first. The receiver compares each
//! chunk's length with its own, so that
//!
//! - lengths that differ by no whole number of chunks are an error at the receiver, [`Error::Length`](crate::Error::Length)
//!   in bytes or [`Error::Mpi`](crate::Error::Mpi);
//! - a message that is longer by whole chunks is not noticed: the chunks left over are taken for the next message's;
//! - one that is shorter by whole chunks hangs, or takes the next message's chunks;
//! - another kind is not noticed where the bytes are as many, two `f32` for one `f64` as well as an `i64` for it.
//!
//! A paired send and receive is two messages with its tag: ranks that start several in different orders are not noticed where
//! the messages fit, and hang over NCCL.
//!
//! After such an error the group is out of step: end the run. So is it when a rank's own arguments to a collective are
//! refused on some ranks only.

mod blocking;
mod direct;
mod engine;
mod group;
mod legs;
mod messages;
mod raw;
mod scale;
mod session;

use std::fmt;
use std::sync::Arc;

use self::engine::Task;
use self::group::Group;
pub use self::session::{abort, library, Library, MpiWorld, ThreadLevel};
use crate::communicator::Both;
use crate::{Buffer, BufferMut, Call, Communicator, OwnedBuffer, Rank, ReduceOp, Request, Result, Tag};

/// Bytes handed to one MPI reduction, or broadcast within an all-gather.
pub const REDUCE_CHUNK_BYTES: usize = 1 << 20;

/// Bytes of one MPI message, or of one MPI broadcast.
pub const MESSAGE_CHUNK_BYTES: usize = 2 << 20;

/// Bytes that go to each peer in one step of a started reduce-scatter or all-gather.
const EXCHANGE_CHUNK_BYTES: usize = 512 << 10;

/// Up to here MPI's own algorithm is used, in one call.
const SMALL_BYTES: usize = 1 << 20;

/// One process's handle of a group.
pub struct Mpi {
    group: Arc<Group>,
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Group { name, rank, size, .. } = &*self.group;
        f.debug_struct("Mpi").field("name", name).field("rank", rank).field("size", size).finish()
    }
}

impl Mpi {
    /// Starts MPI, once in a process, and returns its guard.
    ///
    /// # Errors
    /// [`Error::ThreadLevel`](crate::Error::ThreadLevel) below MPI_THREAD_SERIALIZED,
    /// [`Error::Lifecycle`](crate::Error::Lifecycle) where MPI has started already,
    /// [`Error::Start`](crate::Error::Start) where the library fails.
    ///
    /// # Source
    /// MPI 4.1, §11.6.2 MPI_Init_thread.
    pub fn initialize() -> Result<MpiWorld> {
        Self::initialize_with(ThreadLevel::Multiple)
    }

    /// Starts MPI at a thread level of at most `wanted`; all ranks ask for the same.
    ///
    /// # Errors
    /// As for [`initialize`](Self::initialize).
    pub fn initialize_with(wanted: ThreadLevel) -> Result<MpiWorld> {
        session::initialize(wanted)
    }

    fn new(group: Group) -> Self {
        Self { group: Arc::new(group) }
    }
}

impl Communicator for Mpi {
    fn name(&self) -> &str {
        &self.group.name
    }
    fn rank(&self) -> Rank {
        Rank(self.group.rank)
    }
    fn size(&self) -> usize {
        self.group.size
    }
    fn local_rank(&self) -> Rank {
        Rank(self.group.local_rank)
    }
    fn local_size(&self) -> usize {
        self.group.local_size
    }
    fn takes_device_pointers(&self) -> bool {
        direct::allowed()
    }

    fn all_reduce(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        let site = self.group.site(Call::AllReduce);
        site.op(buffer.kind(), op)?;
        if let Some(span) = direct::span(site, buffer.as_buffer())? {
            return direct::all_reduce(&self.group, span, op);
        }
        blocking::all_reduce(&self.group, site.host_mut(buffer)?, op)
    }

    fn reduce_scatter(&self, send: Buffer<'_>, receive: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        let site = self.group.site(Call::ReduceScatter);
        site.reduce_scatter(send, receive.as_buffer(), op)?;
        if let Some(spans) = direct::both(site, send, &receive)? {
            return direct::reduce_scatter(&self.group, spans, op);
        }
        blocking::reduce_scatter(&self.group, site.host(send)?, site.host_mut(receive)?, op)
    }

    fn all_gather(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        let site = self.group.site(Call::AllGather);
        site.all_gather(send, receive.as_buffer())?;
        if let Some(spans) = direct::both(site, send, &receive)? {
            return direct::all_gather(&self.group, spans);
        }
        blocking::all_gather(&self.group, site.host(send)?, site.host_mut(receive)?)
    }

    fn all_to_all(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        let site = self.group.site(Call::AllToAll);
        site.all_to_all(send, receive.as_buffer())?;
        if let Some(spans) = direct::both(site, send, &receive)? {
            return direct::all_to_all(&self.group, spans);
        }
        blocking::all_to_all(&self.group, site.host(send)?, site.host_mut(receive)?)
    }

    fn all_to_all_v(
        &self,
        send: Buffer<'_>,
        send_counts: &[usize],
        receive: BufferMut<'_>,
        receive_counts: &[usize],
    ) -> Result<()> {
        let site = self.group.site(Call::AllToAllV);
        site.all_to_all_v(self.rank(), (send, send_counts), (receive.as_buffer(), receive_counts))?;
        let (send, receive) = (site.host(send)?, site.host_mut(receive)?);
        blocking::all_to_all_v(&self.group, (send, send_counts), (receive, receive_counts))
    }

    fn broadcast(&self, buffer: BufferMut<'_>, root: Rank) -> Result<()> {
        let site = self.group.site(Call::Broadcast);
        site.rank(root)?;
        if let Some(span) = direct::span(site, buffer.as_buffer())? {
            return direct::broadcast(&self.group, span, root);
        }
        blocking::broadcast(&self.group, site.host_mut(buffer)?, root)
    }

    fn send(&self, buffer: Buffer<'_>, to: Rank, tag: Tag) -> Result<()> {
        let site = self.group.site(Call::Send);
        site.peer(self.rank(), to)?;
        if let Some(span) = direct::span(site, buffer)? {
            return direct::send(&self.group, span, to, tag);
        }
        messages::send(&self.group, site.host(buffer)?, to, tag)
    }

    fn receive(&self, buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<()> {
        let site = self.group.site(Call::Receive);
        site.rank(from)?;
        if let Some(span) = direct::span(site, buffer.as_buffer())? {
            return direct::receive(&self.group, span, from, tag);
        }
        messages::receive(&self.group, site.host_mut(buffer)?, from, tag)
    }

    fn barrier(&self) -> Result<()> {
        blocking::barrier(&self.group)
    }

    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        let call = Call::StartAllReduce;
        let site = self.group.site(call);
        site.op(buffer.kind(), op)?;
        site.owned(&buffer)?;
        Ok(Request::new(engine::start(&self.group, call, Task::AllReduce { op }, buffer)?))
    }

    fn start_reduce_scatter(&self, send: OwnedBuffer, receive: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        let call = Call::StartReduceScatter;
        let site = self.group.site(call);
        site.reduce_scatter(send.as_buffer(), receive.as_buffer(), op)?;
        site.owned(&send).and_then(|()| site.owned(&receive))?;
        Ok(Request::new(engine::start(&self.group, call, Task::ReduceScatter { send, op }, receive)?))
    }

    fn start_all_gather(&self, send: OwnedBuffer, receive: OwnedBuffer) -> Result<Request> {
        let call = Call::StartAllGather;
        let site = self.group.site(call);
        site.all_gather(send.as_buffer(), receive.as_buffer())?;
        site.owned(&send).and_then(|()| site.owned(&receive))?;
        Ok(Request::new(engine::start(&self.group, call, Task::AllGather { send }, receive)?))
    }

    fn start_send(&self, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Request> {
        let site = self.group.site(Call::StartSend);
        site.rank(to)?;
        site.owned(&buffer)?;
        Ok(Request::new(messages::start_send(&self.group, site.call, buffer, to, tag)?))
    }

    fn start_receive(&self, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Request> {
        let site = self.group.site(Call::StartReceive);
        site.rank(from)?;
        site.owned(&buffer)?;
        Ok(Request::new(messages::start_receive(&self.group, site.call, buffer, from, tag)?))
    }

    fn start_send_receive(
        &self,
        send: OwnedBuffer,
        to: Rank,
        receive: OwnedBuffer,
        from: Rank,
        tag: Tag,
    ) -> Result<Request> {
        let site = self.group.site(Call::StartSendReceive);
        site.paired(self.rank(), to, from)?;
        site.owned(&send).and_then(|()| site.owned(&receive))?;
        let received = Request::new(messages::start_receive(&self.group, site.call, receive, from, tag)?);
        let sent = Request::new(messages::start_send(&self.group, site.call, send, to, tag)?);
        Ok(Request::new(Both { sent, received }))
    }

    fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>> {
        let part = self.group.split(color, key, name)?;
        Ok(part.map(|group| Arc::new(Mpi::new(group)) as Arc<dyn Communicator>))
    }
}
