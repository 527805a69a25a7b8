//! Streams and events of an accelerator, as libtorch hands them out.
//!
//! Without an accelerator every call is an error that says so; nothing here is needed on the host.

use crate::{ffi, Result};

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

    /// Waits until all that was queued here is done.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if any of it failed.
    pub fn synchronize(self) -> Result<()> {
        ffi::synchronize_stream(self.device, self.id)
    }
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
        ffi::RawEvent::new().map(Self)
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

    /// Waits for the mark on the host.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if the work before it failed.
    pub fn synchronize(&mut self) -> Result<()> {
        self.0.synchronize()
    }
}
