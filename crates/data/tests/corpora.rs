//! The corpora of the fuzz targets, replayed: what once was interesting stays an answer or an error.
#![cfg(feature = "huggingface")]

#[path = "../../../fuzz/readers.rs"]
mod readers;

use std::fs;
use std::path::Path;

fn replay(target: &str, reader: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 8, "{} has a corpus", folder.display());
    for file in files {
        let bytes = fs::read(&file).unwrap();
        let name = file.display().to_string();
        let replayed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reader(&bytes)));
        assert!(replayed.is_ok(), "{name}");
    }
}

#[test]
fn indices() {
    replay("index", readers::index);
}

#[test]
fn documents() {
    replay("documents", readers::documents);
}

#[test]
fn examples() {
    replay("examples", readers::examples);
}

#[test]
fn texts() {
    replay("text", readers::text);
}

#[test]
fn tokenizers() {
    replay("tokenizer", readers::tokenizer);
}
