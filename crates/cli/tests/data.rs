//! `mp-cli data` as a user types it, and the handbook's chapter as it stands.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::alone;

/// Runs the commands of a chapter in one shell, and says what it printed.
fn chapter(name: &str, folder: &Path) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let script: String = blocks.collect::<Vec<_>>().join("\n");
    let programs = Path::new(env!("CARGO_BIN_EXE_mp-cli")).parent().unwrap().to_path_buf();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(programs).chain(std::env::split_paths(&path)).collect::<Vec<PathBuf>>();
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &script]).current_dir(folder).stdin(Stdio::null());
    let ended = shell.env("PATH", std::env::join_paths(paths).unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{said}\n{}", String::from_utf8_lossy(&ended.stderr));
    said
}

#[test]
fn the_chapter_works_as_it_stands_and_a_planted_skip_turns_the_audit_red() {
    let folder = tempfile::tempdir().unwrap();
    let said = chapter("data.md", folder.path());
    assert!(said.contains("lines-tokens: 200 documents") && said.contains("9 steps read samples 0 to 41"), "{said}");

    let log = folder.path().join("runs/blend/data.jsonl");
    let good = fs::read_to_string(&log).unwrap();
    fs::write(
        &log,
        good.lines().filter(|line| !line.contains("\"step\":5,")).map(|line| format!("{line}\n")).collect::<String>(),
    )
    .unwrap();
    let ended = alone(folder.path(), &["data", "audit", "runs/blend"]);
    assert_eq!(ended.code, 1, "{ended:#?}");
    assert!(ended.out.contains("samples 16 to 19 were skipped before step 6"), "{ended:#?}");
    fs::write(&log, good).unwrap();
    alone(folder.path(), &["data", "audit", "runs/blend"]).success();
}

#[test]
fn what_cannot_be_done_is_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.txt"), "text").unwrap();
    let refused = |words: &[&str]| alone(folder.path(), words).input_error().to_string();
    assert!(refused(&["data", "tokenize", "a.txt", "--tokenizer", "bytes", "--out", "x"])
        .contains("has no token that ends"));
    assert!(refused(&["data", "tokenize", "b.txt", "--tokenizer", "bytes", "--no-eod", "--out", "x"])
        .contains("no file `b.txt`"));
    assert!(refused(&["data", "train-tokenizer", "a.txt", "--vocab", "9", "--out", "x"]).contains("too small"));
    assert!(refused(&["data", "inspect", "a"]).contains("no file `a.idx`"));
    assert!(refused(&["data", "audit", "nowhere"]).contains("nowhere/config.toml"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    let made = alone(
        folder.path(),
        &["data", "tokenize", "a.txt", "--tokenizer", "bytes", "--no-eod", "--out", "x", "--json"],
    );
    let made = made.success();
    assert!(made.out.contains("\"tokens\": 4") && made.err.contains("1 documents, 4 tokens"), "{made:#?}");
    assert!(refused(&["data", "tokenize", "a.txt", "--tokenizer", "bytes", "--no-eod", "--out", "x"])
        .contains("x.idx` exists"));
}
