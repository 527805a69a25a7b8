//! What is asked of each reader with arbitrary bytes: an answer or an error, never a panic. Fuzz targets ask it with what they
//! come up with, and ordinary tests with the corpora.
#![allow(dead_code)] // Each target uses one of them.

use std::fs;

use mp_data::{Corpus, Documents, Indexed, Input, Tokenizer};
use mp_data::{ExampleReader, Packed, Reading, Sample, Template, IGNORED};

/// An index and its data: four bytes say how long the index is.
pub fn index(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk() else { return };
    let (index, data) = rest.split_at(rest.len().min(u32::from_le_bytes(*length) as usize));
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("d");
    fs::write(folder.path().join("d.idx"), index).unwrap();
    fs::write(folder.path().join("d.bin"), data).unwrap();
    let Ok(data) = Indexed::open(&prefix) else { return };
    let sound = data.verify(None).is_ok();
    let mut seen = 0;
    for document in 0..data.documents() {
        match data.document(document) {
            Ok(range) => seen += range.end - range.start,
            Err(_) => assert!(!sound),
        }
    }
    assert!(!sound || seen == data.tokens(), "sound files hold each token in one document");
    for token in 0..data.tokens().min(1000) {
        match data.document_at(token) {
            Ok(document) => assert!(data.document(document).unwrap().contains(&token)),
            Err(_) => assert!(!sound),
        }
    }
    let _ = data.read(0..data.tokens(), 100, &mut Vec::new());
}

/// A file of JSON lines, which may be compressed.
pub fn documents(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["d.jsonl", "d.txt"] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let texts = Documents::new(vec![Input::File(path)], None).texts();
        // A few bytes may stand for gigabytes of nothing.
        let mut left = 1 << 24;
        for text in texts {
            let Ok(text) = text else { break };
            left -= text.len().min(left);
            if left == 0 {
                break;
            }
        }
    }
}

/// A file of examples: of prompts with completions, and of conversations.
pub fn examples(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.jsonl");
    fs::write(&path, bytes).unwrap();
    let tokenizer = Tokenizer::bytes();
    for reading in [Reading::Completion(0), Reading::chats(Template::chatml())] {
        let reader = ExampleReader { tokenizer: &tokenizer, reading, vocab: 256, seq: 1 << 10, threads: 1 };
        let Ok(examples) = reader.read(&path) else { continue };
        let packed = Packed::new(examples.clone(), 1 << 10).unwrap();
        let mut sample = Sample::default();
        let mut learned = 0;
        for row in 0..packed.rows() {
            packed.row(row, &mut sample);
            learned += sample.targets.iter().filter(|&&target| target != IGNORED).count();
        }
        let all =
            examples.numbers().map(|number| examples.example(number).skip(1).filter(|(_, learned)| *learned).count());
        assert_eq!(learned, all.sum::<usize>(), "each is learned once");
    }
}

/// A text file.
pub fn text(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d");
    fs::write(&path, bytes).unwrap();
    if let Ok(corpus) = Corpus::open(&path) {
        assert_eq!(corpus.text().as_bytes(), bytes);
        assert_eq!(corpus.tokenize(&Tokenizer::bytes()).unwrap().len(), bytes.len());
    }
}

/// A tokenizer's file.
pub fn tokenizer(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, bytes).unwrap();
    let Ok(tokenizer) = Tokenizer::load(path.to_str().unwrap()) else { return };
    let _ = tokenizer.end_of_document();
    if let Ok(ids) = tokenizer.encode("The cat, 12 ß\n€ <|endoftext|>") {
        let _ = tokenizer.decode(&ids);
    }
}
