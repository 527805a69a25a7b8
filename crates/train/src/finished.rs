//! Waiting for work that a device has only been given, before a clock is read.

use mp_runtime::{stream::Stream, Device};

use crate::Result;

/// Waits until a device has done all that this thread has given it. A host has, always.
///
/// # Errors
/// [`Error::Runtime`](crate::Error::Runtime) with what any of it failed with.
pub(crate) fn finished(device: Device) -> Result<()> {
    match device {
        Device::Cuda(index) => Ok(Stream::current(index)?.synchronize()?),
        _ => Ok(()),
    }
}
