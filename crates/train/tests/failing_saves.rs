//! A store that fails at each stage of a save in turn, on one rank of several: every rank hears of it, the checkpoint before
//! stays, and nothing half is left on a disk that may be full.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mp_comm::threads;
use mp_runtime::Device;
use mp_train::agree::{agree_and_vote, Votes};
use mp_train::assemble::Allocated;
use mp_train::checkpoint::{
    self, About, CheckpointReader, CheckpointStore, DirectoryStore, Rewrite, Section, ShardWriter, Slice, Verify,
};
use mp_train::layout::Layout;
use mp_train::saving::Saver;
use mp_train::{Config, Error, Result};

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Shard,
    File,
    Append,
    Finish,
    /// The commit, as a writer's record is not there.
    Record,
    /// The commit, as the manifest cannot be written.
    Manifest,
    /// The commit, as the folder cannot get its name.
    Rename,
}

const STAGES: [Stage; 7] =
    [Stage::Shard, Stage::File, Stage::Append, Stage::Finish, Stage::Record, Stage::Manifest, Stage::Rename];

/// The step whose save fails, and the rank that it fails on.
const STEP: u64 = 2;
const WRITER: usize = 1;

fn full() -> Error {
    Error::Write { path: "full".into(), source: ErrorKind::StorageFull.into() }
}

#[derive(Debug)]
struct Failing {
    inner: DirectoryStore,
    root: PathBuf,
    stage: Stage,
}

impl Failing {
    fn new(root: &Path, stage: Stage) -> Self {
        Self { inner: DirectoryStore::new(root, 0), root: root.into(), stage }
    }

    /// Fails in a stage of a rank's own.
    fn reach(&self, stage: Stage, step: u64, writer: usize) -> Result<()> {
        match (step, writer, stage == self.stage) {
            (STEP, WRITER, true) => Err(full()),
            _ => Ok(()),
        }
    }
}

impl CheckpointStore for Failing {
    fn shard(&self, step: u64, writer: usize) -> Result<Box<dyn ShardWriter>> {
        self.reach(Stage::Shard, step, writer)?;
        let stage = self.reach(self.stage, step, writer).is_err().then_some(self.stage);
        Ok(Box::new(FailingShard { inner: self.inner.shard(step, writer)?, stage }))
    }

    fn commit(&self, writers: usize, about: &About) -> Result<PathBuf> {
        let partial = self.root.join(".step-00000002.partial");
        match self.stage {
            Stage::Record if about.step == STEP => fs::remove_file(partial.join(".written-00001.json")).unwrap(),
            // What stands in the way of each.
            Stage::Manifest if about.step == STEP => fs::create_dir(partial.join("manifest.json.partial")).unwrap(),
            Stage::Rename if about.step == STEP => {
                std::os::unix::fs::symlink("nowhere", self.root.join("step-00000002")).unwrap();
            }
            _ => {}
        }
        self.inner.commit(writers, about)
    }

    fn abandon(&self, step: u64) {
        self.inner.abandon(step);
    }

    fn steps(&self) -> Result<Vec<u64>> {
        self.inner.steps()
    }

    fn open(&self, step: u64, verify: Verify) -> Result<Box<dyn CheckpointReader>> {
        self.inner.open(step, verify)
    }

    fn sweep(&self) -> Result<()> {
        self.inner.sweep()
    }
}

#[derive(Debug)]
struct FailingShard {
    inner: Box<dyn ShardWriter>,
    stage: Option<Stage>,
}

