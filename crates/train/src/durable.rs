//! Files that are whole or not there: written beside their place, flushed to the disk, renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// Writes a whole file; after a crash either the old or the new text is there.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = File::create(&partial).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    let renamed = written.and_then(|()| fs::rename(&partial, path));
    if let Err(source) = renamed {
        // What could not be written is of no use; that it cannot be removed either changes nothing.
        let _ = fs::remove_file(&partial);
        return Err(Error::Write { path: path.into(), source });
    }
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Flushes a folder's list of names to the disk.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    // A relative path of one part has the empty path as its parent.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|source| Error::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write(&path, b"old").unwrap();
        // A folder in the way of the file to write first.
        fs::create_dir(folder.path().join("a.txt.partial")).unwrap();
        assert!(matches!(write(&path, b"new"), Err(Error::Write { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
