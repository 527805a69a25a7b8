//! A folder of checkpoints, one folder each.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::reader::DirectoryReader;
use super::writer::DirectoryWriter;
use super::{CheckpointReader, CheckpointStore, CheckpointWriter, Verify};
use crate::{Error, Result};

/// Keeps checkpoints in folders `step-00000100` of one folder, which is made when it is first written to.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    root: PathBuf,
    keep: usize,
}

/// Why a folder stands aside, under a name that readers do not look at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Aside {
    /// It is being written.
    Partial,
    /// A new checkpoint of the same step is taking its place.
    Replaced,
    /// It is being removed.
    Removed,
}

impl Aside {
    fn word(self) -> &'static str {
        match self {
            Aside::Partial => "partial",
            Aside::Replaced => "replaced",
            Aside::Removed => "removed",
        }
    }
}

/// Returns the name of a step's folder.
pub(super) fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Returns the step of a folder's name, if it is one.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// Returns the store and the step of a checkpoint's own folder, if it is one.
pub(super) fn own_folder(path: &Path) -> Option<(DirectoryStore, u64)> {
    let absolute = std::path::absolute(path).ok()?;
    let step = step_of(absolute.file_name()?.to_str()?)?;
    Some((DirectoryStore::new(absolute.parent()?, 0), step))
}

impl DirectoryStore {
    /// Names a folder, and how many of the newest checkpoints stay; 0: all.
    pub fn new(root: impl Into<PathBuf>, keep: usize) -> Self {
        Self { root: root.into(), keep }
    }

    /// Returns the folder of all checkpoints.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns how many stay; 0: all.
    pub(super) fn keep(&self) -> usize {
        self.keep
    }

    /// Returns the folder of a step.
    pub(super) fn folder(&self, step: u64) -> PathBuf {
        self.root.join(folder_name(step))
    }

    /// Returns the hidden folder of a step.
    pub(super) fn aside(&self, step: u64, why: Aside) -> PathBuf {
        self.root.join(format!(".{}.{}", folder_name(step), why.word()))
    }

    /// Names the newest checkpoint below `step` that proves to be intact.
    fn intact_below(&self, step: u64) -> Option<u64> {
        let older = self.steps().ok()?.into_iter().rev().filter(|&other| other < step);
        older.into_iter().find(|&other| DirectoryReader::open(self.folder(other), other, Verify::Checksums).is_ok())
    }

    /// Lists the names in the folder; none if it was never made.
    fn names(&self) -> Result<Vec<String>> {
        let read = |source| Error::Read { path: self.root.clone(), source };
        match fs::read_dir(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(read(error)),
            Ok(entries) => entries
                .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(read))
                .collect(),
        }
    }
}

impl CheckpointStore for DirectoryStore {
    fn begin(&self, step: u64) -> Result<Box<dyn CheckpointWriter>> {
        Ok(Box::new(DirectoryWriter::new(self, step)?))
    }

    fn steps(&self) -> Result<Vec<u64>> {
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn open(&self, step: u64, verify: Verify) -> Result<Box<dyn CheckpointReader>> {
        let path = self.folder(step);
        match DirectoryReader::open(path.clone(), step, verify) {
            Ok(reader) => Ok(Box::new(reader)),
            Err(problem) => {
                let way_out = match self.intact_below(step) {
                    Some(older) => {
                        format!("the checkpoint of step {older} is intact: remove this folder to go on there")
                    }
                    None => "no older checkpoint is intact".into(),
                };
                Err(Error::Checkpoint { path, problem: format!("{problem}; {way_out}") })
            }
        }
    }

    fn sweep(&self) -> Result<()> {
        for name in self.names()? {
            let Some((folder, why)) = name.strip_prefix('.').and_then(|rest| rest.rsplit_once('.')) else { continue };
            let Some(step) = step_of(folder) else { continue };
            let path = self.root.join(&name);
            // A crash between the two renames of a replacement: the old one is still the whole one.
            let swept = if why == Aside::Replaced.word() && !self.folder(step).exists() {
                fs::rename(&path, self.folder(step))
            } else {
                fs::remove_dir_all(&path)
            };
            swept.map_err(|source| Error::Write { path, source })?;
        }
        Ok(())
    }
}
