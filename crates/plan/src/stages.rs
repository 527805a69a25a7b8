//! The layers of a model over virtual stages, and the virtual stages over the ranks of the pipeline.
//!
//! A *virtual stage* is what a micro-batch passes in one piece: consecutive layers, the first with the embedding before
//! them, the last with the final norm and the head behind. Each rank holds `chunks` of them. When their work is done is
//! the matter of [`crate::schedule`].

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{Architecture, ArchitectureName, Error, Result};

/// The most virtual stages: twice as many channels still fit the 16 bits of a message's tag.
const MOST_STAGES: usize = 32_000;

/// How virtual stages are dealt to the ranks of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Folding {
    /// Round and round: stage `s` is chunk `s / pp` of rank `s mod pp`.
    Loop,
    /// Down and up again, two chunks: chunk 0 of rank `r` is stage `r`, chunk 1 is stage `2·pp − 1 − r`.
    V,
}

/// The layers of a model over `pp · chunks` virtual stages, in order.
///
/// # Examples
///
/// ```
/// use mp_plan::{Architecture, Folding, ModelConfig, Stages};
///
/// // A head for 100 000 tokens weighs as much as many narrow layers, so the last stage gets few.
/// let architecture = Architecture::resolve(&ModelConfig { layers: 100, ..ModelConfig::default() }, 100_000, 128)?;
/// let stages = Stages::new(&architecture, 128, 2, 1, Folding::Loop, None)?;
/// assert_eq!(stages.layers(0), 0..77);
/// assert_eq!(stages.layers(1), 77..100);
///
/// let v = Stages::new(&architecture, 128, 2, 2, Folding::V, Some(&[30, 30, 30, 10]))?;
/// assert_eq!((v.rank_of(3), v.chunk_of(3)), (0, 1));
/// assert_eq!(v.rank_layers(0), [0..30, 90..100]);
/// # Ok::<(), mp_plan::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Split", into = "Split")]
pub struct Stages {
    pp: usize,
    chunks: usize,
    folding: Folding,
    /// Where each stage ends; the next begins there.
    ends: Vec<usize>,
}

/// What is written of [`Stages`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Split {
    pp: usize,
    chunks: usize,
    folding: Folding,
    layers: Vec<usize>,
}

impl Stages {
    /// Cuts a model in stages: as `fixed` says, layer numbers by virtual stage, or else by cost.
    ///
    /// By cost, the most expensive stage is as cheap as any cut makes it, and the others are as even as that allows;
    /// where that leaves a choice, later stages get the layer, since most schedules keep fewer micro-batches there.
    /// Costs are FLOPs of a token of a sequence of `seq`, forward and backward, as [`Architecture::flops_per_token`] counts
    /// them; the first stage also carries the embedding's, the last the final norm's and the head's.
    ///
    /// # Errors
    /// [`Error::Zero`] for a degree of 0, [`Error::FoldingChunks`] for a V of other than two chunks,
    /// [`Error::TooManyStages`] if there are fewer layers than stages, [`Error::SplitLength`], [`Error::SplitSum`] and
    /// [`Error::EmptyStage`] for a `fixed` split that is not one.
    pub fn new(
        architecture: &Architecture,
        seq: usize,
        pp: usize,
        chunks: usize,
        folding: Folding,
        fixed: Option<&[usize]>,
    ) -> Result<Self> {
        let layers = architecture.layers;
        check_degrees(pp, chunks, folding)?;
        let count = check_stages(layers, pp, chunks)?;
        let stages = match fixed {
            Some(split) => Self::with_layers(pp, chunks, folding, split)?,
            None => Self::with_layers(pp, chunks, folding, &Costs::of(architecture, seq).balance(layers, count))?,
        };
        match stages.total() {
            sum if sum == layers => Ok(stages),
            sum => Err(Error::SplitSum { split: stages.split(), sum, layers }),
        }
    }

