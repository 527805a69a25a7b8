//! A CUDA device as communication sees it: streams, events, page-locked memory and copies, all of them libtorch's own, so
//! that communication and tensors are ordered by one set of streams.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mp_comm::solo::Solo;
use mp_comm::staged::Staged;
use mp_comm::{ByteBuffer, Communicator, DeviceMemory, DeviceRun, OwnedBuffer, Pinned};
use mp_runtime::bytes::{self, Lent};
use mp_runtime::{device, stream, Device, Kind, Tensor};

use crate::buffers::{lend, DeviceTensor};

/// Makes a group of one rank, for tensors that lie on a device as for those of the host.
///
/// # Errors
/// [`Error::Device`](mp_comm::Error::Device) where there is no such device.
pub fn alone(name: &str, device: Device) -> mp_comm::Result<Arc<dyn Communicator>> {
    let solo = Arc::new(Solo::new(name));
    Ok(match device {
        Device::Cuda(index) => Arc::new(Staged::new(solo, Arc::new(Cuda::new(index)))?),
        _ => solo,
    })
}

/// Takes memory of a device for so many single-precision zeros, to communicate.
///
/// # Errors
/// [`Error::Device`](mp_comm::Error::Device) where there is no such device, or no room on it.
pub fn zeros(device: usize, elements: usize) -> mp_comm::Result<OwnedBuffer> {
    let failed = |message: String| mp_comm::Error::Device {
        device,
        doing: "allocating",
        message: message.lines().next().unwrap_or_default().into(),
    };
    mp_comm::Accelerator::select(&Cuda::new(device))?;
    let made = Tensor::f_zeros([elements as i64], (Kind::Float, Device::Cuda(device)));
    let tensor = made.map_err(|error| failed(error.to_string()))?;
    lend(&tensor).map_err(|error| failed(error.to_string()))
}

/// A device of this process.
///
/// # Examples
/// ```
/// use mp_comm::Accelerator;
/// use mp_model::accelerator::Cuda;
///
/// let device = Cuda::new(0);
/// assert_eq!(device.index(), 0);
/// // Without a device each call says so.
/// assert!(device.current().is_ok() == mp_runtime::device::has_accelerator());
/// ```
#[derive(Debug, Clone)]
pub struct Cuda {
    index: usize,
    /// The streams that were handed out; each is named by its place.
    streams: Arc<Mutex<Vec<stream::Stream>>>,
}

impl Cuda {
    /// Names a device by its index, and asks nothing of it yet.
    pub fn new(index: usize) -> Self {
        Self { index, streams: Arc::default() }
    }

    fn streams(&self) -> MutexGuard<'_, Vec<stream::Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, stream: stream::Stream) -> mp_comm::Stream {
        let mut streams = self.streams();
        let place = streams.iter().position(|known| *known == stream).unwrap_or_else(|| {
            streams.push(stream);
            streams.len() - 1
        });
        mp_comm::Stream(place as u64)
    }

    fn stream(&self, name: mp_comm::Stream) -> mp_comm::Result<stream::Stream> {
        let known = usize::try_from(name.0).ok().and_then(|place| self.streams().get(place).copied());
        known.ok_or_else(|| self.failed("finding a stream", format!("no stream {}", name.0)))
    }

    fn failed(&self, doing: &'static str, message: String) -> mp_comm::Error {
        mp_comm::Error::Device { device: self.index, doing, message }
    }

    fn told<T>(&self, doing: &'static str, result: mp_runtime::Result<T>) -> mp_comm::Result<T> {
        result.map_err(|error| self.failed(doing, error.to_string()))
    }

    /// Finds the tensor that owns memory of this device.
    fn tensor<'a>(&self, memory: &'a dyn DeviceMemory) -> mp_comm::Result<&'a bytes::OnDevice> {
        let memory: &dyn Any = memory;
        let tensor = memory.downcast_ref::<DeviceTensor>().filter(|tensor| tensor.device() == self.index);
        let tensor = tensor.map(DeviceTensor::memory);
        tensor.ok_or_else(|| self.failed("finding a tensor", "memory that is no tensor of its own".into()))
    }

    /// Views a run of device memory as bytes.
    fn run(&self, run: DeviceRun<'_>) -> mp_comm::Result<Tensor> {
        let tensor = self.tensor(run.memory())?;
        self.told("viewing a buffer", tensor.run(run.start(), run.bytes()))
    }

    /// Views some of the bytes of page-locked memory.
    fn host(&self, pinned: &mut dyn Pinned, at: usize, count: usize) -> mp_comm::Result<Tensor> {
        let pinned: &mut dyn Any = pinned;
        let Some(locked) = pinned.downcast_ref::<Locked>() else {
            return Err(self.failed("finding host memory", "memory that is not its own".into()));
        };
        self.told("viewing host memory", bytes::run(&locked.tensor, at, count))
    }
}

