//! `manifest.json`: what a checkpoint holds, and how to tell that it still does.

use serde::{Deserialize, Serialize};

use super::Entry;

/// The manifest's file name. It is written last.
pub(super) const NAME: &str = "manifest.json";

/// The word that tells our manifests from others.
pub(super) const FORMAT: &str = "mp-checkpoint";

/// The version of the layout that this code writes and reads.
pub(super) const VERSION: u32 = 1;

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `mp-checkpoint`.
    pub format: String,
    /// The version of the layout.
    pub version: u32,
    /// Finished updates.
    pub step: u64,
    /// Target tokens trained on so far.
    pub tokens: u64,
    /// The run's seed.
    pub seed: u64,
    /// The whole configuration, as JSON.
    pub config: serde_json::Value,
    /// The release of the code that wrote it.
    pub code_version: String,
    /// The files beside the manifest.
    pub files: Vec<FileRecord>,
}

/// A file of tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The BLAKE3 checksum of all its bytes, in hexadecimal digits.
    pub blake3: String,
    /// Its tensors, in the order of their elements.
    pub tensors: Vec<Entry>,
}
