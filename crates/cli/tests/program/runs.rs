//! Whole runs of one rank: what they leave, how they continue, how they end.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{alone, finish, losses, program, send, start, train, under_way, with_sets, TINY};
use mp_train::metrics;
use mp_train::records::{EndReason, Record};

/// Trains into the folder `runs/a`.
fn named(folder: &Path, sets: &[&str]) -> crate::common::Ended {
    let mut all = vec!["train.name=a"];
    all.extend(sets);
    train(folder, &all)
}

/// Reads the metrics of `runs/a`.
fn records(folder: &Path) -> Vec<Record> {
    metrics::read(&folder.join("runs/a/metrics.jsonl")).unwrap()
}

#[test]
fn a_run_leaves_its_folder_and_says_how_it_went() {
    let folder = tempfile::tempdir().unwrap();
    let ended = named(folder.path(), &[]).success();
    for word in ["parameters on 1 rank: dp=1 × tp=1", "2/2  loss", "validation loss", "The model writes:", "runs/a"] {
        assert!(ended.out.contains(word), "{word}: {ended:#?}");
    }
    assert_eq!(ended.err, "");
    let run = folder.path().join("runs/a");
    for file in ["config.toml", "plan.json", "metrics.jsonl", "checkpoints/step-00000002/manifest.json"] {
        assert!(run.join(file).exists(), "{file}");
    }
    let records = records(folder.path());
    assert_eq!(losses(&run).len(), 2);
    assert!(matches!(records.last(), Some(Record::End(end)) if end.step == 2 && end.reason == EndReason::Finished));
}

#[test]
fn json_has_standard_output_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut words = with_sets("train", &[TINY]);
    words.push("--json");
    let ended = alone(folder.path(), &words).success();
    let report: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&report["step"], &report["reason"]), (&2.into(), &"finished".into()));
    assert!(ended.err.contains("validation loss"));
    words.push("report.json");
    let ended = alone(folder.path(), &words).success();
    assert!(ended.out.contains("validation loss"));
    serde_json::from_str::<serde_json::Value>(&fs::read_to_string(folder.path().join("report.json")).unwrap()).unwrap();
}

#[test]
fn the_saved_configuration_repeats_the_run() {
    let folder = tempfile::tempdir().unwrap();
    named(folder.path(), &[]).success();
    let again = ["train", "--config", "runs/a/config.toml", "--set", "train.name=b"];
    alone(folder.path(), &again).success();
    let [first, second] = ["a", "b"].map(|name| losses(&folder.path().join("runs").join(name)));
    assert_eq!(first, second);
}

#[test]
fn a_folder_is_taken_once_and_a_run_goes_on_as_if_it_had_not_ended() {
    let folder = tempfile::tempdir().unwrap();
    let whole = tempfile::tempdir().unwrap();
    // A constant rate, since others depend on the number of steps.
    let constant = ["optimizer.schedule=constant", "optimizer.warmup=0"];
    named(folder.path(), &constant).success();
    assert!(named(folder.path(), &constant).input_error().contains("checkpoint.resume=true"));
    let more = [constant[0], constant[1], "train.steps=4", "checkpoint.resume=true"];
    assert!(named(folder.path(), &more).success().out.contains("continues after step 2"));
    named(whole.path(), &[constant[0], constant[1], "train.steps=4"]).success();
    let [resumed, uninterrupted] = [&folder, &whole].map(|folder| losses(&folder.path().join("runs/a")));
    assert_eq!(resumed, uninterrupted);
    let message = named(folder.path(), &[&more[..], &["model.hidden=32"]].concat());
    assert!(message.input_error().contains("`model.hidden` = 16"));
}

/// Flips a bit of a checkpoint's weights.
fn damage(folder: &Path, step: u64) -> PathBuf {
    let path = folder.join(format!("runs/a/checkpoints/step-{step:08}/model-00000.safetensors"));
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_corrupt_checkpoint_names_the_older_one() {
    let folder = tempfile::tempdir().unwrap();
    named(folder.path(), &["train.steps=4", "checkpoint.every=2"]).success();
    let damaged = damage(folder.path(), 4);
    let message = named(folder.path(), &["train.steps=6", "checkpoint.resume=true"]).input_error().to_string();
    assert!(
        message.contains("has the checksum") && message.contains("the checkpoint of step 2 is intact"),
        "{message}"
    );
    fs::remove_dir_all(damaged.parent().unwrap()).unwrap();
    let ended = named(folder.path(), &["train.steps=6", "checkpoint.resume=true"]).success();
    assert!(ended.out.contains("continues after step 2"), "{ended:#?}");
    let steps: Vec<u64> = losses(&folder.path().join("runs/a")).iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_loss_that_is_no_number_fails_the_run_and_keeps_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    named(folder.path(), &[]).success();
    let diverging =
        ["train.steps=50", "checkpoint.resume=true", "optimizer.lr=1e30", "optimizer.min_lr=1e30", "train.clip_norm=0"];
    let message = named(folder.path(), &diverging).message(1).to_string();
    assert!(message.contains("is not a finite number"), "{message}");
    assert!(folder.path().join("runs/a/checkpoints/step-00000002/manifest.json").exists());
}

/// Whenever it comes: the run ends as its folder says, or with the first step at the latest.
#[test]
fn a_signal_before_the_first_step_ends_in_good_order_too() {
    let folder = tempfile::tempdir().unwrap();
    let sets = ["train.name=a", "train.steps=1000000"];
    let child = start(program(folder.path()).args(with_sets("train", &[TINY, &sets])));
    // The handlers are there before anything is set up.
    let status = format!("/proc/{}/status", child.id());
    let caught = || {
        let text = fs::read_to_string(&status).unwrap();
        let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_string();
        u64::from_str_radix(&mask, 16).unwrap() & (1 << (signal_hook::consts::SIGUSR1 - 1)) != 0
    };
    while !caught() {
        std::thread::yield_now();
    }
    send("USR1", child.id());
    let ended = finish(child).success();
    let records = records(folder.path());
    let Some(Record::End(end)) = records.last() else { panic!("{records:?} {ended:#?}") };
    assert!(end.reason == EndReason::Signal && end.step <= 1, "{end:?}");
}

#[test]
fn a_signal_saves_and_ends_in_good_order() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("runs/a");
    let child = under_way(&mut program(folder.path()), &run, &["train.name=a"]);
    send("TERM", child.id());
    let ended = finish(child).success();
    assert!(ended.out.contains("continue with: mp-cli train --config "), "{ended:#?}");
    let records = records(folder.path());
    let Some(Record::End(end)) = records.last() else { panic!("{records:?}") };
    assert_eq!(end.reason, EndReason::Signal);
    let saved = folder.path().join(format!("runs/a/checkpoints/step-{:08}/manifest.json", end.step));
    assert!(saved.exists());
}

