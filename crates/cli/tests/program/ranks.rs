//! The program under mpirun: whatever goes wrong, every rank ends with the same code, one of them speaks, and mpirun
//! returns.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::{children, finish, launcher, ranks, send, under_way, with_sets, TINY};

#[test]
fn four_ranks_train_a_model_cut_in_two() {
    let folder = tempfile::tempdir().unwrap();
    let ended = ranks(4, folder.path(), &with_sets("train", &[TINY, &["train.name=a"]])).success();
    assert!(ended.out.contains("on 4 ranks: dp=2 × tp=2, sequence parallel"), "{ended:#?}");
    assert_eq!(ended.out.matches("The model writes:").count(), 1, "{ended:#?}");
    assert!(folder.path().join("runs/a/checkpoints/step-00000002/manifest.json").exists());
}

#[test]
fn each_rank_leaves_its_time_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut words = with_sets("train", &[TINY]);
    words.extend(["--trace", "traces"]);
    ranks(2, folder.path(), &words).success();
    for rank in 0..2 {
        let text = fs::read_to_string(folder.path().join(format!("traces/trace-rank{rank}.json"))).unwrap();
        let events: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let named = |name: &str| events.iter().filter(|event| event["name"] == name).collect::<Vec<_>>();
        assert_eq!(named("step").len(), 2);
        let of_micro_batches = [named("forward"), named("backward")].concat();
        assert!(of_micro_batches.len() == 4 && of_micro_batches.iter().all(|event| event["args"]["micro_batch"] == 0));
        assert!(!named("layer").is_empty());
        let collectives = events.iter().filter(|event| event["args"]["group"] == "tp");
        assert!(collectives.clone().count() > 0);
        assert!(collectives.clone().all(|event| event["args"]["bytes"].as_u64() > Some(0)));
    }
}

#[test]
fn an_error_that_all_ranks_meet_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    ranks(3, folder.path(), &["trian"]).input_error();
    // Ranks that leave with an error are no signal that a run could lose something by.
    assert!(!ranks(3, folder.path(), &["train"]).err.contains("mpirun ends"));
    for set in ["train.step=3", "data.path=none.txt", "parallel.tp=3", "train.out=/dev/null/runs"] {
        ranks(4, folder.path(), &with_sets("train", &[TINY, &[set]])).input_error();
    }
    let sets = with_sets("train", &[TINY, &["train.device=cpu", "parallel.transport=nccl"]]);
    let ended = ranks(2, folder.path(), &sets);
    assert!(ended.input_error().contains("tensors lie on the host"), "{ended:#?}");
    if !Path::new("/dev/nvidiactl").exists() {
        let ended = ranks(2, folder.path(), &with_sets("train", &[TINY, &["train.device=cuda"]]));
        assert!(ended.input_error().contains("CUDA cannot be used here"), "{ended:#?}");
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
fn a_batch_that_three_ranks_cannot_share_names_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let ended = ranks(3, folder.path(), &["train"]);
    let message = ended.input_error();
    assert!(message.ends_with("; set `train.global_batch` to 15 or 18, or `parallel.pp` to 3"), "{message}");
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
    let run = folder.path().join("runs/a");
    let child = under_way(&mut launcher(2, folder.path()), &run, &["train.name=a"]);
    send("USR1", child.id());
    let ended = finish(child).success();
    assert!(ended.out.contains("stopped by a signal after step"), "{ended:#?}");
    let saved: Vec<_> = fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(matches!(&saved[..], [only] if ended.out.contains(&format!("saved in {}", only.display()))), "{ended:#?}");
    let again = "continue with: mpirun -n 2 mp-cli train --config ";
    let words = ended.out.lines().find_map(|line| line.split_once(again)).unwrap().1;
    let mut words = [&["train", "--config"], &words.split(' ').collect::<Vec<_>>()[..]].concat();
    let done: String = saved[0].to_string_lossy().rsplit('-').next().unwrap().trim_start_matches('0').into();
    let (done, fewer) = (format!("train.steps={done}"), "train.steps=1");
    let refused = ranks(2, folder.path(), &[&words[..], &["--set", fewer]].concat());
    assert!(refused.input_error().contains("the steps that this run has done"), "{refused:#?}");
    words.extend(["--set", &done]);
    assert!(ranks(2, folder.path(), &words).success().out.contains("nothing is left to train"));
}

#[test]
fn a_signal_that_ends_mpirun_is_spoken_of_although_mpirun_forwards_nothing_more() {
    for signal in ["INT", "TERM"] {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("runs/a");
        let child = under_way(&mut launcher(2, folder.path()), &run, &["train.name=a"]);
        send(signal, child.id());
        let ended = finish(child);
        assert_eq!(ended.code, 1, "{signal}: {ended:#?}");
        // Whether there is time to save as well is up to the machine.
        assert!(ended.err.contains("mpirun ends") && ended.err.contains("nothing new of"), "{signal}: {ended:#?}");
    }
}

#[test]
fn a_killed_rank_ends_all_and_what_is_saved_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("runs/a");
    let child = under_way(&mut launcher(2, folder.path()), &run, &["train.name=a", "checkpoint.every=2"]);
    let begun = Instant::now();
    // Three of them: the first is then known to rank 0 as well.
    while fs::read_dir(run.join("checkpoints")).map_or(0, |folders| folders.count()) < 3 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no checkpoint: {:#?}", finish(child));
        std::thread::sleep(Duration::from_millis(10));
    }
    send("KILL", *children(child.id()).last().expect("mpirun has two ranks"));
    let ended = finish(child);
    assert_ne!(ended.code, 0, "{ended:#?}");
    assert!(ended.err.contains("runs/a/checkpoints/step-"), "{ended:#?}");
}

/// Puts a file where the checkpoints were, however often they come back in between.
fn bar_the_way(run: &Path) {
    let checkpoints = run.join("checkpoints");
    for attempt in 0.. {
        let _ = fs::rename(&checkpoints, run.join(format!("before-{attempt}")));
        if fs::File::create_new(&checkpoints).is_ok() {
            return;
        }
    }
}

#[test]
fn a_rank_that_fails_in_training_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("runs/a");
    let sets = ["train.name=a", "checkpoint.every=20", "checkpoint.keep=0"];
    let child = under_way(&mut launcher(3, folder.path()), &run, &[&sets[..], &["train.global_batch=6"]].concat());
    let begun = Instant::now();
    bar_the_way(&run);
    let ended = finish(child);
    let message = ended.message(1);
    assert!(message.contains("checkpoints") && message.contains("cannot be written"), "{ended:#?}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
