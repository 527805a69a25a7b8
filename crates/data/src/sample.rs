//! One training sequence, and where it comes from.

use std::ops::Range;

use crate::{Part, Result, IGNORED};

/// A sequence of `seq` inputs with what is to be predicted at each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Its number, where it is one of a source's.
    pub number: u64,
    /// The inputs.
    pub tokens: Vec<i64>,
    /// What is to be predicted at each input; [`IGNORED`](crate::IGNORED) where nothing is.
    pub targets: Vec<i64>,
    /// Which segment each input belongs to, from 0 on (padding: −1); `None` where the sample is one. Attention does not
    /// cross the border between two.
    pub segments: Option<Vec<i64>>,
    /// The position that each input is taken to be at; `None` where they count from 0 on.
    pub positions: Option<Vec<i64>>,
    /// Each input's type, where the model has types.
    pub token_types: Option<Vec<i64>>,
    /// What the sequence as a whole is to be told as, where it is: 0 where its second stretch follows the first, 1 where not.
    pub label: Option<i64>,
}

impl Sample {
    /// Becomes the sample of consecutive tokens: all but the last are inputs, and each one's target is the token after it.
    pub fn follow(&mut self, tokens: impl IntoIterator<Item = i64>) {
        self.tokens.clear();
        self.tokens.extend(tokens);
        self.shift();
    }

    /// Makes inputs and targets of the consecutive tokens that stand where the inputs do.
    fn shift(&mut self) {
        self.targets.clear();
        self.targets.extend_from_slice(self.tokens.get(1..).unwrap_or(&[]));
        self.tokens.truncate(self.targets.len());
        self.segments = None;
        self.positions = None;
        self.token_types = None;
        self.label = None;
    }

    /// Becomes what a range of a part holds, as a row of `seq` inputs: of fewer, the rest is padding.
    pub(crate) fn cut(&mut self, part: &Part, tokens: Range<u64>, seq: usize, attend: Attend) -> Result<()> {
        self.tokens.clear();
        part.read(tokens.clone(), &mut self.tokens)?;
        self.shift();
        if attend == Attend::Within {
            let mut segments = Vec::with_capacity(seq);
            for (segment, (_, stretch)) in part.stretches(tokens)?.into_iter().enumerate() {
                if segment > 0 {
                    // The first token of a document does not follow from the last one of another.
                    self.targets[segments.len() - 1] = IGNORED;
                }
                segments.resize(segments.len() + (stretch.end - stretch.start) as usize, segment as i64);
            }
            segments.truncate(self.targets.len());
            segments.resize(seq, PADDING);
            self.segments = Some(segments);
        }
        self.tokens.resize(seq, 0);
        self.targets.resize(seq, IGNORED);
        Ok(())
    }
}

/// The segment of what fills a row up.
pub(crate) const PADDING: i64 = -1;

/// How far attention reaches where several documents lie in one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attend {
    /// To all that comes before in the sample, of whatever document.
    Across,
    /// To the same document: each is a segment of its own, and its first token no target of the one before.
    Within,
}

/// Which targets of a source count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Targets {
    /// Every one: no sample has an [`IGNORED`](crate::IGNORED) target, so that their number is known without counting.
    Every,
    /// Those that are not ignored. They are counted over the whole global batch in each step, for a loss that is their
    /// mean.
    Counted,
}

/// A stretch of a document that a sample holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Which of several sources the document is from, counted from 0.
    pub source: u32,
    /// The document's number in its source.
    pub document: u64,
    /// Which of the document's tokens.
    pub tokens: Range<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_follow_their_inputs_whatever_was_there_before() {
        let mut sample = Sample { segments: Some(vec![1]), token_types: Some(vec![1]), ..Sample::default() };
        sample.follow([5, 6, 7]);
        let expected = Sample { tokens: vec![5, 6], targets: vec![6, 7], ..Sample::default() };
        assert_eq!(sample, expected);
        sample.follow([]);
        assert_eq!(sample, Sample::default());
    }
}