impl ShardWriter for FailingShard {
    fn file(&mut self, section: Section, slices: &[Slice]) -> Result<()> {
        match self.stage {
            // The second file: the first one is whole by then.
            Some(Stage::File) if section == Section::Optimizer => Err(full()),
            _ => self.inner.file(section, slices),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stage {
            Some(Stage::Append) => Err(full()),
            _ => self.inner.append(bytes),
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        match self.stage {
            Some(Stage::Finish) => Err(full()),
            _ => self.inner.finish(),
        }
    }
}

/// How a run meets the end of a save.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// It waits for it.
    Waits,
    /// It asks at the heads of later steps, and is dropped where it hears of the failure.
    Asks,
}

/// Saves step 1, and then [`STEP`]; what each rank is told.
fn save(root: &Path, stage: Stage, asynchronous: bool, way: Way) -> Vec<Error> {
    let sets = ["model.hidden=16", "model.layers=1", "model.heads=2", "train.seq=16", "train.global_batch=3"];
    let mut config = Config::load(None, None, &sets.map(String::from)).unwrap();
    (config.checkpoint.asynchronous, config.parallel.tp) = (asynchronous, 1);
    threads::run(3, |world| {
        let layout = Layout::new(&config, 256, world.size())?;
        let groups = layout.groups(&world)?;
        let trainer = Allocated::new(&config, &layout, &groups, Device::Cpu)?.trainer(&config, &layout, groups)?;
        let store = Arc::new(Failing::new(root, stage));
        let mut saver = Saver::new(&config.checkpoint, store, Arc::clone(&world), Vec::new());
        saver.prepare(&trainer)?;
        saver.begin(&trainer, About::new(1, &config), Ok(()))?;
        assert_eq!(saver.finish()?.map(|saved| saved.step), Some(1));
        saver.begin(&trainer, About::new(STEP, &config), Ok(()))?;
        Ok::<_, Error>(match way {
            Way::Waits => saver.finish().unwrap_err(),
            Way::Asks => loop {
                let (settled, ready) = match saver.settled() {
                    Ok(settled) => (settled, Ok(())),
                    Err(error) => (true, Err(error)),
                };
                match agree_and_vote(&*world, ready, Votes { settled, ..Votes::default() }) {
                    Ok(((), votes)) => assert_eq!(saver.advance(votes.settled), None, "it cannot be complete"),
                    Err(error) => break error,
                }
            },
        })
    })
}

#[test]
fn a_save_that_fails_anywhere_ends_on_all_ranks_and_leaves_nothing() {
    for stage in STAGES {
        for (asynchronous, way) in [(true, Way::Waits), (false, Way::Waits), (true, Way::Asks)] {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().join("checkpoints");
            let errors = save(&root, stage, asynchronous, way);
            let case = format!("{stage:?}, asynchronous {asynchronous}, {way:?}: {errors:?}");
            let speaking = errors.iter().filter(|error| !matches!(error, Error::Peer { .. })).count();
            assert_eq!((errors.len(), speaking), (3, 1), "{case}");
            let committing = matches!(stage, Stage::Record | Stage::Manifest | Stage::Rename);
            let speaker = if committing { 0 } else { WRITER };
            assert!(!matches!(errors[speaker], Error::Peer { .. }), "{case}");
            if stage == Stage::Rename {
                fs::remove_file(root.join("step-00000002")).unwrap();
            }
            let names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["step-00000001"], "{case}");
            DirectoryStore::new(&root, 0).open(1, Verify::Checksums).unwrap();
        }
    }
}

#[test]
fn what_cannot_be_converted_whole_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("from");
    save(&root, Stage::Append, false, Way::Waits);
    let reader = DirectoryStore::new(&root, 0).open(1, Verify::Checksums).unwrap();
    // Under the number of the step that fails.
    let out = folder.path().join("out");
    let how = Rewrite { files: 3, dtype: None, model_only: false };
    for stage in STAGES.into_iter().filter(|stage| *stage != Stage::Rename) {
        let store = Renumbered(Failing::new(&out, stage));
        checkpoint::convert(&*reader, &store, &how).unwrap_err();
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{stage:?}");
    }
}

/// Takes step 1 for the one that fails.
#[derive(Debug)]
struct Renumbered(Failing);

impl CheckpointStore for Renumbered {
    fn shard(&self, _: u64, writer: usize) -> Result<Box<dyn ShardWriter>> {
        self.0.shard(STEP, writer)
    }

    fn commit(&self, writers: usize, about: &About) -> Result<PathBuf> {
        self.0.commit(writers, &About { step: STEP, ..about.clone() })
    }

    fn abandon(&self, _: u64) {
        self.0.abandon(STEP);
    }

    fn steps(&self) -> Result<Vec<u64>> {
        self.0.steps()
    }

    fn open(&self, step: u64, verify: Verify) -> Result<Box<dyn CheckpointReader>> {
        self.0.open(step, verify)
    }

    fn sweep(&self) -> Result<()> {
        self.0.sweep()
    }
}
