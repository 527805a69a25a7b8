//! Streams and events of an accelerator, as libtorch hands them out, and the copies that streams carry.
//!
//! Without an accelerator every call is an error that says so; nothing here is needed on the host.

use crate::{ffi, Result, Tensor};

/// A queue of work on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    device: i32,
    id: i64,
}

impl Stream {
    /// Takes a stream from libtorch's pool.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where there is no such device.
    pub fn from_pool(device: usize, high_priority: bool) -> Result<Self> {
        Ok(Self { device: device as i32, id: ffi::stream_from_pool(device as i32, high_priority)? })
    }

    /// Returns the stream that operations of this thread are queued on.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where there is no such device.
    pub fn current(device: usize) -> Result<Self> {
        Ok(Self { device: device as i32, id: ffi::current_stream(device as i32)? })
    }

    /// Queues this thread's operations here from now on.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where libtorch refuses.
    pub fn make_current(self) -> Result<()> {
        ffi::set_current_stream(self.device, self.id)
    }

    /// Returns the device's index.
    pub fn device(self) -> usize {
        self.device as usize
    }

    /// Returns the device library's own handle, a `cudaStream_t` as a number, for libraries that queue work themselves.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where libtorch refuses.
    pub fn native_handle(self) -> Result<usize> {
        ffi::native_stream(self.device, self.id)
    }

    /// Queues a copy between a page-locked tensor of the host and one of the device, or within the device. Both sides must
    /// live until it is done: see [`keep`](Self::keep).
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where shapes differ or libtorch refuses.
    pub fn copy(self, to: &Tensor, from: &Tensor) -> Result<()> {
        ffi::copy(to, from, self.device, self.id)
    }

    /// Keeps a tensor's memory on the device from reuse after its last handle is gone, until what is queued here by now is
    /// done.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where libtorch refuses.
    pub fn keep(self, tensor: &Tensor) -> Result<()> {
        ffi::record_stream(tensor, self.device, self.id)
    }

    /// Waits until all that was queued here is done.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if any of it failed.
    pub fn synchronize(self) -> Result<()> {
        ffi::synchronize_stream(self.device, self.id)
    }
}

/// Makes page-locked bytes of the host, which a device copies to and from while the host goes on.
///
/// # Shapes
/// - returns `[bytes]`, not initialised
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where there is no accelerator, or no memory to lock.
pub fn pinned(bytes: usize) -> Result<Tensor> {
    ffi::pinned(bytes)
}

/// A point in a stream that others can wait for.
#[derive(Debug)]
pub struct Event(ffi::RawEvent);

impl Event {
    /// Makes an event.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where there is no accelerator.
    pub fn new() -> Result<Self> {
        ffi::RawEvent::new(false).map(Self)
    }

    /// Makes an event that takes the time: see [`seconds_until`](Self::seconds_until).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn timed() -> Result<Self> {
        ffi::RawEvent::new(true).map(Self)
    }

    /// Marks the work queued on `stream` so far.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where libtorch refuses.
    pub fn record(&mut self, stream: Stream) -> Result<()> {
        self.0.record(stream.device, stream.id)
    }

    /// Makes later work on `stream` wait for the mark.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where libtorch refuses.
    pub fn block(&mut self, stream: Stream) -> Result<()> {
        self.0.block(stream.device, stream.id)
    }

    /// Says whether the work before the mark is done; so it is before the first mark.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if any of it failed.
    pub fn is_done(&mut self) -> Result<bool> {
        self.0.query()
    }

    /// Returns the device's time from this mark to a later one, both done and of timed events.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where either is not.
    pub fn seconds_until(&mut self, later: &mut Event) -> Result<f64> {
        Ok(self.0.elapsed(&mut later.0)? / 1000.0)
    }

    /// Waits for the mark on the host.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if the work before it failed.
    pub fn synchronize(&mut self) -> Result<()> {
        self.0.synchronize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device, Error, Result};

    /// Where there is a device, its own tests are run; here is what a machine without one says.
    #[test]
    fn without_an_accelerator_one_line_says_so() {
        if device::has_accelerator() {
            return;
        }
        let tensor = Tensor::f_from_slice(&[1u8]).unwrap();
        let stream = Stream { device: 0, id: 0 };
        let refused: [(&str, Result<()>); 11] = [
            ("pool", Stream::from_pool(0, true).map(drop)),
            ("current", Stream::current(0).map(drop)),
            ("make current", stream.make_current()),
            ("handle", stream.native_handle().map(drop)),
            ("copy", stream.copy(&tensor, &tensor)),
            ("keep", stream.keep(&tensor)),
            ("event", Event::new().map(drop)),
            ("timed", Event::timed().map(drop)),
            ("pinned", pinned(8).map(drop)),
            ("select", device::select(0)),
            ("numerics", device::set_numerics(device::Numerics { deterministic: true, tf32: true })),
        ];
        for (what, result) in refused {
            let error = result.expect_err(what);
            assert!(matches!(&error, Error::Torch(words) if words.starts_with("no accelerator: ")), "{what}: {error}");
            assert_eq!(error.to_string().lines().count(), 1, "{what}: {error}");
        }
        assert_eq!(device::free_bytes(tch::Device::Cuda(0)), None);
    }
}
