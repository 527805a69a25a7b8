//! Holding a part of the text out for validation.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Corpus, Error, Result, Tokenizer, Tokens};

/// Where the validation text comes from. In a configuration: a number is a fraction, a string a path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Validation {
    /// This last fraction of the text, in `[0, 1)`; 0 holds nothing out.
    Fraction(f64),
    /// A file of its own; the whole text is trained on.
    File(PathBuf),
}

impl Default for Validation {
    fn default() -> Self {
        Self::Fraction(0.1)
    }
}

/// The two parts of a text, as tokens.
#[derive(Debug, Clone)]
pub struct Split {
    /// What is trained on.
    pub train: Tokens,
    /// What is held out; `None` if the fraction is 0.
    pub validation: Option<Tokens>,
}

/// Splits a text as `validation` says and tokenizes each part.
///
/// A fraction `f` trains on the first `floor(n · (1 − f))` bytes of the `n`, moved back to a character's start. The text
/// is cut before it is tokenized, so that no token spans the cut and every tokenizer holds out the same text.
///
/// # Errors
/// [`Error::Fraction`] outside `[0, 1)`; [`Error::TooShort`] if a part has fewer than `seq + 1` tokens;
/// the errors of [`Corpus::open`] for a validation file and of [`Corpus::tokenize`].
///
/// # Source
/// karpathy/nanoGPT, `data/shakespeare_char/prepare.py`: `train_data = data[:int(n*0.9)]`.
pub fn split(corpus: &Corpus, tokenizer: &Tokenizer, validation: &Validation, seq: usize) -> Result<Split> {
    let (train, held_out, fraction) = match validation {
        Validation::File(path) => (corpus.tokenize(tokenizer)?, Some(Corpus::open(path)?.tokenize(tokenizer)?), None),
        Validation::Fraction(fraction) => {
            let text = corpus.text();
            let cut = cut_at(text, *fraction)?;
            let part =
                |text, name| corpus.tokenize_part(tokenizer, text, format!("the {name} part of {}", corpus.origin()));
            let train = part(&text[..cut], "training")?;
            let held_out = if *fraction > 0.0 { Some(part(&text[cut..], "validation")?) } else { None };
            (train, held_out, Some(*fraction))
        }
    };
    for part in std::iter::once(&train).chain(&held_out) {
        part.require(seq, seq.saturating_add(1), fraction)?;
    }
    Ok(Split { train, validation: held_out })
}

/// Returns the byte at which the held-out part begins.
fn cut_at(text: &str, fraction: f64) -> Result<usize> {
    if !(0.0..1.0).contains(&fraction) {
        return Err(Error::Fraction { fraction });
    }
    // Exact for any text below 2^53 bytes, and for a tenth `1 − 0.1` is the very double 0.9.
    let cut = (text.len() as f64 * (1.0 - fraction)) as usize;
    Ok(text.floor_char_boundary(cut))
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
            let tokenizer = Tokenizer::bytes();
            let joined = tokenizer.decode(parts.train.ids()).unwrap() + &tokenizer.decode(held_out.ids()).unwrap();
            prop_assert_eq!(joined, text);
        }
    }
}
