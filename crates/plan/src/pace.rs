//! How long the ranks of a pipeline take for their lists, without writing the timeline down: [`simulate()`](crate::simulate())
//! reduced to what a search needs, and equal to it.

use crate::{Costs, StageCosts, Stages, Step};

/// When a stage has finished a micro-batch: the forwards and the input gradients of all stages.
struct Finished {
    micro_batches: usize,
    forwards: Vec<f64>,
    inputs: Vec<f64>,
}

/// Returns when each rank has done the last of its computations.
///
/// # Panics
/// If the orders wait for each other, which those of [`Schedule`](crate::Schedule) do not.
pub(crate) fn ends(stages: &Stages, orders: &[Vec<Step>], micro_batches: usize, costs: &Costs) -> Vec<f64> {
    let places = stages.count() * micro_batches;
    let mut finished = Finished { micro_batches, forwards: vec![f64::NAN; places], inputs: vec![f64::NAN; places] };
    let (mut next, mut ends) = (vec![0; orders.len()], vec![0.0; orders.len()]);
    let mut left: usize = orders.iter().map(Vec::len).sum();
    while left > 0 {
        let before = left;
        // Down and up again, as activations and gradients travel.
        for rank in (0..orders.len()).chain((0..orders.len()).rev()) {
            while let Some(&step) = orders[rank].get(next[rank]) {
                let Some(end) = finished.run(stages, costs, rank, step, ends[rank]) else { break };
                ends[rank] = end;
                next[rank] += 1;
                left -= 1;
            }
        }
        assert!(left < before, "{left} computations wait for each other");
    }
    ends
}

impl Finished {
    /// Runs a computation of a rank that is free from `free` on, unless what it needs is not there yet; returns its end.
    fn run(&mut self, stages: &Stages, costs: &Costs, rank: usize, step: Step, free: f64) -> Option<f64> {
        let (chunk, micro_batch) = step.computes()?;
        let stage = stages.stage_of(rank, chunk);
        let StageCosts { forward, backward_input, backward_weight } = costs.stages[stage];
        let place = |stage: usize| stage * self.micro_batches + micro_batch;
        let (needed, took) = match step {
            Step::Forward { .. } => (stage.checked_sub(1).map(|s| (s, self.forwards[place(s)])), forward),
            Step::BackwardWeight { .. } => (None, backward_weight),
            _ => {
                let after = (stage + 1 < stages.count()).then(|| (stage + 1, self.inputs[place(stage + 1)]));
                let whole = matches!(step, Step::Backward { .. });
                (after, backward_input + if whole { backward_weight } else { 0.0 })
            }
        };
        let ready = match needed {
            Some((_, done)) if done.is_nan() => return None,
            Some((from, done)) if stages.rank_of(from) != rank => done + costs.transfer,
            _ => 0.0,
        };
        let end = free.max(ready) + took;
        let own = place(stage);
        match step {
            Step::Forward { .. } => self.forwards[own] = end,
            Step::BackwardWeight { .. } => {}
            _ => self.inputs[own] = end,
        }
        Some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{simulate, Schedule, ScheduleName};

    #[test]
    fn ends_are_those_of_the_timeline() {
        for name in ScheduleName::ALL {
            for (pp, micro_batches) in [(1, 3), (2, 4), (3, 3), (4, 12)] {
                let chunks = name.default_chunks();
                let count = pp * chunks;
                let stages = Stages::with_layers(pp, chunks, name.folding(), &vec![1; count]).unwrap();
                // Unequal, and exact in binary, so that sums are equal to the last bit.
                let costs = Costs {
                    stages: (0..count)
                        .map(|s| StageCosts {
                            forward: 1.0 + (s % 3) as f64 / 4.0,
                            backward_input: 1.5 + (s % 2) as f64 / 8.0,
                            backward_weight: 0.75,
                        })
                        .collect(),
                    transfer: 0.125,
                };
                let orders = Schedule::orders(name, &stages, micro_batches).unwrap();
                let ends = ends(&stages, &orders, micro_batches, &costs);
                let timeline = simulate(&Schedule::new(name, stages, micro_batches, false).unwrap(), &costs);
                let latest = ends.iter().copied().fold(0.0, f64::max);
                assert_eq!(latest, timeline.seconds, "{name} pp {pp} m {micro_batches}");
                for (rank, spans) in timeline.ranks.iter().enumerate() {
                    let last = spans.iter().rfind(|span| span.step.computes().is_some());
                    assert_eq!(last.map(|span| span.end), Some(ends[rank]), "{name} rank {rank}");
                }
            }
        }
    }
}
