//! The program under mpirun: whatever goes wrong, every rank ends with the same code, one of them speaks, and mpirun
//! returns.

mod common;

use std::fs;
use std::process::{Command, Stdio};

use common::{launcher, ranks, with_sets, TINY};

#[test]
fn four_ranks_train_a_model_cut_in_two() {
    let folder = tempfile::tempdir().unwrap();
    let ended = ranks(4, folder.path(), &with_sets("train", &[TINY, &["train.name=a"]])).success();
    assert!(ended.out.contains("on 4 ranks: tp=2 × dp=2"), "{ended:#?}");
    assert_eq!(ended.out.matches("The model writes:").count(), 1, "{ended:#?}");
    assert!(folder.path().join("runs/a/checkpoints/step-00000002/manifest.json").exists());
}

#[test]
fn an_error_that_all_ranks_meet_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    ranks(3, folder.path(), &["trian"]).input_error();
    for set in ["train.step=3", "data.path=none.txt", "parallel.tp=3", "train.out=/dev/null/runs"] {
        ranks(4, folder.path(), &with_sets("train", &[TINY, &[set]])).input_error();
    }
}

#[test]
fn an_error_of_one_rank_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    // A folder where rank 1 alone would put its file.
    fs::create_dir_all(folder.path().join("logs/rank-1.jsonl")).unwrap();
    let mut words = with_sets("train", &[TINY]);
    words.extend(["--log-dir", "logs"]);
    let ended = ranks(3, folder.path(), &words);
    assert!(ended.input_error().contains("`--log-dir`"), "{ended:#?}");
}

#[test]
fn a_loss_that_is_no_number_is_told_once_and_exits_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let diverging = ["train.steps=50", "optimizer.lr=1e30", "optimizer.min_lr=1e30", "train.clip_norm=0"];
    let ended = ranks(2, folder.path(), &with_sets("train", &[TINY, &diverging]));
    assert!(ended.message(1).contains("is not a finite number"), "{ended:#?}");
}

#[test]
fn help_is_printed_once() {
    let folder = tempfile::tempdir().unwrap();
    let ended = ranks(2, folder.path(), &["--help"]).success();
    assert_eq!(ended.out.matches("Usage:").count(), 1, "{ended:#?}");
}

#[test]
fn mpirun_hands_a_signal_on_and_the_run_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let words = with_sets("train", &[TINY, &["train.steps=1000000", "train.name=a", "checkpoint.every=0"]]);
    let mut command = launcher(2, folder.path());
    let mut child = command.args(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let metrics = folder.path().join("runs/a/metrics.jsonl");
    while fs::metadata(&metrics).map_or(0, |file| file.len()) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let sent = Command::new("kill").args(["-USR1", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("stopped by a signal after step"), "{output:?}");
    assert_eq!(fs::read_dir(folder.path().join("runs/a/checkpoints")).unwrap().count(), 1);
}
