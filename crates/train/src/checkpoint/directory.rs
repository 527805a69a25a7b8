//! A folder of checkpoints, one folder each.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::manifest::{self, About, Manifest};
use super::reader::{self, DirectoryReader};
use super::shard::{self, DirectoryShard};
use super::{CheckpointReader, CheckpointStore, ShardWriter, Verify};
use crate::durable::{self, sync_folder};
use crate::{Error, Result};

/// Keeps checkpoints in folders `step-00000100` of one folder, which is made when it is first written to.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    root: PathBuf,
    keep: usize,
    keep_best: usize,
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
        Self { root: root.into(), keep, keep_best: 0 }
    }

    /// Lets those of the lowest validation losses stay too, so many; 0: none for that reason.
    #[must_use]
    pub fn keeping_best(self, keep_best: usize) -> Self {
        Self { keep_best, ..self }
    }

    /// Returns the folder of all checkpoints.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the folder of a step.
    pub(super) fn folder(&self, step: u64) -> PathBuf {
        self.root.join(folder_name(step))
    }

    /// Returns the hidden folder of a step.
    pub(super) fn aside(&self, step: u64, why: Aside) -> PathBuf {
        self.root.join(format!(".{}.{}", folder_name(step), why.word()))
    }

    /// Gives a hidden folder its name. A checkpoint of the same step steps aside first.
    fn publish(&self, step: u64) -> Result<PathBuf> {
        let (path, aside) = (self.folder(step), self.aside(step, Aside::Replaced));
        let rename =
            |from: &Path, to: &Path| fs::rename(from, to).map_err(|source| Error::Write { path: to.into(), source });
        if path.exists() {
            rename(&path, &aside)?;
        }
        rename(&self.aside(step, Aside::Partial), &path)?;
        sync_folder(&self.root)?;
        if let Err(error) = fs::remove_dir_all(&aside) {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(path = %aside.display(), %error, "a replaced checkpoint stays");
            }
        }
        Ok(path)
    }

    /// Removes the oldest checkpoints beyond those to keep. Not being able to is no reason to end a run.
    fn forget_oldest(&self, newest: u64) {
        if self.keep == 0 {
            return;
        }
        let older: Vec<u64> = self.steps().unwrap_or_default().into_iter().filter(|&step| step < newest).collect();
        let surplus = older.len().saturating_sub(self.keep - 1);
        let best = self.best();
        for &step in older[..surplus].iter().filter(|step| !best.contains(step)) {
            // The name goes first, so that no half of it is ever taken for a checkpoint.
            let aside = self.aside(step, Aside::Removed);
            let removed = fs::rename(self.folder(step), &aside).and_then(|()| fs::remove_dir_all(&aside));
            if let Err(error) = removed {
                tracing::warn!(checkpoint = folder_name(step), %error, "an old checkpoint stays");
            }
        }
    }

    /// Lists the validation losses of the checkpoints where one was measured, lowest first, with their steps; none where
    /// no checkpoint is kept for its loss.
    pub(crate) fn losses(&self) -> Vec<(f64, u64)> {
        if self.keep_best == 0 {
            return Vec::new();
        }
        let loss = |step: u64| {
            let manifest = reader::read_manifest(&self.folder(step)).ok()?;
            manifest.about.validation_loss.map(|loss| (loss, step))
        };
        let mut losses: Vec<(f64, u64)> = self.steps().unwrap_or_default().into_iter().filter_map(loss).collect();
        losses.sort_by(|a, b| a.0.total_cmp(&b.0));
        losses
    }

    /// Lists the steps that are kept for their loss.
    fn best(&self) -> Vec<u64> {
        self.losses().into_iter().take(self.keep_best).map(|(_, step)| step).collect()
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
    fn shard(&self, step: u64, writer: usize) -> Result<Box<dyn ShardWriter>> {
        Ok(Box::new(DirectoryShard::new(self.aside(step, Aside::Partial), writer)?))
    }

    fn commit(&self, writers: usize, about: &About) -> Result<PathBuf> {
        let _span = tracing::info_span!("commit", step = about.step).entered();
        let partial = self.aside(about.step, Aside::Partial);
        let mut manifest = Manifest {
            format: manifest::FORMAT.into(),
            version: manifest::VERSION,
            about: about.clone(),
            files: Vec::new(),
            model: BTreeMap::new(),
            optimizer: BTreeMap::new(),
        };
        shard::join(&partial, writers, &mut manifest)?;
        durable::write(&partial.join(manifest::NAME), &manifest.sealed())?;
        let path = self.publish(about.step)?;
        self.forget_oldest(about.step);
        Ok(path)
    }

    fn abandon(&self, step: u64) {
        // A sweep finds what stays.
        let _ = fs::remove_dir_all(self.aside(step, Aside::Partial));
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
