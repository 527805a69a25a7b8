//! Tokenizers from `tokenizer.json` files, small ones that the tests make themselves.
#![cfg(feature = "huggingface")]

use std::fs;

use mp_data::{split, Corpus, Error, Tokenizer, Validation};
use proptest::prelude::*;
use tempfile::TempDir;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::normalizers::{self, Prepend, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::whitespace::Whitespace;
use tokenizers::{AddedToken, PaddingParams, PaddingStrategy, TruncationParams};

/// Writes a tokenizer into a folder of its own and returns the path that loads it.
fn save(tokenizer: &tokenizers::Tokenizer) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json").to_str().unwrap().to_string();
    tokenizer.save(&path, false).unwrap();
    (folder, path)
}

/// Byte-level pairs with two merges, `t h` and `th e`, as GPT-2 has 50,000.
fn byte_pairs() -> tokenizers::Tokenizer {
    let mut letters: Vec<String> = ByteLevel::alphabet().iter().map(char::to_string).collect();
    letters.sort();
    letters.extend(["th".to_string(), "the".to_string()]);
    let vocab: Vec<(String, u32)> = letters.into_iter().zip(0..).collect();
    let merges = [("t", "h"), ("th", "e")].map(|(a, b)| (a.to_string(), b.to_string())).to_vec();
    let model = BPE::builder().vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges);
    let mut tokenizer = tokenizers::Tokenizer::new(model.build().unwrap());
    let byte_level = ByteLevel::default().add_prefix_space(false);
    tokenizer.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    tokenizer
}

/// Whole words, without one for the unknown.
fn words(vocab: &[(&str, u32)]) -> tokenizers::Tokenizer {
    let vocab = vocab.iter().map(|(word, id)| (word.to_string(), *id)).collect();
    let mut tokenizer =
        tokenizers::Tokenizer::new(WordLevel::builder().vocab(vocab).unk_token("<unk>".into()).build().unwrap());
    tokenizer.with_pre_tokenizer(Some(Whitespace {}));
    tokenizer
}

#[test]
fn merges_apply_and_the_text_comes_back() {
    let (_folder, path) = save(&byte_pairs());
    let tokenizer = Tokenizer::load(&path).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.spec()), (258, &*path));
    let ids = tokenizer.encode("the then").unwrap();
    assert_eq!(ids.len(), 4, "the · space · the · n, of {ids:?}");
    assert_eq!((ids[0], ids[2]), (257, 257));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "the then");
}

#[test]
fn truncation_padding_and_special_tokens_of_the_file_do_not_touch_a_corpus() {
    let mut inner = byte_pairs();
    let truncation = TruncationParams { max_length: 3, ..Default::default() };
    inner.with_truncation(Some(truncation)).unwrap();
    inner.with_padding(Some(PaddingParams { strategy: PaddingStrategy::Fixed(100), ..Default::default() }));
    let (_folder, path) = save(&inner);
    let tokens = Corpus::from_text("x", "abcdefgh").tokenize(&Tokenizer::load(&path).unwrap()).unwrap();
    assert_eq!(tokens.len(), 8);
}

#[test]
fn special_tokens_enlarge_the_vocabulary_and_are_kept_in_text() {
    let mut inner = byte_pairs();
    inner.add_special_tokens([AddedToken::from("<|end|>", true)]).unwrap();
    let (_folder, path) = save(&inner);
    let tokenizer = Tokenizer::load(&path).unwrap();
    assert_eq!(tokenizer.vocab_size(), 259);
    let ids = tokenizer.encode("a<|end|>b").unwrap();
    assert_eq!(ids[1], 258);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a<|end|>b");
}

#[test]
fn a_vocabulary_with_gaps_is_as_large_as_its_largest_id() {
    let (_folder, path) = save(&words(&[("one", 0), ("two", 40)]));
    let tokenizer = Tokenizer::load(&path).unwrap();
    assert_eq!(tokenizer.vocab_size(), 41);
    let tokens = Corpus::from_text("x", "two one").tokenize(&tokenizer).unwrap();
    assert_eq!(tokens.ids(), [40, 0]);
    assert!(matches!(tokens.check(40), Err(Error::TokenId { id: 40, position: 0, vocab: 40, .. })));
}

#[test]
fn a_text_beyond_the_vocabulary_is_an_error() {
    let (_folder, path) = save(&words(&[("one", 0), ("two", 1)]));
    let error = Tokenizer::load(&path).unwrap().encode("one three").unwrap_err();
    assert!(matches!(&error, Error::Encode { bytes: 9, .. }), "{error}");
    let error = Tokenizer::load(&path).unwrap().decode(&[0, 7]).unwrap_err();
    assert!(matches!(&error, Error::TokenId { id: 7, position: 1, vocab: 2, .. }), "{error}");
}

