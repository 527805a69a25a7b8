//! Checkpoints: full tensors that appear on disk whole or not at all, and are believed only when they prove it.
//!
//! ```text
//! checkpoints/step-00000100/
//!   manifest.json          what the run was, and each file's length, checksum and tensors
//!   model.safetensors      full tensors, in the safetensors format
//!   optimizer.safetensors
//! ```
//!
//! The files are written into a hidden folder beside, flushed, and the folder is renamed once, so that a crash, a full
//! disk or a lost machine leaves the checkpoints that were there and nothing else. Tensors are streamed in both
//! directions: one is in memory at a time.
//!
//! # Examples
//!
//! ```
//! use mp_train::checkpoint::{CheckpointStore, DirectoryStore, Dtype, Entry, Verify};
//! use mp_train::Config;
//!
//! # fn main() -> mp_train::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! let store = DirectoryStore::new(folder.path().join("checkpoints"), 2);
//! let mut writer = store.begin(100)?;
//! writer.file("model.safetensors", &[Entry::new("norm.weight", Dtype::F32, &[2])])?;
//! writer.append(&1.0f32.to_le_bytes())?;
//! writer.append(&2.0f32.to_le_bytes())?;
//! writer.commit(51_200, &Config::default())?;
//!
//! let reader = store.latest(Verify::Checksums)?.expect("one was written");
//! assert_eq!((reader.manifest().step, reader.manifest().tokens), (100, 51_200));
//! let tensor = reader.read("model.safetensors", "norm.weight")?;
//! assert_eq!((tensor.entry.shape, tensor.bytes.len()), (vec![2], 8));
//! # Ok(())
//! # }
//! ```

mod directory;
mod manifest;
mod reader;
mod tensor_file;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};

pub use directory::DirectoryStore;
pub use manifest::{FileRecord, Manifest};
pub use tensor_file::{Dtype, Entry};

use crate::run_folder::CHECKPOINTS;
use crate::{Config, Error, Result};

/// How much of a checkpoint is read before it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Every byte, against the checksums.
    Checksums,
    /// Lengths and headers.
    Lengths,
}

/// A tensor's description and elements.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    /// Name, kind and shape.
    pub entry: Entry,
    /// The elements, row-major and little-endian.
    pub bytes: Vec<u8>,
}

/// Opens the newest checkpoint of a run folder, or the checkpoint whose own folder it is.
///
/// # Errors
/// [`Error::Checkpoint`](crate::Error::Checkpoint) if there is none, or it is not intact.
pub fn open(path: &Path, verify: Verify) -> Result<Box<dyn CheckpointReader>> {
    if let Some((store, step)) = directory::own_folder(path) {
        return store.open(step, verify);
    }
    let store = DirectoryStore::new(path.join(CHECKPOINTS), 0);
    let none = || Error::Checkpoint {
        path: path.into(),
        problem: format!("it is neither a run folder with `{CHECKPOINTS}` nor the folder of one checkpoint"),
    };
    store.latest(verify)?.ok_or_else(none)
}

/// A place that keeps checkpoints. One process writes; any number read.
pub trait CheckpointStore: Send + fmt::Debug {
    /// Starts the checkpoint of a step. Until [`CheckpointWriter::commit`] nobody sees it.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write).
    fn begin(&self, step: u64) -> Result<Box<dyn CheckpointWriter>>;

    /// Lists the steps that have a checkpoint, least first.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read).
    fn steps(&self) -> Result<Vec<u64>>;

    /// Opens the checkpoint of a step.
    ///
    /// # Errors
    /// [`Error::Checkpoint`](crate::Error::Checkpoint) naming the file that is missing, cut off, changed or foreign,
    /// and the newest older checkpoint that is intact.
    fn open(&self, step: u64, verify: Verify) -> Result<Box<dyn CheckpointReader>>;

    /// Opens the newest checkpoint, if there is one.
    ///
    /// # Errors
    /// Those of [`steps`](Self::steps) and [`open`](Self::open).
    fn latest(&self, verify: Verify) -> Result<Option<Box<dyn CheckpointReader>>> {
        self.steps()?.last().map(|&step| self.open(step, verify)).transpose()
    }

    /// Removes what crashed writers left. For the one process that writes, before its first checkpoint.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write).
    fn sweep(&self) -> Result<()>;
}

/// Writes one checkpoint, file after file, tensor after tensor. Dropped before its commit, it leaves nothing.
pub trait CheckpointWriter: Send + fmt::Debug {
    /// Starts the next file, and says what will be appended to it, in order.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write); also if the file before lacks elements, or the name or an entry's name
    /// comes twice.
    fn file(&mut self, name: &str, entries: &[Entry]) -> Result<()>;

    /// Appends elements to the current file, in runs of any length.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write); also if these are more than the entries hold.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the checkpoint visible, whole, and then removes the oldest beyond those to keep; returns its folder.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write).
    fn commit(self: Box<Self>, tokens: u64, config: &Config) -> Result<PathBuf>;
}

/// Reads one checkpoint.
pub trait CheckpointReader: Send + fmt::Debug {
    /// Returns where it lies, for messages.
    fn path(&self) -> &std::path::Path;

    /// Returns what it holds.
    fn manifest(&self) -> &Manifest;

    /// Reads one tensor.
    ///
    /// # Errors
    /// [`Error::Checkpoint`](crate::Error::Checkpoint) if there is none of that name, or it cannot be read.
    fn read(&self, file: &str, name: &str) -> Result<StoredTensor>;
}
