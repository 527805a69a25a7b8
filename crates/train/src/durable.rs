//! Files that are whole or not there: written beside their place, flushed to the disk, renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Sees that a file can be [written](write()), and changes nothing: what is there stays, and what is not there is not made.
///
/// # Errors
/// What stands in the way.
pub fn check(path: &Path) -> io::Result<()> {
    if path.exists() {
        // A rename asks the folder alone; who may not write to a file shall not replace it, and a folder is none.
        File::options().write(true).open(path)?;
    }
    let partial = partial(path);
    File::create(&partial)?;
    fs::remove_file(&partial)
}

/// Names what is written first, beside the file.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

/// Writes a whole file; after a crash either the old or the new text is there.
///
/// # Errors
/// [`Error::Write`]; what was there is there still.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial(path);
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
    flush_names(path).map_err(|source| Error::Write { path: path.into(), source })
}

/// [Flushes](sync_folder) a folder's list of names.
pub(crate) fn flush_names(path: &Path) -> io::Result<()> {
    // A relative path of one part has the empty path as its parent.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|folder| folder.sync_all())
}

/// Makes a folder and what is missing of those above it, and flushes each new name to the disk: a file in a folder whose
/// name is lost is lost with it. One that another process makes meanwhile is as good.
pub(crate) fn make_folders(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new("."));
    make_folders(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => Err(error),
        _ => flush_names(parent),
    }
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
    fn a_check_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        check(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        write(&path, b"old").unwrap();
        check(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        for nowhere in [folder.path().join("no/a.txt"), path.join("a.txt"), folder.path().into()] {
            check(&nowhere).unwrap_err();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn missing_folders_are_made_and_a_file_in_the_way_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            make_folders(&folder.path().join("a/b/c")).unwrap();
            assert!(folder.path().join("a/b/c").is_dir());
        }
        write(&folder.path().join("file"), b"").unwrap();
        assert!(make_folders(&folder.path().join("file")).is_err());
        assert!(make_folders(&folder.path().join("file/a")).is_err());
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
