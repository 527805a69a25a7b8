//! Walking a held-out text once, so that each token but the first is predicted exactly once.

use std::ops::Range;

use crate::{Attend, Batch, Error, Masking, Part, Result, Sample};

/// Consecutive windows of `seq + 1` tokens that overlap by one; the last of each part may be shorter, down to two tokens.
#[derive(Debug, Clone)]
pub struct Windows {
    parts: Vec<Part>,
    seq: usize,
    attend: Attend,
    masking: Option<Masking>,
}

impl Windows {
    /// Cuts a part into windows of `seq` targets.
    ///
    /// # Errors
    /// [`Error::Zero`] if `seq` is 0, [`Error::TooShort`] if there are fewer than two tokens.
    pub fn new(part: impl Into<Part>, seq: usize) -> Result<Self> {
        Self::of_parts(vec![part.into()], seq, Attend::Across)
    }

    /// Cuts several parts into windows, one part after the other.
    ///
    /// # Errors
    /// Those of [`Windows::new`].
    pub fn of_parts(parts: Vec<Part>, seq: usize, attend: Attend) -> Result<Self> {
        parts.iter().try_for_each(|part| part.require(seq, 2, None))?;
        Ok(Self { parts, seq, attend, masking: None })
    }

    /// Hides tokens of each window, by its number, instead of predicting the next ones.
    ///
    /// # Errors
    /// [`Error::MaskedLength`] if windows are too short to be framed.
    pub fn masked(self, masking: Masking) -> Result<Self> {
        match self.seq {
            seq @ ..3 => Err(Error::MaskedLength { seq, least: 3 }),
            _ => Ok(Self { masking: Some(masking), ..self }),
        }
    }

    /// Returns the number of windows.
    pub fn count(&self) -> usize {
        self.parts.iter().map(|part| self.count_of(part)).sum()
    }

    /// Returns the number of windows' positions that have a token to predict: all tokens but each part's first.
    ///
    /// Where attention stays within documents, their first tokens are among them, but no targets.
    pub fn target_count(&self) -> usize {
        self.parts.iter().map(|part| part.len() as usize - 1).sum()
    }

    fn count_of(&self, part: &Part) -> usize {
        (part.len() as usize - 1).div_ceil(self.seq)
    }

    /// Returns the windows of a range as a batch, a row each; a short window's row is padded with
    /// [`IGNORED`](crate::IGNORED) targets.
    ///
    /// # Errors
    /// [`Error::Format`] for what a file of them should not hold.
    ///
    /// # Panics
    /// If the range passes [`Windows::count`].
    pub fn batch(&self, windows: Range<usize>) -> Result<Batch> {
        assert!(windows.end <= self.count(), "windows {windows:?} of {}", self.count());
        let mut batch = Batch::with_capacity(windows.len(), self.seq);
        let mut sample = Sample::default();
        for number in windows {
            let (part, window) = self.locate(number);
            let start = (window * self.seq) as u64;
            let end = part.len().min(start + self.seq as u64 + 1);
            sample.cut(part, start..end, self.seq, self.attend)?;
            if let Some(masking) = &self.masking {
                masking.apply(&mut sample, number as u64);
            }
            batch.push(&sample)?;
        }
        Ok(batch)
    }

    /// Returns the part that a window lies in, and its number there.
    fn locate(&self, mut window: usize) -> (&Part, usize) {
        for part in &self.parts {
            match window.checked_sub(self.count_of(part)) {
                None => return (part, window),
                Some(beyond) => window = beyond,
            }
        }
        unreachable!("the window is one of the parts'")
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
}

impl Iterator for WindowBatches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        self.nth(0)
    }

    // Jumps instead of building what is skipped: `skip` and `step_by` go through here.
    fn nth(&mut self, n: usize) -> Option<Result<Batch>> {
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
    use crate::{Tokens, IGNORED};
    use proptest::prelude::*;

    fn counting(tokens: u32, seq: usize) -> Result<Windows> {
        Windows::new(Tokens::new("`x`", (0..tokens).collect()), seq)
    }

    #[test]
    fn the_short_last_window_counts() {
        let windows = counting(9, 3).unwrap();
        assert_eq!((windows.count(), windows.target_count()), (3, 8));
        let batches: Vec<Batch> = windows.batches(2, 0).unwrap().map(Result::unwrap).collect();
        assert_eq!(batches[0].targets, [1, 2, 3, 4, 5, 6]);
        assert_eq!(batches[1].tokens, [6, 7, 0]);
        assert_eq!(batches[1].targets, [7, 8, IGNORED]);
    }

    #[test]
    fn a_limit_counts_batches() {
        let windows = counting(100, 4).unwrap();
        let some = windows.batches(3, 2).unwrap();
        assert_eq!((some.len(), some.map(|batch| batch.unwrap().target_count()).sum::<usize>()), (2, 24));
        let all = windows.batches(3, 1000).unwrap();
        assert_eq!(all.map(|batch| batch.unwrap().target_count()).sum::<usize>(), 99);
        assert_eq!(windows.batches(usize::MAX, 0).unwrap().next().unwrap().unwrap().batch, 25);
    }

    #[test]
    fn texts_without_a_target_are_refused() {
        assert!(matches!(counting(1, 4), Err(Error::TooShort { tokens: 1, need: 2, .. })));
        assert!(matches!(counting(0, 4), Err(Error::TooShort { tokens: 0, .. })));
        assert!(matches!(counting(5, 0), Err(Error::Zero { .. })));
        assert!(matches!(counting(5, 1).unwrap().batches(0, 0), Err(Error::Zero { .. })));
        assert_eq!(counting(2, 4).unwrap().batch(0..1).unwrap().target_count(), 1);
    }

    #[test]
    fn parts_are_walked_one_after_the_other_and_documents_kept_apart() {
        let parts = vec![
            Part::from(Tokens::new("`x`", vec![1, 2, 3, 4])),
            Tokens::of_documents("`y`", vec![5, 6, 7, 8, 9], vec![2, 5]).into(),
        ];
        let windows = Windows::of_parts(parts, 3, Attend::Within).unwrap();
        assert_eq!((windows.count(), windows.target_count()), (3, 7));
        let batch = windows.batch(0..3).unwrap();
        assert_eq!(batch.tokens, [1, 2, 3, 5, 6, 7, 8, 0, 0]);
        assert_eq!(batch.targets, [2, 3, 4, 6, IGNORED, 8, 9, IGNORED, IGNORED]);
        assert_eq!(batch.segments.unwrap(), [0, 0, 0, 0, 0, 1, 0, -1, -1]);
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
                    let batch = batch.unwrap();
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
