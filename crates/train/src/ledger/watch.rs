//! A rank's memory, measured from step to step.

use mp_runtime::{device, Device};

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
}

impl Watch {
    /// Begins before the run holds anything.
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) for a device that does not tell.
    pub fn new(device: Device) -> Result<Self> {
        let before = device::memory(device)?.current_bytes;
        Ok(Self { device, before, standing: None, peak: 0 })
    }

    /// A step begins: the peak of what came before it, an evaluation for instance, is forgotten.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn begin(&mut self) -> Result<()> {
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
        self.peak = self.peak.max(self.of_run(device::memory(self.device)?.peak_bytes));
        Ok(())
    }

    fn of_run(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(self.before)
    }

    /// Returns what the run held when its first step began, and at most in a step; `None` before the first.
    pub fn measured(&self) -> Option<[u64; 2]> {
        self.standing.map(|standing| [standing, self.peak])
    }
}
