//! Reading one checkpoint: what it says of itself is compared with what is there before anything is used.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::manifest::{self, FileRecord, Manifest};
use super::writer::is_plain;
use super::{tensor_file, CheckpointReader, Entry, StoredTensor, Verify};
use crate::{Error, Result};

/// Something that was checked, or what is wrong with it.
type Checked<T> = std::result::Result<T, String>;

/// A checkpoint that was believed.
#[derive(Debug)]
pub(super) struct DirectoryReader {
    path: PathBuf,
    manifest: Manifest,
    files: Vec<TensorFile>,
}

/// A file, and where in it each tensor lies.
#[derive(Debug)]
struct TensorFile {
    name: String,
    tensors: Vec<(Entry, Range<u64>)>,
}

impl DirectoryReader {
    /// Opens and checks a folder.
    ///
    /// # Errors
    /// Which file differs in what.
    pub(super) fn open(path: PathBuf, step: u64, verify: Verify) -> Checked<Self> {
        let manifest = read_manifest(&path)?;
        if manifest.step != step {
            return Err(format!("`{}` is of step {} in a folder of step {step}", manifest::NAME, manifest.step));
        }
        let check =
            |record| check_file(&path, record, verify).map_err(|problem| format!("`{}` {problem}", record.name));
        let files = manifest.files.iter().map(check).collect::<Checked<_>>()?;
        Ok(Self { path, manifest, files })
    }

    /// Finds a tensor's file and place.
    fn find(&self, file: &str, name: &str) -> Option<&(Entry, Range<u64>)> {
        let file = self.files.iter().find(|known| known.name == file)?;
        file.tensors.iter().find(|(entry, _)| entry.name == name)
    }
}

impl CheckpointReader for DirectoryReader {
    fn path(&self) -> &Path {
        &self.path
    }

    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn read(&self, file: &str, name: &str) -> Result<StoredTensor> {
        let refused = |problem| Error::Checkpoint { path: self.path.clone(), problem };
        let (entry, range) =
            self.find(file, name).ok_or_else(|| refused(format!("`{file}` holds no tensor `{name}`")))?;
        let path = self.path.join(file);
        let bytes = read_range(&path, range).map_err(|source| Error::Read { path, source })?;
        Ok(StoredTensor { entry: entry.clone(), bytes })
    }
}

/// Reads a run of a file's bytes.
fn read_range(path: &Path, range: &Range<u64>) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(range.start))?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Reads what a checkpoint says of itself.
fn read_manifest(folder: &Path) -> Checked<Manifest> {
    let name = manifest::NAME;
    let text = fs::read_to_string(folder.join(name)).map_err(|error| format!("`{name}` cannot be read: {error}"))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("`{name}` is no JSON ({error})"))?;
    // Format and version first: what another version calls its fields is not known.
    if json["format"] != manifest::FORMAT {
        return Err(format!("`{name}` is of the format {} instead of \"{}\"", json["format"], manifest::FORMAT));
    }
    if json["version"] != manifest::VERSION {
        return Err(format!("`{name}` is of version {}, this program reads {}", json["version"], manifest::VERSION));
    }
    serde_json::from_value(json).map_err(|error| format!("`{name}` is not understood ({error})"))
}

/// Compares a file with what the manifest says of it.
fn check_file(folder: &Path, record: &FileRecord, verify: Verify) -> Checked<TensorFile> {
    if !is_plain(&record.name) {
        return Err("is no file's name".into());
    }
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let mut file = File::open(folder.join(&record.name)).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    if bytes != record.bytes {
        return Err(format!("has {bytes} bytes instead of {}", record.bytes));
    }
    if verify == Verify::Checksums {
        let mut checksum = blake3::Hasher::new();
        checksum.update_reader(&mut file).map_err(unreadable)?;
        let found = checksum.finalize().to_hex();
        if *found != *record.blake3 {
            return Err(format!("has the checksum {} instead of {}", short(&found), short(&record.blake3)));
        }
        file.rewind().map_err(unreadable)?;
    }
    let tensors = read_header(&mut file, bytes)?;
    if !by_name(tensors.iter().map(|(entry, _)| entry)).eq(&by_name(&record.tensors)) {
        return Err(format!("holds other tensors than the {} of the manifest", record.tensors.len()));
    }
    Ok(TensorFile { name: record.name.clone(), tensors })
}

/// Sorts descriptions: tensors without elements share a place, so the file's order says nothing about them.
fn by_name<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<&'a Entry> {
    let mut entries: Vec<&Entry> = entries.into_iter().collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

/// Reads where each tensor lies in a file.
fn read_header(file: &mut File, bytes: u64) -> Checked<Vec<(Entry, Range<u64>)>> {
    let unreadable = |error: io::Error| format!("is no safetensors file: {error}");
    let mut first = [0; 8];
    file.read_exact(&mut first).map_err(unreadable)?;
    let length = tensor_file::header_bytes(first, bytes)?;
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
    let start = 8 + length;
    let tensors = tensor_file::parse(&header, bytes - start)?;
    Ok(tensors.into_iter().map(|(entry, range)| (entry, start + range.start..start + range.end)).collect())
}

/// Returns the first digits of a checksum, enough to tell two apart.
fn short(checksum: &str) -> &str {
    checksum.get(..16).unwrap_or(checksum)
}
