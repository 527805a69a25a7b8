//! What the engine's layers keep for the backward, and how full a rank is while it runs its list.
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

use super::lent::Lent;
use super::passes::Manner;
use super::sizes::Sizes;
use super::tape::Tape;
use crate::{ArchitectureName, Candidate, Job, RecomputeName, Stages, Step};

/// What parts of a model keep of one micro-batch on one rank, and the most that is alive in their passes.
///
/// # Units
/// Bytes.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// A layer, with what is not computed again.
    layer: usize,
    /// An activation between stages, and the input of a layer that is computed again as a whole.
    input: usize,
    /// What products for weights that are put off keep of a layer.
    deferred: usize,
    entrance: usize,
    exit: usize,
    loss_forward: usize,
    /// The most beside what was kept: in a layer's backward, where the gradient of its output is its own, and where another
    /// holds it; the same of a layer that is computed again, beside its input; in the exit's.
    plain: [usize; 2],
    again: usize,
    head: usize,
    /// The most beside what was kept in the backward of a layer that puts products off, and what the exit's keep.
    put_off: [usize; 2],
    tokens: usize,
}

/// What one virtual stage keeps of a micro-batch, and takes beside.
#[derive(Debug, Clone, Copy, Default)]
struct Chunk {
    kept: usize,
    put_off: usize,
    /// The most in its forward and backward beyond what was kept before and after the former.
    forward: usize,
    backward: usize,
    backward_input: usize,
    /// What of the backward's is lent by others.
    lent: usize,
    /// Whether activations come in and go out by messages, or are handed over on this rank.
    receives: bool,
    sends: bool,
}

/// What a rank has at its fullest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fullest {
    pub(super) activations: usize,
    pub(super) workspace: usize,
    pub(super) buffers: usize,
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
        let layers = stages.layers(stage);
        let repeated = repeated(candidate, &layers);
        let ends = if stages.is_first(stage) { self.entrance } else { 0 };
        // The output lives as long as the backward is to come.
        let ends = ends + if stages.is_last(stage) { self.exit } else { self.input };
        ends + repeated * self.input + (layers.len() - repeated) * self.layer
    }

    fn chunk(&self, candidate: &Candidate, stages: &Stages, stage: usize, lent: &Lent) -> Chunk {
        let (layers, rank) = (stages.layers(stage), stages.rank_of(stage));
        let (first, last) = (stages.is_first(stage), stages.is_last(stage));
        let every =
            if candidate.recompute == RecomputeName::Full { candidate.recompute_every.max(1) } else { usize::MAX };
        let mut below = if first { self.entrance } else { 0 };
        let (mut backward, mut backward_input) = ((0_usize, 0_usize), 0_usize);
        let head = if last { self.put_off[1] } else { 0 };
        let all = layers.len() * self.deferred + head;
        let mut waiting = all;
        let end = if last { 0 } else { self.input };
        for layer in layers.clone() {
            let again = every < usize::MAX && layer.is_multiple_of(every);
            // The gradient that came as a message is held to the end of the walk.
            let message = !last && layer + 1 == layers.end;
            let beside = match (again, message) {
                (true, _) => self.again,
                (false, message) => self.layer + self.plain[usize::from(message)],
            };
            let held = if last || message { 0 } else { self.input };
            let lent = lent[if layer + 1 == layers.end { 1 } else { 2 }];
            backward = backward.max((below + beside + held + end + lent, lent));
            waiting -= self.deferred;
            backward_input = backward_input.max(below + self.layer + self.put_off[0] + held + end + waiting);
            below += if again { self.input } else { self.layer };
        }
        if last {
            backward = backward.max((below + self.exit + self.head + lent[0], lent[0]));
            backward_input = backward_input.max(below + self.exit + self.head);
        }
        let kept = self.stage(candidate, stages, stage);
        Chunk {
            kept,
            put_off: all,
            forward: kept + if last { self.loss_forward } else { 0 },
            backward: backward.0,
            backward_input,
            lent: backward.1,
            receives: !first && stages.rank_of(stage - 1) != rank,
            sends: !last && stages.rank_of(stage + 1) != rank,
        }
    }

    /// Counts the most that a rank has at a time when it computes in this order, beside what it stores.
    pub(super) fn fullest(
        &self,
        candidate: &Candidate,
        stages: &Stages,
        rank: usize,
        order: &[Step],
        lent: &Lent,
    ) -> Fullest {
        let chunk = |chunk: usize| self.chunk(candidate, stages, stages.stage_of(rank, chunk), lent);
        let chunks: Vec<Chunk> = (0..stages.chunks()).map(chunk).collect();
        let mut left: Vec<[usize; 2]> = vec![[0; 2]; chunks.len()];
        for (chunk, kind) in order.iter().filter_map(passes) {
            left[chunk][kind] += 1;
        }
        let (mut live, mut sent, mut fullest) = (0usize, 0usize, Fullest::default());
        for step in order {
            let Some((index, _)) = step.computes() else { continue };
            let chunk = chunks[index];
            if let Some((_, kind)) = passes(step) {
                left[index][kind] -= 1;
            }
            // Each way that a message is still to come on has its place ready.
            let coming = |(chunk, left): (&Chunk, &[usize; 2])| {
                usize::from(chunk.receives && left[0] > 0) + usize::from(chunk.sends && left[1] > 0)
            };
            let places: usize = chunks.iter().zip(&left).map(coming).sum();
            let buffers = (places + sent) * self.input;
            let (activations, workspace) = match step {
                Step::Forward { .. } => (live + chunk.kept, chunk.forward.saturating_sub(chunk.kept)),
                Step::Backward { .. } => (live, chunk.backward.saturating_sub(chunk.kept)),
                Step::BackwardInput { .. } => {
                    (live, chunk.backward_input.max(chunk.put_off + self.input).saturating_sub(chunk.kept))
                }
                _ => (live, 0),
            };
            if activations + workspace + buffers > fullest.activations + fullest.workspace + fullest.buffers {
                let lent = if matches!(step, Step::Backward { .. }) { chunk.lent.min(workspace) } else { 0 };
                fullest = Fullest { activations, workspace: workspace - lent, buffers: buffers + lent };
            }
            match step {
                Step::Forward { .. } => live += chunk.kept,
                Step::BackwardInput { .. } => live = live + chunk.put_off - chunk.kept,
                Step::BackwardWeight { .. } => live -= chunk.put_off,
                _ => live -= chunk.kept,
            }
            // What was sent last is let go at the next send; an activation is alive until its backward anyway.
            sent = match step {
                Step::Backward { .. } | Step::BackwardInput { .. } if chunk.receives => 1,
                Step::Forward { .. } if chunk.sends => 0,
                _ => sent,
            };
        }
        fullest
    }

    /// Counts the tokens and targets of a step.
    pub(crate) fn batch(&self, micro_batches: usize) -> usize {
        micro_batches * self.tokens
    }

    /// Counts what any backward needs beside what was kept.
    pub(crate) fn workspace(&self) -> usize {
        self.plain[0].min(self.again - self.input).min(self.head)
    }
}

/// Says which way messages that a computation uses come: forward (0) or backward (1).
fn passes(step: &Step) -> Option<(usize, usize)> {
    match *step {
        Step::Forward { chunk, .. } => Some((chunk, 0)),
        Step::Backward { chunk, .. } | Step::BackwardInput { chunk, .. } => Some((chunk, 1)),
        _ => None,
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
