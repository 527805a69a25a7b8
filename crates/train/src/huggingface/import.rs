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
use crate::{durable, region, Config, Error, Result};

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
    into_run(&*source, from, config, run)
}

/// Makes the run's folder beside its place, and gives it its name when it is whole: what fails or is killed leaves nothing under
/// that name, and can be tried again.
fn into_run(source: &dyn WeightSource, from: &Path, config: &Config, run: &Path) -> Result<PathBuf> {
    let run = std::path::absolute(run).unwrap_or_else(|_| run.into());
    let refused = |problem: String| Error::RunFolder { path: run.clone(), problem };
    let name = run.file_name().filter(|_| !run.exists());
    let name = name.ok_or_else(|| refused("exists; give one that does not".into()))?;
    let partial = run.with_file_name(format!(".{}.partial", name.to_string_lossy()));
    // What a killed import left.
    let _ = fs::remove_dir_all(&partial);
    let cannot = |error: io::Error| refused(format!("cannot be made: {error}"));
    durable::make_folders(&partial).map_err(cannot)?;
    let named = |checkpoint: PathBuf| {
        fs::rename(&partial, &run).and_then(|()| durable::flush_names(run.parent().unwrap_or(&run))).map_err(cannot)?;
        Ok(run.join(checkpoint.strip_prefix(&partial).unwrap_or(&checkpoint)))
    };
    let made = fill(&partial, source, from, config.clone(), &run).and_then(named);
    made.inspect_err(|_| drop(fs::remove_dir_all(&partial)))
}

/// Fills the folder that will be the run's; returns the checkpoint's folder in it.
fn fill(folder: &Path, source: &dyn WeightSource, from: &Path, mut config: Config, run: &Path) -> Result<PathBuf> {
    let mut base = None;
    let folders = config.model_folders();
    config.model.from = None;
    config.model.base = None;
    if let Some(adapters) = source.adapters() {
        config.model.from = Some(adapters.base.clone());
        if config.lora.rank == 0 {
            config.lora = adapters.lora.clone();
        }
        base = Some(mark(source)?);
    }
    tokens::keep_marks(&folders, folder)?;
    if let Some(tokenizer) = Folder::tokenizer(from).filter(|file| config.data.tokenizer == file.to_string_lossy()) {
        let own = folder.join(TOKENIZER);
        fs::copy(&tokenizer, &own).map_err(|source| Error::Write { path: own, source })?;
        config.data.tokenizer = run.join(TOKENIZER).to_string_lossy().into_owned();
        tokens::copy_beside(from, folder)?;
    }
    let about = About { base, ..About::new(0, &config) };
    let checkpoint = write(source, &DirectoryStore::new(folder.join(CHECKPOINTS), 0), &about)?;
    run_folder::save(folder, &config)?;
    Ok(checkpoint)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Dtype, Entry};
    use std::ops::Range;
    use tempfile::tempdir;

    /// Two tensors, of which the second may be one that cannot be read.
    #[derive(Debug)]
    struct Source {
        broken: bool,
    }

    impl WeightSource for Source {
        fn names(&self) -> Vec<String> {
            vec!["a".into(), "b".into()]
        }

        fn entry(&self, name: &str) -> Option<Entry> {
            Some(Entry::new(name, Dtype::F32, &[1, 2]))
        }

        fn read(&self, name: &str, _: &[Range<usize>]) -> Result<Vec<u8>> {
            match self.broken && name == "b" {
                true => Err(Error::Read { path: name.into(), source: io::ErrorKind::UnexpectedEof.into() }),
                false => Ok(vec![0; 8]),
            }
        }

        fn origin(&self) -> &Path {
            Path::new("nowhere")
        }
    }

    #[test]
    fn what_fails_leaves_nothing_and_can_be_tried_again() {
        let folder = tempdir().unwrap();
        let run = folder.path().join("new/run");
        let import = |broken| into_run(&Source { broken }, Path::new("nowhere"), &Config::default(), &run);
        assert!(matches!(import(true), Err(Error::Read { .. })));
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 0);
        // As a killed one leaves it.
        fs::create_dir(folder.path().join("new/.run.partial")).unwrap();
        fs::write(folder.path().join("new/.run.partial/old"), "").unwrap();
        let checkpoint = import(false).unwrap();
        assert_eq!(checkpoint, run.join(CHECKPOINTS).join("step-00000000"));
        assert!(checkpoint.is_dir() && run.join(run_folder::CONFIG).is_file() && !run.join("old").exists());
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 1);
        let error = import(false).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("exists; give one that does not"), "{error}");
    }
}
