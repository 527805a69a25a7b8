//! Moments in work that is queued, and happens later than the call that queues it.
//!
//! The host's time says nothing of such work. A mark in the queue does, and costs the device nothing: the time between two marks
//! is known once both have come.

use std::any::Any;
use std::fmt;

use crate::Result;

/// Marks moments in what a thread queues on a device.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) where the device refuses.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Marks the moment at which what this thread has queued so far will be done.
    fn mark(&self) -> Result<Box<dyn Mark>>;
}

/// A moment of a [`Clock`].
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) where the device refuses.
pub trait Mark: Any + Send + fmt::Debug {
    /// Waits until a later moment of the same clock has come, and returns the time from this one to it.
    ///
    /// # Units
    /// Seconds.
    fn seconds_until(&mut self, later: &mut dyn Mark) -> Result<f64>;
}
