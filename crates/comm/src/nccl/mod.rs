//! Ranks with a device each, over NVIDIA's NCCL.
//!
//! NCCL is found at run time ([`Library::open`]); a program that never asks for it needs none. [`Nccl`] is made of a
//! communicator of the host, over which the ranks find each other, and which carries host buffers from then on.
//!
//! # Order
//! As [`accelerator`](crate::accelerator) says. Each group has a stream of high priority to itself, which waits for the
//! caller's; so that groups which wait for different peers do not wait for each other. On one group calls are made in one
//! order by all ranks.
//!
//! # Messages
//! NCCL knows no tags: what two ranks send and receive is matched by order alone, and an order that differs hangs, or puts
//! elements where others belong. Messages here keep their tags, as the pipeline's schedules need, which receive in other
//! orders than their peers send. So they are carried by [`Staged`] over the communicator of the host.
//! What all ranks start in one order is NCCL's own sends and receives, in one group of its calls each:
//! [`all_to_all`](Communicator::all_to_all), [`all_to_all_v`](Communicator::all_to_all_v) and
//! [`start_send_receive`](Communicator::start_send_receive), by which blocks go round a ring.
//!
//! # Reductions
//! NCCL's: the same bits on every rank; an average of `n` ranks may be a sum of elements that were each multiplied by `1/n`;
//! and bfloat16 is rounded each time that elements of two ranks are added, not once. Reduce in `f32` where that matters.
//!
//! # When something goes wrong
//! Calls are queued and the host goes on, so that a peer that is gone would show as a device that hangs. A thread looks at
//! what is under way. Where NCCL reports an error, or a call has been on the device for longer than the `patience` of the
//! group, it aborts the group's communicator: what hangs ends, and every later call, wait and poll of the group returns an
//! error that names the group, and the call that was under way. What an aborted call has written is worth nothing.
//!
//! # What NCCL refuses
//! Two ranks on one device: [`Error::SharedDevice`] says so before NCCL is asked. Buffers are checked by the CUDA driver to lie
//! on the device that they say, see [`DeviceMemory`](crate::DeviceMemory).

mod calls;
pub(crate) mod driver;
mod handle;
mod library;
mod raw;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::handle::Handle;
pub use self::library::Library;
use self::raw::UniqueId;
use self::watch::Watch;
use crate::arguments::Site;
use crate::communicator::Pending;
use crate::staged::Staged;
use crate::{
    Accelerator, Buffer, BufferMut, Call, Communicator, Error, Event, OwnedBuffer, Place, Rank, ReduceOp, Request,
    Result, Stream, Tag,
};

/// How long a call may be on the device where nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How long a rank waits at most for the others to join, whatever the patience: NCCL takes seconds for it, and a rank that
/// failed is known to the others only once they stop waiting.
const JOINING: Duration = Duration::from_secs(120);

/// One rank's handle of a group of devices.
pub struct Nccl {
    group: Arc<Group>,
}

/// A group on this process; requests under way share it.
struct Group {
    shared: Arc<Shared>,
    /// Host buffers and messages.
    staged: Staged,
    handle: Arc<Handle>,
    stream: Stream,
}

/// What the groups that were split from one another share.
struct Shared {
    library: Arc<Library>,
    accelerator: Arc<dyn Accelerator>,
    patience: Duration,
    watch: Watch,
}

impl Shared {
    /// How long a start waits for the other ranks.
    fn joining(&self) -> Duration {
        self.patience.min(JOINING)
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nccl").field("host", &self.group.staged).field("library", &self.group.shared.library).finish()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.handle.close();
    }
}

impl Nccl {
    /// Joins the devices of a group's ranks, one each. Collective over `host`.
    ///
    /// A call that is on the device for longer than `patience` counts as hung; so does a rank that does not come to join, after
    /// two minutes at most.
    ///
    /// # Errors
    /// On all ranks alike, so that all can take another way: [`Error::SharedDevice`] where two ranks have one device;
    /// [`Error::NcclStart`] where one of them cannot join, in its words; what `host` meets.
    pub fn new(
        host: Arc<dyn Communicator>,
        accelerator: Arc<dyn Accelerator>,
        library: Arc<Library>,
        patience: Duration,
    ) -> Result<Self> {
        let staged = Staged::new(Arc::clone(&host), Arc::clone(&accelerator));
        let staged = together(&*host, staged.as_ref().err()).and(staged)?;
        let watch = Watch::new(Arc::clone(&accelerator));
        Self::over(staged, &Arc::new(Shared { library, accelerator, patience, watch }))
    }

