//! Opening what a path names, and holding a part of it out for validation.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Corpus, Error, Indexed, Part, Result, Tokenizer};

/// Where the validation text comes from. In a configuration: a number is a fraction, a string a path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Validation {
    /// This last fraction of the data, in `[0, 1)`, cut where a document begins if there are several; 0 holds nothing out.
    Fraction(f64),
    /// Data of its own, of any kind; all of the other is trained on.
    File(PathBuf),
}

impl Default for Validation {
    fn default() -> Self {
        Self::Fraction(0.1)
    }
}

/// The two parts of a dataset.
#[derive(Debug, Clone)]
pub struct Split {
    /// What is trained on.
    pub train: Part,
    /// What is held out; `None` if the fraction is 0.
    pub validation: Option<Part>,
}

/// What a path names, before it is cut.
#[derive(Debug)]
enum Found {
    Text(Corpus),
    Files(Part),
}

/// Opens what `path` names (a text, a folder of texts, the common name of a `.bin` and an `.idx` file or either of them;
/// nothing: the embedded corpus) as tokens of a vocabulary of `vocab` ids, and splits it as `validation` says.
///
/// # Errors
/// Those of [`split`] and [`Indexed::open`].
pub fn open(
    path: Option<&Path>,
    tokenizer: &Tokenizer,
    vocab: usize,
    validation: &Validation,
    seq: usize,
) -> Result<Split> {
    let found = match path {
        None => Found::Text(Corpus::embedded()),
        Some(path) => find(path, vocab)?,
    };
    let parts = match (found, validation) {
        (Found::Text(corpus), _) => split_text(&corpus, tokenizer, vocab, validation)?,
        (Found::Files(part), Validation::Fraction(fraction)) => split_documents(&part, *fraction)?,
        (Found::Files(train), Validation::File(path)) => {
            Split { train, validation: Some(open_whole(path, tokenizer, vocab)?) }
        }
    };
    check(parts, validation, vocab, seq)
}

/// Opens all of what `path` names, as [`open`] does.
///
/// # Errors
/// Those of [`Corpus::open`], [`Corpus::tokenize`] and [`Indexed::open`]; [`Error::TokenId`] for a text's token that a
/// vocabulary of `vocab` ids does not hold.
pub fn open_whole(path: &Path, tokenizer: &Tokenizer, vocab: usize) -> Result<Part> {
    let part = match find(path, vocab)? {
        Found::Text(corpus) => corpus.tokenize(tokenizer)?.into(),
        Found::Files(part) => part,
    };
    part.check(vocab)?;
    Ok(part)
}

/// Splits a text as `validation` says and tokenizes each part.
///
/// A fraction `f` of one document trains on the first `floor(n · (1 − f))` bytes of the `n`, moved back to a character's
/// start; of several, the cut moves to where the document begins that holds it (its end, for the first one). The text is
/// cut before it is tokenized, so that no token spans the cut and every tokenizer holds out the same text.
///
/// # Errors
/// [`Error::Fraction`] outside `[0, 1)`; [`Error::TooShort`] if a part has fewer than `seq + 1` tokens;
/// the errors of [`open_whole`] for validation data of its own and of [`Corpus::tokenize`].
///
/// # Source
/// karpathy/nanoGPT, `data/shakespeare_char/prepare.py`: `train_data = data[:int(n*0.9)]`.
pub fn split(corpus: &Corpus, tokenizer: &Tokenizer, validation: &Validation, seq: usize) -> Result<Split> {
    let vocab = tokenizer.vocab_size();
    check(split_text(corpus, tokenizer, vocab, validation)?, validation, vocab, seq)
}

fn find(path: &Path, vocab: usize) -> Result<Found> {
    let files = |prefix: &Path| Ok(Found::Files(Part::of_files(Arc::new(Indexed::open(prefix)?), vocab)));
    if matches!(path.extension().and_then(|extension| extension.to_str()), Some("bin" | "idx")) {
        return files(&path.with_extension(""));
    }
    // One of two files is taken for a dataset too, so that the missing one is named.
    match Indexed::exists(path) || (!path.exists() && Indexed::exists_in_part(path)) {
        true => files(path),
        false => Ok(Found::Text(Corpus::open(path)?)),
    }
}

fn split_text(corpus: &Corpus, tokenizer: &Tokenizer, vocab: usize, validation: &Validation) -> Result<Split> {
    let fraction = match validation {
        Validation::File(path) => {
            let train = corpus.tokenize(tokenizer)?.into();
            return Ok(Split { train, validation: Some(open_whole(path, tokenizer, vocab)?) });
        }
        Validation::Fraction(fraction) => *fraction,
    };
    let all = corpus.text().len();
    let mut cut = corpus.text().floor_char_boundary(cut_at(all as u64, fraction)? as usize);
    if corpus.documents() > 1 && fraction > 0.0 {
        let document = corpus.document_at(cut);
        cut = if document.start > 0 { document.start } else { document.end };
    }
    let part = |bytes, name| -> Result<Part> {
        let origin = format!("the {name} part of {}", corpus.origin());
        Ok(corpus.tokenize_part(tokenizer, bytes, origin)?.into())
    };
    let train = part(0..cut, "training")?;
    let held_out = if fraction > 0.0 { Some(part(cut..all, "validation")?) } else { None };
    Ok(Split { train, validation: held_out })
}

