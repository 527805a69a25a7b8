//! Checkpoints: full tensors in slices, written by as many ranks as there are, that appear on disk whole or not at all,
//! and are believed only when they prove it.
//!
//! ```text
//! checkpoints/step-00000100/
//!   manifest.json                what the run was, each file's length and checksum, and where each tensor's slices lie
//!   model-00000.safetensors      the slices of the masters that writer 0 owned, in the safetensors format
//!   optimizer-00000.safetensors
//!   model-00001.safetensors      writer 1's, and so on
//! ```
//!
//! The files are written into a hidden folder beside and flushed; when all writers are done one of them joins their
//! records in a manifest and renames the folder once, so that a crash, a full disk or a lost machine leaves the
//! checkpoints that were there and nothing else. A reader asks for boxes of full tensors, whoever wrote them.
//!
//! # Examples
//!
//! ```
//! use mp_train::checkpoint::{About, CheckpointStore, DirectoryStore, Dtype, Entry, Section, Slice, Verify};
//! use mp_train::Config;
//!
//! # fn main() -> mp_train::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! let store = DirectoryStore::new(folder.path().join("checkpoints"), 2);
//! let entry = Entry::new("norm.weight", Dtype::F32, &[2]);
//! for writer in 0..2 {
//!     let mut shard = store.shard(100, writer)?;
//!     shard.file(Section::Model, &[Slice { entry: entry.clone(), region: vec![writer..writer + 1] }])?;
//!     shard.append(&(writer as f32).to_le_bytes())?;
//!     shard.finish()?;
//! }
//! store.commit(2, &About::new(100, &Config::default()))?;
//!
//! let reader = store.latest(Verify::Checksums)?.expect("one was written");
//! assert_eq!(reader.manifest().about.step, 100);
//! let both = reader.read(Section::Model, "norm.weight", &[0..2])?;
//! assert_eq!(both, [0.0f32.to_le_bytes(), 1.0f32.to_le_bytes()].concat());
//! # Ok(())
//! # }
//! ```

mod directory;
mod manifest;
mod reader;
mod rewrite;
mod shard;
mod tensor_file;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use mp_comm::Communicator;
use serde::{Deserialize, Serialize};

pub use directory::DirectoryStore;
pub use manifest::{About, FileRecord, Manifest, SliceRecord, TensorRecord};
pub use rewrite::{average, convert, Rewrite};
pub use tensor_file::{Dtype, Entry};

use crate::region::{self, Region};
use crate::run_folder::CHECKPOINTS;
use crate::{Error, Result};

/// What tensors of a checkpoint are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// The model's values, in the precision of the masters.
    Model,
    /// The optimizer's state.
    Optimizer,
}

impl Section {
    /// Both, in the order in which they are written.
    pub const ALL: [Section; 2] = [Section::Model, Section::Optimizer];

    /// Returns the word that its files start with.
    pub fn word(self) -> &'static str {
        match self {
            Section::Model => "model",
            Section::Optimizer => "optimizer",
        }
    }
}

/// A box of a full tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// The full tensor.
    pub entry: Entry,
    /// The box.
    pub region: Region,
}

impl Slice {
    /// Takes the whole tensor.
    pub fn whole(entry: Entry) -> Self {
        let region = region::whole(&entry.shape);
        Self { entry, region }
    }

    /// Describes the tensor that it is in a file: under its own name where it is whole, so that any reader of the format
    /// finds it.
    fn stored(&self) -> Entry {
        let Entry { name, dtype, shape } = &self.entry;
        let name = match self.region == region::whole(shape) {
            true => name.clone(),
            false => format!("{name}@{:?}", self.region),
        };
        let shape: Vec<usize> = self.region.iter().map(Range::len).collect();
        Entry::new(name, *dtype, &shape)
    }
}

/// How much of a checkpoint is read before it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Every byte, against the checksums.
    Checksums,
    /// Lengths, and every `of`-th file from file `rank` on against its checksum: `of` ranks together read every byte once.
    Share {
        /// The first file.
        rank: usize,
        /// How many ranks share.
        of: usize,
    },
    /// Lengths.
    Lengths,
}

