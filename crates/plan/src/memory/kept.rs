//! What the engine's layers keep for the backward, and what they need while they compute.
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

use crate::{ArchitectureName, Candidate, ContextForm, Job, RecomputeName, Stages, Step, Zero};

/// What parts of a model keep of one micro-batch on one rank.
///
/// # Units
/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// A layer, with what is not computed again.
    pub layer: usize,
    /// A layer that is computed again as a whole: its input.
    pub input: usize,
    /// What a layer that is computed again keeps while its backward runs, beside what it kept before.
    again: usize,
    /// What products for weights that are put off keep of a layer.
    deferred: usize,
    /// The entrance.
    pub entrance: usize,
    /// The exit: last norm, and the loss's softmax.
    pub exit: usize,
    deferred_exit: usize,
    /// A layer's backward.
    work: usize,
    /// The loss, forward and backward.
    loss: usize,
    /// Tokens and targets.
    tokens: usize,
    /// Keys and values on their way around.
    ring: usize,
    state: usize,
    value: usize,
}

/// Sizes that all counts are made of.
struct Sizes<'a> {
    job: &'a Job,
    candidate: &'a Candidate,
    /// `n` and `o`.
    tokens: usize,
    between: usize,
    query: usize,
    key_value: usize,
    k: usize,
    ffn: usize,
    widened: usize,
    /// Elements of attention weights.
    weights: usize,
    /// `e` and `w`.
    value: usize,
    state: usize,
}

