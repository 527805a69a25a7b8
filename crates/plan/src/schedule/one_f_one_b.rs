//! 1F1B: a warm-up of forwards, as many as there are ranks after this one; then a forward and a backward in turn, so
//! that no rank keeps more micro-batches than it has ranks after it, and its own; then the backwards that are left.

use super::Step;
use crate::Stages;

pub(super) fn orders(stages: &Stages, micro_batches: usize) -> Vec<Vec<Step>> {
    let forward = |micro_batch| Step::Forward { chunk: 0, micro_batch };
    let backward = |micro_batch| Step::Backward { chunk: 0, micro_batch };
    (0..stages.pp()).map(|rank| in_turn(stages.pp() - 1 - rank, micro_batches, forward, backward)).collect()
}

/// Lists `warm_up` forwards (all, if there are fewer), then one of each in turn, then the backwards that are left.
pub(super) fn in_turn(
    warm_up: usize,
    total: usize,
    forward: impl Fn(usize) -> Step,
    backward: impl Fn(usize) -> Step,
) -> Vec<Step> {
    let warm_up = warm_up.min(total);
    let mut order: Vec<Step> = (0..warm_up).map(&forward).collect();
    for k in warm_up..total {
        order.extend([forward(k), backward(k - warm_up)]);
    }
    order.extend((total - warm_up..total).map(&backward));
    order
}
