//! Batches, and which samples of a step each data-parallel rank takes.
//!
//! Shape letters: `b` sequences, `s` target tokens in a sequence.

use std::ops::Range;

use crate::{Error, Result, Sample, SampleSource};

/// The target that a loss leaves out.
pub const IGNORED: i64 = -1;

/// Sequences that go through a model together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The inputs, row-major `[b, s]`.
    pub tokens: Vec<i64>,
    /// For each input what is to be predicted there, row-major `[b, s]`; [`IGNORED`] where nothing is.
    pub targets: Vec<i64>,
    /// For each input which of its row's segments it belongs to, row-major `[b, s]`: attention does not cross their
    /// borders. `None` where each row is one.
    pub segments: Option<Vec<i64>>,
    /// For each input the position that it is taken to be at, row-major `[b, s]`. `None` where they count from 0 on in each row.
    pub positions: Option<Vec<i64>>,
    /// For each input its type, row-major `[b, s]`, where the model has types.
    pub token_types: Option<Vec<i64>>,
    /// What each row as a whole is to be told as, `[b]`, where rows are; [`IGNORED`] for one that is not.
    pub labels: Option<Vec<i64>>,
    /// The number of each row's sample, `[b]`, as the source gave it.
    pub numbers: Vec<u64>,
    /// `b`.
    pub batch: usize,
    /// `s`.
    pub seq: usize,
}

impl Batch {
    /// Reads the samples of a range of numbers, a row each.
    ///
    /// # Errors
    /// What [`SampleSource::sample`] fails with.
    pub fn read(source: &dyn SampleSource, samples: Range<u64>) -> Result<Self> {
        let seq = source.seq();
        let mut batch = Self::with_capacity((samples.end - samples.start) as usize, seq);
        let mut sample = Sample::default();
        for number in samples {
            source.sample(number, &mut sample)?;
            batch.push(&sample)?;
        }
        Ok(batch)
    }

    /// Counts the targets that are not [`IGNORED`].
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORED).count()
    }

    pub(crate) fn with_capacity(rows: usize, seq: usize) -> Self {
        let room = || Vec::with_capacity(rows * seq);
        Self {
            tokens: room(),
            targets: room(),
            segments: None,
            positions: None,
            token_types: None,
            labels: None,
            numbers: Vec::with_capacity(rows),
            batch: 0,
            seq,
        }
    }

    /// Appends a sample as a row.
    ///
    /// # Errors
    /// [`Error::SampleLength`] unless each of its lists has `seq` entries.
    pub fn push(&mut self, sample: &Sample) -> Result<()> {
        let Sample { tokens, targets, segments, positions, token_types, .. } = sample;
        let optional = [segments, positions, token_types].into_iter().flatten();
        if let Some(list) = [tokens, targets].into_iter().chain(optional).find(|list| list.len() != self.seq) {
            return Err(Error::SampleLength { expected: self.seq, found: list.len() });
        }
        self.tokens.extend_from_slice(tokens);
        self.targets.extend_from_slice(targets);
        let rows = self.batch;
        // A single segment, the first type.
        let zeros = vec![0; self.seq];
        extend(&mut self.segments, segments.as_deref(), rows, &zeros);
        extend(&mut self.token_types, token_types.as_deref(), rows, &zeros);
        let counting: Vec<i64> = (0..self.seq as i64).collect();
        extend(&mut self.positions, positions.as_deref(), rows, &counting);
        if sample.label.is_some() || self.labels.is_some() {
            let labels = self.labels.get_or_insert_default();
            labels.resize(self.batch, IGNORED);
            labels.push(sample.label.unwrap_or(IGNORED));
        }
        self.numbers.push(sample.number);
        self.batch += 1;
        Ok(())
    }
}

/// Appends a row to a list that rows may lack, as the `rows` before it may have done; those mean `plain`.
fn extend(list: &mut Option<Vec<i64>>, row: Option<&[i64]>, rows: usize, plain: &[i64]) {
    if list.is_some() || row.is_some() {
        list.get_or_insert_with(|| plain.repeat(rows)).extend_from_slice(row.unwrap_or(plain));
    }
}

/// How the samples of a step are dealt out: to data-parallel ranks in contiguous shares, on each in micro-batches.
///
/// The global batch of a step holds the same samples under every plan with the same `global_batch`.
///
/// # Examples
/// ```
/// # fn main() -> mp_data::Result<()> {
/// let plan = mp_data::BatchPlan::new(12, 3, 2)?;
/// // Step 5 holds samples 60 to 71; rank 1 has the second half, its second micro-batch the last three.
/// assert_eq!(plan.samples(5, 1, 1), 69..72);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    global_batch: usize,
    micro_batch: usize,
    dp: usize,
    /// After how many steps the plan begins, and the sample that its first one begins with.
    begin: (u64, u64),
}

impl BatchPlan {
    /// Deals `global_batch` sequences a step to `dp` ranks in micro-batches of `micro_batch`.
    ///
    /// # Errors
    /// [`Error::Zero`] if a count is 0; [`Error::BatchCut`] unless `micro_batch · dp` divides `global_batch`.
    pub fn new(global_batch: usize, micro_batch: usize, dp: usize) -> Result<Self> {
        for (what, count) in
            [("train.global_batch", global_batch), ("parallel.micro_batch", micro_batch), ("parallel.dp", dp)]
        {
            if count == 0 {
                return Err(Error::Zero { what });
            }
        }
        match micro_batch.checked_mul(dp) {
            Some(unit) if global_batch.is_multiple_of(unit) => {
                Ok(Self { global_batch, micro_batch, dp, begin: (0, 0) })
            }
            _ => Err(Error::BatchCut { global_batch, micro_batch, dp }),
        }
    }

