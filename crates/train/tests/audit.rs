//! The log of samples read: green over any number of continuations, layouts and batches; red for what was changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use mp_comm::threads;
use mp_runtime::Device;
use mp_train::audit::{audit, Dealt};
use mp_train::checkpoint::{self, Rewrite, Verify};
use mp_train::metrics::lines_of;
use mp_train::run_folder::around;
use mp_train::{run, Config, Result};

/// Trains up to a step, on some ranks, with a global batch; continues what is there.
fn train(out: &Path, steps: u64, ranks: usize, batch: usize) -> PathBuf {
    try_train(out, steps, ranks, batch).unwrap()
}

fn try_train(out: &Path, steps: u64, ranks: usize, batch: usize) -> Result<PathBuf> {
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

/// Changes what a checkpoint says of its samples, as a bug in saving would, and gives the manifest its checksum again.
fn skip_one(run: &Path) {
    let manifest = run.join("checkpoints/step-00000003/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    assert_eq!(text.matches("\"samples\":12").count(), 1, "{text}");
    let text = text.replace("\"samples\":12", "\"samples\":13");
    let body = text.rsplit_once(",\"blake3\":\"").unwrap().0;
    fs::write(&manifest, format!("{body},\"blake3\":\"{}\"}}", blake3::hash(body.as_bytes()).to_hex())).unwrap();
}

/// A checkpoint that goes on at another sample than it should: the log shows it, and no run goes on from it.
#[test]
fn a_skip_planted_into_a_checkpoint_turns_the_audit_red_and_is_not_gone_on_from() {
    let out = tempfile::tempdir().unwrap();
    let run = train(out.path(), 3, 1, 4);
    skip_one(&run);
    found(&run, "the checkpoint of step 3 goes on at sample 13, and the log has 12 by then");
    let before = fs::read(run.join("data.jsonl")).unwrap();
    let error = try_train(out.path(), 5, 2, 4).unwrap_err();
    let text = error.to_string();
    assert!(error.is_input() && text.contains("step 3 that goes on at sample 13, where `data.jsonl` has 12"), "{text}");
    assert_eq!(fs::read(run.join("data.jsonl")).unwrap(), before, "a refusal changes nothing");

    // Without the log, or where it is bent to the checkpoint, the run goes on, and the chain shows the skip.
    let good = log(&run);
    let mut bent = good.clone();
    bent[2].samples = 5;
    write(&run, &bent);
    train(out.path(), 5, 2, 4);
    found(&run, "the documents of step 3 (samples 8 to 12)");
    let other = tempfile::tempdir().unwrap();
    let run = train(other.path(), 3, 1, 4);
    skip_one(&run);
    fs::remove_file(run.join("data.jsonl")).unwrap();
    train(other.path(), 5, 2, 4);
    found(&run, "the documents before sample 13, where a checkpoint went on after step 3,");
}

/// A checkpoint that was converted has no log before it, and a lost machine may have lost one: the checkpoint's chain stands
/// in for it.
#[test]
fn a_run_without_the_log_of_its_beginning_is_proven_from_the_checkpoints_chain() {
    let out = tempfile::tempdir().unwrap();
    let run = train(out.path(), 3, 1, 4);
    let reader = checkpoint::open(&run, Verify::Checksums).unwrap();
    let config = Config::load(Some(&run.join("config.toml")), None, &[]).unwrap();
    let other = out.path().join("elsewhere/run");
    let how = Rewrite { files: 2, dtype: None, model_only: false };
    around(&other, &config, |store| checkpoint::convert(&*reader, store, &how)).unwrap();
    let other = train(&out.path().join("elsewhere"), 6, 2, 4);
    let audited = audit(&other).unwrap();
    assert_eq!((audited.steps, audited.samples, audited.stated), (6, 24, 12), "{audited:?}");
    assert_eq!(audited.contradictions, Vec::<String>::new());
    let whole = tempfile::tempdir().unwrap();
    assert_eq!(audit(&train(whole.path(), 6, 1, 4)).unwrap().chain, audited.chain);

    // Lines that are missing in the midst, as a file system may lose them.
    let good = log(&run);
    write(&run, &good[..1]);
    train(out.path(), 5, 1, 4);
    let audited = audit(&run).unwrap();
    assert_eq!((audited.stated, audited.contradictions.len()), (8, 0), "{audited:?}");
    let mut forged = log(&run);
    forged[1].first += 1;
    write(&run, &forged);
    found(&run, "the documents before sample 13");
}

/// What a kill leaves between the lines of one step, and what a lost machine leaves of steps that no checkpoint has.
#[test]
fn what_no_checkpoint_holds_may_be_in_one_file_alone() {
    let out = tempfile::tempdir().unwrap();
    let run = train(out.path(), 5, 1, 4);
    fs::remove_dir_all(run.join("checkpoints/step-00000005")).unwrap();
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<&str> =
        metrics.lines().filter(|line| line.contains("\"step\"") && line.contains("tokens_per")).collect();
    assert_eq!(lines.len(), 5);
    let good = log(&run);
    for (steps, logged) in [(4, 5), (5, 4), (3, 5), (3, 3)] {
        fs::write(run.join("metrics.jsonl"), lines[..steps].join("\n") + "\n").unwrap();
        write(&run, &good[..logged]);
        assert_eq!(audit(&run).unwrap().contradictions, Vec::<String>::new(), "{steps} {logged}");
    }
    write(&run, &good[..2]);
    found(&run, "the log ends with step 2, and the metrics with step 3");
}

#[test]
fn numbers_beyond_the_run_are_named_and_not_counted_up_to() {
    let out = tempfile::tempdir().unwrap();
    let run = train(out.path(), 3, 1, 4);
    let good = log(&run);
    let known = "metrics and checkpoints know of fewer";
    let skipped = "samples 8 to 18446744073709551614 were skipped";
    for (first, samples, word) in [(8, 1_000_000_000_000_000_000, known), (u64::MAX, 0, known), (u64::MAX, 4, skipped)]
    {
        let mut forged = good.clone();
        (forged[2].first, forged[2].samples) = (first, samples);
        write(&run, &forged);
        found(&run, word);
    }
    let mut forged = good.clone();
    forged[1].step = u64::MAX;
    write(&run, &forged);
    found(&run, "step 3 follows step 18446744073709551615");
}
