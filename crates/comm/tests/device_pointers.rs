//! A communicator that takes device pointers gets them, once the work on the memory is done.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use mp_comm::conformance::{self, Bench};
use mp_comm::fake::{FakeDevice, Pace};
use mp_comm::staged::Staged;
use mp_comm::{
    threads, Accelerator, Buffer, BufferMut, Communicator, Error, Kind, OwnedBuffer, Place, Rank, ReduceOp, Request,
    Stream, Tag,
};
use rstest::rstest;

/// A communicator that follows addresses on a device and knows no streams, as an MPI library that takes device pointers:
/// it copies on a stream of its own, which waits for nothing.
#[derive(Debug)]
struct Reaching {
    inner: Arc<dyn Communicator>,
    device: Arc<FakeDevice>,
    private: Stream,
    direct: AtomicUsize,
}

impl Reaching {
    fn fetch(&self, buffer: Buffer<'_>) -> Result<Vec<u8>, Error> {
        if let Some(bytes) = buffer.bytes() {
            return Ok(bytes.to_vec());
        }
        let run = buffer.device().expect("memory of a device");
        let mut host = self.device.pinned(run.bytes())?;
        self.device.copy_down(run, &mut *host, 0, self.private)?;
        self.settle()?;
        self.direct.fetch_add(1, Ordering::Relaxed);
        Ok(host.bytes_mut().to_vec())
    }

    fn bring(&self, bytes: &[u8], mut buffer: BufferMut<'_>) -> Result<(), Error> {
        if let Some(memory) = buffer.bytes_mut() {
            memory.copy_from_slice(bytes);
            return Ok(());
        }
        let run = buffer.device().expect("memory of a device");
        let mut host = self.device.pinned(run.bytes())?;
        host.bytes_mut().copy_from_slice(bytes);
        self.device.copy_up(&mut *host, 0, run, self.private)?;
        self.settle()
    }

    fn settle(&self) -> Result<(), Error> {
        let mut event = self.device.event()?;
        event.record(self.private)?;
        event.synchronize()
    }

    /// Makes a call with copies on the host of what a buffer holds, and of what another shall hold.
    fn through(
        &self,
        send: Buffer<'_>,
        receive: BufferMut<'_>,
        call: impl FnOnce(Buffer<'_>, BufferMut<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let kind = send.kind();
        let (mine, mut theirs) = (words(&self.fetch(send)?), vec![0u64; receive.byte_len().div_ceil(8)]);
        let (sent, received) = (send.byte_len(), receive.byte_len());
        let bytes = &mut bytemuck::cast_slice_mut(&mut theirs)[..received];
        let send = Buffer::from_bytes(kind, &bytemuck::cast_slice(&mine)[..sent])?;
        call(send, BufferMut::from_bytes(kind, bytes)?)?;
        self.bring(&bytemuck::cast_slice(&theirs)[..received], receive)
    }

    fn in_place(
        &self,
        buffer: BufferMut<'_>,
        call: impl FnOnce(BufferMut<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (kind, len) = (buffer.kind(), buffer.byte_len());
        let mut all = words(&self.fetch(buffer.as_buffer())?);
        call(BufferMut::from_bytes(kind, &mut bytemuck::cast_slice_mut(&mut all)[..len])?)?;
        self.bring(&bytemuck::cast_slice(&all)[..len], buffer)
    }
}

/// Copies bytes to where elements of any kind are aligned.
fn words(bytes: &[u8]) -> Vec<u64> {
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words
}

impl Communicator for Reaching {
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
        true
    }
    fn all_reduce(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<(), Error> {
        assert!(
            buffer.place() == Place::Host || (buffer.kind() != Kind::Bf16 && op != ReduceOp::Avg),
            "arithmetic of ours"
        );
        self.in_place(buffer, |host| self.inner.all_reduce(host, op))
    }
    fn reduce_scatter(&self, send: Buffer<'_>, receive: BufferMut<'_>, op: ReduceOp) -> Result<(), Error> {
        self.through(send, receive, |mine, part| self.inner.reduce_scatter(mine, part, op))
    }
    fn all_gather(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<(), Error> {
        self.through(send, receive, |mine, all| self.inner.all_gather(mine, all))
    }
    fn all_to_all(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<(), Error> {
        self.through(send, receive, |mine, theirs| self.inner.all_to_all(mine, theirs))
    }
    fn all_to_all_v(
        &self,
        send: Buffer<'_>,
        send_counts: &[usize],
        receive: BufferMut<'_>,
        receive_counts: &[usize],
    ) -> Result<(), Error> {
        self.inner.all_to_all_v(send, send_counts, receive, receive_counts)
    }
    fn broadcast(&self, buffer: BufferMut<'_>, root: Rank) -> Result<(), Error> {
        self.in_place(buffer, |host| self.inner.broadcast(host, root))
    }
    fn send(&self, buffer: Buffer<'_>, to: Rank, tag: Tag) -> Result<(), Error> {
        let mine = words(&self.fetch(buffer)?);
        let bytes = &bytemuck::cast_slice(&mine)[..buffer.byte_len()];
        self.inner.send(Buffer::from_bytes(buffer.kind(), bytes)?, to, tag)
    }
    fn receive(&self, buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<(), Error> {
        self.in_place(buffer, |host| self.inner.receive(host, from, tag))
    }
    fn barrier(&self) -> Result<(), Error> {
        self.inner.barrier()
    }
    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request, Error> {
        self.inner.start_all_reduce(buffer, op)
    }
    fn start_reduce_scatter(&self, send: OwnedBuffer, receive: OwnedBuffer, op: ReduceOp) -> Result<Request, Error> {
        self.inner.start_reduce_scatter(send, receive, op)
    }
    fn start_all_gather(&self, send: OwnedBuffer, receive: OwnedBuffer) -> Result<Request, Error> {
        self.inner.start_all_gather(send, receive)
    }
    fn start_send(&self, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Request, Error> {
        self.inner.start_send(buffer, to, tag)
    }
    fn start_receive(&self, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Request, Error> {
        self.inner.start_receive(buffer, from, tag)
    }
    fn start_send_receive(
        &self,
        send: OwnedBuffer,
        to: Rank,
        receive: OwnedBuffer,
        from: Rank,
        tag: Tag,
    ) -> Result<Request, Error> {
        self.inner.start_send_receive(send, to, receive, from, tag)
    }
    fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>, Error> {
        let part = self.inner.split(color, key, name)?;
        Ok(part.map(|inner| {
            let (device, direct) = (Arc::clone(&self.device), AtomicUsize::new(0));
            Arc::new(Self { inner, device, private: self.private, direct }) as Arc<dyn Communicator>
        }))
    }
}

#[rstest]
fn a_communicator_that_takes_device_pointers(#[values(2, 3)] size: usize) {
    let reports = threads::run(size, |inner| {
        let device = Arc::new(FakeDevice::new(0, Pace::Late));
        let private = device.side()?;
        let reaching = Arc::new(Reaching { inner, device: device.clone(), private, direct: AtomicUsize::new(0) });
        let staged = Arc::new(Staged::direct(reaching.clone(), device.clone())?);
        let bench = Bench::on_device(staged, device.clone(), Arc::new(move |bytes| Ok(device.allocate(bytes))));
        let report = conformance::run_on(&bench)?;
        assert!(reaching.direct.load(Ordering::Relaxed) > 100, "device pointers were handed over");
        Ok::<_, Error>(report)
    });
    reports.iter().for_each(|report| assert!(report.failures.is_empty() && report.passed > 20, "{report}"));
}
