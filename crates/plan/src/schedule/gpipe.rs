//! GPipe: all forwards, then all backwards, both in ascending order.
//!
//! Every stage keeps all `m` micro-batches in either order, and the gradient of micro-batch 0 starts upwards while the
//! last stage works on as that of `m − 1` would; so ascending costs nothing.

use super::Step;
use crate::Stages;

pub(super) fn orders(stages: &Stages, micro_batches: usize) -> Vec<Vec<Step>> {
    let forwards = (0..micro_batches).map(|micro_batch| Step::Forward { chunk: 0, micro_batch });
    let backwards = (0..micro_batches).map(|micro_batch| Step::Backward { chunk: 0, micro_batch });
    vec![forwards.chain(backwards).collect(); stages.pp()]
}
