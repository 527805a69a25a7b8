//! `mp-cli data` as a user types it, and the handbook's chapter as it stands.

use std::fs;

use crate::common::{alone, chapter};

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
    assert!(made.out.contains("\"tokens\": 4") && made.err.contains("1 document, 4 tokens"), "{made:#?}");
    assert!(refused(&["data", "tokenize", "a.txt", "--tokenizer", "bytes", "--no-eod", "--out", "x"])
        .contains("x.idx` exists"));
}
