//! Runs that are interrupted, resumed on other ranks under other layouts, and end where the uninterrupted one ends; and
//! what else decides when a run saves or ends.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use mp_comm::solo::Solo;
use mp_comm::Communicator;
use mp_runtime::Device;
use mp_train::checkpoint::{CheckpointStore, DirectoryStore, Verify};
use mp_train::config::{Every, Precision};
use mp_train::records::{EndReason, Observer, Record, Start, StepRecord};
use mp_train::{metrics, run, Config, Error};

use crate::common::{saved, steps, succeed, tiny, train, train_until};

fn config(out: &Path, name: &str, sets: &[&str]) -> Config {
    let cut = ["model.layers=4", "model.kv_heads=2", "train.global_batch=12", "checkpoint.every=0", "eval.every=0"];
    tiny(out, name, &[&cut, &["eval.batches=1"], sets])
}

fn losses(folder: &Path) -> Vec<(u64, f64)> {
    steps(folder).iter().map(|step| (step.step, step.loss)).collect()
}

/// Four ranks, three, one, six; every degree, stage of sharing and schedule another.
#[test]
fn a_run_interrupted_thrice_on_other_ranks_ends_where_the_uninterrupted_one_does() {
    let out = tempfile::tempdir().unwrap();
    succeed(1, &config(out.path(), "whole", &["train.steps=30"]));
    let legs: [(usize, u64, &[&str]); 4] = [
        (4, 7, &["parallel.tp=2", "parallel.pp=2", "parallel.schedule=zb-v", "parallel.chunks=2"]),
        (3, 15, &["parallel.tp=1", "parallel.dp=3", "parallel.zero=3"]),
        (1, 22, &[]),
        (6, 31, &["parallel.tp=2", "parallel.dp=3", "parallel.zero=1", "checkpoint.asynchronous=false"]),
    ];
    for (ranks, until, sets) in legs {
        let sets = [&["train.steps=30", "checkpoint.resume=true"], sets].concat();
        let stop_there = |record: &StepRecord, stop: &AtomicBool| {
            if record.step == until {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let results = train_until(ranks, &config(out.path(), "cut", &sets), stop_there);
        let report = results.into_iter().map(|result| result.unwrap()).next().unwrap();
        assert_eq!(report.step, until.min(30));
        assert_eq!(report.reason, if until < 30 { EndReason::Signal } else { EndReason::Finished });
    }
    assert_eq!(saved(&out.path().join("cut")), [7, 15, 22, 30]);
    let (whole, cut) = (losses(&out.path().join("whole")), losses(&out.path().join("cut")));
    assert_eq!(cut.len(), 30);
    for (got, expected) in cut.iter().zip(&whole) {
        assert_eq!(got.0, expected.0);
        assert!((got.1 - expected.1).abs() <= 1e-9 * expected.1, "{got:?} {expected:?}");
    }
}

/// What was saved is converted: a run that goes on in other numbers goes on where it was, within their rounding.
#[test]
fn a_run_goes_on_in_another_precision_and_says_so() {
    let out = tempfile::tempdir().unwrap();
    let base = ["train.steps=6", "optimizer.schedule=constant", "optimizer.warmup=0", "optimizer.min_lr=0"];
    succeed(1, &config(out.path(), "whole", &base));
    let exact = losses(&out.path().join("whole"));
    // Steps 4 to 6 of a loss near 5: fp32 rounds at 6e-8, bf16 at 4e-3; a few roundings add up.
    for (before, after, tolerance) in
        [("fp64", "fp32", 1e-5), ("fp32", "fp64", 1e-5), ("fp64", "bf16", 2e-2), ("bf16", "fp32", 2e-2)]
    {
        let name = format!("{before}-{after}");
        let [first, then] = [before, after].map(|precision| format!("train.precision={precision}"));
        let half = [&base[1..], &["train.steps=3", &first]].concat();
        assert_eq!(started(&config(out.path(), &name, &half)), None);
        let more = [&base[..], &["checkpoint.resume=true", &then]].concat();
        let spoken = started(&config(out.path(), &name, &more)).unwrap();
        assert_eq!([spoken.0.name(), spoken.1.name()], [before, after]);
        let got = losses(&out.path().join(&name));
        assert_eq!(got.len(), 6);
        for (got, exact) in got.iter().zip(&exact) {
            assert!((got.1 - exact.1).abs() <= tolerance * exact.1, "{name}: {got:?} {exact:?}");
        }
    }
}

/// Trains on one rank; returns the numbers before and after, where the run was continued.
fn started(config: &Config) -> Option<(Precision, Precision)> {
    struct Heard(Option<(Precision, Precision)>);
    impl Observer for Heard {
        fn start(&mut self, start: &Start) {
            self.0 = start.precision_before.map(|before| (before, start.precision));
        }
    }
    let mut heard = Heard(None);
    let world: Arc<dyn Communicator> = Arc::new(Solo::new("world"));
    run::train(config, world, Device::Cpu, &AtomicBool::new(false), &mut heard).unwrap();
    heard.0
}

#[test]
fn each_element_is_written_once_by_whoever_owns_it() {
    let out = tempfile::tempdir().unwrap();
    let tied = "model.tie_embeddings=true";
    for (name, ranks, sets) in [
        ("tp", 4, ["parallel.tp=4", tied].as_slice()),
        ("dp", 4, &["parallel.tp=1", "parallel.dp=4", "train.global_batch=4", tied]),
        ("pp", 4, &["parallel.pp=2", "parallel.tp=1", "parallel.zero=1", tied]),
    ] {
        let sets = [&["train.steps=2"], sets].concat();
        succeed(ranks, &config(out.path(), name, &sets));
        let folder = out.path().join(name).join("checkpoints");
        // The commit has counted that slices make up each tensor; here, that all ranks took part and none wrote all.
        let reader = DirectoryStore::new(folder, 0).latest(Verify::Checksums).unwrap().unwrap();
        let bytes: Vec<u64> = reader.manifest().files.iter().map(|file| file.bytes).collect();
        assert_eq!(bytes.len(), 2 * ranks, "{name}");
        let whole: u64 = bytes.iter().sum();
        assert!(bytes.iter().all(|&file| file < whole / 3), "{name}: {bytes:?}");
        let elements: usize =
            reader.manifest().model.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        let moments: usize =
            reader.manifest().optimizer.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        assert_eq!(moments, 2 * elements);
    }
}

#[test]
fn a_time_between_checkpoints_is_kept_by_the_clock() {
    let out = tempfile::tempdir().unwrap();
    // No time at all: before each next step.
    let mut config = config(out.path(), "a", &[]);
    config.checkpoint.every = Every::Time(Duration::ZERO);
    succeed(2, &config);
    assert_eq!(saved(&out.path().join("a")), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn the_best_by_validation_loss_stays() {
    let out = tempfile::tempdir().unwrap();
    let sets = [
        "eval.every=1",
        "checkpoint.keep=1",
        "checkpoint.keep_best=1",
        "train.steps=8",
        "optimizer.lr=3",
        "optimizer.warmup=8",
    ];
    succeed(2, &config(out.path(), "a", &sets));
    let folder = out.path().join("a");
    let evaluations =
        metrics::read(&folder.join("metrics.jsonl")).unwrap().into_iter().filter_map(|record| match record {
            Record::Eval(eval) if eval.step < 8 => Some((eval.loss, eval.step)),
            _ => None,
        });
    let (_, best) = evaluations.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    assert!(best < 7, "a rate so high that the last evaluation is not the best");
    assert_eq!(saved(&folder), [best, 8]);
}

#[test]
fn patience_ends_a_run_that_no_longer_gains() {
    let out = tempfile::tempdir().unwrap();
    // A rate that moves no weight: every evaluation is the first.
    let still = ["optimizer.lr=1e-300", "optimizer.weight_decay=0", "eval.every=1", "train.patience=2"];
    for result in train(2, &config(out.path(), "a", &still)) {
        let report = result.unwrap();
        assert_eq!((report.step, report.reason), (3, EndReason::Patience));
        assert!(report.validation_loss.is_some());
    }
    let records = metrics::read(&out.path().join("a/metrics.jsonl")).unwrap();
    assert!(matches!(records.last(), Some(Record::End(end)) if end.reason == EndReason::Patience && end.step == 3));
    // How evaluations stood goes on with the run.
    let more = [&still[..], &["checkpoint.resume=true", "train.patience=3"]].concat();
    assert_eq!(succeed(2, &config(out.path(), "a", &more)).step, 4);
}

/// The disk refuses while the next steps are under way: all ranks hear of it, and what was complete stays.
#[test]
fn a_save_that_fails_behind_the_steps_ends_the_run_on_all_ranks() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("a/checkpoints");
    let in_the_way = |record: &StepRecord, _: &AtomicBool| {
        if record.step == 3 {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(".step-00000004.partial"), "a file where a folder must be").unwrap();
        }
    };
    let results = train_until(3, &config(out.path(), "a", &["parallel.tp=1", "checkpoint.every=2"]), in_the_way);
    let errors: Vec<Error> = results.into_iter().map(|result| result.unwrap_err()).collect();
    assert!(errors.iter().any(|error| matches!(error, Error::Write { .. })), "{errors:?}");
    assert!(
        errors.iter().all(|error| matches!(error, Error::Write { .. } | Error::Peer { input: false, .. })),
        "{errors:?}"
    );
    assert_eq!(saved(&out.path().join("a")), [2]);
    let store = DirectoryStore::new(&folder, 0);
    assert_eq!(store.latest(Verify::Checksums).unwrap().unwrap().manifest().about.step, 2);
}

/// What the last checkpoint says of its loss is what the run ended with, also where that step is due anyway.
#[test]
fn the_last_checkpoint_has_the_loss_of_the_whole_validation_part() {
    let out = tempfile::tempdir().unwrap();
    for (name, every) in [("a", "checkpoint.every=0"), ("b", "checkpoint.every=2")] {
        let report = succeed(2, &config(out.path(), name, &[every]));
        let reader = DirectoryStore::new(out.path().join(name).join("checkpoints"), 0).latest(Verify::Checksums);
        let about = reader.unwrap().unwrap().manifest().about.clone();
        assert!(report.validation_loss.is_some());
        assert_eq!(
            (about.step, about.validation_loss, about.standing.best),
            (6, report.validation_loss, report.validation_loss)
        );
    }
}

/// A second program that is told to go on with a run that goes on already: refused, and nothing of the first is lost.
#[test]
fn a_run_under_way_is_nobody_elses_to_go_on_with() {
    let out = tempfile::tempdir().unwrap();
    let again = |record: &StepRecord, _: &AtomicBool| {
        if record.step == 3 {
            let sets = ["checkpoint.resume=true", "train.steps=9"];
            let errors: Vec<Error> =
                train(2, &config(out.path(), "a", &sets)).into_iter().map(|result| result.unwrap_err()).collect();
            assert!(errors.iter().all(Error::is_input), "{errors:?}");
            let text = errors[0].to_string();
            assert!(matches!(&errors[0], Error::RunFolder { .. }) && text.contains("is in use: process"), "{text}");
        }
    };
    for result in train_until(2, &config(out.path(), "a", &["checkpoint.every=1"]), again) {
        result.unwrap();
    }
    assert_eq!(saved(&out.path().join("a")), [1, 2, 3, 4, 5, 6]);
    assert_eq!(succeed(2, &config(out.path(), "a", &["checkpoint.resume=true", "train.steps=7"])).step, 7);
}

/// A checkpoint of another seed, as a folder that was joined from two runs has: its order is not the one that goes on.
#[test]
fn a_checkpoint_of_another_seed_is_refused() {
    let out = tempfile::tempdir().unwrap();
    succeed(2, &config(out.path(), "a", &[]));
    let saved = out.path().join("a/config.toml");
    let text = std::fs::read_to_string(&saved).unwrap();
    std::fs::write(&saved, text.replace("seed = 1", "seed = 2")).unwrap();
    let results = train(2, &config(out.path(), "a", &["checkpoint.resume=true", "train.steps=8"]));
    let errors: Vec<Error> = results.into_iter().map(|result| result.unwrap_err()).collect();
    assert!(errors[0].to_string().contains("a checkpoint of seed 1, and `train.seed` is 2"), "{errors:?}");
    assert!(errors.iter().all(Error::is_input));
}
