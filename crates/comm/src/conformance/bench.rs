//! Where the buffers of the checks lie, and how they are filled and read there.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use crate::{
    Accelerator, Buffer, BufferMut, ByteBuffer, Communicator, DeviceMemory, DeviceRun, Element, OwnedBuffer, Result,
};

/// Allocates device memory of so many bytes.
pub type Allocate = dyn Fn(usize) -> Result<Box<dyn DeviceMemory>> + Send + Sync;

/// How sums of bfloat16 are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Once, from a sum in `f32`.
    Once,
    /// After each addition, as NCCL does where elements travel from rank to rank.
    EachSum,
}

/// A group to check, with its buffers on the host or on a device.
#[derive(Clone)]
pub struct Bench {
    comm: Arc<dyn Communicator>,
    device: Option<(Arc<dyn Accelerator>, Arc<Allocate>)>,
    pub(super) rounding: Rounding,
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accelerator = self.device.as_ref().map(|(accelerator, _)| accelerator);
        f.debug_struct("Bench").field("comm", &self.comm).field("accelerator", &accelerator).finish()
    }
}

impl Deref for Bench {
    type Target = Arc<dyn Communicator>;
    fn deref(&self) -> &Self::Target {
        &self.comm
    }
}

impl Bench {
    /// Checks buffers of the host.
    pub fn on_host(comm: Arc<dyn Communicator>) -> Self {
        Self { comm, device: None, rounding: Rounding::Once }
    }

    /// Checks buffers of a device. Each is filled, and read, by copies on the current stream alone.
    pub fn on_device(comm: Arc<dyn Communicator>, accelerator: Arc<dyn Accelerator>, allocate: Arc<Allocate>) -> Self {
        Self { comm, device: Some((accelerator, allocate)), rounding: Rounding::Once }
    }

    /// Says what to expect of sums of bfloat16; [`Rounding::Once`] where nothing is said.
    pub fn rounding(self, rounding: Rounding) -> Self {
        Self { rounding, ..self }
    }

    /// The same for another group, one split from this.
    pub(super) fn of(&self, comm: Arc<dyn Communicator>) -> Self {
        Self { comm, ..self.clone() }
    }

    /// Gives this thread a stream to itself, where the buffers lie on a device.
    pub(super) fn own_stream(&self) -> Result<()> {
        let Some((accelerator, _)) = &self.device else { return Ok(()) };
        accelerator.make_current(accelerator.side()?)
    }

    /// Makes a buffer to borrow.
    pub(super) fn array<T: Element>(&self, elements: Vec<T>) -> Result<Array<T>> {
        let Some((accelerator, allocate)) = &self.device else { return Ok(Array::Host(elements)) };
        let memory = fill(&**accelerator, &**allocate, &elements)?;
        Ok(Array::Device(memory, PhantomData))
    }

    /// Makes a buffer for a started call.
    pub(super) fn owned<T: Element>(&self, elements: Vec<T>) -> Result<OwnedBuffer> {
        let Some((accelerator, allocate)) = &self.device else { return Ok(elements.into()) };
        OwnedBuffer::on_device(T::KIND, fill(&**accelerator, &**allocate, &elements)?)
    }

    /// Reads what a buffer holds by now.
    pub(super) fn read<T: Element>(&self, buffer: Buffer<'_>) -> Result<Vec<T>> {
        assert_eq!(T::KIND, buffer.kind(), "elements other than {}", type_name::<T>());
        match (buffer.bytes(), buffer.device(), &self.device) {
            (Some(bytes), _, _) => Ok(bytemuck::pod_collect_to_vec(bytes)),
            (None, Some(run), Some((accelerator, _))) => read(&**accelerator, run),
            _ => unreachable!("a device's memory without its accelerator"),
        }
    }

    /// Reads what an array holds by now.
    pub(super) fn look<T: Element>(&self, array: &Array<T>) -> Result<Vec<T>> {
        self.read(array.buffer()?)
    }

    /// Waits for a started call and reads what its buffer holds then.
    pub(super) fn wait<T: Element>(&self, request: crate::Request) -> Result<Vec<T>> {
        self.read(request.wait()?.as_buffer())
    }
}

/// Elements wherever the checks want them.
pub(super) enum Array<T> {
    Host(Vec<T>),
    Device(Box<dyn DeviceMemory>, PhantomData<T>),
}

impl<T: Element> Array<T> {
    /// Borrows to read.
    pub(super) fn buffer(&self) -> Result<Buffer<'_>> {
        match self {
            Array::Host(elements) => Ok(Buffer::new(elements)),
            Array::Device(memory, _) => Buffer::on_device(T::KIND, &**memory),
        }
    }

    /// Borrows to overwrite.
    pub(super) fn buffer_mut(&mut self) -> Result<BufferMut<'_>> {
        match self {
            Array::Host(elements) => Ok(BufferMut::new(elements)),
            Array::Device(memory, _) => BufferMut::on_device(T::KIND, &mut **memory),
        }
    }
}

fn fill<T: Element>(
    accelerator: &dyn Accelerator,
    allocate: &Allocate,
    elements: &[T],
) -> Result<Box<dyn DeviceMemory>> {
    let bytes: &[u8] = bytemuck::cast_slice(elements);
    let memory = allocate(bytes.len())?;
    let mut host = accelerator.pinned(bytes.len())?;
    host.bytes_mut().copy_from_slice(bytes);
    // Not waited for: that is up to the calls that follow.
    accelerator.copy_up(&mut *host, 0, DeviceRun::new(&*memory), accelerator.current()?)?;
    Ok(memory)
}

fn read<T: Element>(accelerator: &dyn Accelerator, run: DeviceRun<'_>) -> Result<Vec<T>> {
    let mut host = accelerator.pinned(run.bytes())?;
    let (current, mut event) = (accelerator.current()?, accelerator.event()?);
    accelerator.copy_down(run, &mut *host, 0, current)?;
    event.record(current)?;
    event.synchronize()?;
    Ok(bytemuck::pod_collect_to_vec(ByteBuffer::bytes_mut(&mut *host)))
}
