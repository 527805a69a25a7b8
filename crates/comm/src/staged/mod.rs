//! Carries buffers on a device through page-locked memory of the host, over any communicator of host memory.
//!
//! What several ranks on one GPU use, which NCCL refuses, and what serves where there is no NCCL.
//!
//! # How
//! A call is cut in [`CHUNK_BYTES`]. A chunk goes down to the host, through the communicator inside, and back up. All
//! copies are queued on one stream of their own, which waits for the caller's stream first and which that waits for in the
//! end. Two chunks of a blocking call are under way at a time: while one is communicated, the next goes down and the last
//! one up. A started call queues all its copies down at once, so that it holds as much host memory as it moves.
//!
//! Host memory is kept for the next call; whoever takes it waits until no copy uses it any more. Buffers of the host pass
//! through. A group of one moves memory within the device.
//!
//! # Device pointers
//! Where the communicator inside [takes them](Communicator::takes_device_pointers), and [`Staged::direct`] made this one, a
//! blocking call hands it the device's own memory, in one piece, once the caller's stream has come to the call: the host waits
//! for an event. Uneven all-to-alls, averages, reductions of bfloat16, what is 2³¹ bytes or more, and all that is started go
//! through host memory all the same; messages go in the same pieces either way, so that their two ends may differ.
//!
//! # Progress
//! What was started enters the communicator inside once its copy down is done. That is seen to whenever any thread is
//! inside a call of a group that was split from the same [`Staged`]; before such a call blocks on peers it lets all of it in,
//! in the order of the starts. For that it waits for the device alone, so that no two ranks wait for each other. The rest
//! is up to the communicator inside.
//!
//! # Reductions
//! Are made by the host, with the promises of the communicator inside.

mod blocking;
mod slots;
mod started;
mod steps;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::slots::Slots;
use self::started::{Operation, Queue, Underway, What};
use self::steps::{Step, Way};
use crate::arguments::Site;
use crate::communicator::Both;
use crate::{
    Accelerator, Buffer, BufferMut, Call, Communicator, DeviceRun, Error, Kind, OwnedBuffer, Place, Rank, ReduceOp,
    Request, Result, Stream, Tag,
};

/// Bytes of device memory that one step of a call carries. All ranks cut alike.
pub const CHUNK_BYTES: usize = 4 << 20;

/// A communicator for buffers of one device, over one for buffers of the host.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use mp_comm::{fake::{FakeDevice, Pace}, staged::Staged, threads, BufferMut, Communicator, Kind, ReduceOp};
///
/// threads::run(2, |comm| {
///     let device = Arc::new(FakeDevice::new(comm.rank().0, Pace::Late));
///     let comm = Staged::new(comm, device.clone())?;
///     let mut memory = device.allocate(64);
///     comm.all_reduce(BufferMut::on_device(Kind::F32, &mut *memory)?, ReduceOp::Sum)
/// });
/// ```
pub struct Staged {
    inner: Arc<dyn Communicator>,
    shared: Arc<Shared>,
}

/// What the groups that were split from one another share.
struct Shared {
    accelerator: Arc<dyn Accelerator>,
    /// The stream of all copies.
    side: Stream,
    chunk_bytes: usize,
    /// Whether device pointers go to communicators that take them.
    direct: bool,
    slots: Slots,
    queue: Queue,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("inner", &self.inner).field("accelerator", &self.shared.accelerator).finish()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Peers may be waiting for what was started and then left.
        self.flush();
    }
}

impl Staged {
    /// Carries this device's buffers over a communicator.
    ///
    /// # Errors
    /// [`Error::Device`] where the device gives no stream.
    pub fn new(inner: Arc<dyn Communicator>, accelerator: Arc<dyn Accelerator>) -> Result<Self> {
        Self::with_chunks(inner, accelerator, CHUNK_BYTES)
    }

