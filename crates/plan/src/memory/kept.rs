//! What the engine's layers keep for the backward.
//!
//! Legend: `n` tokens of a micro-batch on this rank and `o` of them between tensor-parallel regions, `d` width, `q`, `g` query
//! and key/value heads of this rank, `k` head width, `f` this rank's columns of the MLP, `e` bytes of an activation, `w`
//! bytes of a statistic. A layer keeps, by who keeps it:
//!
//! | who | what | elements |
//! |---|---|---|
//! | norms | their inputs | `2·o·d` |
//! | column-parallel products | their inputs, before they are gathered | `2·o·d` |
//! | dropout | masks, as wide as what they drop | `2·o·d` |
//! | fused attention | queries, keys, values, output | `n·(4q)·k`, of which rotary positions and copied heads make more |
//! | stored attention | the same, and weights, mask and dropped weights | `3·n·q·s` |
//! | MLP | before and after the activation; a gate's parts too | `2·n·f`, `4·n·f` with a gate |

use super::passes::Manner;
use super::sizes::Sizes;
use super::tape::Tape;
use crate::{ArchitectureName, Candidate, Job, RecomputeName, Stages};

/// What parts of a model keep of one micro-batch on one rank, and the most that is alive in their passes.
///
/// # Units
/// Bytes.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// A layer, with what is not computed again.
    pub(super) layer: usize,
    /// An activation between stages, and the input of a layer that is computed again as a whole.
    pub(super) input: usize,
    /// What products for weights that are put off keep of a layer.
    pub(super) deferred: usize,
    pub(super) entrance: usize,
    pub(super) exit: usize,
    pub(super) loss_forward: usize,
    /// The most beside what was kept: in a layer's backward, where the gradient of its output is its own, and where another
    /// holds it; the same of a layer that is computed again, beside its input; in the exit's.
    pub(super) plain: [usize; 2],
    pub(super) again: usize,
    pub(super) head: usize,
    /// The most beside what was kept in the backward of a layer that puts products off, and what the exit's keep.
    pub(super) put_off: [usize; 2],
    pub(super) tokens: usize,
}

impl Kept {
    /// Counts for a job in a layout.
    pub fn of(job: &Job, candidate: &Candidate) -> Self {
        let sizes = Sizes::new(job, candidate);
        let layer = layer(&sizes);
        let input = sizes.hidden;
        let bert = sizes.family == ArchitectureName::Bert;
        let backward = |held: bool, deferred: bool| {
            let mut tape = Tape::from(layer + input);
            sizes.layer_backward(&mut tape, Manner { held, deferred });
            tape
        };
        // A layer that is computed again has its output beside, and whoever gave the gradient holds it.
        let again = backward(true, false).peak() + input;
        let exit = sizes.hidden * if bert { 4 } else { 2 } + sizes.statistics() + sizes.loss();
        let head = |deferred: bool| {
            let mut tape = Tape::from(exit);
            sizes.exit_backward(&mut tape, deferred);
            tape
        };
        let ids = if sizes.whole_vocab { 0 } else { sizes.tokens * 9 };
        let masks = usize::from(sizes.dropout) + usize::from(bert);
        Self {
            layer,
            input,
            deferred: backward(false, true).live() - input,
            entrance: sizes.hidden * masks + ids + if bert { sizes.statistics() } else { 0 },
            exit,
            loss_forward: sizes.loss_forward(),
            plain: [false, true].map(|held| backward(held, false).peak() - layer),
            again,
            head: head(false).peak() - exit,
            put_off: [backward(false, true).peak() - layer, head(true).live() - input],
            tokens: tokens(job, &sizes),
        }
    }

    /// Counts what a virtual stage keeps of one micro-batch.
    pub fn stage(&self, candidate: &Candidate, stages: &Stages, stage: usize) -> usize {
        let ends = if stages.is_first(stage) { self.entrance } else { 0 };
        // The output lives as long as the backward is to come.
        let ends = ends + if stages.is_last(stage) { self.exit } else { self.input };
        ends + self.layers(candidate, &stages.layers(stage))
    }

    /// Counts what layers keep of one micro-batch.
    pub(crate) fn layers(&self, candidate: &Candidate, layers: &std::ops::Range<usize>) -> usize {
        let repeated = repeated(candidate, layers);
        repeated * self.input + (layers.len() - repeated) * self.layer
    }

    /// Counts the tokens and targets of a step.
    pub(crate) fn batch(&self, micro_batches: usize) -> usize {
        micro_batches * self.tokens
    }

    /// Counts what a rank's first backward surely needs beside what was kept: its layers', or on the rank of the `last` stage the
    /// exit's, whose own are gone when the layers' turn comes.
    pub(crate) fn workspace(&self, candidate: &Candidate, last: bool) -> usize {
        let layer = match candidate.recompute {
            RecomputeName::Full => self.plain[0].min(self.again - self.input),
            RecomputeName::None | RecomputeName::Selective => self.plain[0],
        };
        if last {
            self.head.max(layer.saturating_sub(self.exit))
        } else {
            layer
        }
    }
}

/// Counts what a layer keeps.
pub(super) fn layer(sizes: &Sizes) -> usize {
    let masks = if sizes.dropout { 2 } else { 0 };
    let gate = if sizes.family == ArchitectureName::Llama { sizes.active } else { 0 };
    let mlp = sizes.widened + gate + sizes.active;
    sizes.hidden * (4 + masks) + 2 * sizes.statistics() + mlp + sizes.kept_core
}

/// Counts what a micro-batch's tokens, their targets and whatever is told of them take.
fn tokens(job: &Job, sizes: &Sizes) -> usize {
    let segments = if job.within_documents { sizes.sequences * sizes.seq * 8 } else { 0 };
    let (places, types) = match sizes.family {
        ArchitectureName::Llama => (0, 0),
        ArchitectureName::Gpt2 => (job.within_documents.into(), 0),
        ArchitectureName::Bert => (job.within_documents.into(), 0),
    };
    sizes.tokens * 8 * (2 + places + types) + segments
}

/// Counts the layers of a stage that are computed again.
pub(crate) fn repeated(candidate: &Candidate, layers: &std::ops::Range<usize>) -> usize {
    match (candidate.recompute, candidate.recompute_every) {
        (RecomputeName::Full, every) => layers.end.div_ceil(every.max(1)) - layers.start.div_ceil(every.max(1)),
        _ => 0,
    }
}