#[test]
fn a_plan_is_printed_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let ended = alone(folder.path(), &["plan", "--preset", "llama-1b", "--ranks", "8"]).success();
    assert!(ended.out.contains("embedding.weight"));
    let json = fs::read_to_string(folder.path().join("plan.json")).unwrap();
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(plan["parameters"].as_array().is_some_and(|parameters| parameters.len() > 100));
    let ended = alone(folder.path(), &["plan", "--ranks", "4", "--json", "--out", "deep/er"]).success();
    serde_json::from_str::<serde_json::Value>(&ended.out).unwrap();
    assert!(ended.err.contains("embedding.weight") && folder.path().join("deep/er/plan.json").exists());
    let odd = ["plan", "--ranks", "4", "--set", "parallel.tp=3"];
    alone(folder.path(), &odd).input_error();
    alone(folder.path(), &["plan", "--ranks", "0"]).input_error();
}

#[test]
fn a_layout_is_chosen_for_a_machine() {
    let folder = tempfile::tempdir().unwrap();
    let plan =
        |more: &[&str]| alone(folder.path(), &[&["plan", "--preset", "llama-1b", "--cluster", "h100"], more].concat());
    let ended = plan(&["--json", "found.json", "--set", "train.global_batch=64", "--set", "parallel.tp=2"]).success();
    assert!(
        ended.out.contains("why each beats the next:") && ended.out.contains("of each rank of the pipeline:"),
        "{ended:#?}"
    );
    let json = fs::read_to_string(folder.path().join("found.json")).unwrap();
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["cluster"]["device"]["name"], "H100-SXM");
    let layouts = found["layouts"].as_array().unwrap();
    assert!(layouts.len() > 3 && layouts.iter().all(|layout| layout["tp"] == 2));
    let seconds: Vec<f64> = layouts
        .iter()
        .filter(|layout| layout["fits"] == true)
        .filter_map(|layout| layout["step_seconds"].as_f64())
        .collect();
    assert!(seconds.is_sorted(), "{seconds:?}");

    // What is proposed, training accepts.
    let best = &layouts[0];
    let mut sets = vec!["plan".to_owned(), "--preset".into(), "llama-1b".into(), "--ranks".into(), "8".into()];
    for key in ["tp", "pp", "dp", "cp", "micro_batch", "zero"] {
        sets.extend(["--set".into(), format!("parallel.{key}={}", best[key])]);
    }
    sets.extend(["--set".into(), "train.global_batch=64".into()]);
    alone(folder.path(), &sets.iter().map(String::as_str).collect::<Vec<_>>()).success();

    for refused in
        [["--set", "parallel.tp=7"], ["--set", "parallel.split=[8,9]"], ["--set", "lora.rank=4"], ["--best", "0"]]
    {
        plan(&refused).input_error();
    }
    alone(folder.path(), &["plan", "--cluster", "abacus"]).input_error();
    alone(folder.path(), &["plan", "--cluster", "h100", "--ranks", "1000000000000"]).input_error();
    alone(
        folder.path(),
        &["plan", "--cluster", "h100", "--ranks", "8", "--set", "parallel.pp=2", "--set", "parallel.zero=3"],
    )
    .input_error();
    alone(folder.path(), &["plan", "--cluster", "nowhere.toml"]).input_error();
}

#[test]
fn the_doctor_finds_this_machine_fit() {
    let folder = tempfile::tempdir().unwrap();
    let ended = alone(folder.path(), &["doctor"]).success();
    for word in ["MPI library", "MPI_THREAD_", "ULFM", "CUDA-aware", "libtorch: 2.11", "cores", "memory", "devices"] {
        assert!(ended.out.contains(word), "{word}: {ended:#?}");
    }
    let ended = alone(folder.path(), &["doctor", "--json"]).success();
    let findings: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(findings["ready"], true);
}
