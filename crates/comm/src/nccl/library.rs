//! Finding and opening the libraries, and asking them what needs no communicator.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::raw::{self, Code, UniqueId, SUCCESS};
use crate::{DeviceRun, Error, Result};

/// The oldest release that has all that is used here, 2.18.1, as NCCL counts.
pub(super) const OLDEST: i32 = 21801;

/// An open NCCL, with the CUDA driver beside it.
pub struct Library {
    pub(super) nccl: raw::Nccl,
    cuda: raw::Cuda,
    version: i32,
    path: PathBuf,
    /// Last: the tables are gone when the libraries are closed.
    _open: [libloading::Library; 2],
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").field("path", &self.path).field("version", &self.version()).finish()
    }
}

impl Library {
    /// Opens `libnccl.so.2` and `libcuda.so.1` where the system's loader finds them.
    ///
    /// # Errors
    /// [`Error::NcclLibrary`] where one is absent, broken or lacks a function; [`Error::NcclVersion`] where NCCL is older
    /// than 2.18.1.
    pub fn open() -> Result<Arc<Self>> {
        Self::open_at(Path::new("libnccl.so.2"), Path::new("libcuda.so.1"))
    }

    /// Opens NCCL and the CUDA driver at these paths.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_at(nccl: &Path, cuda: &Path) -> Result<Arc<Self>> {
        let (nccl_file, cuda_file) = (load(nccl)?, load(cuda)?);
        // SAFETY: the tables' types are those of the libraries' headers; both files stay open in the value that is made.
        let tables = unsafe {
            let lacks = |path: &Path| {
                let path = path.to_path_buf();
                move |symbol| unusable(&path, format!("it has no function {symbol}"))
            };
            (raw::Nccl::of(&nccl_file).map_err(lacks(nccl))?, raw::Cuda::of(&cuda_file).map_err(lacks(cuda))?)
        };
        let mut version = 0;
        // SAFETY: one integer, alive during the call.
        let code = unsafe { (tables.0.get_version)(&mut version) };
        if code != SUCCESS {
            return Err(unusable(nccl, format!("ncclGetVersion failed with code {code}")));
        }
        if version < OLDEST {
            let (found, needed) = (named(version), named(OLDEST));
            return Err(Error::NcclVersion { path: nccl.display().to_string(), found, needed });
        }
        let open = [nccl_file, cuda_file];
        Ok(Arc::new(Self { nccl: tables.0, cuda: tables.1, version, path: nccl.into(), _open: open }))
    }

    /// Returns NCCL's version, `"2.28.9"` for instance.
    pub fn version(&self) -> String {
        named(self.version)
    }

    /// Makes an id for a new communicator.
    pub(super) fn unique_id(&self) -> std::result::Result<UniqueId, (Code, String)> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: one id, alive during the call.
        match unsafe { (self.nccl.get_unique_id)(&mut id) } {
            SUCCESS => Ok(id),
            code => Err((code, self.message(code, std::ptr::null_mut()))),
        }
    }

    /// Returns NCCL's words for a code, and what it last complained of.
    pub(super) fn message(&self, code: Code, comm: *mut std::ffi::c_void) -> String {
        // SAFETY: both return texts of the library's own, which live until the next call of this thread; a null
        // communicator is allowed.
        let (name, last) =
            unsafe { (text((self.nccl.get_error_string)(code)), text((self.nccl.get_last_error)(comm))) };
        match last.trim() {
            "" => name,
            last => format!("{name}: {last}"),
        }
    }

    /// Checks that all of a run is memory of its device, and of nothing else: neither the host's nor managed.
    ///
    /// This is what makes a [`DeviceMemory`](crate::DeviceMemory) that lies harmless to memory that Rust knows.
    pub(super) fn verify(&self, run: DeviceRun<'_>) -> Result<()> {
        let (mut at, end) = (run.address() as u64, run.address().saturating_add(run.bytes()) as u64);
        // What grew piece by piece is several ranges, one after the other.
        while at < end {
            let ask = |attribute| self.attribute(attribute, at);
            let (is_device, ordinal) = (ask(MEMORY_TYPE)? == DEVICE_MEMORY && ask(IS_MANAGED)? == 0, ask(ORDINAL)?);
            let next = ask(RANGE_START)?.saturating_add(ask(RANGE_SIZE)?);
            if !is_device || ordinal != run.device() as u64 || next <= at {
                return Err(refused(run, format!("address {at:#x} is no memory of this device")));
            }
            at = next;
        }
        Ok(())
    }

    fn attribute(&self, attribute: i32, address: u64) -> Result<u64> {
        // Large enough for every attribute; those that are smaller fill its first bytes.
        let mut value = 0u64;
        // SAFETY: eight bytes, alive during the call; the driver does not follow the address.
        let code = unsafe { (self.cuda.pointer_attribute)((&raw mut value).cast(), attribute, address) };
        if code == SUCCESS {
            return Ok(value);
        }
        // What the driver has never heard of is of the memory type 0.
        Ok(0)
    }
}

/// Attributes of a pointer, as `cuda.h` numbers them.
const MEMORY_TYPE: i32 = 2;
const IS_MANAGED: i32 = 8;
const ORDINAL: i32 = 9;
const RANGE_START: i32 = 11;
const RANGE_SIZE: i32 = 12;
/// The memory type of a device.
const DEVICE_MEMORY: u64 = 2;

fn refused(run: DeviceRun<'_>, message: String) -> Error {
    Error::Device { device: run.device(), doing: "checking a buffer for NCCL", message }
}

fn load(path: &Path) -> Result<libloading::Library> {
    // SAFETY: opening runs the library's initialisers; NVIDIA's libraries are made to be opened so.
    unsafe { libloading::Library::new(path) }.map_err(|error| {
        let source = std::error::Error::source(&error).map(|source| source.to_string());
        let reason = source.unwrap_or_else(|| error.to_string());
        // The loader begins with the path, as the error does.
        unusable(path, reason.trim_start_matches(&format!("{}: ", path.display())).into())
    })
}

fn unusable(path: &Path, reason: String) -> Error {
    Error::NcclLibrary { path: path.display().to_string(), reason }
}

/// Spells a version number of NCCL's.
fn named(version: i32) -> String {
    // Up to 2.8 there was a digit less.
    let (major, minor) =
        if version < 10_000 { (version / 1000, version / 100 % 10) } else { (version / 10_000, version / 100 % 100) };
    format!("{major}.{minor}.{}", version % 100)
}

/// Copies a text of the library's.
///
/// # Safety
/// `start` is null or a live text that ends with a zero.
unsafe fn text(start: *const std::ffi::c_char) -> String {
    if start.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(start) }.to_string_lossy().into_owned()
}
