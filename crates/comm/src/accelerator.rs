//! What communication needs of a device: page-locked host memory, copies, streams and events.
//!
//! This crate knows no tensor library. Whoever has one implements [`Accelerator`] over it, and hands it to
//! [`Staged`](crate::staged::Staged) and `Nccl`.
//!
//! # Order
//! A call with buffers on a device is *ordered by streams*; that the host has waited is no part of the promise.
//!
//! - What was queued on the calling thread's current stream before the call happens before it; what is queued there after
//!   a blocking call has returned sees its result.
//! - A started call begins after what was queued before its start. [`Request::wait`](crate::Request::wait) makes the
//!   current stream wait, and what is queued after that sees the result;
//!   [`is_complete`](crate::Request::is_complete) asks and does not block.
//! - Communication runs on streams of its own, which wait for events of the current stream and the other way round. Memory
//!   that they use is [kept](Accelerator::keep) from reuse until they are through with it.
//!
//! Two threads that queue on one stream are one in this: a call of either waits for what the other has queued, and where that
//! waits for peers, their order must be the same on all ranks. Threads that are to be apart have streams of their own.
//!
//! All ranks of a call hold their buffers alike: all on devices, or all on the host. So do the two ends of a message.

use std::any::Any;
use std::fmt;

use crate::{ByteBuffer, DeviceMemory, DeviceRun, Result};

/// A queue of work on a device, by a name of the accelerator's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stream(pub u64);

/// One device, as the process sees it.
///
/// Copies and events are queued and happen later, in the order of their stream. An implementation keeps what a queued
/// copy still needs.
///
/// # Errors
/// Every method may fail with [`Error::Device`](crate::Error::Device).
pub trait Accelerator: Send + Sync + fmt::Debug {
    /// Returns the device's index, as [`DeviceMemory::device`] counts.
    fn index(&self) -> usize;
    /// Returns what tells the physical device apart from all others, in the same machine and elsewhere.
    fn identity(&self) -> Result<[u8; 16]>;
    /// Makes the device the one that libraries of this thread use, NCCL for instance.
    fn select(&self) -> Result<()>;
    /// Returns the stream on which this thread queues its work.
    fn current(&self) -> Result<Stream>;
    /// Queues this thread's work on another stream from now on.
    fn make_current(&self, stream: Stream) -> Result<()>;
    /// Makes, or takes from a pool, a stream of high priority for communication.
    fn side(&self) -> Result<Stream>;
    /// Returns the device library's own handle of a stream, a `cudaStream_t`.
    fn handle(&self, stream: Stream) -> Result<usize>;
    /// Makes an event that nothing has recorded.
    fn event(&self) -> Result<Box<dyn Event>>;
    /// Allocates page-locked memory of the host.
    fn pinned(&self, bytes: usize) -> Result<Box<dyn Pinned>>;
    /// Queues a copy from the device into the bytes of `to` that begin at `at`.
    fn copy_down(&self, from: DeviceRun<'_>, to: &mut dyn Pinned, at: usize, stream: Stream) -> Result<()>;
    /// Queues a copy to the device from the bytes of `from` that begin at `at`.
    fn copy_up(&self, from: &mut dyn Pinned, at: usize, to: DeviceRun<'_>, stream: Stream) -> Result<()>;
    /// Queues a copy within the device, between runs of one length.
    fn copy_across(&self, from: DeviceRun<'_>, to: DeviceRun<'_>, stream: Stream) -> Result<()>;
    /// Keeps memory from reuse after its owner is gone, until what is queued on `stream` by now is done.
    fn keep(&self, memory: &dyn DeviceMemory, stream: Stream) -> Result<()>;
}

/// A point in a stream that others can wait for.
///
/// # Errors
/// Every method may fail with [`Error::Device`](crate::Error::Device).
pub trait Event: Send {
    /// Marks what is queued on `stream` by now.
    fn record(&mut self, stream: Stream) -> Result<()>;
    /// Makes what is queued on `stream` from now on wait for the mark.
    fn block(&mut self, stream: Stream) -> Result<()>;
    /// Says whether what was marked is done; so it is before the first mark.
    fn is_done(&mut self) -> Result<bool>;
    /// Blocks the host until what was marked is done; returns at once before the first mark.
    fn synchronize(&mut self) -> Result<()>;
}

/// Page-locked memory of the host.
///
/// Nobody looks at bytes that a queued copy may be writing, nor changes those that one may be reading: an event tells when
/// it is done. It may move between threads, and begins at a multiple of 8 bytes.
pub trait Pinned: ByteBuffer + Any {}

/// Makes what is queued on `later` from now on wait for what is queued on `earlier` by now.
pub(crate) fn order(accelerator: &dyn Accelerator, earlier: Stream, later: Stream) -> Result<()> {
    let mut event = accelerator.event()?;
    event.record(earlier)?;
    event.block(later)
}
