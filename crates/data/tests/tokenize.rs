//! Text in every wrapping into the same token files, and tokenizers learned from it.
#![cfg(feature = "huggingface")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use mp_data::{tokenize, train_tokenizer, Documents, Error, Indexed, Input, Job, Progress, Result, Tokenizer};
use proptest::prelude::*;

fn words(paths: &[&Path]) -> Vec<String> {
    paths.iter().map(|path| path.to_str().unwrap().to_string()).collect()
}

/// Tokenizes bytes; 0 ends a document.
fn make(inputs: &[&Path], field: Option<&str>, threads: usize, prefix: &Path) -> Result<Progress> {
    let inputs = Input::find(&words(inputs))?;
    let job = Job { inputs, field, tokenizer: &Tokenizer::bytes(), end: Some(0), threads };
    tokenize(&job, prefix, &mut |_| {})
}

/// The documents of token files, without what ends them.
fn documents(prefix: &Path) -> Vec<String> {
    let data = Indexed::open(prefix).unwrap();
    data.verify(Some(256)).unwrap();
    let one = |document| {
        let mut ids = Vec::new();
        data.read(data.document(document).unwrap(), 256, &mut ids).unwrap();
        assert_eq!(ids.pop(), Some(0));
        String::from_utf8(ids.into_iter().map(|id| id as u8).collect()).unwrap()
    };
    (0..data.documents()).map(one).collect()
}

fn gzip(path: &Path, bytes: &[u8]) {
    let mut encoder = flate2::write::GzEncoder::new(File::create(path).unwrap(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap();
}

#[test]
fn every_wrapping_gives_the_same_documents() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let texts = ["first\nlines", "zweites ß", "x"];
    let lines: String =
        texts.iter().map(|text| serde_json::json!({"id": 1, "body": text}).to_string() + "\n").collect();
    fs::write(at("a.jsonl"), &lines).unwrap();
    gzip(&at("b.jsonl.gz"), lines.trim_end().as_bytes());
    fs::write(at("c.jsonl.zst"), zstd::encode_all(lines.replace('\n', "\n \n").as_bytes(), 1).unwrap()).unwrap();
    fs::create_dir(at("d")).unwrap();
    for (name, text) in ["1.txt", "2.txt", "3.txt"].iter().zip(texts) {
        fs::write(at("d").join(name), text).unwrap();
    }
    fs::write(at("d/4.txt"), "").unwrap();
    let inputs: [(&[PathBuf], u64); 5] = [
        (&[at("a.jsonl")], 0),
        (&[at("b.jsonl.gz")], 0),
        (&[at("c.jsonl.zst")], 0),
        (&[at("d")], 1),
        (&[at("d/*.txt")], 1),
    ];
    for (number, (paths, empty)) in inputs.iter().enumerate() {
        let prefix = at(&format!("out{number}"));
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        let done = make(&paths, Some("body"), 2, &prefix).unwrap();
        assert_eq!(documents(&prefix), texts, "{paths:?}");
        assert_eq!((done.documents, done.empty, done.tokens), (3, *empty, 25), "{paths:?}");
        assert_eq!(done.read_bytes, Input::find(&words(&paths)).unwrap().iter().filter_map(Input::bytes).sum::<u64>());
    }
}

#[test]
fn what_cannot_be_read_is_named_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let good = "{\"text\": \"a\"}\n".repeat(1000);
    fs::write(at("no-json.jsonl"), good.clone() + "{\"text\": \"a\n").unwrap();
    fs::write(at("field.jsonl"), good.clone() + "\n{\"body\": \"a\", \"id\": 3}\n").unwrap();
    fs::write(at("number.jsonl"), "{\"text\": 3}\n").unwrap();
    fs::write(at("list.jsonl"), "[1]\n").unwrap();
    fs::write(at("latin1.txt"), b"caf\xe9").unwrap();
    gzip(&at("cut.jsonl.gz"), good.as_bytes());
    let cut = fs::read(at("cut.jsonl.gz")).unwrap();
    fs::write(at("cut.jsonl.gz"), &cut[..cut.len() - 9]).unwrap();
    for (name, word) in [
        ("no-json.jsonl", "no-json.jsonl`, line 1001: it is no JSON"),
        ("field.jsonl", "line 1002: there is no `text` in it, but body, id; name"),
        ("number.jsonl", "line 1: `text` is no string"),
        ("list.jsonl", "line 1: it is no object"),
        ("latin1.txt", "byte 3 is 0xe9"),
        ("cut.jsonl.gz", "cut.jsonl.gz` cannot be read"),
        ("nothing", "there is no file"),
        ("*.parquet", "matches no file"),
        ("a[", "is no pattern"),
    ] {
        let error = make(&[&at(name)], None, 2, &at("out")).unwrap_err().to_string();
        assert!(error.contains(word), "{name}: {error}");
    }
    let left = fs::read_dir(folder.path()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with('.') || name.to_string_lossy().starts_with("out")
    });
    assert_eq!(left.count(), 0);
}

