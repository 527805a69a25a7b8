//! Runs on rank-threads, and what they leave.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use mp_comm::{threads, Communicator};
use mp_runtime::Device;
use mp_train::checkpoint::{CheckpointStore, DirectoryStore};
use mp_train::records::{Observer, Record, Report, StepRecord};
use mp_train::{metrics, run, Config, Result};

/// A tiny run of six steps in double precision, in `out`/`name`.
pub fn tiny(out: &Path, name: &str, sets: &[&[&str]]) -> Config {
    let place = [format!("train.out={}", out.display()), format!("train.name={name}")];
    let base = [
        "model.hidden=16",
        "model.heads=4",
        "train.precision=fp64",
        "train.steps=6",
        "train.seq=16",
        "optimizer.warmup=2",
        "checkpoint.keep=0",
    ];
    let sets = base.iter().chain(sets.iter().copied().flatten()).map(|set| (*set).to_string());
    Config::load(None, None, &place.into_iter().chain(sets).collect::<Vec<_>>()).unwrap()
}

struct Watch<'a, F> {
    stop: &'a AtomicBool,
    heard: &'a F,
}

impl<F: Fn(&StepRecord, &AtomicBool)> Observer for Watch<'_, F> {
    fn step(&mut self, record: &StepRecord) {
        (self.heard)(record, self.stop);
    }
}

/// Trains on rank-threads, `heard` told of each step; what each came to.
pub fn train_until(
    ranks: usize,
    config: &Config,
    heard: impl Fn(&StepRecord, &AtomicBool) + Sync,
) -> Vec<Result<Report>> {
    let one = |world: Arc<dyn Communicator>| -> std::result::Result<Result<Report>, String> {
        let stop = AtomicBool::new(false);
        let mut watch = Watch { stop: &stop, heard: &heard };
        Ok(run::train(config, world, Device::Cpu, &stop, &mut watch))
    };
    threads::run(ranks, one)
}

/// Trains on rank-threads; what each came to.
pub fn train(ranks: usize, config: &Config) -> Vec<Result<Report>> {
    train_until(ranks, config, |_, _| {})
}

/// Trains on rank-threads, and asserts that all succeed.
pub fn succeed(ranks: usize, config: &Config) -> Report {
    train(ranks, config).into_iter().map(|result| result.unwrap()).next().unwrap()
}

/// Reads what a run's folder says of its steps.
pub fn steps(folder: &Path) -> Vec<StepRecord> {
    let records = metrics::read(&folder.join("metrics.jsonl")).unwrap();
    let step = |record| match record {
        Record::Step(step) => Some(step),
        _ => None,
    };
    records.into_iter().filter_map(step).collect()
}

/// Lists the steps that a run's folder has checkpoints of.
pub fn saved(folder: &Path) -> Vec<u64> {
    DirectoryStore::new(folder.join("checkpoints"), 0).steps().unwrap()
}
