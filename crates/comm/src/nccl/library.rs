//! Finding and opening the libraries, and asking them what needs no communicator.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::driver::Driver;
use super::raw::{self, Code, UniqueId, SUCCESS};
use crate::{Error, Result};

/// The oldest release that has all that is used here, 2.18.1, as NCCL counts.
pub(super) const OLDEST: i32 = 21801;

/// An open NCCL, with the CUDA driver beside it.
pub struct Library {
    pub(super) nccl: raw::Nccl,
    pub(super) driver: Driver,
    version: i32,
    path: PathBuf,
    /// Last: the table is gone when the library is closed.
    _open: libloading::Library,
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
        let (open, driver) = (load(nccl)?, Driver::open(cuda)?);
        // SAFETY: the table's types are those of the library's header; the file stays open beside it.
        let table = unsafe { raw::Nccl::of(&open) };
        let table = table.map_err(|symbol| unusable(nccl, format!("it has no function {symbol}")))?;
        let mut version = 0;
        // SAFETY: one integer, alive during the call.
        let code = unsafe { (table.get_version)(&mut version) };
        if code != SUCCESS {
            return Err(unusable(nccl, format!("ncclGetVersion failed with code {code}")));
        }
        if version < OLDEST {
            let (found, needed) = (named(version), named(OLDEST));
            return Err(Error::NcclVersion { path: nccl.display().to_string(), found, needed });
        }
        Ok(Arc::new(Self { nccl: table, driver, version, path: nccl.into(), _open: open }))
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
}

pub(super) fn load(path: &Path) -> Result<libloading::Library> {
    // SAFETY: opening runs the library's initialisers; NVIDIA's libraries are made to be opened so.
    unsafe { libloading::Library::new(path) }.map_err(|error| {
        let source = std::error::Error::source(&error).map(|source| source.to_string());
        let reason = source.unwrap_or_else(|| error.to_string());
        // The loader begins with the path, as the error does.
        unusable(path, reason.trim_start_matches(&format!("{}: ", path.display())).into())
    })
}

pub(super) fn unusable(path: &Path, reason: String) -> Error {
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