    /// Arranges stages of the given numbers of layers, of whatever model.
    ///
    /// # Errors
    /// [`Error::Zero`], [`Error::FoldingChunks`], [`Error::SplitLength`] and [`Error::EmptyStage`], as
    /// [`new`](Self::new).
    pub fn with_layers(pp: usize, chunks: usize, folding: Folding, split: &[usize]) -> Result<Self> {
        check_degrees(pp, chunks, folding)?;
        if pp.checked_mul(chunks) != Some(split.len()) {
            return Err(Error::SplitLength { split: split.to_vec(), pp, chunks });
        }
        check_number(split.len())?;
        if let Some(stage) = split.iter().position(|&layers| layers == 0) {
            return Err(Error::EmptyStage { split: split.to_vec(), stage });
        }
        let ends = split
            .iter()
            .try_fold(Vec::with_capacity(split.len()), |mut ends: Vec<usize>, &layers| {
                ends.push(ends.last().unwrap_or(&0).checked_add(layers)?);
                Some(ends)
            })
            .ok_or_else(|| Error::TooLarge {
                what: "layers of all stages",
                value: split.iter().map(|&layers| layers as f64).sum(),
                limit: usize::MAX as f64,
            })?;
        Ok(Self { pp, chunks, folding, ends })
    }

    /// Returns the number of virtual stages, `pp · chunks`.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Returns the number of ranks of the pipeline.
    pub fn pp(&self) -> usize {
        self.pp
    }

    /// Returns the number of virtual stages that each rank holds.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Returns how the stages are dealt to the ranks.
    pub fn folding(&self) -> Folding {
        self.folding
    }

    /// Returns the number of layers of all stages.
    pub fn total(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Returns the number of layers of each stage.
    pub fn split(&self) -> Vec<usize> {
        (0..self.count()).map(|stage| self.layers(stage).len()).collect()
    }

    /// Returns the layers of a stage.
    ///
    /// # Panics
    /// If `stage` is not below [`count`](Self::count).
    pub fn layers(&self, stage: usize) -> Range<usize> {
        let start = if stage == 0 { 0 } else { self.ends[stage - 1] };
        start..self.ends[stage]
    }

    /// Returns the pipeline rank that holds a stage.
    ///
    /// # Panics
    /// If `stage` is not below [`count`](Self::count).
    pub fn rank_of(&self, stage: usize) -> usize {
        self.place(stage).0
    }

    /// Returns a stage's number among those of its rank.
    ///
    /// # Panics
    /// If `stage` is not below [`count`](Self::count).
    pub fn chunk_of(&self, stage: usize) -> usize {
        self.place(stage).1
    }

    fn place(&self, stage: usize) -> (usize, usize) {
        assert!(stage < self.count(), "stage {stage} of {}", self.count());
        match (self.folding, stage / self.pp) {
            (Folding::V, 1) => (2 * self.pp - 1 - stage, 1),
            (_, chunk) => (stage % self.pp, chunk),
        }
    }

    /// Returns the stage that is a rank's `chunk`.
    ///
    /// # Panics
    /// If `rank` is not below [`pp`](Self::pp), or `chunk` not below [`chunks`](Self::chunks).
    pub fn stage_of(&self, rank: usize, chunk: usize) -> usize {
        assert!(rank < self.pp && chunk < self.chunks, "chunk {chunk} of rank {rank}: {} × {}", self.pp, self.chunks);
        match (self.folding, chunk) {
            (Folding::V, 1) => 2 * self.pp - 1 - rank,
            _ => chunk * self.pp + rank,
        }
    }

    /// Returns whether a stage holds the embedding.
    pub fn is_first(&self, stage: usize) -> bool {
        stage == 0
    }

    /// Returns whether a stage holds the final norm and the head.
    pub fn is_last(&self, stage: usize) -> bool {
        stage + 1 == self.count()
    }

    /// Says whether a stage receives activations of another rank's stage before it, and gradients of another's behind it.
    pub(crate) fn receives(&self, stage: usize) -> [bool; 2] {
        let apart = |one: usize, other: usize| self.rank_of(one) != self.rank_of(other);
        [!self.is_first(stage) && apart(stage - 1, stage), !self.is_last(stage) && apart(stage, stage + 1)]
    }

    /// Returns the layers of a rank, by chunk.
    ///
    /// # Panics
    /// If `rank` is not below [`pp`](Self::pp).
    pub fn rank_layers(&self, rank: usize) -> Vec<Range<usize>> {
        (0..self.chunks).map(|chunk| self.layers(self.stage_of(rank, chunk))).collect()
    }

    /// Returns the ranks of the first and the last stage, if they are two: those that must sum the gradients of a table
    /// that is both embedding and head.
    pub fn tied_ranks(&self) -> Option<(usize, usize)> {
        let (first, last) = (self.rank_of(0), self.rank_of(self.count() - 1));
        (first != last).then_some((first, last))
    }
}

impl TryFrom<Split> for Stages {
    type Error = Error;

