//! Memory on a device, which the host hands around and never reads.
//!
//! # Why this is sound without `unsafe`
//! A [`DeviceMemory`] answers with plain numbers, and any safe code may implement it. Nothing in Rust is ever made of
//! the address: no reference, no slice, no pointer that this process follows. It goes to one of two places.
//!
//! - To the [`Accelerator`](crate::Accelerator) of the same device, together with the owner itself. Its implementation
//!   knows the owner's type, and copies through its own safe handle of that memory.
//! - To a device library, NCCL or an MPI library that takes device pointers. Before that, `nccl::driver` asks the CUDA
//!   driver whether all of the run is memory of that very device, not managed and not of the host. An address that is made
//!   up can make the device fault, or spoil what lies on it; it cannot reach memory that a Rust reference points to.
//!
//! The owner is kept as long as the operation: by its borrow, or inside an [`OwnedBuffer`](crate::OwnedBuffer).

use std::any::Any;
use std::fmt;
use std::ops::Range;

/// Memory on a device with an owner of another crate, a tensor's for instance.
///
/// The answers stay the same for the owner's life.
pub trait DeviceMemory: Any + Send {
    /// Returns the device's index.
    fn device(&self) -> usize;
    /// Returns where the memory begins, in the device's own addresses.
    fn address(&self) -> usize;
    /// Returns the length in bytes.
    fn bytes(&self) -> usize;
}

/// A run of bytes of some device memory.
#[derive(Clone, Copy)]
pub struct DeviceRun<'a> {
    memory: &'a dyn DeviceMemory,
    start: usize,
    bytes: usize,
}

impl fmt::Debug for DeviceRun<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x} of device {}", self.bytes, self.address(), self.device())
    }
}

impl<'a> DeviceRun<'a> {
    /// Takes all of it.
    pub fn new(memory: &'a dyn DeviceMemory) -> Self {
        Self { memory, start: 0, bytes: memory.bytes() }
    }

    /// Takes a part of this run.
    ///
    /// # Panics
    /// If the range is not within the run.
    pub fn part(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.bytes, "bytes {range:?} of {}", self.bytes);
        Self { memory: self.memory, start: self.start + range.start, bytes: range.len() }
    }

    /// Returns the owner, for the accelerator that knows its type.
    pub fn memory(&self) -> &'a dyn DeviceMemory {
        self.memory
    }

    /// Returns where the run begins within its owner's memory, in bytes.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Returns the length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the device's index.
    pub fn device(&self) -> usize {
        self.memory.device()
    }

    /// Returns where the run begins, in the device's own addresses.
    pub fn address(&self) -> usize {
        self.memory.address().wrapping_add(self.start)
    }
}
