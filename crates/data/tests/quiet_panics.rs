//! A file that the tokenizers crate panics on is an error without a panic's message. Alone in its program: the hook that
//! prints such messages belongs to the whole process.
#![cfg(feature = "huggingface")]

use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};

use mp_data::{Error, Tokenizer};

static PRINTED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn only_the_tokenizers_panics_are_silent() {
    panic::set_hook(Box::new(|_| {
        PRINTED.fetch_add(1, Ordering::Relaxed);
    }));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let text = r#"{"version": "1.0", "normalizer": {"type": "Precompiled", "precompiled_charsmap": 1},
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;
    std::fs::write(&path, text).unwrap();
    for _ in 0..2 {
        let error = Tokenizer::load(path.to_str().unwrap()).unwrap_err();
        assert!(matches!(error, Error::TokenizerFile { .. }), "{error}");
    }
    assert_eq!(PRINTED.load(Ordering::Relaxed), 0);
    panic::catch_unwind(|| panic!("ours")).unwrap_err();
    assert_eq!(PRINTED.load(Ordering::Relaxed), 1);
}
