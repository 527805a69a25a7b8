//! Text files as users have them: good, bad, and random bytes.

use std::fs;
use std::path::{Path, PathBuf};

use mp_data::{split, Corpus, Error, Tokenizer, Validation};
use proptest::prelude::*;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_text_file_is_read_whole() {
    let folder = folder();
    let corpus = Corpus::open(write(folder.path(), "a.txt", "Bäume\r\n\u{feff}".as_bytes())).unwrap();
    assert_eq!(corpus.text(), "Bäume\r\n\u{feff}");
    assert_eq!(corpus.tokenize(&Tokenizer::bytes()).unwrap().len(), 11);
}

#[test]
fn what_is_no_text_file_is_named() {
    let folder = folder();
    let missing = folder.path().join("nothing.txt");
    let error = Corpus::open(&missing).unwrap_err();
    assert!(matches!(&error, Error::Missing { path } if *path == missing));
    assert!(error.to_string().contains("nothing.txt"), "{error}");

    assert!(matches!(Corpus::open(folder.path()), Err(Error::Empty { .. })));
    for (name, what) in [("a.jsonl", "lines of JSON"), ("A.NDJSON", "lines of JSON"), ("a.txt.gz", "compressed")] {
        let error = Corpus::open(write(folder.path(), name, b"{}")).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(what) && error.contains("data tokenize"), "{error}");
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    assert!(matches!(Corpus::open(write(folder.path(), "empty", b"")), Err(Error::Empty { .. })));
    // A file used as a folder: an error of the system, with its reason.
    let below = write(folder.path(), "file", b"text").join("below");
    assert!(matches!(Corpus::open(below), Err(Error::Unreadable { .. })));
}

#[test]
fn a_folder_is_a_document_a_file_in_the_order_of_paths() {
    let folder = folder();
    fs::create_dir(folder.path().join("b")).unwrap();
    for (name, text) in [("c.txt", "third"), ("a", "first"), ("b/x.md", "second"), (".hidden", "not"), ("d", "")] {
        write(folder.path(), name, text.as_bytes());
    }
    let corpus = Corpus::open(folder.path()).unwrap();
    assert_eq!((corpus.text(), corpus.documents()), ("firstsecondthird", 3));
    let tokens = corpus.tokenize(&Tokenizer::bytes()).unwrap();
    assert_eq!((tokens.document(0), tokens.document(1), tokens.document(2)), (0..5, 5..11, 11..16));
    write(folder.path(), "e", b"\xff");
    let error = Corpus::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("/e` is not UTF-8"), "{error}");
}

#[cfg(unix)]
#[test]
fn endless_devices_are_refused() {
    assert!(matches!(Corpus::open("/dev/zero"), Err(Error::NotAFile { found: "a pipe or a device", .. })));
}

#[test]
fn the_first_bad_byte_is_named() {
    let folder = folder();
    let latin1 = Corpus::open(write(folder.path(), "latin1", b"caf\xe9 noir")).unwrap_err();
    assert!(matches!(latin1, Error::NotUtf8 { offset: 3, byte: 0xe9, .. }));
    assert!(latin1.to_string().contains("byte 3 is 0xe9"), "{latin1}");
    // A character that the end of the file cuts off.
    let cut = Corpus::open(write(folder.path(), "cut", &"€".as_bytes()[..2])).unwrap_err();
    assert!(matches!(cut, Error::NotUtf8 { offset: 0, byte: 0xe2, .. }));
}

#[test]
fn a_validation_file_leaves_the_whole_text_for_training() {
    let folder = folder();
    let train = Corpus::open(write(folder.path(), "train", &[b'a'; 50])).unwrap();
    let held_out = write(folder.path(), "held-out", &[b'b'; 9]);
    let bytes = Tokenizer::bytes();
    let parts = split(&train, &bytes, &Validation::File(held_out.clone()), 8).unwrap();
    assert_eq!((parts.train.len(), parts.validation.unwrap().len()), (50, 9));

    let error = split(&train, &bytes, &Validation::File(held_out), 9).unwrap_err();
    assert!(matches!(&error, Error::TooShort { tokens: 9, need: 10, held_out: None, .. }));
    assert!(error.to_string().contains("held-out"), "{error}");
    let missing = Validation::File(folder.path().join("nowhere"));
    assert!(matches!(split(&train, &bytes, &missing, 8), Err(Error::Missing { .. })));
}

#[test]
fn the_embedded_corpus_trains_and_validates() {
    let parts = split(&Corpus::embedded(), &Tokenizer::bytes(), &Validation::default(), 128).unwrap();
    // What the project promises: at least 60 KB of text.
    assert!(parts.train.len() + parts.validation.unwrap().len() >= 60_000);
}

proptest! {
    #[test]
    fn random_bytes_are_text_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = folder();
        let opened = Corpus::open(write(folder.path(), "random", &bytes));
        match (opened, std::str::from_utf8(&bytes)) {
            (Ok(corpus), Ok(text)) => prop_assert_eq!(corpus.text(), text),
            (Err(Error::NotUtf8 { offset, byte, .. }), Err(error)) => {
                prop_assert_eq!(offset, error.valid_up_to());
                prop_assert_eq!(byte, bytes[offset]);
            }
            (Err(Error::Empty { .. }), _) => prop_assert!(bytes.is_empty()),
            (opened, _) => prop_assert!(false, "{:?}", opened),
        }
    }

    /// Mostly valid text with a few bytes overwritten: the interesting neighbourhood of UTF-8.
    #[test]
    fn damaged_text_is_text_or_an_error(text in "\\PC{1,80}", at: prop::sample::Index, byte: u8) {
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let folder = folder();
        let opened = Corpus::open(write(folder.path(), "damaged", &bytes));
        prop_assert_eq!(opened.is_ok(), std::str::from_utf8(&bytes).is_ok());
    }

    #[test]
    fn any_split_is_two_parts_or_an_error(text in "\\PC{0,80}", fraction: f64, seq in 0usize..20) {
        let corpus = Corpus::from_text("the text", text);
        if let Ok(parts) = split(&corpus, &Tokenizer::bytes(), &Validation::Fraction(fraction), seq) {
            let held_out = parts.validation.map_or(0, |tokens| tokens.len());
            prop_assert_eq!(parts.train.len() + held_out, corpus.text().len() as u64);
            prop_assert!(parts.train.len() > seq as u64);
        }
    }
}
