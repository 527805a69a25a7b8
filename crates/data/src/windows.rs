//! Walking a held-out text once, so that each token but the first is predicted exactly once.

use std::ops::Range;

use crate::{Batch, Error, Result, Tokens};

/// Consecutive windows of `seq + 1` tokens that overlap by one; the last may be shorter, down to two tokens.
#[derive(Debug, Clone)]
pub struct Windows {
    tokens: Tokens,
    seq: usize,
}

impl Windows {
    /// Cuts a text into windows of `seq` targets.
    ///
    /// # Errors
    /// [`Error::Zero`] if `seq` is 0, [`Error::TooShort`] if there are fewer than two tokens.
    pub fn new(tokens: Tokens, seq: usize) -> Result<Self> {
        tokens.require(seq, 2, None)?;
        Ok(Self { tokens, seq })
    }

    /// Returns the number of windows.
    pub fn count(&self) -> usize {
        self.target_count().div_ceil(self.seq)
    }

    /// Returns the number of targets in all windows: one for every token but the first.
    pub fn target_count(&self) -> usize {
        self.tokens.len() - 1
    }

    /// Returns the windows of a range as a batch, a row each; a short window's row is padded with
    /// [`IGNORED`](crate::IGNORED) targets.
    ///
    /// # Panics
    /// If the range passes [`Windows::count`].
    pub fn batch(&self, windows: Range<usize>) -> Batch {
        assert!(windows.end <= self.count(), "windows {windows:?} of {}", self.count());
        let mut batch = Batch::with_capacity(windows.len(), self.seq);
        for window in windows {
            let start = window * self.seq;
            let end = self.tokens.len().min(start + self.seq + 1);
            let ids: Vec<i64> = self.tokens.ids()[start..end].iter().map(|&id| i64::from(id)).collect();
            batch.push_window(&ids);
        }
        batch
    }

    /// Walks the windows in order, `batch` at a time, for at most `limit` batches; a limit of 0 means all.
    ///
    /// The last batch has as many rows as windows are left. Data-parallel ranks may share the walk with
    /// `.skip(rank).step_by(dp)`: skipped batches are never built.
    ///
    /// # Errors
    /// [`Error::Zero`] if `batch` is 0.
    pub fn batches(&self, batch: usize, limit: usize) -> Result<WindowBatches<'_>> {
        if batch == 0 {
            return Err(Error::Zero { what: "batch" });
        }
        let all = self.count().div_ceil(batch);
        let end = if limit == 0 { all } else { all.min(limit) };
        Ok(WindowBatches { windows: self, batch, next: 0, end })
    }
}

/// The batches of a walk over [`Windows`].
#[derive(Debug, Clone)]
pub struct WindowBatches<'a> {
    windows: &'a Windows,
    batch: usize,
    next: usize,
    end: usize,
}

impl WindowBatches<'_> {
    /// Returns the number of batches still to come.
    pub fn remaining(&self) -> usize {
        self.end - self.next
    }

    /// Returns the number of targets in the batches still to come.
    pub fn target_count(&self) -> usize {
        let (whole, seq) = (self.windows.target_count(), self.windows.seq);
        let upto = |batches: usize| whole.min(batches.saturating_mul(self.batch).saturating_mul(seq));
        upto(self.end) - upto(self.next)
    }
}

impl Iterator for WindowBatches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        self.nth(0)
    }

    // Jumps instead of building what is skipped: `skip` and `step_by` go through here.
    fn nth(&mut self, n: usize) -> Option<Batch> {
        let at = self.next.saturating_add(n);
        if at >= self.end {
            self.next = self.end;
            return None;
        }
        self.next = at + 1;
        let first = at * self.batch;
        Some(self.windows.batch(first..first.saturating_add(self.batch).min(self.windows.count())))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}

impl ExactSizeIterator for WindowBatches<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IGNORED;
    use proptest::prelude::*;

    fn counting(tokens: u32, seq: usize) -> Result<Windows> {
        Windows::new(Tokens::new("`x`", (0..tokens).collect()), seq)
    }

    #[test]
    fn the_short_last_window_counts() {
        let windows = counting(9, 3).unwrap();
        assert_eq!((windows.count(), windows.target_count()), (3, 8));
        let batches: Vec<Batch> = windows.batches(2, 0).unwrap().collect();
        assert_eq!(batches[0].targets, [1, 2, 3, 4, 5, 6]);
        assert_eq!(batches[1].tokens, [6, 7, 0]);
        assert_eq!(batches[1].targets, [7, 8, IGNORED]);
    }

    #[test]
    fn a_limit_counts_batches() {
        let windows = counting(100, 4).unwrap();
        let some = windows.batches(3, 2).unwrap();
        assert_eq!((some.len(), some.target_count()), (2, 24));
        assert_eq!(windows.batches(3, 1000).unwrap().target_count(), 99);
        assert_eq!(windows.batches(usize::MAX, 0).unwrap().next().unwrap().batch, 25);
    }

    #[test]
    fn texts_without_a_target_are_refused() {
        assert!(matches!(counting(1, 4), Err(Error::TooShort { tokens: 1, need: 2, .. })));
        assert!(matches!(counting(0, 4), Err(Error::TooShort { tokens: 0, .. })));
        assert!(matches!(counting(5, 0), Err(Error::Zero { .. })));
        assert!(matches!(counting(5, 1).unwrap().batches(0, 0), Err(Error::Zero { .. })));
        assert_eq!(counting(2, 4).unwrap().batch(0..1).target_count(), 1);
    }

    proptest! {
        #[test]
        fn every_token_but_the_first_is_predicted_once(
            tokens in 2u32..400, seq in 1usize..30, batch in 1usize..9, dp in 1usize..5,
        ) {
            let windows = counting(tokens, seq).unwrap();
            let mut predicted = Vec::new();
            for rank in 0..dp {
                for batch in windows.batches(batch, 0).unwrap().skip(rank).step_by(dp) {
                    prop_assert_eq!(batch.tokens.len(), batch.batch * seq);
                    prop_assert_eq!(batch.targets.len(), batch.batch * seq);
                    let real = batch.tokens.iter().zip(&batch.targets).filter(|(_, &target)| target != IGNORED);
                    for (token, target) in real {
                        // The text counts up, so the right input is the number before.
                        prop_assert_eq!(*token, target - 1);
                        predicted.push(*target);
                    }
                }
            }
            predicted.sort_unstable();
            prop_assert_eq!(predicted, (1..i64::from(tokens)).collect::<Vec<_>>());
        }
    }
}
