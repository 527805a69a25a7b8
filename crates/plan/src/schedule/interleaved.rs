//! Interleaved 1F1B: micro-batches go through the chunks of a rank in groups of `pp`. So a rank turns to its next chunk
//! just when the first of the group has come round all other ranks, and the warm-up is short by the number of chunks.

use super::{one_f_one_b::in_turn, Step};
use crate::Stages;

/// Lists the orders of all ranks; `micro_batches` is a multiple of `pp`.
pub(super) fn orders(stages: &Stages, micro_batches: usize) -> Vec<Vec<Step>> {
    let (pp, chunks) = (stages.pp(), stages.chunks());
    // The chunk and micro-batch of a rank's k-th forward.
    let place = |k: usize| {
        let (group, within) = (k / (pp * chunks), k % (pp * chunks));
        (within / pp, group * pp + within % pp)
    };
    let forward = |k| {
        let (chunk, micro_batch) = place(k);
        Step::Forward { chunk, micro_batch }
    };
    // Backwards go the same way, from the last chunk to the first.
    let backward = |k| {
        let (chunk, micro_batch) = place(k);
        Step::Backward { chunk: chunks - 1 - chunk, micro_batch }
    };
    // The first group passes all chunks but the last, and then the ranks after this one. One forward for each of those
    // would do if messages took no time; a second gives each message the time of a computation to travel.
    let warm_up = |rank: usize| (chunks - 1) * pp + 2 * (pp - 1 - rank);
    (0..pp).map(|rank| in_turn(warm_up(rank), micro_batches * chunks, forward, backward)).collect()
}