impl Kept {
    /// Counts for a job in a layout.
    pub fn of(job: &Job, candidate: &Candidate) -> Self {
        let sizes = Sizes::new(job, candidate);
        let whole = sizes.layer(sizes.attention());
        let input = sizes.hidden(1);
        let (layer, again) = match candidate.recompute {
            RecomputeName::None => (whole, 0),
            RecomputeName::Selective => (sizes.layer(sizes.inputs()), sizes.attention().saturating_sub(sizes.inputs())),
            RecomputeName::Full => (whole, whole - input),
        };
        let architecture = &job.architecture;
        let (n, vocab) = (sizes.tokens, architecture.vocab.div_ceil(candidate.tp));
        let bert = architecture.name == ArchitectureName::Bert;
        let masks = usize::from(architecture.dropout > 0.0) + if bert { 2 } else { 0 };
        let narrow = sizes.value < sizes.state;
        Self {
            layer,
            input,
            again,
            deferred: sizes.deferred(),
            // Ids, and where they lie outside this rank's rows.
            entrance: sizes.hidden(masks) + n * 9,
            exit: sizes.hidden(if bert { 5 } else { 2 }) + n * vocab * sizes.state + n * (8 + 2 * sizes.state),
            deferred_exit: n * (architecture.hidden + vocab) * sizes.value,
            work: sizes.work(),
            // Logits and, where they are narrow, a wide copy; backward the gradient, and a narrow copy.
            loss: n * vocab * (sizes.state + if narrow { sizes.value } else { 0 }),
            tokens: n * 16,
            ring: sizes.ring(),
            state: sizes.state,
            value: sizes.value,
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

    /// Counts what products put off keep of a virtual stage.
    fn put_off(&self, stages: &Stages, stage: usize) -> usize {
        stages.layers(stage).len() * self.deferred + if stages.is_last(stage) { self.deferred_exit } else { 0 }
    }

    /// Counts the most that a rank keeps at a time when it computes in this order.
    pub(super) fn peak(&self, candidate: &Candidate, stages: &Stages, rank: usize, order: &[Step]) -> usize {
        let chunk = |chunk: usize| {
            let stage = stages.stage_of(rank, chunk);
            (self.stage(candidate, stages, stage), self.put_off(stages, stage))
        };
        let chunks: Vec<(usize, usize)> = (0..stages.chunks()).map(chunk).collect();
        let (mut live, mut peak) = (0, 0);
        for step in order {
            let Some((chunk, _)) = step.computes() else { continue };
            let (kept, put_off) = chunks[chunk];
            match step {
                Step::Forward { .. } => live += kept,
                Step::BackwardInput { .. } => live = live + put_off - kept,
                Step::BackwardWeight { .. } => live -= put_off,
                _ => live -= kept,
            }
            peak = peak.max(live);
        }
        peak
    }

    /// Counts the tokens and targets of a step.
    pub(crate) fn batch(&self, micro_batches: usize) -> usize {
        micro_batches * self.tokens
    }

    /// Counts what one computation needs beside what is kept.
    pub(crate) fn workspace(&self, last: bool) -> usize {
        let layer = self.again + self.work;
        if last {
            layer.max(self.loss)
        } else {
            layer
        }
    }

    /// Counts messages under way, and what data ranks lend each other.
    pub(crate) fn buffers(&self, candidate: &Candidate, stages: &Stages, rank: usize, elements: usize) -> usize {
        let messages = if stages.pp() > 1 { 2 * stages.chunks() + 2 } else { 0 };
        let layers: usize = stages.rank_layers(rank).iter().map(|layers| layers.len()).sum();
        // Of the unit in use, the next one and the one before; gradients of the unit in use and of the one that travels.
        let unit = elements / layers.max(1);
        let values = if candidate.zero == Zero::Parameters { 3 * unit * self.value } else { 0 };
        let gradients = if candidate.zero >= Zero::Gradients { 2 * unit * self.state } else { 0 };
        messages * self.input + self.ring + values + gradients
    }
}

/// Counts the layers of a stage that are computed again.
pub(crate) fn repeated(candidate: &Candidate, layers: &std::ops::Range<usize>) -> usize {
    match (candidate.recompute, candidate.recompute_every) {
        (RecomputeName::Full, every) => layers.end.div_ceil(every.max(1)) - layers.start.div_ceil(every.max(1)),
        _ => 0,
    }
}

impl<'a> Sizes<'a> {
    fn new(job: &'a Job, candidate: &'a Candidate) -> Self {
        let (architecture, tp) = (&job.architecture, candidate.tp);
        let tokens = candidate.tokens(job);
        let query = architecture.heads / tp;
        let ffn = architecture.ffn / tp;
        Self {
            job,
            candidate,
            tokens,
            between: tokens / candidate.sequence_parts(),
            query,
            key_value: (architecture.kv_heads / tp).max(1),
            k: architecture.head_dim,
            ffn,
            widened: if architecture.name == ArchitectureName::Llama { 2 * ffn } else { ffn },
            weights: tokens * query * job.seq,
            value: job.precision.parameter_bytes(),
            state: job.precision.state_bytes(),
        }
    }

    /// Bytes of `count` activations between tensor-parallel regions.
    fn hidden(&self, count: usize) -> usize {
        count * self.between * self.job.architecture.hidden * self.value
    }

    fn layer(&self, attention: usize) -> usize {
        let architecture = &self.job.architecture;
        let masks = if architecture.dropout > 0.0 { 2 } else { 0 };
        // Scale and mean of each position, or the scale alone.
        let statistics = if architecture.name == ArchitectureName::Llama { 2 } else { 4 };
        let mlp = match architecture.name {
            ArchitectureName::Llama => self.widened + 2 * self.ffn,
            ArchitectureName::Gpt2 | ArchitectureName::Bert => self.widened + self.ffn,
        };
        self.hidden(4 + masks) + self.between * statistics * self.state + self.tokens * mlp * self.value + attention
    }

    /// Says whether positions turn queries and keys, which then are copies.
    fn rotary(&self) -> bool {
        self.job.architecture.name == ArchitectureName::Llama
    }

    /// Queries, keys and values as the core takes them, and its output.
    fn inputs(&self) -> usize {
        let fused = self.query + 2 * self.key_value;
        let turned = if self.rotary() { self.query + self.key_value } else { 0 };
        self.tokens * (fused + turned + self.query) * self.k * self.value
    }

    /// All that the attention's core keeps.
    fn attention(&self) -> usize {
        let ring = self.candidate.cp > 1 && self.job.context == ContextForm::Ring;
        let apart = self.job.architecture.window.is_some() || self.job.within_documents;
        let around = ring || apart || !self.job.architecture.causal();
        let sums = self.tokens * self.query * self.state;
        if self.job.stores_attention() && !around {
            // Each side of a product by pieces is copied; weights, their mask, and what is left of them.
            let sides = self.tokens * 4 * self.query * self.k * self.value;
            return sides + 3 * self.weights * self.value + self.job.seq * self.job.seq;
        }
        if self.query == self.key_value || around {
            return self.inputs() + sums;
        }
        // Copied heads; queries stay in the product's output where nothing has turned them.
        let query = if self.rotary() { self.query } else { self.query + 2 * self.key_value };
        self.tokens * (query + 3 * self.query) * self.k * self.value + sums
    }

    /// Inputs and output gradients of a layer's products, each side gathered.
    fn deferred(&self) -> usize {
        let d = self.job.architecture.hidden;
        let inputs = 2 * d + self.query * self.k + self.ffn;
        let gradients = (self.query + 2 * self.key_value) * self.k + self.widened + 2 * d;
        self.tokens * (inputs + gradients) * self.value
    }

    /// The larger of what backward needs in the MLP, in a norm and in the attention.
    fn work(&self) -> usize {
        let d = self.job.architecture.hidden;
        let fresh = if self.value < self.state { self.value + self.state } else { 0 };
        let gathered = if self.candidate.sequence_parallel { 2 } else { 1 } * self.tokens * d * self.value;
        let mlp =
            self.hidden(2) + gathered + self.tokens * (self.ffn + self.widened) * self.value + self.widened * d * fresh;
        let norm = self.hidden(2) + 5 * self.between * d * self.state;
        let weights = if self.job.stores_attention() { 2 * self.weights * self.value } else { 0 };
        let attention = self.hidden(2) + self.tokens * 4 * self.query * self.k * self.value + weights;
        mlp.max(norm).max(attention)
    }

    /// Own and arriving keys and values, and their gradients behind.
    fn ring(&self) -> usize {
        match (self.candidate.cp, self.job.context) {
            (1, _) => 0,
            (_, ContextForm::Ring) => 4 * self.tokens * self.key_value * self.k * (self.value + self.state),
            (_, ContextForm::AllToAll) => 2 * self.tokens * (2 * self.query + 2 * self.key_value) * self.k * self.value,
        }
    }
}
