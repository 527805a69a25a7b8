//! Regular files: reading them whole, with errors that say what lies at the path instead.

use std::fs::{self, FileType};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Reads all bytes of the regular file at `path`.
///
/// Pipes and devices are refused: every rank reads the file for itself, and a pipe has one reader.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let _span = tracing::debug_span!("read_file", path = %path.display()).entered();
    regular(path)?;
    let bytes = fs::read(path).map_err(|source| unreadable(path, source))?;
    if bytes.is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    tracing::debug!(bytes = bytes.len(), "read");
    Ok(bytes)
}

/// Returns the length of the regular file at `path`, and refuses anything else.
pub fn regular(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path).map_err(|source| unreadable(path, source))?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.into(), found: describe(metadata.file_type()) });
    }
    Ok(metadata.len())
}

/// Lists the regular files below a folder in the order of their paths, without hidden ones.
pub fn below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut names = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>())
        .map_err(|source| unreadable(folder, source))?;
    names.retain(|path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b".")));
    names.sort();
    let mut files = Vec::new();
    for path in names {
        match path.is_dir() {
            true => files.extend(below(&path)?),
            false => files.push(path),
        }
    }
    Ok(files)
}

fn unreadable(path: &Path, source: std::io::Error) -> Error {
    match source.kind() {
        ErrorKind::NotFound => Error::Missing { path: path.into() },
        _ => Error::Unreadable { path: path.into(), source },
    }
}

fn describe(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a folder"
    } else {
        "a pipe or a device"
    }
}
