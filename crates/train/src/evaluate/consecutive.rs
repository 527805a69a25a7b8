//! A text in windows that do not overlap: what a model is measured on when it is not trained.

use std::ops::Range;

use mp_data::{Batch, Part, Sample, IGNORED};

use super::Walk;
use crate::{Error, Result};

/// Consecutive windows of `seq` tokens that do not overlap. Each predicts all of its tokens but the first; the last may be
/// shorter.
#[derive(Debug, Clone)]
pub struct Consecutive {
    part: Part,
    seq: usize,
}

impl Consecutive {
    /// Cuts all of a text.
    ///
    /// # Errors
    /// [`Error::Config`] if a window or the text has fewer than two tokens.
    pub fn new(part: Part, seq: usize) -> Result<Self> {
        let refused = |key, value: String, rule: &str| Err(Error::Config { key, value, rule: rule.into() });
        if seq < 2 {
            return refused(
                "train.seq",
                seq.to_string(),
                "must be at least 2: a window's first token is not predicted",
            );
        }
        if part.len() < 2 {
            let value = format!("{}, which has {} tokens", part.origin(), part.len());
            return refused("data.path", value, "must have at least 2: the first one is not predicted");
        }
        Ok(Self { part, seq })
    }
}

impl Walk for Consecutive {
    fn count(&self) -> usize {
        (self.part.len() as usize).div_ceil(self.seq)
    }

    fn batch(&self, windows: Range<usize>) -> Result<Batch> {
        let (batch, seq) = (windows.len(), self.seq);
        let mut rows = Batch {
            tokens: Vec::new(),
            targets: Vec::new(),
            segments: None,
            positions: None,
            token_types: None,
            labels: None,
            numbers: Vec::new(),
            batch: 0,
            seq,
        };
        rows.tokens.reserve(batch * seq);
        for window in windows {
            let start = (window * seq) as u64;
            let mut tokens = Vec::with_capacity(seq);
            self.part.read(start..self.part.len().min(start + seq as u64), &mut tokens)?;
            let mut targets = tokens[1..].to_vec();
            tokens.resize(seq, 0);
            targets.resize(seq, IGNORED);
            rows.push(&Sample { tokens, targets, ..Sample::default() })?;
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp_data::Tokens;

    fn walk(tokens: u32, seq: usize) -> Result<Consecutive> {
        Consecutive::new(Tokens::new("`x`", (0..tokens).collect()).into(), seq)
    }

    #[test]
    fn every_token_but_a_windows_first_is_predicted_once() {
        for (tokens, seq) in [(10, 4), (12, 4), (9, 4), (3, 8), (2, 2)] {
            let windows = walk(tokens, seq).unwrap();
            let mut predicted = Vec::new();
            for window in 0..windows.count() {
                let batch = windows.batch(window..window + 1).unwrap();
                let pairs = batch.tokens.iter().zip(&batch.targets).filter(|(_, target)| **target != IGNORED);
                predicted.extend(pairs.map(|(token, target)| {
                    assert_eq!(token + 1, *target);
                    *target as u32
                }));
            }
            let expected: Vec<u32> = (0..tokens).filter(|token| !(*token as usize).is_multiple_of(seq)).collect();
            assert_eq!(predicted, expected, "{tokens} in windows of {seq}");
        }
    }

    #[test]
    fn what_predicts_nothing_is_refused() {
        assert!(walk(10, 1).unwrap_err().to_string().contains("`train.seq` is 1"));
        assert!(walk(1, 4).unwrap_err().to_string().contains("`x`, which has 1 tokens"));
    }
}
