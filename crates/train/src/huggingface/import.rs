//! From a published model to a run folder: its configuration, its tokenizer, and a checkpoint of step 0 that has no
//! optimizer's state.

use std::path::{Path, PathBuf};
use std::{fs, io};

use mp_plan::lora::is_factor;

use super::{tokens, Folder, TOKENIZER};
use crate::adapted::mark;
use crate::checkpoint::{About, CheckpointStore, DirectoryStore, Section, Slice, Verify};
use crate::run_folder::{self, CHECKPOINTS};
use crate::weights::{self, WeightSource};
use crate::{region, Config, Error, Result};

/// Bytes of a tensor that are in memory at a time.
pub(super) const RUN_BYTES: usize = 16 << 20;

/// Takes a published model, or adapters of one, into a new run folder; `config` is one whose `model.from` names it. Returns the checkpoint's
/// folder.
///
/// # Errors
/// [`Error::Published`] for a folder that cannot be used; [`Error::RunFolder`] if the run's folder exists;
/// [`Error::Write`].
pub fn import(config: &Config, run: &Path) -> Result<PathBuf> {
    let nowhere = || Error::Config {
        key: "model.from",
        value: "unset".into(),
        rule: "must name the folder of the model to import".into(),
    };
    let from = config.model.from.as_deref().ok_or_else(nowhere)?;
    config.check_dropout()?;
    // All that can be refused comes before anything is written.
    let source = weights::open(from, config.model.base.as_deref(), Verify::Checksums)?;
    let run = std::path::absolute(run).unwrap_or_else(|_| run.into());
    made(&run)?;
    let mut config = config.clone();
    let mut base = None;
    config.model.from = None;
    config.model.base = None;
    if let Some(adapters) = source.adapters() {
        config.model.from = Some(adapters.base.clone());
        if config.lora.rank == 0 {
            config.lora = adapters.lora.clone();
        }
        base = Some(mark(&*source)?);
    }
    tokens::keep_marks(from, &run)?;
    if let Some(tokenizer) = Folder::tokenizer(from).filter(|file| config.data.tokenizer == file.to_string_lossy()) {
        let own = run.join(TOKENIZER);
        fs::copy(&tokenizer, &own).map_err(|source| Error::Write { path: own.clone(), source })?;
        config.data.tokenizer = own.to_string_lossy().into_owned();
        tokens::copy_beside(from, &run)?;
    }
    run_folder::save(&run, &config)?;
    let about = About { base, ..About::new(0, &config) };
    write(&*source, &DirectoryStore::new(run.join(CHECKPOINTS), 0), &about)
}

/// Makes the run's folder.
fn made(run: &Path) -> Result<()> {
    let parents = run.parent().map_or(Ok(()), fs::create_dir_all);
    parents.and_then(|()| fs::create_dir(run)).map_err(|error| {
        let problem = match error.kind() {
            io::ErrorKind::AlreadyExists => "exists; give one that does not".into(),
            _ => format!("cannot be made: {error}"),
        };
        Error::RunFolder { path: run.into(), problem }
    })
}

/// Writes the model, or its adapters alone, in the kind that it has, a few rows at a time.
fn write(source: &dyn WeightSource, store: &DirectoryStore, about: &About) -> Result<PathBuf> {
    let mut shard = store.shard(0, 0)?;
    let mut names = source.names();
    names.retain(|name| source.adapters().is_none() || is_factor(name));
    let entries: Vec<_> = names.iter().filter_map(|name| source.entry(name)).collect();
    let slices: Vec<Slice> = entries.iter().cloned().map(Slice::whole).collect();
    shard.file(Section::Model, &slices)?;
    for entry in entries {
        let mut region = region::whole(&entry.shape);
        for rows in runs(&entry.shape, entry.dtype.bytes()) {
            region[0] = rows;
            shard.append(&source.read(&entry.name, &region)?)?;
        }
    }
    shard.finish()?;
    store.commit(1, about)
}

/// Cuts the rows of a tensor in runs of about [`RUN_BYTES`].
pub(super) fn runs(shape: &[usize], width: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let row: usize = shape[1..].iter().product::<usize>() * width;
    let (rows, step) = (shape[0], (RUN_BYTES / row.max(1)).max(1));
    (0..rows).step_by(step).map(move |start| start..(start + step).min(rows))
}
