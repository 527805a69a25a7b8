//! The CUDA driver's one question: whether an address is memory of a device, and of nothing else.
#![allow(unsafe_code)]

use std::path::Path;

use super::library::{load, unusable};
use super::raw::{Cuda, SUCCESS};
use crate::{DeviceRun, Error, Result};

/// Attributes of a pointer, as `cuda.h` numbers them.
const MEMORY_TYPE: i32 = 2;
const IS_MANAGED: i32 = 8;
const ORDINAL: i32 = 9;
const RANGE_START: i32 = 11;
const RANGE_SIZE: i32 = 12;
/// The memory type of a device.
const DEVICE_MEMORY: u64 = 2;

/// An open driver.
pub(crate) struct Driver {
    cuda: Cuda,
    /// Last: the table is gone when the library is closed.
    _open: libloading::Library,
}

impl Driver {
    /// Opens the driver at this path.
    ///
    /// # Errors
    /// [`Error::NcclLibrary`] where it is absent, broken or lacks the function.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let open = load(path)?;
        // SAFETY: the table's type is that of the driver's header; the file stays open beside it.
        let cuda =
            unsafe { Cuda::of(&open) }.map_err(|symbol| unusable(path, format!("it has no function {symbol}")))?;
        Ok(Self { cuda, _open: open })
    }

    /// Checks that all of a run is memory of its device: neither the host's nor managed.
    ///
    /// This is what makes a [`DeviceMemory`](crate::DeviceMemory) that lies harmless to memory that Rust knows.
    pub(crate) fn verify(&self, run: DeviceRun<'_>) -> Result<()> {
        let (mut at, end) = (run.address() as u64, run.address().saturating_add(run.bytes()) as u64);
        // Of addresses that were reserved first and backed piece by piece, the range is all that is reserved; of others it is one
        // allocation, and a run may reach over several that follow one another.
        while at < end {
            let ask = |attribute| self.attribute(attribute, at);
            let (is_device, ordinal) = (ask(MEMORY_TYPE) == DEVICE_MEMORY && ask(IS_MANAGED) == 0, ask(ORDINAL));
            let next = ask(RANGE_START).saturating_add(ask(RANGE_SIZE));
            if !is_device || ordinal != run.device() as u64 || next <= at {
                let message = format!("address {at:#x} is no memory of this device");
                return Err(Error::Device { device: run.device(), doing: "checking a buffer's address", message });
            }
            at = next;
        }
        Ok(())
    }

    /// Asks for an attribute; 0, which is no memory type, where the driver has never heard of the address.
    fn attribute(&self, attribute: i32, address: u64) -> u64 {
        // Large enough for every attribute; those that are smaller fill its first bytes.
        let mut value = 0u64;
        // SAFETY: eight bytes, alive during the call; the driver does not follow the address.
        let code = unsafe { (self.cuda.pointer_attribute)((&raw mut value).cast(), attribute, address) };
        if code == SUCCESS {
            value
        } else {
            0
        }
    }
}
