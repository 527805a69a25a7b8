//! Whole runs on rank-threads: what they leave on disk, how they continue, and how they end.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use mp_train::checkpoint::{CheckpointStore, DirectoryStore, Verify};
use mp_train::records::{EndReason, Record, StepRecord};
use mp_train::{metrics, Config, Error};

use crate::common::{saved, steps, succeed, tiny, train, train_until};

fn config(out: &Path, name: &str, sets: &[&str]) -> Config {
    let whole = ["model.layers=1", "train.global_batch=4", "checkpoint.every=3", "eval.every=2", "eval.batches=2"];
    tiny(out, name, &[&whole, sets])
}

/// Tokens are hidden by sample and position: another layout sees the same, also from a checkpoint on.
#[test]
fn masked_models_learn_from_text_and_go_on_under_another_layout() {
    let out = tempfile::tempdir().unwrap();
    let bert = |name: &str, more: &[&str]| {
        let sets = ["model.architecture=bert", "model.next_sentence=true", "train.steps=60", "train.seq=32"];
        let sets = [&sets[..], &["train.global_batch=8", "optimizer.lr=1e-2", "checkpoint.every=30"], more].concat();
        config(out.path(), name, &sets)
    };
    let report = succeed(2, &bert("whole", &["parallel.tp=2"]));
    assert_eq!(report.sample, None);
    let whole = steps(&report.run_dir);
    let mean = |steps: &[StepRecord]| steps.iter().map(|step| step.loss).sum::<f64>() / steps.len() as f64;
    let (begin, end) = (mean(&whole[..5]), mean(&whole[55..]));
    // From ln 259 + ln 2 to below what the frequencies of single bytes tell.
    assert!(begin > 5.0 && end < begin - 1.5, "{begin} to {end}");
    let held_out = report.validation_loss.unwrap();
    assert!(held_out < 4.5, "{held_out}");

    succeed(2, &bert("cut", &["parallel.tp=2", "train.steps=30", "optimizer.schedule=constant"]));
    let straight = succeed(1, &bert("straight", &["train.steps=40", "optimizer.schedule=constant"]));
    let again = ["parallel.cp=2", "train.steps=40", "optimizer.schedule=constant", "checkpoint.resume=true"];
    let resumed = succeed(4, &bert("cut", &again));
    let (expected, got) = (steps(&straight.run_dir), steps(&resumed.run_dir));
    assert_eq!((expected.len(), got.len()), (40, 40));
    for (expected, got) in expected.iter().zip(&got) {
        assert!((expected.loss - got.loss).abs() < 1e-9 * expected.loss, "{expected:?} {got:?}");
    }
}

#[test]
fn a_run_leaves_its_folder_as_documented() {
    let out = tempfile::tempdir().unwrap();
    let report = succeed(4, &config(out.path(), "a", &[]));
    assert_eq!((report.step, report.reason), (6, EndReason::Finished));
    let folder = out.path().join("a");
    assert_eq!(report.run_dir, std::path::absolute(&folder).unwrap());
    let plan: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("plan.json")).unwrap()).unwrap();
    assert_eq!((&plan["mesh"]["tp"], &plan["mesh"]["dp"]), (&2.into(), &2.into()), "the default layout on four ranks");
    let records = metrics::read(&folder.join("metrics.jsonl")).unwrap();
    let evals: Vec<u64> = records.iter().filter(|record| matches!(record, Record::Eval(_))).map(Record::step).collect();
    assert_eq!(evals, [2, 4, 6]);
    assert!(matches!(records.last(), Some(Record::End(end)) if end.reason == EndReason::Finished && end.step == 6));
    let steps = steps(&folder);
    assert_eq!(steps.iter().map(|step| step.tokens).collect::<Vec<_>>(), [64, 128, 192, 256, 320, 384]);
    assert!(steps[5].loss < steps[0].loss);
    assert_eq!(saved(&folder), [3, 6]);
    assert!(report.sample.unwrap().starts_with("The "));
    // The saved configuration repeats the run.
    let again = Config::load(Some(&folder.join("config.toml")), None, &["train.name=b".into()]).unwrap();
    succeed(4, &again);
    let losses = |steps: &[StepRecord]| steps.iter().map(|step| step.loss).collect::<Vec<_>>();
    assert_eq!(losses(&steps), losses(&crate::common::steps(&out.path().join("b"))));
}