    /// Carries this device's buffers over a communicator, in chunks of another size, the same on all ranks.
    ///
    /// # Errors
    /// [`Error::Device`] where the device gives no stream.
    pub fn with_chunks(
        inner: Arc<dyn Communicator>,
        accelerator: Arc<dyn Accelerator>,
        chunk_bytes: usize,
    ) -> Result<Self> {
        Self::made(inner, accelerator, chunk_bytes, false)
    }

    /// Hands device memory to a communicator that takes it, where that can be.
    ///
    /// # Errors
    /// [`Error::Device`] where the device gives no stream.
    pub fn direct(inner: Arc<dyn Communicator>, accelerator: Arc<dyn Accelerator>) -> Result<Self> {
        Self::made(inner, accelerator, CHUNK_BYTES, true)
    }

    fn made(
        inner: Arc<dyn Communicator>,
        accelerator: Arc<dyn Accelerator>,
        chunk_bytes: usize,
        direct: bool,
    ) -> Result<Self> {
        let side = accelerator.side()?;
        let (chunk_bytes, slots, queue) = (chunk_bytes.max(8), Slots::default(), Queue::default());
        Ok(Self { inner, shared: Arc::new(Shared { accelerator, side, chunk_bytes, direct, slots, queue }) })
    }

    fn may_go_direct(&self) -> bool {
        self.shared.direct && self.inner.takes_device_pointers()
    }

    /// Says whether a call hands over device memory, once the work on it is done. All ranks come to the same answer.
    fn goes_direct(&self, bytes: usize, reduction: Option<(Kind, ReduceOp)>) -> Result<bool> {
        let ours = reduction.is_some_and(|(kind, op)| kind == Kind::Bf16 || op == ReduceOp::Avg);
        if !self.may_go_direct() || ours || bytes >= 1 << 31 {
            return Ok(false);
        }
        let mut event = self.shared.accelerator.event()?;
        event.record(self.shared.accelerator.current()?)?;
        event.synchronize()?;
        Ok(true)
    }

    /// Returns the communicator inside, for a call that blocks on peers.
    pub(crate) fn host(&self) -> &dyn Communicator {
        self.flush();
        &*self.inner
    }

    /// Lets everything that was started into the communicator inside. Waits for the device alone.
    pub(crate) fn flush(&self) {
        self.shared.flush();
    }

    /// Carries buffers over another communicator, one split from the one inside.
    pub(crate) fn beside(&self, inner: Arc<dyn Communicator>) -> Self {
        Self { inner, shared: Arc::clone(&self.shared) }
    }

