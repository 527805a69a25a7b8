//! A rank of a group whose other ranks do not exist: for timing one rank's computation where there is one device.
//!
//! Nothing is added up and nothing arrives, so what is computed with it means nothing: it takes the time and the memory
//! that a rank takes, without the time of communication. No training can start with it by accident: it [refuses to be
//! split](Absent#method.split), and every run begins with splitting its world.

use std::sync::Arc;

use crate::arguments::Site;
use crate::{Buffer, BufferMut, Call, Communicator, Error, OwnedBuffer, Place, Rank, ReduceOp, Request, Result, Tag};

/// One rank of a group without peers. It checks arguments as every group does, and answers at once:
///
/// | call | answer |
/// |---|---|
/// | all-reduce, broadcast | the buffer as it was |
/// | reduce-scatter | this rank's own run, not summed |
/// | all-gather | this rank's elements, once for each rank |
/// | all-to-all | what was to be sent; of uneven runs the one to itself, else zeros |
/// | send, barrier | nothing |
/// | receive, also of a pair | zeros |
/// | split | [`Error::PeersAbsent`] |
///
/// Memory on a device is left as it is, for this crate cannot write there, and whatever it holds takes as long to work on.
///
/// # Examples
/// ```
/// use mp_comm::{absent::Absent, Buffer, BufferMut, Communicator, Error, Rank};
///
/// let third = Absent::new("tp", Rank(2), 4);
/// let mut all = [0f32; 8];
/// third.all_gather(Buffer::new(&[1f32, 2.0]), BufferMut::new(&mut all))?;
/// assert_eq!(all, [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
/// assert!(matches!(third.split(Some(0), 0, "part"), Err(Error::PeersAbsent { .. })));
/// # Ok::<(), mp_comm::Error>(())
/// ```
#[derive(Debug)]
pub struct Absent {
    name: String,
    rank: Rank,
    size: usize,
}

impl Absent {
    /// Makes a group's `rank` without the others of `size`.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn new(name: impl Into<String>, rank: Rank, size: usize) -> Self {
        assert!(rank.0 < size, "rank {} of {size}", rank.0);
        Self { name: name.into(), rank, size }
    }

    fn site(&self, call: Call) -> Site<'_> {
        Site { call, group: &self.name, size: self.size }
    }

    /// Takes this rank's own run of what was to be reduced.
    fn own_run(&self, site: Site<'_>, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        if on_devices(site, &[send.place(), receive.place()])? {
            return Ok(());
        }
        let (all, run) = (site.host(send)?.bytes(), site.host_mut(receive)?.into_bytes());
        let start = self.rank.0 * run.len();
        run.copy_from_slice(&all[start..start + run.len()]);
        Ok(())
    }

    /// Takes this rank's elements for everybody's.
    fn everybodys(site: Site<'_>, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        if on_devices(site, &[send.place(), receive.place()])? {
            return Ok(());
        }
        let (mine, all) = (site.host(send)?.bytes(), site.host_mut(receive)?.into_bytes());
        all.chunks_exact_mut(mine.len().max(1)).for_each(|run| run.copy_from_slice(mine));
        Ok(())
    }
}

/// Receives nothing.
fn zeros(mut buffer: BufferMut<'_>) {
    if let Some(bytes) = buffer.bytes_mut() {
        bytes.fill(0);
    }
}

/// Says whether the buffers of a call lie on a device; refuses some here and some there.
fn on_devices(site: Site<'_>, places: &[Place]) -> Result<bool> {
    match places.iter().filter(|place| **place != Place::Host).count() {
        0 => Ok(false),
        count if count == places.len() => Ok(true),
        _ => Err(Error::MixedPlaces { call: site.call, group: site.group.into() }),
    }
}

impl Communicator for Absent {
    fn name(&self) -> &str {
        &self.name
    }
    fn rank(&self) -> Rank {
        self.rank
    }
    fn size(&self) -> usize {
        self.size
    }
    fn local_rank(&self) -> Rank {
        self.rank
    }
    fn local_size(&self) -> usize {
        self.size
    }

    fn all_reduce(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        self.site(Call::AllReduce).op(buffer.kind(), op)
    }