/// Pairs of plain letters, without a token for the unknown.
fn letters(alphabet: &str) -> tokenizers::Tokenizer {
    let vocab: tokenizers::models::bpe::Vocab = alphabet.chars().map(String::from).zip(0..).collect();
    tokenizers::Tokenizer::new(BPE::builder().vocab_and_merges(vocab, Vec::new()).build().unwrap())
}

#[test]
fn a_character_that_pairs_lack_is_named_and_not_dropped() {
    let (_folder, path) = save(&letters("abé "));
    let tokenizer = Tokenizer::load(&path).unwrap();
    assert_eq!(tokenizer.encode("ab éa").unwrap(), [0, 1, 3, 2, 0]);
    // Near the start, and far into a long text of characters of two bytes, with another one to follow.
    for (text, offset) in [("ab ca".to_string(), 3), ("é ".repeat(50_000) + "cé?", 150_000)] {
        let error = Corpus::from_text("x", text).tokenize(&tokenizer).unwrap_err();
        assert!(matches!(&error, Error::Encode { .. }), "{error}");
        assert!(error.to_string().contains(&format!("no token for the character 'c' at byte {offset} of")), "{error}");
    }
}

#[test]
fn pairs_with_a_token_for_the_unknown_cover_any_text() {
    let vocab: tokenizers::models::bpe::Vocab = [("a".to_string(), 0), ("<unk>".to_string(), 1)].into_iter().collect();
    let model = BPE::builder().vocab_and_merges(vocab, Vec::new()).unk_token("<unk>".into());
    let (_folder, path) = save(&tokenizers::Tokenizer::new(model.build().unwrap()));
    assert_eq!(Tokenizer::load(&path).unwrap().encode("aza").unwrap(), [0, 1, 0]);
}

/// Words after a blank, and bytes for what they lack, as in the tokenizers of Llama 2 and Mistral.
fn falls_back() -> tokenizers::Tokenizer {
    let tokens = ["<unk>", "▁", "t", "h", "e", "▁t", "▁th", "▁the", "<0xC3>", "<0xA9>", "</s>", "<mark>"];
    let vocab: tokenizers::models::bpe::Vocab = tokens.map(String::from).into_iter().zip(0..).collect();
    let merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")].map(|(a, b)| (a.to_string(), b.to_string())).to_vec();
    let model = BPE::builder().vocab_and_merges(vocab, merges).unk_token("<unk>".into()).byte_fallback(true);
    let mut tokenizer = tokenizers::Tokenizer::new(model.build().unwrap());
    let steps: Vec<DecoderWrapper> = vec![
        Replace::new("▁", " ").unwrap().into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
        Strip::new(' ', 1, 0).into(),
    ];
    tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', PrependScheme::Always, false)));
    tokenizer.with_decoder(Some(Sequence::new(steps)));
    tokenizer.add_special_tokens(["</s>", "<mark>"].map(|name| AddedToken::from(name, true))).unwrap();
    tokenizer
}

/// Adds up the bytes that a text's tokens stand for.
fn bytes_of(tokenizer: &Tokenizer, text: &str) -> usize {
    let lengths = tokenizer.byte_lengths().unwrap();
    tokenizer.encode(text).unwrap().iter().map(|&id| lengths[id as usize]).sum()
}

#[test]
fn the_bytes_of_a_texts_tokens_are_the_bytes_of_the_text() {
    let mut level = byte_pairs();
    level.add_special_tokens(["<|endoftext|>", "<mark>"].map(|name| AddedToken::from(name, true))).unwrap();
    for (inner, end, text) in [
        (level, "<|endoftext|>", "naïve € the\n\tthen \u{1f600} th<mark>e"),
        (falls_back(), "</s>", " the é  th é<mark>tee"),
    ] {
        let (_folder, path) = save(&inner);
        let tokenizer = Tokenizer::load(&path).unwrap();
        let blank = usize::from(end == "</s>" && text.contains("<mark>t"));
        // Metaspace puts a blank before what follows a special token.
        assert_eq!(bytes_of(&tokenizer, text), text.len() + blank, "{:?}", tokenizer.encode(text));
        // What stands between documents is no text.
        let between = tokenizer.end_of_document().unwrap();
        assert_eq!((Some(between), tokenizer.byte_lengths().unwrap()[between as usize]), (tokenizer.id(end), 0));
    }
}