impl mp_comm::Accelerator for Cuda {
    fn index(&self) -> usize {
        self.index
    }

    fn identity(&self) -> mp_comm::Result<[u8; 16]> {
        self.told("asking who it is", device::identity(self.index))
    }

    fn select(&self) -> mp_comm::Result<()> {
        self.told("selecting it", device::select(self.index))
    }

    fn current(&self) -> mp_comm::Result<mp_comm::Stream> {
        Ok(self.name(self.told("asking for the current stream", stream::Stream::current(self.index))?))
    }

    fn make_current(&self, stream: mp_comm::Stream) -> mp_comm::Result<()> {
        self.told("changing the current stream", self.stream(stream)?.make_current())
    }

    fn side(&self) -> mp_comm::Result<mp_comm::Stream> {
        Ok(self.name(self.told("taking a stream", stream::Stream::from_pool(self.index, true))?))
    }

    fn handle(&self, stream: mp_comm::Stream) -> mp_comm::Result<usize> {
        self.told("asking for a stream's handle", self.stream(stream)?.native_handle())
    }

    fn event(&self) -> mp_comm::Result<Box<dyn mp_comm::Event>> {
        let event = self.told("making an event", stream::Event::new())?;
        Ok(Box::new(Mark { device: self.clone(), event }))
    }

    fn pinned(&self, bytes: usize) -> mp_comm::Result<Box<dyn Pinned>> {
        let tensor = self.told("locking host memory", stream::pinned(bytes))?;
        let lent = self.told("locking host memory", Lent::new(&tensor))?;
        Ok(Box::new(Locked { tensor, lent }))
    }

    fn copy_down(
        &self,
        from: DeviceRun<'_>,
        to: &mut dyn Pinned,
        at: usize,
        stream: mp_comm::Stream,
    ) -> mp_comm::Result<()> {
        let (from, to) = (self.run(from)?, self.host(to, at, from.bytes())?);
        self.told("copying to the host", self.stream(stream)?.copy(&to, &from))
    }

    fn copy_up(
        &self,
        from: &mut dyn Pinned,
        at: usize,
        to: DeviceRun<'_>,
        stream: mp_comm::Stream,
    ) -> mp_comm::Result<()> {
        let (from, to) = (self.host(from, at, to.bytes())?, self.run(to)?);
        self.told("copying from the host", self.stream(stream)?.copy(&to, &from))
    }

    fn copy_across(&self, from: DeviceRun<'_>, to: DeviceRun<'_>, stream: mp_comm::Stream) -> mp_comm::Result<()> {
        let (from, to) = (self.run(from)?, self.run(to)?);
        self.told("copying within the device", self.stream(stream)?.copy(&to, &from))
    }

    fn keep(&self, memory: &dyn DeviceMemory, stream: mp_comm::Stream) -> mp_comm::Result<()> {
        let tensor = self.tensor(memory)?;
        self.told("keeping a tensor's memory", self.stream(stream)?.keep(tensor.tensor()))
    }
}

impl mp_comm::Clock for Cuda {
    fn mark(&self) -> mp_comm::Result<Box<dyn mp_comm::Mark>> {
        let mut event = self.told("making an event", stream::Event::timed())?;
        let current = self.told("asking for the current stream", stream::Stream::current(self.index))?;
        self.told("recording an event", event.record(current))?;
        Ok(Box::new(Moment { device: self.clone(), event }))
    }
}

/// A moment in a stream of a device, with its time.
#[derive(Debug)]
struct Moment {
    device: Cuda,
    event: stream::Event,
}

impl mp_comm::Mark for Moment {
    fn seconds_until(&mut self, later: &mut dyn mp_comm::Mark) -> mp_comm::Result<f64> {
        let later: &mut dyn Any = later;
        let Some(later) = later.downcast_mut::<Moment>() else {
            return Err(self.device.failed("reading the time", "a moment of another clock".into()));
        };
        self.device.told("waiting for an event", later.event.synchronize())?;
        self.device.told("reading the time", self.event.seconds_until(&mut later.event))
    }
}

