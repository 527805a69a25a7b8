//! The log of samples read: green over any number of continuations, layouts and batches; red for what was changed.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use mp_comm::threads;
use mp_runtime::Device;
use mp_train::audit::{audit, Dealt};
use mp_train::metrics::lines_of;
use mp_train::{run, Config, Result};

/// Trains up to a step, on some ranks, with a global batch; continues what is there.
fn train(out: &Path, steps: u64, ranks: usize, batch: usize) -> PathBuf {
    let sets = [
        "model.hidden=16",
        "model.layers=1",
        "model.heads=2",
        "train.seq=16",
        "optimizer.warmup=1",
        "checkpoint.resume=true",
        "checkpoint.every=3",
        "checkpoint.keep=0",
        "eval.every=0",
        "train.name=run",
        "checkpoint.asynchronous=false",
    ];
    let mut sets: Vec<String> = sets.map(String::from).to_vec();
    sets.extend([
        format!("train.steps={steps}"),
        format!("train.global_batch={batch}"),
        format!("train.out={}", out.display()),
    ]);
    sets.push(format!("parallel.dp={ranks}"));
    let config = Config::load(None, None, &sets).unwrap();
    threads::run(ranks, |world| -> std::result::Result<Result<PathBuf>, String> {
        let made = run::train(&config, world, Device::Cpu, &AtomicBool::new(false), &mut ());
        Ok(made.map(|report| report.run_dir))
    })
    .remove(0)
    .unwrap()
}

fn log(run: &Path) -> Vec<Dealt> {
    lines_of(&run.join("data.jsonl")).unwrap()
}

fn write(run: &Path, lines: &[Dealt]) {
    let text: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    fs::write(run.join("data.jsonl"), text).unwrap();
}

fn found(run: &Path, word: &str) {
    let contradictions = audit(run).unwrap().contradictions;
    assert!(contradictions.iter().any(|text| text.contains(word)), "{word}: {contradictions:?}");
}

#[test]
fn continued_runs_read_each_sample_in_its_turn_whatever_their_layout_and_batch() {
    let out = tempfile::tempdir().unwrap();
    train(out.path(), 4, 1, 4);
    train(out.path(), 7, 2, 4);
    let run = train(out.path(), 9, 2, 6);
    let audited = audit(&run).unwrap();
    assert_eq!((audited.steps, audited.samples, audited.contradictions.len()), (9, 40, 0), "{audited:?}");
    let firsts: Vec<u64> = log(&run).iter().map(|line| line.first).collect();
    assert_eq!(firsts, [0, 4, 8, 12, 16, 20, 24, 28, 34]);

    // The chain does not know of batches: one run of as many samples ends with the same.
    let other = tempfile::tempdir().unwrap();
    assert_eq!(audit(&train(other.path(), 4, 1, 10)).unwrap().chain, audited.chain);

    // A crash after the last checkpoint: what was read since is dropped and read again.
    fs::remove_dir_all(run.join("checkpoints/step-00000009")).unwrap();
    let run = train(out.path(), 8, 1, 4);
    let audited = audit(&run).unwrap();
    assert_eq!((audited.steps, audited.contradictions.len()), (8, 0), "{audited:?}");
}

#[test]
fn what_was_skipped_or_changed_is_found() {
    let out = tempfile::tempdir().unwrap();
    let run = train(out.path(), 5, 1, 4);
    let good = log(&run);
    assert_eq!(audit(&run).unwrap().contradictions, Vec::<String>::new());

    write(&run, &[&good[..2], &good[3..]].concat());
    found(&run, "samples 8 to 11 were skipped before step 4");
    found(&run, "step 4 follows step 2");
    write(&run, &[&good[..3], &good[2..]].concat());
    found(&run, "step 3 read samples 8 to 11 again");
    write(&run, &good[..4]);
    found(&run, "the log ends with step 4, and the metrics with step 5");
    let mut forged = good.clone();
    forged[4].first += 1;
    write(&run, &forged);
    found(&run, "samples 16 to 16 were skipped before step 5");
    let mut forged = good.clone();
    forged[1].chain = forged[0].chain.clone();
    write(&run, &forged);
    found(&run, "the documents of step 2");
    write(&run, &good);
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    fs::write(run.join("config.toml"), config.replace("seed = 1", "seed = 2")).unwrap();
    found(&run, "the documents of step 1");
}

/// A run that goes on at another sample than it should: the log shows what it read.
#[test]
fn a_skip_planted_into_a_checkpoint_turns_the_audit_red() {
    let out = tempfile::tempdir().unwrap();
    let run = train(out.path(), 3, 1, 4);
    let manifest = run.join("checkpoints/step-00000003/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    assert_eq!(text.matches("\"samples\": 12").count() + text.matches("\"samples\":12").count(), 1, "{text}");
    fs::write(
        &manifest,
        text.replace("\"samples\": 12", "\"samples\": 13").replace("\"samples\":12", "\"samples\":13"),
    )
    .unwrap();
    found(&run, "the checkpoint of step 3 goes on at sample 13, and the log has 12 by then");
    train(out.path(), 5, 2, 4);
    found(&run, "samples 12 to 12 were skipped before step 4");
}