/// Drops what comes after step 3, as a crash would.
fn crash_after_three(folder: &Path) {
    std::fs::remove_dir_all(folder.join("checkpoints/step-00000006")).unwrap();
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    let out = tempfile::tempdir().unwrap();
    let dropout = "model.dropout=0.1";
    succeed(2, &config(out.path(), "whole", &[dropout]));
    succeed(2, &config(out.path(), "cut", &[dropout]));
    let (whole, cut) = (out.path().join("whole"), out.path().join("cut"));
    crash_after_three(&cut);
    succeed(2, &config(out.path(), "cut", &[dropout, "checkpoint.resume=true"]));
    let (expected, got) = (steps(&whole), steps(&cut));
    assert_eq!(got.len(), 6);
    for (got, expected) in got.iter().zip(&expected) {
        assert_eq!((got.step, got.loss, got.gradient_norm), (expected.step, expected.loss, expected.gradient_norm));
    }
}

/// Stages, tied tables, shared optimizer state: saved under one layout, continued under the next, twice.
#[test]
fn a_run_resumes_under_other_stages_and_shares() {
    let out = tempfile::tempdir().unwrap();
    let model = ["model.layers=4", "model.tie_embeddings=true", "train.global_batch=8"];
    let with = |sets: &[&'static str]| [&model[..], sets].concat();
    succeed(1, &config(out.path(), "whole", &model));
    let whole = out.path().join("whole");
    for (name, ranks, first, second) in [
        (
            "a",
            4,
            ["parallel.pp=2", "parallel.tp=2", "parallel.schedule=zb-v"].as_slice(),
            ["parallel.tp=1", "parallel.zero=3"].as_slice(),
        ),
        (
            "b",
            4,
            &["parallel.tp=1", "parallel.zero=2"],
            &["parallel.pp=2", "parallel.tp=1", "parallel.zero=1", "parallel.schedule=interleaved"],
        ),
        ("c", 4, &["parallel.pp=4", "parallel.schedule=gpipe"], &["parallel.tp=2", "parallel.zero=1"]),
    ] {
        let cut = out.path().join(name);
        succeed(ranks, &config(out.path(), name, &with(first)));
        crash_after_three(&cut);
        let resumed = [&with(second)[..], &["checkpoint.resume=true"]].concat();
        let report = succeed(ranks, &config(out.path(), name, &resumed));
        assert!(report.validation_loss.is_some_and(f64::is_finite), "{name}");
        assert_eq!(steps(&cut).len(), 6, "{name}");
        for (got, expected) in steps(&cut).iter().zip(&steps(&whole)) {
            assert!((got.loss - expected.loss).abs() <= 1e-10 * expected.loss, "{name}: {got:?} {expected:?}");
        }
    }
}

#[test]
fn a_run_resumes_under_another_layout() {
    let out = tempfile::tempdir().unwrap();
    succeed(2, &config(out.path(), "whole", &["parallel.tp=2"]));
    succeed(2, &config(out.path(), "cut", &["parallel.tp=2"]));
    let (whole, cut) = (out.path().join("whole"), out.path().join("cut"));
    crash_after_three(&cut);
    succeed(4, &config(out.path(), "cut", &["parallel.tp=1", "parallel.dp=4", "checkpoint.resume=true"]));
    assert_eq!(steps(&cut).len(), 6);
    for (got, expected) in steps(&cut).iter().zip(&steps(&whole)) {
        // The parity suite's bound.
        assert!((got.loss - expected.loss).abs() <= 1e-10 * expected.loss, "{got:?} {expected:?}");
    }
}

#[test]
fn a_stop_asked_for_on_one_rank_ends_all_in_good_order() {
    let out = tempfile::tempdir().unwrap();
    let heard = |record: &StepRecord, stop: &AtomicBool| {
        if record.step == 2 {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let results = train_until(4, &config(out.path(), "a", &[]), heard);
    for report in results {
        let report = report.unwrap();
        assert_eq!((report.step, report.reason), (2, EndReason::Signal));
    }
    let folder = out.path().join("a");
    assert_eq!(saved(&folder), [2]);
    succeed(2, &config(out.path(), "a", &["checkpoint.resume=true"]));
    assert_eq!(steps(&folder).iter().map(|step| step.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_loss_that_is_no_number_fails_all_ranks_and_keeps_the_checkpoint() {
    let out = tempfile::tempdir().unwrap();
    succeed(2, &config(out.path(), "a", &[]));
    let sets = ["checkpoint.resume=true", "train.steps=20", "optimizer.lr=1e300", "train.clip_norm=0"];
    for result in train(2, &config(out.path(), "a", &sets)) {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::NotFinite { .. }), "{error}");
        assert!(!error.is_input());
    }
    let store = DirectoryStore::new(out.path().join("a/checkpoints"), 0);
    assert!(store.latest(Verify::Checksums).unwrap().is_some());
}

#[test]
fn impossible_input_is_refused_on_all_ranks_and_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let short = out.path().join("short.txt");
    std::fs::write(&short, "too short").unwrap();
    let path = format!("data.path={}", short.display());
    for set in ["parallel.tp=3", "model.vocab=100", "parallel.micro_batch=3", path.as_str(), "data.path=/nowhere.txt"] {
        let results = train(2, &config(out.path(), "a", &[set]));
        let errors: Vec<Error> = results.into_iter().map(|result| result.unwrap_err()).collect();
        assert!(errors.iter().all(Error::is_input), "{set}: {errors:?}");
        let speaking = errors.iter().filter(|error| !matches!(error, Error::Peer { .. })).count();
        assert_eq!(speaking, 1, "{set}: {errors:?}");
        assert!(!out.path().join("a").exists(), "{set}");
    }
}

#[test]
fn a_corrupt_checkpoint_is_refused_with_its_file() {
    let out = tempfile::tempdir().unwrap();
    succeed(2, &config(out.path(), "a", &[]));
    let file = out.path().join("a/checkpoints/step-00000006/model-00001.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let results = train(2, &config(out.path(), "a", &["checkpoint.resume=true", "train.steps=8"]));
    let errors: Vec<Error> = results.into_iter().map(|result| result.unwrap_err()).collect();
    let speaking: Vec<&Error> = errors.iter().filter(|error| !matches!(error, Error::Peer { .. })).collect();
    assert!(
        matches!(speaking[..], [one] if one.is_input() && one.to_string().contains("model-00001.safetensors")),
        "{errors:?}"
    );
}

#[test]
fn a_resume_that_does_not_fit_changes_nothing() {
    let out = tempfile::tempdir().unwrap();
    succeed(2, &config(out.path(), "a", &[]));
    let saved = out.path().join("a/config.toml");
    let before = std::fs::read_to_string(&saved).unwrap();
    let sets = ["checkpoint.resume=true", "optimizer.name=sgd", "train.steps=8"];
    let first = train(2, &config(out.path(), "a", &sets)).into_iter().next().unwrap().unwrap_err();
    assert!(first.is_input(), "{first}");
    assert_eq!(std::fs::read_to_string(&saved).unwrap(), before);
    succeed(2, &config(out.path(), "a", &["checkpoint.resume=true", "train.steps=8"]));
    assert_eq!(steps(&out.path().join("a")).len(), 8);
}

#[test]
fn a_vocabulary_beyond_the_tokenizers_still_writes_text() {
    let out = tempfile::tempdir().unwrap();
    let report = succeed(4, &config(out.path(), "a", &["model.vocab=4097", "parallel.tp=4", "train.steps=2"]));
    assert!(report.sample.is_some() && report.validation_loss.is_some_and(f64::is_finite));
}