#[test]
fn what_goes_on_after_a_border_has_no_blank_put_before_it() {
    let first = || {
        let mut tokenizer = falls_back();
        tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', PrependScheme::First, false)));
        tokenizer
    };
    let prepends = || {
        let mut tokenizer = falls_back();
        let steps = vec![Prepend::new("▁".into()).into(), Replace::new(" ", "▁").unwrap().into()];
        tokenizer
            .with_pre_tokenizer(None::<Metaspace>)
            .with_normalizer(Some(normalizers::Sequence::new(steps)))
            .unwrap();
        tokenizer
    };
    let byte_level = || {
        let mut tokenizer = byte_pairs();
        tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(true).use_regex(false)));
        tokenizer
    };
    for (name, inner) in
        [("always", falls_back()), ("first", first()), ("prepend", prepends()), ("bytes", byte_level())]
    {
        let (_folder, path) = save(&inner);
        let tokenizer = Tokenizer::load(&path).unwrap();
        // The second word is a token with the blank before it, and the third of each border's two sides.
        for (text, borders) in [("the the", vec![4]), ("the thethe", vec![4, 7]), ("the the", vec![4, 5, 6])] {
            let placed = tokenizer.encode_between(text, &borders).unwrap();
            let ids: Vec<u32> = placed.iter().map(|(id, _)| *id).collect();
            let decoded = tokenizer.decode(&ids).unwrap();
            assert_eq!(decoded.strip_prefix(' ').unwrap_or(&decoded), text, "{name}: {placed:?}");
            let over = |border: &usize| placed.iter().any(|(_, bytes)| bytes.start < *border && *border < bytes.end);
            assert!(!borders.iter().any(over), "{name}: {placed:?}");
        }
    }
    // Behind a mark a blank is put as it is in a whole text.
    let (_folder, path) = save(&falls_back());
    let tokenizer = Tokenizer::load(&path).unwrap();
    let placed = tokenizer.encode_between("the the<mark>the", &[4]).unwrap();
    let ids: Vec<u32> = placed.iter().map(|(id, _)| *id).collect();
    let words = ["▁the", "▁", "t", "h", "e", "<mark>", "▁the"].map(|word| tokenizer.id(word).unwrap());
    assert_eq!(ids, words);
}

#[test]
fn the_text_is_cut_before_it_is_tokenized() {
    let (_folder, path) = save(&byte_pairs());
    let corpus = Corpus::from_text("x", "thethe".repeat(2));
    let parts = split(&corpus, &Tokenizer::load(&path).unwrap(), &Validation::Fraction(0.4), 1).unwrap();
    // 7 of 12 bytes: the·the·t, and h·e·the.
    assert_eq!((parts.train.len(), parts.validation.unwrap().len()), (3, 3));
}

#[test]
fn unusable_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let load = |text: &str| {
        fs::write(&path, text).unwrap();
        Tokenizer::load(path.to_str().unwrap()).unwrap_err()
    };
    let bad_normalizer = r#"{"version": "1.0", "normalizer": {"type": "Precompiled", "precompiled_charsmap": 1},
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;
    for text in ["{", "{}", "null", "[1, 2]", "\u{0}", bad_normalizer] {
        let error = load(text);
        assert!(matches!(&error, Error::TokenizerFile { .. }), "{text}: {error}");
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
    // Told apart before the tokenizers crate panics on it, so that the place is named.
    let malformed = load(r#"{"version": "1.0", "decoder": {"type": }}"#).to_string();
    assert!(malformed.contains("line 1 column 40"), "{malformed}");
    assert!(matches!(load(""), Error::Empty { .. }));
    let (_empty, none) = save(&words(&[]));
    assert!(Tokenizer::load(&none).unwrap_err().to_string().contains("its vocabulary is empty"));
    assert!(matches!(Tokenizer::load(folder.path().to_str().unwrap()), Err(Error::NotAFile { .. })));
    let error = Tokenizer::load("byte").unwrap_err();
    assert!(matches!(&error, Error::UnknownTokenizer { spec } if spec == "byte"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_survives_byte_pairs(text in "\\PC{0,60}") {
        let (_folder, path) = save(&byte_pairs());
        let tokenizer = Tokenizer::load(&path).unwrap();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    /// A file damaged in one place loads or is an error; it never panics.
    #[test]
    fn damaged_files_do_not_panic(at: prop::sample::Index, byte: u8) {
        let (_folder, path) = save(&words(&[("one", 0), ("two", 1)]));
        let mut json = fs::read(&path).unwrap();
        let at = at.index(json.len());
        json[at] = byte;
        fs::write(&path, json).unwrap();
        let _ = Tokenizer::load(&path);
    }
}