    fn site(&self, call: Call) -> Site<'_> {
        Site { call, group: self.inner.name(), size: self.inner.size() }
    }

    /// Checks that the buffers of a call lie alike and within reach; says whether on the device.
    fn on_device(&self, site: Site<'_>, places: &[Place]) -> Result<bool> {
        let own = Place::Device(self.shared.accelerator.index());
        if let Some(foreign) = places.iter().find(|place| **place != own && **place != Place::Host) {
            return Err(site.out_of_reach(*foreign));
        }
        if places.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(Error::MixedPlaces { call: site.call, group: site.group.into() });
        }
        Ok(places.first() == Some(&own))
    }

    fn is_alone(&self) -> bool {
        self.inner.size() == 1
    }

    /// Moves memory within the device: the exchanges of a group of one.
    fn across(&self, from: DeviceRun<'_>, to: DeviceRun<'_>) -> Result<()> {
        let accelerator = &self.shared.accelerator;
        accelerator.copy_across(from, to, accelerator.current()?)
    }

    /// Makes the blocking call, step by step, with both buffers of the host.
    fn exchange(
        &self,
        steps: Vec<Step>,
        (send, receive): (Buffer<'_>, BufferMut<'_>),
        mut host: impl FnMut(&Step, Buffer<'_>, BufferMut<'_>) -> Result<()>,
    ) -> Result<()> {
        let kind = send.kind();
        self.shared.run(&steps, (send.device(), receive.device()), |step, mine, theirs| {
            host(step, Buffer::from_bytes(kind, mine)?, BufferMut::from_bytes(kind, theirs)?)
        })
    }

    /// Makes the blocking call, step by step, with its one buffer of the host.
    fn in_place(
        &self,
        steps: Vec<Step>,
        (kind, run): (Kind, Option<DeviceRun<'_>>),
        mut host: impl FnMut(BufferMut<'_>) -> Result<()>,
    ) -> Result<()> {
        self.shared.run(&steps, (run, run), |_, mine, _| host(BufferMut::from_bytes(kind, mine)?))
    }

    fn start(&self, what: What, steps: Vec<Step>, from: Option<OwnedBuffer>, to: OwnedBuffer) -> Result<Request> {
        let operation = Operation::new(&self.shared, Arc::clone(&self.inner), what, steps, (from, to))?;
        let underway = Underway::start(&self.shared, operation);
        Ok(Request::new(underway))
    }

    /// Agrees on how many steps the longest run of an uneven all-to-all takes.
    fn uneven_steps(&self, counts: &[usize], chunk: usize) -> Result<usize> {
        let mut steps = [counts.iter().map(|count| count.div_ceil(chunk) as i64).max().unwrap_or(0)];
        self.inner.all_reduce(BufferMut::new(&mut steps), ReduceOp::Max)?;
        Ok(steps[0] as usize)
    }

    /// How many elements of `kind` a step carries, shared between so many runs.
    fn chunk(&self, kind: Kind, runs: usize) -> usize {
        (self.shared.chunk_bytes / kind.bytes() / runs).max(1)
    }

    /// The steps of a message, which begins with its odd part.
    fn message(&self, kind: Kind, bytes: usize, way: Way) -> Vec<Step> {
        steps::message(bytes, self.chunk(kind, 1) * kind.bytes(), way)
    }
}

impl Communicator for Staged {
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

    fn all_reduce(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        let (site, kind) = (self.site(Call::AllReduce), buffer.kind());
        site.op(kind, op)?;
        self.shared.flush();
        if !self.on_device(site, &[buffer.place()])? {
            return self.inner.all_reduce(buffer, op);
        }
        if self.is_alone() {
            return Ok(());
        }
        if self.goes_direct(buffer.byte_len(), Some((kind, op)))? {
            return self.inner.all_reduce(buffer, op);
        }
        let steps = steps::in_place(buffer.len(), kind.bytes(), self.chunk(kind, 1), Way::Both);
        self.in_place(steps, (kind, buffer.device()), |host| self.inner.all_reduce(host, op))
    }

    fn reduce_scatter(&self, send: Buffer<'_>, receive: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        let site = self.site(Call::ReduceScatter);
        site.reduce_scatter(send, receive.as_buffer(), op)?;
        self.shared.flush();
        if !self.on_device(site, &[send.place(), receive.place()])? {
            return self.inner.reduce_scatter(send, receive, op);
        }
        let (kind, size, part) = (send.kind(), self.size(), receive.len());
        if let (true, Some(from), Some(to)) = (self.is_alone(), send.device(), receive.device()) {
            return self.across(from, to);
        }
        if self.goes_direct(send.byte_len(), Some((kind, op)))? {
            return self.inner.reduce_scatter(send, receive, op);
        }
        let steps = steps::scatter(part, size, kind.bytes(), self.chunk(kind, size));
        self.exchange(steps, (send, receive), |_, mine, part| self.inner.reduce_scatter(mine, part, op))
    }

    fn all_gather(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        let site = self.site(Call::AllGather);
        site.all_gather(send, receive.as_buffer())?;
        self.shared.flush();
        if !self.on_device(site, &[send.place(), receive.place()])? {
            return self.inner.all_gather(send, receive);
        }
        let (kind, size) = (send.kind(), self.size());
        if let (true, Some(from), Some(to)) = (self.is_alone(), send.device(), receive.device()) {
            return self.across(from, to);
        }
        if self.goes_direct(receive.byte_len(), None)? {
            return self.inner.all_gather(send, receive);
        }
        let steps = steps::gather(send.len(), size, kind.bytes(), self.chunk(kind, size));
        self.exchange(steps, (send, receive), |_, mine, all| self.inner.all_gather(mine, all))
    }

    fn all_to_all(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        let site = self.site(Call::AllToAll);
        site.all_to_all(send, receive.as_buffer())?;
        self.shared.flush();
        if !self.on_device(site, &[send.place(), receive.place()])? {
            return self.inner.all_to_all(send, receive);
        }
        let (kind, size) = (send.kind(), self.size());
        if let (true, Some(from), Some(to)) = (self.is_alone(), send.device(), receive.device()) {
            return self.across(from, to);
        }
        if self.goes_direct(send.byte_len(), None)? {
            return self.inner.all_to_all(send, receive);
        }
        let steps = steps::transpose(send.len() / size, size, kind.bytes(), self.chunk(kind, size));
        self.exchange(steps, (send, receive), |_, mine, theirs| self.inner.all_to_all(mine, theirs))
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
        self.shared.flush();
        if !self.on_device(site, &[send.place(), receive.place()])? {
            return self.inner.all_to_all_v(send, send_counts, receive, receive_counts);
        }
        if let (true, Some(from), Some(to)) = (self.is_alone(), send.device(), receive.device()) {
            return self.across(from, to);
        }
        let (kind, chunk) = (send.kind(), self.chunk(send.kind(), self.size()));
        let count = self.uneven_steps(send_counts, chunk)?;
        let steps = steps::uneven(send_counts, receive_counts, kind.bytes(), chunk, count);
        self.exchange(steps, (send, receive), |step, mine, theirs| {
            self.inner.all_to_all_v(mine, &step.counts.0, theirs, &step.counts.1)
        })
    }

    fn broadcast(&self, buffer: BufferMut<'_>, root: Rank) -> Result<()> {
        let (site, kind) = (self.site(Call::Broadcast), buffer.kind());
        site.rank(root)?;
        self.shared.flush();
        if !self.on_device(site, &[buffer.place()])? {
            return self.inner.broadcast(buffer, root);
        }
        if self.is_alone() {
            return Ok(());
        }
        if self.goes_direct(buffer.byte_len(), None)? {
            return self.inner.broadcast(buffer, root);
        }
        let way = if self.rank() == root { Way::Down } else { Way::Up };
        let steps = steps::in_place(buffer.len(), kind.bytes(), self.chunk(kind, 1), way);
        self.in_place(steps, (kind, buffer.device()), |host| self.inner.broadcast(host, root))
    }

    fn send(&self, buffer: Buffer<'_>, to: Rank, tag: Tag) -> Result<()> {
        let (site, kind) = (self.site(Call::Send), buffer.kind());
        site.peer(self.rank(), to)?;
        self.shared.flush();
        if !self.on_device(site, &[buffer.place()])? {
            return self.inner.send(buffer, to, tag);
        }
        let steps = self.message(kind, buffer.byte_len(), Way::Down);
        if let Some(run) = buffer.device().filter(|_| self.may_go_direct()) {
            self.goes_direct(0, None)?;
            let pieces = steps.iter().flat_map(|step| &step.down).map(|(piece, _)| run.part(piece.clone()));
            return pieces.into_iter().try_for_each(|piece| self.inner.send(Buffer::of_run(kind, piece), to, tag));
        }
        self.in_place(steps, (kind, buffer.device()), |host| self.inner.send(host.as_buffer(), to, tag))
    }

    fn receive(&self, buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<()> {
        let (site, kind) = (self.site(Call::Receive), buffer.kind());
        site.rank(from)?;
        self.shared.flush();
        if !self.on_device(site, &[buffer.place()])? {
            return self.inner.receive(buffer, from, tag);
        }
        let steps = self.message(kind, buffer.byte_len(), Way::Up);
        if let Some(run) = buffer.device().filter(|_| self.may_go_direct()) {
            self.goes_direct(0, None)?;
            let pieces = steps.iter().flat_map(|step| &step.up).map(|(_, piece)| run.part(piece.clone()));
            return pieces
                .into_iter()
                .try_for_each(|piece| self.inner.receive(BufferMut::of_run(kind, piece), from, tag));
        }
        self.in_place(steps, (kind, buffer.device()), |host| self.inner.receive(host, from, tag))
    }

    fn barrier(&self) -> Result<()> {
        self.shared.flush();
        self.inner.barrier()
    }

    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        let (site, kind) = (self.site(Call::StartAllReduce), buffer.kind());
        site.op(kind, op)?;
        if !self.on_device(site, &[buffer.place()])? {
            self.shared.flush();
            return self.inner.start_all_reduce(buffer, op);
        }
        if self.is_alone() {
            return Ok(Request::ready(buffer));
        }
        let steps = steps::in_place(buffer.len(), kind.bytes(), self.chunk(kind, 1), Way::Both);
        self.start(What::AllReduce(op), steps, None, buffer)
    }

    fn start_reduce_scatter(&self, send: OwnedBuffer, receive: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        let (site, kind, size) = (self.site(Call::StartReduceScatter), send.kind(), self.size());
        site.reduce_scatter(send.as_buffer(), receive.as_buffer(), op)?;
        if !self.on_device(site, &[send.place(), receive.place()])? {
            self.shared.flush();
            return self.inner.start_reduce_scatter(send, receive, op);
        }
        let steps = steps::scatter(receive.len(), size, kind.bytes(), self.chunk(kind, size));
        self.start(What::ReduceScatter(op), steps, Some(send), receive)
    }

    fn start_all_gather(&self, send: OwnedBuffer, receive: OwnedBuffer) -> Result<Request> {
        let (site, kind, size) = (self.site(Call::StartAllGather), send.kind(), self.size());
        site.all_gather(send.as_buffer(), receive.as_buffer())?;
        if !self.on_device(site, &[send.place(), receive.place()])? {
            self.shared.flush();
            return self.inner.start_all_gather(send, receive);
        }
        let steps = steps::gather(send.len(), size, kind.bytes(), self.chunk(kind, size));
        self.start(What::AllGather, steps, Some(send), receive)
    }

    fn start_send(&self, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Request> {
        let site = self.site(Call::StartSend);
        site.rank(to)?;
        if !self.on_device(site, &[buffer.place()])? {
            self.shared.flush();
            return self.inner.start_send(buffer, to, tag);
        }
        let steps = self.message(buffer.kind(), buffer.byte_len(), Way::Down);
        self.start(What::Send(to, tag), steps, None, buffer)
    }

    fn start_receive(&self, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Request> {
        let site = self.site(Call::StartReceive);
        site.rank(from)?;
        if !self.on_device(site, &[buffer.place()])? {
            return self.inner.start_receive(buffer, from, tag);
        }
        let steps = self.message(buffer.kind(), buffer.byte_len(), Way::Up);
        self.start(What::Receive(from, tag), steps, None, buffer)
    }

    /// Carries device memory as two messages: how many pieces another rank's take, nobody else knows.
    fn start_send_receive(
        &self,
        send: OwnedBuffer,
        to: Rank,
        receive: OwnedBuffer,
        from: Rank,
        tag: Tag,
    ) -> Result<Request> {
        let site = self.site(Call::StartSendReceive);
        site.paired(self.rank(), to, from)?;
        if !self.on_device(site, &[send.place(), receive.place()])? {
            self.shared.flush();
            return self.inner.start_send_receive(send, to, receive, from, tag);
        }
        let received = self.start_receive(receive, from, tag)?;
        Ok(Request::new(Both { sent: self.start_send(send, to, tag)?, received }))
    }

    fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>> {
        self.shared.flush();
        let part = self.inner.split(color, key, name)?;
        Ok(part.map(|inner| Arc::new(self.beside(inner)) as Arc<dyn Communicator>))
    }
}
