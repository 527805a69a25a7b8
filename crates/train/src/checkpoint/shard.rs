//! What one writer of a checkpoint adds to its hidden folder: files of slices, and a record of them.

use std::fs::{self, File};
use std::io::{BufWriter, Error as IoError, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest::{self, FileRecord, Manifest, SliceRecord, TensorRecord};
use super::{tensor_file, Dtype, Entry, Section, ShardWriter, Slice};
use crate::durable;
use crate::{Error, Result};

/// Elements go through checksum and system in runs of this length: small tensors are gathered up to it, large ones are
/// still in the processor's cache when they are written.
const RUN_BYTES: usize = 1 << 20;

/// A file that a writer has finished, as its record tells the one who commits.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    section: Section,
    file: FileRecord,
    slices: Vec<PartSlice>,
}

/// One slice of it.
#[derive(Debug, Serialize, Deserialize)]
struct PartSlice {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    region: Vec<[usize; 2]>,
}

/// Writes into a folder that the store's readers do not look at.
#[derive(Debug)]
pub(super) struct DirectoryShard {
    partial: PathBuf,
    writer: usize,
    done: Vec<Part>,
    current: Option<Current>,
    finished: bool,
}

/// The file that elements are appended to.
#[derive(Debug)]
struct Current {
    path: PathBuf,
    part: Part,
    file: BufWriter<File>,
    checksum: blake3::Hasher,
    /// Bytes of elements that are still to come.
    missing: u64,
}

/// Returns the name of a writer's record.
fn record_name(writer: usize) -> String {
    format!(".written-{writer:05}.json")
}

impl DirectoryShard {
    /// Makes the hidden folder, unless another writer has.
    pub(super) fn new(partial: PathBuf, writer: usize) -> Result<Self> {
        let root = partial.parent().map_or(Ok(()), durable::make_folders);
        let made = root.and_then(|()| match fs::create_dir(&partial) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists || !partial.is_dir() => Err(error),
            _ => Ok(()),
        });
        made.map_err(|source| Error::Write { path: partial.clone(), source })?;
        Ok(Self { partial, writer, done: Vec::new(), current: None, finished: false })
    }

    /// Finishes the file under way, if there is one.
    fn close(&mut self) -> Result<()> {
        let Some(current) = self.current.take() else { return Ok(()) };
        if current.missing > 0 {
            return Err(misuse(&current.path, format!("{} bytes of elements are missing", current.missing)));
        }
        let Current { path, mut part, file, checksum, .. } = current;
        let synced = file.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all());
        synced.map_err(|source| Error::Write { path, source })?;
        part.file.blake3 = checksum.finalize().to_hex().to_string();
        self.done.push(part);
        Ok(())
    }
}

impl ShardWriter for DirectoryShard {
    fn file(&mut self, section: Section, slices: &[Slice]) -> Result<()> {
        self.close()?;
        let name = format!("{}-{:05}.safetensors", section.word(), self.writer);
        let path = self.partial.join(&name);
        if self.done.iter().any(|part| part.file.name == name) {
            return Err(misuse(&path, "it was written already".into()));
        }
        let stored: Vec<Entry> = slices.iter().map(Slice::stored).collect();
        let (header, missing) = tensor_file::header(&stored).map_err(|problem| misuse(&path, problem))?;
        let mut start = header.len() as u64;
        let records = slices.iter().zip(&stored).map(|(slice, stored)| {
            let Slice { entry: Entry { name, dtype, shape }, region } = slice.clone();
            let record = PartSlice { name, dtype, shape, start, region: manifest::bounds(&region) };
            start += stored.bytes().expect("the header was counted");
            record
        });
        let slices = records.collect();
        let bytes = header.len() as u64 + missing;
        let file = File::create(&path).map_err(|source| Error::Write { path: path.clone(), source })?;
        let part = Part { section, file: FileRecord { name, bytes, blake3: String::new() }, slices };
        let file = BufWriter::with_capacity(RUN_BYTES, file);
        let mut current = Current { path, part, file, checksum: blake3::Hasher::new(), missing };
        current.put(&header)?;
        self.current = Some(current);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.current else {
            return Err(misuse(&self.partial, "elements came before the first file".into()));
        };
        current.missing = current.missing.checked_sub(bytes.len() as u64).ok_or_else(|| {
            misuse(&current.path, format!("{} bytes came where {} are missing", bytes.len(), current.missing))
        })?;
        bytes.chunks(RUN_BYTES).try_for_each(|run| current.put(run))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.close()?;
        let json = serde_json::to_vec(&self.done).expect("a record is JSON");
        durable::write(&self.partial.join(record_name(self.writer)), &json)?;
        self.finished = true;
        Ok(())
    }
}

impl Current {
    /// Writes bytes, and counts them into the checksum.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.checksum.update(bytes);
        self.file.write_all(bytes).map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}

impl Drop for DirectoryShard {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // What is half serves nobody; that it cannot be removed is no reason to fail.
        let half = self.current.take().map(|current| current.path);
        let whole = self.done.iter().map(|part| self.partial.join(&part.file.name));
        for path in half.into_iter().chain(whole) {
            let _ = fs::remove_file(path);
        }
        // Not while other writers have files in it.
        let _ = fs::remove_dir(&self.partial);
    }
}

/// Joins the records of all writers in a manifest, and takes them away.
pub(super) fn join(partial: &Path, writers: usize, manifest: &mut Manifest) -> Result<()> {
    for writer in 0..writers {
        let path = partial.join(record_name(writer));
        let lost = |problem: String| Error::Checkpoint {
            path: partial.into(),
            problem: format!("writer {writer}'s record {problem}; put the run folder where all nodes see it"),
        };
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(lost("is not there".into())),
            read => read.map_err(|source| Error::Read { path: path.clone(), source })?,
        };
        let parts: Vec<Part> = serde_json::from_slice(&text).map_err(|error| lost(format!("is no JSON ({error})")))?;
        for part in parts {
            add(part, manifest);
        }
        fs::remove_file(&path).map_err(|source| Error::Write { path, source })?;
    }
    let refused = |problem| Err(Error::Checkpoint { path: partial.into(), problem });
    manifest.fault().map_or(Ok(()), refused)
}

/// Adds one file to a manifest.
fn add(part: Part, manifest: &mut Manifest) {
    let file = manifest.files.len();
    manifest.files.push(part.file);
    let tensors = manifest.section_mut(part.section);
    for PartSlice { name, dtype, shape, start, region } in part.slices {
        let record = tensors.entry(name).or_insert_with(|| TensorRecord { dtype, shape, slices: Vec::new() });
        record.slices.push(SliceRecord { file, start, region });
    }
}

/// Words a call that the writer cannot follow.
fn misuse(path: &Path, problem: String) -> Error {
    Error::Write { path: path.into(), source: IoError::new(ErrorKind::InvalidInput, problem) }
}