    /// Sums a buffer over the ranks and waits for it, for two minutes at most. NCCL connects ranks when they first communicate: a
    /// group whose ranks have joined may carry nothing, for want of shared memory for instance. Collective over the host.
    ///
    /// `buffer` lies on this device, or is why this rank has none. What it holds is lost.
    ///
    /// # Errors
    /// [`Error::NcclStart`] on all ranks alike, in the words of one that did more than wait in vain; the group is over then.
    pub fn try_out(&self, buffer: Result<OwnedBuffer>) -> Result<()> {
        let tried = buffer.and_then(|buffer| self.summed(buffer));
        let told = together(self.group.staged.host(), tried.as_ref().err());
        told.inspect_err(|error| self.group.handle.give_up(error))
    }

    fn summed(&self, buffer: OwnedBuffer) -> Result<()> {
        let patience = self.group.shared.joining();
        let (mut request, since) = (self.start_all_reduce(buffer, ReduceOp::Sum)?, Instant::now());
        while !request.is_complete()? {
            if since.elapsed() > patience {
                return Err(Error::NcclTimeout {
                    call: Call::StartAllReduce,
                    group: self.name().into(),
                    function: "the device",
                    seconds: patience.as_secs_f64(),
                });
            }
            std::thread::yield_now();
        }
        request.wait().map(drop)
    }

    fn over(staged: Staged, shared: &Arc<Shared>) -> Result<Self> {
        let host = staged.host();
        let accelerator = &shared.accelerator;
        one_device_each(host, &**accelerator)?;
        let id = agree_on_id(host, &shared.library)?;
        let joined = accelerator.select().and_then(|()| {
            let (group, place) = (host.name(), (host.size(), host.rank().0));
            let patience = (shared.joining(), shared.patience);
            Ok((Handle::join(Arc::clone(&shared.library), group, place, id, patience)?, accelerator.side()))
        });
        let (handle, stream) = match joined {
            Ok((handle, stream)) => (Some(handle), stream),
            Err(error) => (None, Err(error)),
        };
        if let Err(error) = together(host, stream.as_ref().err()) {
            // To end it in order would be to wait for those that are not there.
            handle.iter().for_each(|handle| handle.give_up(&error));
            return Err(error);
        }
        let handle = Arc::new(handle.expect("there is a stream, so there is a handle"));
        Ok(Self { group: Arc::new(Group { shared: Arc::clone(shared), staged, handle, stream: stream? }) })
    }

    fn site(&self, call: Call) -> Site<'_> {
        Site { call, group: self.name(), size: self.size() }
    }

    /// Says whether a call is NCCL's: all its buffers on this device, and anything in them.
    fn is_ours(&self, places: &[Place], bytes: usize) -> bool {
        let own = Place::Device(self.group.shared.accelerator.index());
        // The rest passes through, and is refused there where it must be. Of nothing, nothing is sent.
        bytes > 0 && places.iter().all(|place| *place == own)
    }

    /// Makes the caller's stream wait for a blocking call.
    fn order(&self, mut ended: Box<dyn Event>) -> Result<()> {
        ended.block(self.group.shared.accelerator.current()?)
    }

    fn started(&self, ended: Box<dyn Event>, buffer: OwnedBuffer) -> Request {
        Request::new(Underway { group: Arc::clone(&self.group), ended, buffer })
    }
}

/// Refuses a group of which two ranks have the same device. Collective.
fn one_device_each(host: &dyn Communicator, accelerator: &dyn Accelerator) -> Result<()> {
    let mine = accelerator.identity();
    let mine = together(host, mine.as_ref().err()).and(mine)?;
    let mut all = vec![0u8; mine.len() * host.size()];
    host.all_gather(Buffer::new(&mine), BufferMut::new(&mut all))?;
    let devices: Vec<&[u8]> = all.chunks_exact(mine.len()).collect();
    for (second, device) in devices.iter().enumerate() {
        if let Some(first) = devices[..second].iter().position(|other| other == device) {
            return Err(Error::SharedDevice { group: host.name().into(), first: Rank(first), second: Rank(second) });
        }
    }
    Ok(())
}

/// Spreads an id that rank 0 makes. Collective.
fn agree_on_id(host: &dyn Communicator, library: &Library) -> Result<UniqueId> {
    let made = if host.rank() == Rank(0) { library.unique_id() } else { Ok(UniqueId([0; 128])) };
    let made = made.map_err(|(code, message)| Error::Nccl {
        call: Call::Split,
        group: host.name().into(),
        function: "ncclGetUniqueId",
        bytes: 0,
        code,
        message,
    });
    let UniqueId(mut id) = together(host, made.as_ref().err()).and(made)?;
    host.broadcast(BufferMut::new(&mut id), Rank(0))?;
    Ok(UniqueId(id))
}

