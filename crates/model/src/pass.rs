//! What one forward pass works on, beside the weights.

use std::ops::Range;

use mp_runtime::Tensor;

use crate::cache::Cached;

/// One micro-batch on its way through a model.
#[derive(Debug)]
pub struct Pass<'a> {
    /// Token ids, `[b, s]`, the same on all tensor ranks.
    pub tokens: &'a Tensor,
    /// Which positions of their sequences the tokens stand at.
    pub positions: Positions,
    /// Which segment each position of the whole sequences belongs to, `[b, seq]`, also where the rank holds a part of them
    /// only: no token sees one of another segment. `None`: all are one. Padding is a segment of its own.
    pub segments: Option<&'a Tensor>,
    /// The position that learned vectors take each token to be at, `[b, s]`: where segments count on their own. `None`:
    /// `positions`, which all else goes by. Rotary angles need no other, for within a segment they differ alike.
    pub places: Option<&'a Tensor>,
    /// The type of each token, `[b, s]`, where the model knows types; `None`: all are of type 0.
    pub token_types: Option<&'a Tensor>,
    /// Index of the first sequence within the global batch: what dropout draws by.
    pub first_sample: usize,
    /// What dropout draws from, or `None` outside training.
    pub dropout: Option<DropoutKey>,
    /// What the pass reads and writes of the keys and values of positions before it, or `None` for whole sequences.
    pub cached: Option<&'a Cached<'a>>,
}

impl<'a> Pass<'a> {
    /// A pass over whole sequences, without dropout.
    pub fn evaluation(tokens: &'a Tensor) -> Self {
        let positions = Positions::whole(tokens.size()[1] as usize);
        Self {
            tokens,
            positions,
            segments: None,
            places: None,
            token_types: None,
            first_sample: 0,
            dropout: None,
            cached: None,
        }
    }

    /// Makes what a graph keeps of the pass, to compute something of it again.
    pub(crate) fn keep(&self) -> KeptPass {
        let share = |tensor: Option<&Tensor>| tensor.map(Tensor::shallow_clone);
        KeptPass {
            tokens: self.tokens.shallow_clone(),
            positions: self.positions.clone(),
            segments: share(self.segments),
            places: share(self.places),
            token_types: share(self.token_types),
            first_sample: self.first_sample,
            dropout: self.dropout,
        }
    }

    /// Returns the number of sequences.
    pub fn batch(&self) -> usize {
        self.tokens.size()[0] as usize
    }

    /// Returns the indices of the sequences within the global batch.
    pub fn samples(&self) -> Range<usize> {
        self.first_sample..self.first_sample + self.batch()
    }
}

/// A pass with handles of its own.
#[derive(Debug)]
pub(crate) struct KeptPass {
    tokens: Tensor,
    positions: Positions,
    segments: Option<Tensor>,
    places: Option<Tensor>,
    token_types: Option<Tensor>,
    first_sample: usize,
    dropout: Option<DropoutKey>,
}

impl KeptPass {
    /// Returns the pass.
    pub(crate) fn lend(&self) -> Pass<'_> {
        Pass {
            tokens: &self.tokens,
            positions: self.positions.clone(),
            segments: self.segments.as_ref(),
            places: self.places.as_ref(),
            token_types: self.token_types.as_ref(),
            first_sample: self.first_sample,
            dropout: self.dropout,
            // What is computed again for a backward is never a step of writing.
            cached: None,
        }
    }
}

/// The seed and step that a training pass draws its dropout from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step.
    pub step: u64,
}

/// Positions of a sequence, in the order in which a rank holds them: ascending runs.
///
/// Whatever depends on a position (angles, learned vectors, random numbers, the causal mask) asks here, never the shape
/// of a tensor, which may hold a part of the sequence only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    seq: usize,
    runs: Vec<Range<usize>>,
}

impl Positions {
    /// All positions of a sequence of `seq` tokens.
    pub fn whole(seq: usize) -> Self {
        Self { seq, runs: std::iter::once(0..seq).collect() }
    }

    /// Runs of positions of a sequence of `seq` tokens; neighbouring runs become one.
    ///
    /// # Panics
    /// If a run goes beyond the sequence.
    ///
    /// # Examples
    /// ```
    /// use mp_model::pass::Positions;
    ///
    /// let held = Positions::new(12, [0..2, 6..8, 8..10]);
    /// assert_eq!(held.runs(), [0..2, 6..10]);
    /// assert_eq!(held.part(1..4).runs(), [1..2, 6..8]);
    /// ```
    pub fn new(seq: usize, runs: impl IntoIterator<Item = Range<usize>>) -> Self {
        let mut joined: Vec<Range<usize>> = Vec::new();
        for run in runs.into_iter().filter(|run| !run.is_empty()) {
            assert!(run.end <= seq, "positions {run:?} of a sequence of {seq} tokens");
            match joined.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => joined.push(run),
            }
        }
        Self { seq, runs: joined }
    }

    /// Returns the length of the full sequence.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Returns the runs.
    pub fn runs(&self) -> &[Range<usize>] {
        &self.runs
    }

    /// Returns how many positions are held.
    pub fn count(&self) -> usize {
        self.runs.iter().map(Range::len).sum()
    }

    /// Returns the first and the last position held, or `None` if none is.
    pub fn ends(&self) -> Option<(usize, usize)> {
        Some((self.runs.first()?.start, self.runs.last()?.end - 1))
    }

    /// Lists the positions.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.runs.iter().flat_map(Clone::clone)
    }

    /// Returns those that are held as numbers `held` of all held ones.
    pub fn part(&self, held: Range<usize>) -> Self {
        let mut before = 0;
        let cut = self.runs.iter().map(|run| {
            let (from, to) = (held.start.max(before) - before, held.end.max(before) - before);
            before += run.len();
            run.start + from.min(run.len())..run.start + to.min(run.len())
        });
        Self::new(self.seq, cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_holds_the_positions_between_its_ends() {
        let held = Positions::new(20, [2..5, 9..13, 13..14]);
        let all: Vec<usize> = held.iter().collect();
        assert_eq!(all, [2, 3, 4, 9, 10, 11, 12, 13]);
        assert_eq!(held.count(), 8);
        for start in 0..=8 {
            for end in start..=8 {
                let part: Vec<usize> = held.part(start..end).iter().collect();
                assert_eq!(part, all[start..end], "{start}..{end}");
            }
        }
    }
}
