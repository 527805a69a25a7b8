//! The time where tensors lie: the host's, or that of a device's stream.
//!
//! What a device is given happens later. Its moments are marks in its stream, and are read when a step is over: to read one is
//! to wait for it, and nothing that computes or travels meanwhile is held up before.

use std::sync::Arc;
use std::time::Instant;

use mp_comm::Mark;
use mp_model::accelerator::Cuda;
use mp_runtime::Device;

use crate::Result;

/// Tells the time.
#[derive(Debug, Clone, Default)]
pub(crate) enum Clock {
    /// The host's.
    #[default]
    Host,
    /// A device's.
    Device(Arc<dyn mp_comm::Clock>),
}

/// A moment.
#[derive(Debug)]
pub(crate) enum Moment {
    /// It has been.
    Host(Instant),
    /// It comes when the device has come so far.
    Device(Box<dyn Mark>),
}

impl Clock {
    /// Returns the clock of tensors on a device.
    pub(crate) fn of(device: Device) -> Self {
        match device {
            Device::Cuda(index) => Clock::Device(Arc::new(Cuda::new(index))),
            _ => Clock::Host,
        }
    }

    /// Returns the moment at which all that this thread has begun so far will be done.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) where a device refuses.
    pub(crate) fn now(&self) -> Result<Moment> {
        Ok(match self {
            Clock::Host => Moment::Host(Instant::now()),
            Clock::Device(clock) => Moment::Device(clock.mark()?),
        })
    }
}

impl Moment {
    /// Waits until a later moment of the same clock has come, and returns the seconds from this one to it.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) where a device refuses.
    ///
    /// # Panics
    /// If one moment is the host's and the other a device's.
    pub(crate) fn seconds_until(&mut self, later: &mut Moment) -> Result<f64> {
        match (self, later) {
            (Moment::Host(earlier), Moment::Host(later)) => Ok((*later - *earlier).as_secs_f64()),
            (Moment::Device(earlier), Moment::Device(later)) => Ok(earlier.seconds_until(&mut **later)?),
            _ => panic!("moments of one clock"),
        }
    }
}