/// A point in a stream of a device.
struct Mark {
    device: Cuda,
    event: stream::Event,
}

impl mp_comm::Event for Mark {
    fn record(&mut self, stream: mp_comm::Stream) -> mp_comm::Result<()> {
        let stream = self.device.stream(stream)?;
        self.device.told("recording an event", self.event.record(stream))
    }

    fn block(&mut self, stream: mp_comm::Stream) -> mp_comm::Result<()> {
        let stream = self.device.stream(stream)?;
        self.device.told("waiting for an event", self.event.block(stream))
    }

    fn is_done(&mut self) -> mp_comm::Result<bool> {
        self.device.told("asking for an event", self.event.is_done())
    }

    fn synchronize(&mut self) -> mp_comm::Result<()> {
        self.device.told("waiting for an event", self.event.synchronize())
    }
}

/// Page-locked memory, freed by libtorch when the copies that use it are done.
struct Locked {
    tensor: Tensor,
    lent: Lent,
}

impl ByteBuffer for Locked {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.lent.bytes_mut()
    }
}

impl Pinned for Locked {}

#[cfg(test)]
mod tests {
    use mp_comm::{Accelerator, Clock, Error};
    use mp_runtime::Kind;

    use super::*;

    fn locked(bytes: &[u8]) -> Locked {
        let tensor = bytes::tensor(bytes, &[bytes.len() as i64], Kind::Uint8).unwrap();
        Locked { lent: Lent::new(&tensor).unwrap(), tensor }
    }

    #[test]
    fn parts_of_host_memory_are_views() {
        let (device, mut pinned) = (Cuda::new(0), locked(&[1, 2, 3, 4, 5]));
        let part = device.host(&mut pinned, 1, 3).unwrap();
        assert_eq!(Vec::<u8>::try_from(&part).unwrap(), [2, 3, 4]);
        let _ = part.shallow_clone().f_fill_(9).unwrap();
        assert_eq!(pinned.bytes_mut(), [1, 9, 9, 9, 5]);
        assert!(device.host(&mut pinned, 3, 3).is_err());
    }

    #[test]
    fn what_it_does_not_know_is_refused() {
        struct Other;
        impl DeviceMemory for Other {
            fn device(&self) -> usize {
                0
            }
            fn address(&self) -> usize {
                4096
            }
            fn bytes(&self) -> usize {
                8
            }
        }
        let device = Cuda::new(0);
        let refused = [
            device.copy_across(DeviceRun::new(&Other), DeviceRun::new(&Other), mp_comm::Stream(0)).unwrap_err(),
            device.keep(&Other, mp_comm::Stream(0)).unwrap_err(),
            device.make_current(mp_comm::Stream(7)).unwrap_err(),
            device.handle(mp_comm::Stream(u64::MAX)).unwrap_err(),
        ];
        for error in refused {
            assert!(matches!(error, Error::Device { device: 0, doing, .. } if doing.starts_with("finding")), "{error}");
        }
    }

    #[test]
    fn a_rank_alone_reaches_its_device() {
        let host = alone("alone", Device::Cpu).unwrap();
        assert_eq!((host.name(), host.size()), ("alone", 1));
        if device::has_accelerator() {
            return;
        }
        // Whoever carries tensors of a device takes a stream of it.
        let error = alone("alone", Device::Cuda(1)).map(drop).unwrap_err();
        assert!(matches!(error, Error::Device { device: 1, doing: "taking a stream", .. }), "{error}");
    }

    #[test]
    fn without_a_device_one_line_says_so() {
        if device::has_accelerator() {
            return;
        }
        let device = Cuda::new(1);
        let refused = [
            device.current().map(drop).unwrap_err(),
            device.side().map(drop).unwrap_err(),
            device.event().map(drop).unwrap_err(),
            Clock::mark(&device).map(drop).unwrap_err(),
            device.pinned(64).map(drop).unwrap_err(),
            device.select().unwrap_err(),
            device.identity().map(drop).unwrap_err(),
            zeros(1, 4).map(drop).unwrap_err(),
        ];
        for error in refused {
            let words = error.to_string();
            assert!(words.starts_with("device 1: ") && words.contains("no accelerator"), "{words}");
            assert_eq!(words.lines().count(), 1, "{words}");
        }
    }
}
