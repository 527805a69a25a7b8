//! What each rank of the pipeline spends a step on, from its first forward to its last update.

use crate::{
    cost::Terms,
    pace,
    step::{Estimator, StageTimes},
    Candidate, Result, Stages, Step,
};

/// The step by ranks of the pipeline.
pub(super) struct Timeline {
    /// All of it.
    pub seconds: f64,
    /// What each rank spends it on; each sums to the whole.
    pub ranks: Vec<Terms>,
    /// The rank that computes longest.
    pub busiest: usize,
    /// The idle share of the pipeline, on average over its ranks.
    pub bubble: f64,
}

impl Estimator<'_> {
    /// Runs a layout's step on paper.
    pub(super) fn timeline(
        &mut self,
        candidate: &Candidate,
        stages: &Stages,
        orders: &[Vec<Step>],
    ) -> Result<Timeline> {
        let times = self.stage_times(candidate, stages, &self.parts(candidate));
        self.timeline_of(candidate, stages, orders, &times, None)
    }

    /// Runs it with what its stages take, and with what the slowest rank's update takes where that is known better than from
    /// its bytes.
    pub(super) fn timeline_of(
        &mut self,
        candidate: &Candidate,
        stages: &Stages,
        orders: &[Vec<Step>],
        times: &StageTimes,
        update: Option<f64>,
    ) -> Result<Timeline> {
        let micro_batches = candidate.micro_batches(self.job);
        let ends = pace::ends(stages, orders, micro_batches, &times.costs());
        let computed = ends.iter().copied().fold(0.0, f64::max);
        // What each rank does, and when it is done with its reductions.
        let (mut ranks, mut busy, mut busiest) = (Vec::with_capacity(ends.len()), Vec::with_capacity(ends.len()), 0);
        let (mut reduced, mut updated) = (computed, 0.0_f64);
        for (rank, &end) in ends.iter().enumerate() {
            let own = (0..stages.chunks()).map(|chunk| times.passes[stages.stage_of(rank, chunk)]);
            let (work, last) = own.fold((Terms::default(), 0.0), |(work, last), passes| {
                let backward = passes.input + passes.weight;
                (work + passes.forward + backward, last + backward.total())
            });
            ranks.push(work * micro_batches as f64);
            busy.push(work.total() * micro_batches as f64);
            if busy[rank] > busy[busiest] {
                busiest = rank;
            }
            let (_, elements) = self.stored(candidate, stages, rank)?;
            reduced = reduced.max(end + self.reduction(candidate, &elements, last, work.total(), micro_batches));
            updated = updated.max(update.unwrap_or_else(|| self.update(candidate, &elements)));
        }
        reduced += self.ends_of_table(candidate, stages);
        let data = reduced - computed + self.norm(candidate);
        for (terms, busy) in ranks.iter_mut().zip(&busy) {
            // Never below zero, as a sum of roundings may be.
            terms.bubble += (computed - busy).max(0.0);
            terms.data += data;
            terms.optimizer += updated;
        }
        let seconds = reduced + self.norm(candidate) + updated;
        Ok(Timeline { seconds, ranks, busiest, bubble: idle(&busy, computed) })
    }
}

/// Returns the share of `seconds` in which a rank does not compute, on average.
fn idle(busy: &[f64], seconds: f64) -> f64 {
    match seconds > 0.0 {
        true => (1.0 - busy.iter().sum::<f64>() / (seconds * busy.len() as f64)).max(0.0),
        false => 0.0,
    }
}
