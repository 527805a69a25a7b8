//! Files that commands write: whole, or as they were before.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use crate::common::{alone, ranks};

/// Lists what a folder holds.
fn names(folder: &std::path::Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Commands that fail behind the look at their files: a search without a layout, a measurement on a device that is not served.
const FAILING: [&[&str]; 3] = [
    &["plan", "--cluster", "h100", "--ranks", "8", "--set", "parallel.tp=3", "--json", "a"],
    &["plan", "--cluster", "h100", "--ranks", "8", "--set", "parallel.tp=3", "--html", "a"],
    &["plan", "--measure", "a", "--set", "train.device=cuda"],
];

#[test]
fn what_fails_leaves_files_as_they_were() {
    for words in FAILING {
        let folder = tempfile::tempdir().unwrap();
        alone(folder.path(), words).input_error();
        assert_eq!(names(folder.path()), [""; 0], "{words:?}");
        fs::write(folder.path().join("a"), "an older file").unwrap();
        alone(folder.path(), words).input_error();
        assert_eq!(names(folder.path()), ["a"], "{words:?}");
        assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "an older file", "{words:?}");
    }
}

#[test]
fn what_cannot_be_written_is_refused_on_every_rank_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    for place in ["no/where.toml", "."] {
        let ended = ranks(2, folder.path(), &["plan", "--measure", place]);
        let head = format!("error: `--measure` is \"{place}\", but it cannot be written: ");
        assert!(ended.input_error().starts_with(&head) && !ended.out.contains("measuring"), "{ended:#?}");
    }
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn a_device_that_takes_nothing_more_is_told_by_the_flag_that_named_it() {
    let folder = tempfile::tempdir().unwrap();
    for flag in ["--json", "--html"] {
        let ended = alone(folder.path(), &["plan", "--cluster", "h100", "--ranks", "2", flag, "/dev/full"]);
        let told = ended.message(1);
        assert!(told.starts_with(&format!("error: `{flag}` \"/dev/full\" cannot be written: ")), "{ended:#?}");
        assert!(told.trim_end().ends_with("; name a file elsewhere"), "{ended:#?}");
    }
}

const PLAN: [&str; 6] = ["plan", "--cluster", "h100", "--ranks", "2", "--json"];

#[test]
fn files_behind_links_are_replaced_and_links_stay() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("far")).unwrap();
    fs::write(folder.path().join("far/a.json"), "an older and much longer file".repeat(1000)).unwrap();
    symlink("far/a.json", folder.path().join("b.json")).unwrap();
    alone(folder.path(), &[&PLAN[..], &["b.json"]].concat()).success();
    assert!(folder.path().join("b.json").is_symlink());
    let text = fs::read_to_string(folder.path().join("far/a.json")).unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["layouts"].is_array());
    assert_eq!(names(&folder.path().join("far")), ["a.json"]);
}

#[test]
fn pipes_are_written_to_and_stay() {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap();
    assert!(made.success());
    let reader = Command::new("cat").arg(folder.path().join("pipe")).stdout(Stdio::piped()).spawn().unwrap();
    alone(folder.path(), &[&PLAN[..], &["pipe"]].concat()).success();
    let read = reader.wait_with_output().unwrap();
    assert!(serde_json::from_slice::<serde_json::Value>(&read.stdout).unwrap()["layouts"].is_array());
    assert_eq!(names(folder.path()), ["pipe"]);
}
