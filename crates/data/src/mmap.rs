//! Files as memory: mapped, not read. The one place of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use crate::{file, Error, Result};

/// A whole regular file as bytes. The system reads pages as they are touched, and may forget them again.
///
/// The file must not be cut short while it is mapped: touching what is gone ends the process with SIGBUS. Datasets and
/// checkpoints are replaced by renames, which leaves mapped ones whole.
#[derive(Debug)]
pub struct Mapping {
    /// `None` for a file of no bytes, which cannot be mapped.
    map: Option<memmap2::Mmap>,
}

impl Mapping {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::NotAFile`], [`Error::Unreadable`].
    pub fn open(path: &Path) -> Result<Self> {
        let length = file::regular(path)?;
        let unreadable = |source| Error::Unreadable { path: path.into(), source };
        let file = File::open(path).map_err(unreadable)?;
        if length == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the map is private to this value and read only, so nothing of ours writes what it lends out. Another
        // process that writes to the file could change bytes under a reader, which reads plain integers and bytes of
        // which every pattern is valid, and checks each before it is used as a place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(unreadable)?;
        Ok(Self { map: Some(map) })
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"bytes").unwrap();
        assert_eq!(Mapping::open(&path).unwrap().bytes(), b"bytes");
        std::fs::write(&path, b"").unwrap();
        let empty = Mapping::open(&path).unwrap();
        assert!(empty.is_empty() && empty.bytes().is_empty());
        assert!(matches!(Mapping::open(folder.path()), Err(Error::NotAFile { .. })));
        assert!(matches!(Mapping::open(&folder.path().join("none")), Err(Error::Missing { .. })));
    }
}