    /// Checks all but the sum, which only a model can tell.
    fn try_from(split: Split) -> Result<Self> {
        Self::with_layers(split.pp, split.chunks, split.folding, &split.layers)
    }
}

impl From<Stages> for Split {
    fn from(stages: Stages) -> Self {
        Self { pp: stages.pp, chunks: stages.chunks, folding: stages.folding, layers: stages.split() }
    }
}

fn check_degrees(pp: usize, chunks: usize, folding: Folding) -> Result<()> {
    for (what, degree) in [("parallel.pp", pp), ("parallel.chunks", chunks)] {
        if degree == 0 {
            return Err(Error::Zero { what });
        }
    }
    match folding {
        Folding::V if chunks != 2 => Err(Error::FoldingChunks { chunks }),
        _ => Ok(()),
    }
}

/// Returns the number of virtual stages, where each has a layer.
///
/// # Errors
/// [`Error::TooManyStages`], [`Error::TooLarge`].
pub(crate) fn check_stages(layers: usize, pp: usize, chunks: usize) -> Result<usize> {
    match pp.checked_mul(chunks) {
        Some(count) if count <= layers => check_number(count).map(|()| count),
        _ => Err(Error::TooManyStages { layers, pp, chunks }),
    }
}

fn check_number(stages: usize) -> Result<()> {
    let (value, limit) = (stages as f64, MOST_STAGES as f64);
    match stages > MOST_STAGES {
        true => Err(Error::TooLarge { what: "virtual stages", value, limit }),
        false => Ok(()),
    }
}

/// FLOPs of a token, forward and backward. Integers, so that equal costs are equal.
struct Costs {
    first: u128,
    layer: u128,
    last: u128,
}

impl Costs {
    /// Counts as [`Architecture::flops_per_token`] does, and beside the matrices what the ends do element by element.
    fn of(architecture: &Architecture, seq: usize) -> Self {
        let d = architecture.hidden as u128;
        // Each row's gradient is added to its table; learned positions are added to the rows too.
        let first = match architecture.name {
            ArchitectureName::Llama => d,
            ArchitectureName::Gpt2 => 3 * d,
            // Types are added too, and the sum is normed.
            ArchitectureName::Bert => 17 * d,
        };
        // Counts are whole, and a norm squares, adds and multiplies twice; backward is twice that.
        let last = architecture.head_flops() as u128 + 12 * d;
        Self { first, layer: architecture.layer_flops(seq) as u128, last }
    }

    /// Deals layers one by one, each to the stage that is cheapest with it.
    ///
    /// All layers cost the same, so no exchange of layers between two stages could lower the dearer of them: the last
    /// layer that made it dear went there because everywhere else would have cost as much.
    fn balance(&self, layers: usize, count: usize) -> Vec<usize> {
        let end = |stage: usize| {
            let first = if stage == 0 { self.first } else { 0 };
            first + if stage + 1 == count { self.last } else { 0 }
        };
        let mut split = vec![1; count];
        // The heap gives the largest: least cost first, then the later stage.
        let mut cheapest: BinaryHeap<_> =
            (0..count).map(|stage| (Reverse(end(stage) + 2 * self.layer), stage)).collect();
        for _ in count..layers {
            let Some((Reverse(cost), stage)) = cheapest.pop() else { break };
            split[stage] += 1;
            cheapest.push((Reverse(cost + self.layer), stage));
        }
        split
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Costs;

    /// The cost of the dearest stage under the best cut, by trying all.
    fn best(costs: &Costs, layers: usize, count: usize, stage: usize) -> u128 {
        let ends = if stage == 0 { costs.first } else { 0 };
        if stage + 1 == count {
            return ends + costs.last + layers as u128 * costs.layer;
        }
        let with = |own: usize| (ends + own as u128 * costs.layer).max(best(costs, layers - own, count, stage + 1));
        (1..=layers + stage + 1 - count).map(with).min().unwrap()
    }

    proptest! {
        #[test]
        fn balance_is_the_best_cut(
            (first, layer, last) in (0..50_u128, 1..20_u128, 0..90_u128), count in 1..5_usize, more in 0..7_usize,
        ) {
            let costs = Costs { first, layer, last };
            let split = costs.balance(count + more, count);
            prop_assert_eq!(split.iter().sum::<usize>(), count + more);
            let cost = |stage: usize| {
                let first = if stage == 0 { first } else { 0 };
                split[stage] as u128 * layer + first + if stage + 1 == count { last } else { 0 }
            };
            prop_assert_eq!((0..count).map(cost).max(), Some(best(&costs, count + more, count, 0)));
        }
    }
}