impl Verify {
    /// Returns this rank's share of comparing every byte; the ranks must agree on what each has found.
    pub fn shared(world: &dyn Communicator) -> Self {
        Verify::Share { rank: world.rank().0, of: world.size() }
    }
}

/// Opens the newest checkpoint of a run folder, or the checkpoint whose own folder it is.
///
/// # Errors
/// [`Error::Checkpoint`] if there is none, or it is not intact.
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

/// A place that keeps checkpoints. Several write one together, each its shard; any number read.
pub trait CheckpointStore: Send + Sync + fmt::Debug {
    /// Starts the shard of one writer, counted from 0. Until [`commit`](Self::commit) no reader sees it.
    ///
    /// # Errors
    /// [`Error::Write`].
    fn shard(&self, step: u64, writer: usize) -> Result<Box<dyn ShardWriter>>;

    /// Makes a checkpoint of the finished shards of writers `0..writers` visible, whole, and then removes the oldest
    /// beyond those to keep; returns its folder. For one process, when all writers are done.
    ///
    /// # Errors
    /// [`Error::Write`]; [`Error::Checkpoint`] if a shard cannot be seen from here, or the slices are not every tensor
    /// once.
    fn commit(&self, writers: usize, about: &About) -> Result<PathBuf>;

    /// Removes the shards of a step that will not be committed.
    fn abandon(&self, step: u64);

    /// Lists the steps that have a checkpoint, least first.
    ///
    /// # Errors
    /// [`Error::Read`].
    fn steps(&self) -> Result<Vec<u64>>;

    /// Opens the checkpoint of a step.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the file that is missing, cut off, changed or foreign, and the newest older checkpoint
    /// that is intact.
    fn open(&self, step: u64, verify: Verify) -> Result<Box<dyn CheckpointReader>>;

    /// Opens the newest checkpoint, if there is one.
    ///
    /// # Errors
    /// Those of [`steps`](Self::steps) and [`open`](Self::open).
    fn latest(&self, verify: Verify) -> Result<Option<Box<dyn CheckpointReader>>> {
        self.steps()?.last().map(|&step| self.open(step, verify)).transpose()
    }

    /// Removes what crashed writers left. For the one process that commits, before its first checkpoint.
    ///
    /// # Errors
    /// [`Error::Write`].
    fn sweep(&self) -> Result<()>;
}

/// Writes one shard of a checkpoint, file after file, slice after slice. Dropped before it is finished, it leaves nothing.
pub trait ShardWriter: Send + fmt::Debug {
    /// Starts the file of a section, and says which slices will be appended to it, in order.
    ///
    /// # Errors
    /// [`Error::Write`]; also if the file before lacks elements, or a section or a slice comes twice.
    fn file(&mut self, section: Section, slices: &[Slice]) -> Result<()>;

    /// Appends elements to the current file, in runs of any length.
    ///
    /// # Errors
    /// [`Error::Write`]; also if these are more than the slices hold.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;

    /// Flushes the files to the disk, and leaves word of them for the commit.
    ///
    /// # Errors
    /// [`Error::Write`].
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Reads one checkpoint.
pub trait CheckpointReader: Send + Sync + fmt::Debug {
    /// Returns where it lies, for messages.
    fn path(&self) -> &Path;

    /// Returns what it holds.
    fn manifest(&self) -> &Manifest;

    /// Reads a box of a tensor, row-major and little-endian, into memory of its length; no more of the files than that.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is no such tensor or box, or a file cannot be read.
    fn read_into(&self, section: Section, name: &str, region: &[Range<usize>], into: &mut [u8]) -> Result<()>;

    /// [Reads](Self::read_into) a box into memory of its own.
    ///
    /// # Errors
    /// Those of [`read_into`](Self::read_into).
    fn read(&self, section: Section, name: &str, region: &[Range<usize>]) -> Result<Vec<u8>> {
        let width = self.manifest().entry(section, name).map_or(0, |entry| entry.dtype.bytes());
        let mut elements = vec![0; region::volume(region) * width];
        self.read_into(section, name, region, &mut elements)?;
        Ok(elements)
    }
}