    /// Begins after `step` finished steps, which may have been of another size and read `samples` samples.
    pub fn after(self, step: u64, samples: u64) -> Self {
        Self { begin: (step, samples), ..self }
    }

    /// Returns the number of sequences in a step, over all ranks.
    pub fn global_batch(&self) -> usize {
        self.global_batch
    }

    /// Returns the number of sequences in a micro-batch.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// Returns the number of data-parallel ranks.
    pub fn dp(&self) -> usize {
        self.dp
    }

    /// Returns the number of micro-batches that each rank reads in a step.
    pub fn micro_batches(&self) -> usize {
        self.global_batch / self.dp / self.micro_batch
    }

    /// Returns the numbers of the samples in micro-batch `micro` of data-parallel rank `rank`, in the step after `step`
    /// finished ones: `step·global_batch + rank·(global_batch/dp) + micro·micro_batch ..` and on for `micro_batch`, where steps
    /// and samples are counted from where the plan [begins](Self::after).
    ///
    /// # Panics
    /// If there is no such rank, micro-batch or step, or if a number passes 2^64.
    pub fn samples(&self, step: u64, rank: usize, micro: usize) -> Range<u64> {
        assert!(rank < self.dp, "data-parallel rank {rank} of {}", self.dp);
        assert!(micro < self.micro_batches(), "micro-batch {micro} of {}", self.micro_batches());
        let within = rank * (self.global_batch / self.dp) + micro * self.micro_batch;
        let (begun, read) = self.begin;
        let done = step.checked_sub(begun).expect("a step of the plan");
        let first = done
            .checked_mul(self.global_batch as u64)
            .and_then(|first| first.checked_add(read)?.checked_add(within as u64))
            .expect("sample numbers are below 2^64");
        first..first + self.micro_batch as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn uneven_cuts_and_zeros_are_refused() {
        assert!(matches!(BatchPlan::new(12, 5, 1), Err(Error::BatchCut { .. })));
        assert!(matches!(BatchPlan::new(12, 1, 5), Err(Error::BatchCut { .. })));
        assert!(matches!(BatchPlan::new(12, 4, 4), Err(Error::BatchCut { .. })));
        assert!(matches!(BatchPlan::new(12, usize::MAX, 2), Err(Error::BatchCut { .. })));
        assert!(matches!(BatchPlan::new(0, 1, 1), Err(Error::Zero { what: "train.global_batch" })));
        assert!(matches!(BatchPlan::new(1, 0, 1), Err(Error::Zero { what: "parallel.micro_batch" })));
        assert!(matches!(BatchPlan::new(1, 1, 0), Err(Error::Zero { what: "parallel.dp" })));
    }

    #[test]
    fn a_plan_goes_on_from_where_another_ended() {
        let plan = BatchPlan::new(12, 3, 2).unwrap().after(5, 40);
        assert_eq!((plan.samples(5, 0, 0), plan.samples(6, 1, 1)), (40..43, 61..64));
    }

    #[test]
    fn rows_with_and_without_segments_share_a_batch() {
        let plain = Sample { tokens: vec![1, 2], targets: vec![2, 3], ..Sample::default() };
        let (segments, positions) = (Some(vec![0, 1]), Some(vec![0, 0]));
        let packed = Sample { segments, positions, targets: vec![IGNORED, 3], ..plain.clone() };
        for (rows, segments, positions) in
            [([&plain, &packed], [0, 0, 0, 1], [0, 1, 0, 0]), ([&packed, &plain], [0, 1, 0, 0], [0, 0, 0, 1])]
        {
            let mut batch = Batch::with_capacity(2, 2);
            rows.iter().for_each(|row| batch.push(row).unwrap());
            assert_eq!((batch.segments.as_deref(), batch.token_types.as_deref()), (Some(&segments[..]), None));
            assert_eq!(batch.positions.as_deref(), Some(&positions[..]));
            assert_eq!(batch.target_count(), 3);
        }
    }

    #[test]
    fn a_sample_of_another_length_is_refused() {
        let sample = Sample { tokens: vec![1, 2], targets: vec![2, 3], segments: Some(vec![0]), ..Sample::default() };
        let error = Batch::with_capacity(1, 2).push(&sample).unwrap_err();
        assert!(matches!(error, Error::SampleLength { expected: 2, found: 1 }));
    }

    proptest! {
        #[test]
        fn ranks_and_micro_batches_tile_the_global_batch(
            micro_batch in 1usize..6, micro_batches in 1usize..6, dp in 1usize..6, step in 0u64..1 << 40,
        ) {
            let global_batch = micro_batch * micro_batches * dp;
            let plan = BatchPlan::new(global_batch, micro_batch, dp).unwrap();
            prop_assert_eq!(plan.micro_batches(), micro_batches);
            // Rank by rank and micro-batch by micro-batch, the numbers come in order without gap or repetition.
            let dealt: Vec<u64> = (0..dp)
                .flat_map(|rank| (0..micro_batches).flat_map(move |micro| plan.samples(step, rank, micro)))
                .collect();
            let first = step * global_batch as u64;
            prop_assert_eq!(dealt, (first..first + global_batch as u64).collect::<Vec<_>>());
        }
    }
}