/// Holds out the last documents, from the one on that holds the token at the cut; the second, if that is the first.
fn split_documents(part: &Part, fraction: f64) -> Result<Split> {
    let cut = cut_at(part.len(), fraction)?;
    if fraction == 0.0 || part.is_empty() {
        return Ok(Split { train: part.clone(), validation: None });
    }
    let (document, _) = part.document_at(cut.min(part.len() - 1))?;
    let first = document.max(1).min(part.documents());
    Ok(Split {
        train: part.of_documents(0..first, "training")?,
        validation: Some(part.of_documents(first..part.documents(), "validation")?),
    })
}

/// Refuses parts that no sample fits into, or whose ids the vocabulary does not hold.
fn check(parts: Split, validation: &Validation, vocab: usize, seq: usize) -> Result<Split> {
    let fraction = match validation {
        Validation::Fraction(fraction) => Some(*fraction),
        Validation::File(_) => None,
    };
    for part in std::iter::once(&parts.train).chain(&parts.validation) {
        part.require(seq, seq.saturating_add(1), fraction)?;
        part.check(vocab)?;
    }
    Ok(parts)
}

/// Returns how much comes before the held-out part.
pub(crate) fn cut_at(all: u64, fraction: f64) -> Result<u64> {
    if !(0.0..1.0).contains(&fraction) {
        return Err(Error::Fraction { fraction });
    }
    // Exact for anything below 2^53, and for a tenth `1 − 0.1` is the very double 0.9.
    Ok((all as f64 * (1.0 - fraction)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &str, fraction: f64, seq: usize) -> Result<Split> {
        let corpus = Corpus::from_text("`x`", text.to_string());
        split(&corpus, &Tokenizer::bytes(), &Validation::Fraction(fraction), seq)
    }

    #[test]
    fn a_tenth_of_a_known_text_is_cut_where_nanogpt_cuts_it() {
        // The length of tinyshakespeare, and the two counts that nanoGPT's prepare.py prints for it.
        let parts = bytes(&"a".repeat(1_115_394), 0.1, 64).unwrap();
        assert_eq!((parts.train.len(), parts.validation.unwrap().len()), (1_003_854, 111_540));
    }

    #[test]
    fn too_short_a_part_is_named() {
        let error = bytes(&"a".repeat(100), 0.1, 64).unwrap_err();
        assert!(matches!(&error, Error::TooShort { tokens: 10, need: 65, held_out: Some(_), .. }), "{error}");
        assert!(error.to_string().starts_with("the validation part of `x` has 10 tokens"));
        let error = bytes(&"a".repeat(100), 0.5, 64).unwrap_err();
        assert!(error.to_string().starts_with("the training part of `x` has 50 tokens"));
        assert!(matches!(bytes("abc", 0.5, 0), Err(Error::Zero { .. })));
        assert!(matches!(bytes("abc", 0.0, usize::MAX), Err(Error::TooShort { .. })));
    }

    #[test]
    fn fractions_outside_the_range_are_refused() {
        for fraction in [-0.1, 1.0, 1.5, f64::NAN, f64::INFINITY] {
            assert!(matches!(bytes("abcdef", fraction, 1), Err(Error::Fraction { .. })), "{fraction}");
        }
    }

    #[test]
    fn a_fraction_of_nothing_holds_nothing_out() {
        let parts = bytes("abcdef", 0.0, 2).unwrap();
        assert_eq!(parts.train.len(), 6);
        assert!(parts.validation.is_none());
    }

    #[test]
    fn a_configuration_takes_a_number_or_a_path() {
        let read = |json| serde_json::from_str::<Validation>(json).unwrap();
        assert_eq!(read("0.25"), Validation::Fraction(0.25));
        assert_eq!(read("0"), Validation::Fraction(0.0));
        assert_eq!(read("\"held/out.txt\""), Validation::File("held/out.txt".into()));
    }

    proptest! {
        #[test]
        fn the_parts_are_the_text(text in "\\PC{20,60}", fraction in 0.3..0.7f64) {
            let parts = bytes(&text, fraction, 1).unwrap();
            let held_out = parts.validation.unwrap();
            let mut ids = Vec::new();
            parts.train.read(0..parts.train.len(), &mut ids).unwrap();
            held_out.read(0..held_out.len(), &mut ids).unwrap();
            prop_assert_eq!(ids.iter().map(|&id| id as u8).collect::<Vec<u8>>(), text.as_bytes());
        }
    }
}
