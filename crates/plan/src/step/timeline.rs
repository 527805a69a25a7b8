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
        let closing = self.closing(candidate, stages, times, &ends, update)?;
        let rank = |rank: usize| {
            let passes = times.of_rank(stages, rank);
            (passes.forward + passes.input + passes.weight) * micro_batches as f64
        };
        let mut ranks: Vec<Terms> = (0..stages.pp()).map(rank).collect();
        let busy: Vec<f64> = ranks.iter().map(Terms::work).collect();
        let busiest = (0..busy.len()).fold(0, |most, rank| if busy[rank] > busy[most] { rank } else { most });
        for (rank, terms) in ranks.iter_mut().enumerate() {
            // A rank without others has none, and roundings of sums make none.
            let idle = if stages.pp() > 1 { ends[rank] - terms.total() } else { 0.0 };
            terms.bubble += idle.max(0.0);
            *terms += closing.terms(rank);
        }
        Ok(Timeline { seconds: closing.seconds(), ranks, busiest, bubble: idle(&busy, closing.computed) })
    }
}

/// Returns the share of `seconds` in which a rank does not compute, on average.
fn idle(busy: &[f64], seconds: f64) -> f64 {
    match seconds > 0.0 {
        true => (1.0 - busy.iter().sum::<f64>() / (seconds * busy.len() as f64)).max(0.0),
        false => 0.0,
    }
}