/// Makes what one rank has met in starting every rank's error, in the words of the lowest rank that did more than wait in vain.
/// Collective.
fn together(host: &dyn Communicator, met: Option<&Error>) -> Result<()> {
    let mine = match met {
        None => 0,
        Some(Error::NcclTimeout { .. }) => 1,
        Some(_) => 2u8,
    };
    let mut all = vec![0u8; host.size()];
    host.all_gather(Buffer::new(&[mine]), BufferMut::new(&mut all))?;
    let worst = all.iter().copied().max().unwrap_or(0);
    let Some(speaker) = all.iter().position(|&met| met == worst && worst > 0) else { return Ok(()) };
    let rank = Rank(speaker);
    let mut words = met.filter(|_| rank == host.rank()).map(|met| met.to_string().into_bytes()).unwrap_or_default();
    let mut length = [words.len() as i64];
    host.broadcast(BufferMut::new(&mut length), rank)?;
    words.resize(length[0] as usize, 0);
    host.broadcast(BufferMut::new(&mut words), rank)?;
    let reason = String::from_utf8_lossy(&words).into_owned();
    Err(Error::NcclStart { group: host.name().into(), rank, reason })
}

/// A started call under way. Dropped, it goes on all the same: its memory is kept for the stream.
struct Underway {
    group: Arc<Group>,
    ended: Box<dyn Event>,
    buffer: OwnedBuffer,
}

impl Pending for Underway {
    fn poll(&mut self) -> Result<bool> {
        self.group.handle.failure()?;
        self.ended.is_done()
    }

    fn finish(mut self: Box<Self>) -> Result<OwnedBuffer> {
        self.group.handle.failure()?;
        self.ended.block(self.group.shared.accelerator.current()?)?;
        Ok(self.buffer)
    }
}

impl Communicator for Nccl {
    fn name(&self) -> &str {
        self.group.staged.name()
    }
    fn rank(&self) -> Rank {
        self.group.staged.rank()
    }
    fn size(&self) -> usize {
        self.group.staged.size()
    }
    fn local_rank(&self) -> Rank {
        self.group.staged.local_rank()
    }
    fn local_size(&self) -> usize {
        self.group.staged.local_size()
    }

    fn all_reduce(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        self.site(Call::AllReduce).op(buffer.kind(), op)?;
        match buffer.device().filter(|_| self.is_ours(&[buffer.place()], buffer.byte_len())) {
            Some(run) => self.order(self.group.all_reduce(Call::AllReduce, run, buffer.kind(), op)?),
            None => self.group.staged.all_reduce(buffer, op),
        }
    }

    fn reduce_scatter(&self, send: Buffer<'_>, receive: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        self.site(Call::ReduceScatter).reduce_scatter(send, receive.as_buffer(), op)?;
        match (send.device(), receive.device()) {
            (Some(from), Some(to)) if self.is_ours(&[send.place(), receive.place()], send.byte_len()) => {
                self.order(self.group.reduce_scatter(Call::ReduceScatter, (from, to), send.kind(), op)?)
            }
            _ => self.group.staged.reduce_scatter(send, receive, op),
        }
    }

    fn all_gather(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        self.site(Call::AllGather).all_gather(send, receive.as_buffer())?;
        match (send.device(), receive.device()) {
            (Some(from), Some(to)) if self.is_ours(&[send.place(), receive.place()], send.byte_len()) => {
                self.order(self.group.all_gather(Call::AllGather, (from, to), send.kind())?)
            }
            _ => self.group.staged.all_gather(send, receive),
        }
    }

    fn all_to_all(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        self.site(Call::AllToAll).all_to_all(send, receive.as_buffer())?;
        match (send.device(), receive.device()) {
            (Some(from), Some(to)) if self.is_ours(&[send.place(), receive.place()], send.byte_len()) => {
                let counts = vec![send.len() / self.size(); self.size()];
                let kind = send.kind();
                self.order(self.group.exchange(Call::AllToAll, (from, &counts), (to, &counts), kind)?)
            }
            _ => self.group.staged.all_to_all(send, receive),
        }
    }