/// Longer than is handed out at once: sequences from line to line, one document, no byte lost.
#[test]
fn a_long_text_is_one_document_of_several_sequences() {
    let folder = tempfile::tempdir().unwrap();
    let text = "a line of text\n\n  and another\nthat follows\n".repeat(500_000);
    fs::write(folder.path().join("long.txt"), &text).unwrap();
    let prefix = folder.path().join("out");
    let done = make(&[&folder.path().join("long.txt")], None, 2, &prefix).unwrap();
    assert_eq!((done.documents, done.tokens), (1, text.len() as u64 + 1));
    let data = Indexed::open(&prefix).unwrap();
    assert!(data.sequences() > 1);
    assert!(documents(&prefix)[0] == text);
}

/// However lines end, and where there are none: parts of bounded size, and not a byte lost.
#[test]
fn a_long_text_without_single_line_breaks_comes_in_parts_too() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("returns", "a line of text\r\nand another\r\n".repeat(700_000)),
        ("paragraphs", "one paragraph a line.\n\n".repeat(900_000)),
        ("one line", "word ".repeat(4_000_000)),
        ("no space", "ß€".repeat(4_000_000)),
        ("breaks", "\n".repeat(20_000_000)),
    ] {
        let (path, prefix) = (folder.path().join(name), folder.path().join(format!("{name}-tokens")));
        fs::write(&path, &text).unwrap();
        make(&[&path], None, 2, &prefix).unwrap();
        let data = Indexed::open(&prefix).unwrap();
        assert!(data.sequences() > 1 && data.documents() == 1, "{name}: {}", data.sequences());
        assert!(documents(&prefix)[0] == text, "{name}");
    }
}

#[test]
fn a_learned_tokenizer_ends_documents_and_shortens_text() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(&text, "the cat sat on the mat, and the rat sat on the cat.\n".repeat(50)).unwrap();
    let learn = |vocab, name: &str| {
        let documents = Documents::new(Input::find(&words(&[&text])).unwrap(), None);
        train_tokenizer(documents, vocab, &folder.path().join(name))
    };
    let tokenizer = learn(270, "a.json").unwrap();
    assert_eq!(tokenizer.vocab_size(), 270);
    let ids = tokenizer.encode("the cat sat ß").unwrap();
    assert!(ids.len() < 10, "{ids:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), "the cat sat ß");
    assert_eq!(tokenizer.end_named(None).unwrap(), tokenizer.id("<|endoftext|>").unwrap());
    // Twice the same, whatever the threads did.
    learn(270, "b.json").unwrap();
    assert_eq!(fs::read(folder.path().join("a.json")).unwrap(), fs::read(folder.path().join("b.json")).unwrap());
    assert!(learn(100_000, "c.json").unwrap().vocab_size() < 400);
    assert!(matches!(learn(256, "d.json"), Err(Error::SmallVocabulary { least: 257, .. })));
    assert!(matches!(learn(300, "a.json"), Err(Error::Exists { .. })));
    fs::write(&text, b"\xff").unwrap();
    assert!(matches!(learn(300, "e.json"), Err(Error::NotUtf8 { .. })));
    assert!(!folder.path().join("e.json").exists());
}

#[test]
fn the_end_of_a_document_is_the_tokenizers_or_the_one_that_is_named() {
    let bytes = Tokenizer::bytes();
    let error = bytes.end_named(None).unwrap_err().to_string();
    assert!(error.contains("has no token that ends a document") && error.contains("--eod"), "{error}");
    assert_eq!(bytes.end_named(Some("10")).unwrap(), 10);
    assert!(matches!(bytes.end_named(Some("256")), Err(Error::NoEnd { .. })));
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("t");
    fs::write(&text, "abc").unwrap();
    let path = folder.path().join("tokenizer.json");
    let tokenizer = train_tokenizer(Documents::new(vec![Input::File(text)], None), 300, &path).unwrap();
    assert_eq!(tokenizer.end_named(Some("a")).unwrap(), tokenizer.id("a").unwrap());
    fs::write(folder.path().join("tokenizer_config.json"), r#"{"eos_token": {"content": "b"}}"#).unwrap();
    assert_eq!(tokenizer.end_of_document(), tokenizer.id("b"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The order is the input's, whatever the threads did.
    #[test]
    fn documents_come_in_order(texts in prop::collection::vec("[a-z ]{1,40}", 1..200), threads in 1usize..5, files in 1usize..4) {
        let folder = tempfile::tempdir().unwrap();
        for (number, part) in texts.chunks(texts.len().div_ceil(files)).enumerate() {
            let lines: String = part.iter().map(|text| serde_json::json!({"text": text}).to_string() + "\n").collect();
            fs::write(folder.path().join(format!("{number}.jsonl")), lines).unwrap();
        }
        let out = tempfile::tempdir().unwrap();
        let prefix = out.path().join("out");
        make(&[folder.path()], None, threads, &prefix).unwrap();
        prop_assert_eq!(documents(&prefix), texts);
    }
}
