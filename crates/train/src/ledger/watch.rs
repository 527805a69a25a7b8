//! A rank's memory, measured from step to step.

use mp_runtime::device::{self, MemoryStats};
use mp_runtime::Device;

use crate::Result;

/// Watches what tensors hold on this rank's device: between steps, and at most in one.
///
/// The allocator counts a process. What it held before the run is taken off; of runs that share a process at the same time
/// each sees all.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    device: Device,
    /// What the process held before the run began.
    before: u64,
    /// What the run held when its first step began.
    standing: Option<u64>,
    /// What it held at most in a step.
    peak: u64,
    /// What the process held at most, in a step or between two, and what its allocator took of a device for that.
    held: u64,
    reserved: Option<u64>,
}

impl Watch {
    /// Begins before the run holds anything.
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) for a device that does not tell.
    pub fn new(device: Device) -> Result<Self> {
        let before = device::memory(device)?.current_bytes;
        Ok(Self { device, before, standing: None, peak: 0, held: 0, reserved: None })
    }

    /// A step begins: the peak of what came before it, an evaluation for instance, is none of its own.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn begin(&mut self) -> Result<()> {
        self.note()?;
        device::reset_peak(self.device)?;
        if self.standing.is_none() {
            self.standing = Some(self.of_run(device::memory(self.device)?.current_bytes));
        }
        Ok(())
    }

    /// A step is over.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn end(&mut self) -> Result<()> {
        let peak = self.note()?.peak_bytes;
        self.peak = self.peak.max(self.of_run(peak));
        Ok(())
    }

    /// Notes the peak since it was last forgotten.
    fn note(&mut self) -> Result<MemoryStats> {
        let stats = device::memory(self.device)?;
        self.held = self.held.max(stats.peak_bytes);
        self.reserved = self.reserved.max(stats.reserved_bytes);
        Ok(stats)
    }

    /// Returns the most that the process has held by the end of the last step: the resident set's peak on a host, what tensors
    /// held on a device.
    pub fn held(&self) -> u64 {
        match self.device {
            Device::Cuda(_) => self.held,
            host => device::peak_bytes(host),
        }
    }

    /// Returns the most that its allocator has taken from a device.
    pub fn reserved(&self) -> Option<u64> {
        self.reserved
    }

    fn of_run(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(self.before)
    }

    /// Returns what the run held when its first step began, and at most in a step; `None` before the first.
    pub fn measured(&self) -> Option<[u64; 2]> {
        self.standing.map(|standing| [standing, self.peak])
    }
}