    fn reduce_scatter(&self, send: Buffer<'_>, receive: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        let site = self.site(Call::ReduceScatter);
        site.reduce_scatter(send, receive.as_buffer(), op)?;
        self.own_run(site, send, receive)
    }

    fn all_gather(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        let site = self.site(Call::AllGather);
        site.all_gather(send, receive.as_buffer())?;
        Self::everybodys(site, send, receive)
    }

    fn all_to_all(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        let site = self.site(Call::AllToAll);
        site.all_to_all(send, receive.as_buffer())?;
        if on_devices(site, &[send.place(), receive.place()])? {
            return Ok(());
        }
        site.host_mut(receive)?.bytes_mut().copy_from_slice(site.host(send)?.bytes());
        Ok(())
    }

    fn all_to_all_v(
        &self,
        send: Buffer<'_>,
        send_counts: &[usize],
        receive: BufferMut<'_>,
        receive_counts: &[usize],
    ) -> Result<()> {
        let site = self.site(Call::AllToAllV);
        site.all_to_all_v(self.rank, (send, send_counts), (receive.as_buffer(), receive_counts))?;
        if on_devices(site, &[send.place(), receive.place()])? {
            return Ok(());
        }
        let bytes = |counts: &[usize]| counts.iter().sum::<usize>() * send.kind().bytes();
        let (from, into) = (bytes(&send_counts[..self.rank.0]), bytes(&receive_counts[..self.rank.0]));
        let own = bytes(&send_counts[self.rank.0..=self.rank.0]);
        let (sent, received) = (site.host(send)?.bytes(), site.host_mut(receive)?.into_bytes());
        received.fill(0);
        received[into..into + own].copy_from_slice(&sent[from..from + own]);
        Ok(())
    }

    fn broadcast(&self, _buffer: BufferMut<'_>, root: Rank) -> Result<()> {
        self.site(Call::Broadcast).rank(root)
    }

    fn send(&self, _buffer: Buffer<'_>, to: Rank, _tag: Tag) -> Result<()> {
        self.site(Call::Send).peer(self.rank, to)
    }

    fn receive(&self, buffer: BufferMut<'_>, from: Rank, _tag: Tag) -> Result<()> {
        let site = self.site(Call::Receive);
        site.rank(from)?;
        zeros(buffer);
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        self.site(Call::StartAllReduce).op(buffer.kind(), op)?;
        Ok(Request::ready(buffer))
    }

    fn start_reduce_scatter(&self, send: OwnedBuffer, mut receive: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        let site = self.site(Call::StartReduceScatter);
        site.reduce_scatter(send.as_buffer(), receive.as_buffer(), op)?;
        self.own_run(site, send.as_buffer(), receive.as_buffer_mut())?;
        Ok(Request::ready(receive))
    }

    fn start_all_gather(&self, send: OwnedBuffer, mut receive: OwnedBuffer) -> Result<Request> {
        let site = self.site(Call::StartAllGather);
        site.all_gather(send.as_buffer(), receive.as_buffer())?;
        Self::everybodys(site, send.as_buffer(), receive.as_buffer_mut())?;
        Ok(Request::ready(receive))
    }

    fn start_send(&self, buffer: OwnedBuffer, to: Rank, _tag: Tag) -> Result<Request> {
        self.site(Call::StartSend).rank(to)?;
        Ok(Request::ready(buffer))
    }

    fn start_receive(&self, mut buffer: OwnedBuffer, from: Rank, _tag: Tag) -> Result<Request> {
        let site = self.site(Call::StartReceive);
        site.rank(from)?;
        zeros(buffer.as_buffer_mut());
        Ok(Request::ready(buffer))
    }

    fn start_send_receive(
        &self,
        send: OwnedBuffer,
        to: Rank,
        mut receive: OwnedBuffer,
        from: Rank,
        _tag: Tag,
    ) -> Result<Request> {
        let site = self.site(Call::StartSendReceive);
        site.paired(self.rank, to, from)?;
        on_devices(site, &[send.place(), receive.place()])?;
        zeros(receive.as_buffer_mut());
        Ok(Request::ready(receive))
    }

    /// Refuses: which ranks would form a group, only they could say.
    fn split(&self, _color: Option<u32>, _key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>> {
        Err(Error::PeersAbsent { group: self.name.clone(), part: name.into() })
    }
}