    fn all_to_all_v(
        &self,
        send: Buffer<'_>,
        send_counts: &[usize],
        receive: BufferMut<'_>,
        receive_counts: &[usize],
    ) -> Result<()> {
        let site = self.site(Call::AllToAllV);
        site.all_to_all_v(self.rank(), (send, send_counts), (receive.as_buffer(), receive_counts))?;
        match (send.device(), receive.device()) {
            // Also where this rank has nothing to send: another may.
            (Some(from), Some(to)) if self.is_ours(&[send.place(), receive.place()], 1) => {
                let (kind, send, receive) = (send.kind(), (from, send_counts), (to, receive_counts));
                self.order(self.group.exchange(Call::AllToAllV, send, receive, kind)?)
            }
            _ => self.group.staged.all_to_all_v(send, send_counts, receive, receive_counts),
        }
    }

    fn broadcast(&self, buffer: BufferMut<'_>, root: Rank) -> Result<()> {
        self.site(Call::Broadcast).rank(root)?;
        match buffer.device().filter(|_| self.is_ours(&[buffer.place()], buffer.byte_len())) {
            Some(run) => self.order(self.group.broadcast(run, buffer.kind(), root)?),
            None => self.group.staged.broadcast(buffer, root),
        }
    }

    fn send(&self, buffer: Buffer<'_>, to: Rank, tag: Tag) -> Result<()> {
        self.group.staged.send(buffer, to, tag)
    }

    fn receive(&self, buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<()> {
        self.group.staged.receive(buffer, from, tag)
    }

    fn barrier(&self) -> Result<()> {
        self.group.handle.failure()?;
        self.group.staged.barrier()
    }

    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        self.site(Call::StartAllReduce).op(buffer.kind(), op)?;
        match buffer.device().filter(|_| self.is_ours(&[buffer.place()], buffer.byte_len())) {
            Some(run) => {
                let ended = self.group.all_reduce(Call::StartAllReduce, run, buffer.kind(), op)?;
                Ok(self.started(ended, buffer))
            }
            None => self.group.staged.start_all_reduce(buffer, op),
        }
    }

    fn start_reduce_scatter(&self, send: OwnedBuffer, receive: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        let call = Call::StartReduceScatter;
        self.site(call).reduce_scatter(send.as_buffer(), receive.as_buffer(), op)?;
        match (send.device(), receive.device()) {
            (Some(from), Some(to)) if self.is_ours(&[send.place(), receive.place()], send.byte_len()) => {
                let ended = self.group.reduce_scatter(call, (from, to), send.kind(), op)?;
                Ok(self.started(ended, receive))
            }
            _ => self.group.staged.start_reduce_scatter(send, receive, op),
        }
    }

    fn start_all_gather(&self, send: OwnedBuffer, receive: OwnedBuffer) -> Result<Request> {
        let call = Call::StartAllGather;
        self.site(call).all_gather(send.as_buffer(), receive.as_buffer())?;
        match (send.device(), receive.device()) {
            (Some(from), Some(to)) if self.is_ours(&[send.place(), receive.place()], send.byte_len()) => {
                let ended = self.group.all_gather(call, (from, to), send.kind())?;
                Ok(self.started(ended, receive))
            }
            _ => self.group.staged.start_all_gather(send, receive),
        }
    }

    fn start_send(&self, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Request> {
        self.group.staged.start_send(buffer, to, tag)
    }

    fn start_receive(&self, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Request> {
        self.group.staged.start_receive(buffer, from, tag)
    }

    fn start_send_receive(
        &self,
        send: OwnedBuffer,
        to: Rank,
        receive: OwnedBuffer,
        from: Rank,
        tag: Tag,
    ) -> Result<Request> {
        let call = Call::StartSendReceive;
        self.site(call).paired(self.rank(), to, from)?;
        match (send.device(), receive.device()) {
            // Also where this rank has nothing to send or to receive: it is its peers' order, too.
            (Some(here), Some(there)) if self.is_ours(&[send.place(), receive.place()], 1) => {
                let (sent, received) = ((here, send.kind(), to), (there, receive.kind(), from));
                let ended = self.group.send_receive(call, sent, received)?;
                Ok(self.started(ended, receive))
            }
            _ => self.group.staged.start_send_receive(send, to, receive, from, tag),
        }
    }

    fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>> {
        let part = self.group.staged.host().split(color, key, name)?;
        let joined = part.map(|host| Self::over(self.group.staged.beside(host), &self.group.shared)).transpose()?;
        Ok(joined.map(|nccl| Arc::new(nccl) as Arc<dyn Communicator>))
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
