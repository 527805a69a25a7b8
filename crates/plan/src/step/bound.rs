//! Bounds of a step's time from below, for what a search need not estimate in full.

use crate::{cost::layer::Parts, step::Estimator, Candidate, Result, Stages};

/// What surely holds of a rank of the pipeline.
struct Earliest {
    /// When it is done at the earliest: the first forward has come down to it, and it has computed all.
    end: f64,
    /// How long after that the first rank is done: an undivided backward of the rank's last gradient goes all the way back.
    back: f64,
    /// What it computes for a micro-batch.
    work: f64,
    /// Of that, backward.
    last: f64,
}

impl Estimator<'_> {
    /// Bounds a layout's step from below, cheaply: what its busiest rank computes, and the way there and back.
    pub(crate) fn bound(&self, candidate: &Candidate, stages: &Stages, parts: &Parts) -> f64 {
        let earliest = self.earliest(candidate, stages, parts);
        earliest.iter().map(|rank| rank.end + rank.back).fold(0.0, f64::max)
    }

    /// Bounds it better: with what ranks then wait for and update.
    pub(crate) fn close_bound(&mut self, candidate: &Candidate, stages: &Stages, parts: &Parts) -> Result<f64> {
        let earliest = self.earliest(candidate, stages, parts);
        let home = earliest.iter().map(|rank| rank.end + rank.back).fold(0.0, f64::max);
        let (mut reduced, mut completed, mut updated) = (home, 0.0_f64, 0.0_f64);
        for (rank, known) in earliest.into_iter().enumerate() {
            let (_, elements) = self.memory.stored(candidate, stages, rank)?;
            let end = if rank == 0 { home } else { known.end };
            let micro_batches = candidate.micro_batches(self.job);
            reduced = reduced.max(end + self.reduction(candidate, &elements, known.last, known.work, micro_batches));
            completed = completed.max(self.completion(candidate, &elements).total());
            updated = updated.max(self.update(candidate, &elements));
        }
        let agreed = self.ends_of_table(candidate, stages) + completed + self.agreement(candidate).total();
        Ok(reduced + agreed + updated)
    }

    fn earliest(&self, candidate: &Candidate, stages: &Stages, parts: &Parts) -> Vec<Earliest> {
        let times = self.stage_times(candidate, stages, parts);
        let micro_batches = candidate.micro_batches(self.job) as f64;
        let returns = if candidate.schedule.splits_backward() { 0.0 } else { 1.0 };
        let (mut way, mut back) = (0.0, 0.0);
        let rank = |rank: usize| {
            let own = (0..stages.chunks()).map(|chunk| times.passes[stages.stage_of(rank, chunk)]);
            let (all, work, last) = own.fold((0.0, 0.0, 0.0), |(all, work, last), passes| {
                let backward = passes.input.work() + passes.weight.work();
                (all + passes.total(), work + passes.forward.work() + backward, last + backward)
            });
            let known = Earliest { end: micro_batches * all + way, back: returns * back, work, last };
            let first = times.passes[stages.stage_of(rank, 0)];
            way += first.forward.total() + times.transfer;
            back += first.input.total() + first.weight.total() + times.transfer;
            known
        };
        (0..stages.pp()).map(rank).collect()
    }
}
