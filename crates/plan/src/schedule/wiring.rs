//! From the order in which a rank computes to its list of steps: each computation between the message it needs and the
//! message it makes, and at the end what completes the gradients.

use super::{Payload, Step};
use crate::Stages;

/// Writes a rank's list.
pub(super) fn list(stages: &Stages, rank: usize, order: &[Step], tied: bool) -> Vec<Step> {
    let around = |&step: &Step| [incoming(stages, rank, step), Some(step), outgoing(stages, rank, step)];
    order.iter().flat_map(around).flatten().chain(closing(stages, rank, tied)).collect()
}

/// Returns what a computation must receive before; nothing where its rank holds the neighbour.
pub(crate) fn incoming(stages: &Stages, rank: usize, step: Step) -> Option<Step> {
    let (chunk, micro_batch) = step.computes()?;
    let own = stages.stage_of(rank, chunk);
    let (payload, stage) = match step {
        Step::Forward { .. } if !stages.is_first(own) => (Payload::Activation, own - 1),
        Step::Backward { .. } | Step::BackwardInput { .. } if !stages.is_last(own) => (Payload::Gradient, own + 1),
        _ => return None,
    };
    let from = stages.rank_of(stage);
    (from != rank).then_some(Step::Receive { payload, stage, micro_batch, from })
}

/// Returns what a computation must send after; nothing where its rank holds the neighbour.
pub(crate) fn outgoing(stages: &Stages, rank: usize, step: Step) -> Option<Step> {
    let (chunk, micro_batch) = step.computes()?;
    let stage = stages.stage_of(rank, chunk);
    let (payload, neighbour) = match step {
        Step::Forward { .. } if !stages.is_last(stage) => (Payload::Activation, stage + 1),
        Step::Backward { .. } | Step::BackwardInput { .. } if !stages.is_first(stage) => (Payload::Gradient, stage - 1),
        _ => return None,
    };
    let to = stages.rank_of(neighbour);
    (to != rank).then_some(Step::Send { payload, stage, micro_batch, to })
}

/// Returns what follows a rank's last computation.
pub(crate) fn closing(stages: &Stages, rank: usize, tied: bool) -> impl Iterator<Item = Step> {
    let sums = tied && stages.tied_ranks().is_some_and(|(first, last)| rank == first || rank == last);
    sums.then_some(Step::SumTied).into_iter().chain([Step::Reduce, Step::Update])
}
