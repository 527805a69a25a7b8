//! The tensors of a job in a layout, in bytes.

use crate::{ArchitectureName, Candidate, ContextForm, Job, RecomputeName};

/// Sizes that all counts are made of, in bytes where nothing else is said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Tokens of a micro-batch on this rank, and those of them between tensor-parallel regions.
    pub(super) tokens: usize,
    pub(super) between: usize,
    pub(super) width: usize,
    /// Bytes of an activation's element and of a statistic's.
    pub(super) value: usize,
    pub(super) state: usize,
    /// An activation between the regions, in its own kind and in that of statistics, and one inside them.
    pub(super) hidden: usize,
    pub(super) wide: usize,
    pub(super) inside: usize,
    /// Queries, and keys or values, of this rank.
    pub(super) query: usize,
    pub(super) key_value: usize,
    pub(super) query_heads: usize,
    pub(super) key_value_heads: usize,
    pub(super) query_width: usize,
    pub(super) fused_width: usize,
    /// What stands between the two products of the MLP; the first one's output.
    pub(super) active: usize,
    pub(super) widened: usize,
    pub(super) active_width: usize,
    pub(super) widened_width: usize,
    /// Attention's weights.
    pub(super) weights: usize,
    pub(super) seq: usize,
    pub(super) sequences: usize,
    /// Logits, and as wide as statistics.
    pub(super) logits: usize,
    pub(super) wide_logits: usize,
    pub(super) vocab: usize,
    pub(super) family: ArchitectureName,
    pub(super) dropout: bool,
    pub(super) sequence_parallel: bool,
    /// Whether the whole vocabulary is on this rank; whether its rows are padded.
    pub(super) whole_vocab: bool,
    pub(super) padded_vocab: bool,
    /// Whether attention keeps its weights, or goes block by block.
    pub(super) stores: bool,
    pub(super) blocks: bool,
    pub(super) exchanges: bool,
    pub(super) ring: bool,
    /// Blocks of keys that a ring attends to.
    pub(super) parts: usize,
    /// What the core of attention keeps, and what it keeps anew where it is computed again.
    pub(super) kept_core: usize,
    pub(super) again: usize,
}

impl Sizes {
    pub(super) fn new(job: &Job, candidate: &Candidate) -> Self {
        let (architecture, tp) = (&job.architecture, candidate.tp);
        let (value, state) = (job.precision.parameter_bytes(), job.precision.state_bytes());
        let tokens = candidate.tokens(job);
        let between = tokens / candidate.sequence_parts();
        let (width, k) = (architecture.hidden, architecture.head_dim);
        let (query_heads, key_value_heads) = (architecture.heads / tp, (architecture.kv_heads / tp).max(1));
        let active_width = architecture.ffn / tp;
        let widened_width = if architecture.name == ArchitectureName::Llama { 2 * active_width } else { active_width };
        let vocab = architecture.vocab.div_ceil(tp);
        let ring = candidate.cp > 1 && job.context == ContextForm::Ring;
        let apart = job.within_documents || architecture.window.is_some_and(|window| window < job.seq);
        let blocks = ring || apart || !architecture.causal();
        let mut made = Self {
            tokens,
            between,
            width,
            value,
            state,
            hidden: between * width * value,
            wide: between * width * state,
            inside: tokens * width * value,
            query: tokens * query_heads * k * value,
            key_value: tokens * key_value_heads * k * value,
            query_heads,
            key_value_heads,
            query_width: query_heads * k,
            fused_width: (query_heads + 2 * key_value_heads) * k,
            active: tokens * active_width * value,
            widened: tokens * widened_width * value,
            active_width,
            widened_width,
            weights: tokens * query_heads * job.seq * value,
            seq: job.seq,
            sequences: candidate.micro_batch,
            logits: tokens * vocab * value,
            wide_logits: tokens * vocab * state,
            vocab,
            family: architecture.name,
            dropout: architecture.dropout > 0.0,
            sequence_parallel: candidate.sequence_parallel,
            whole_vocab: tp == 1,
            padded_vocab: !architecture.vocab.is_multiple_of(tp),
            stores: job.stores_attention() && !blocks,
            blocks,
            exchanges: candidate.cp > 1 && job.context == ContextForm::AllToAll,
            ring,
            parts: if ring { candidate.cp } else { 1 },
            kept_core: 0,
            again: 0,
        };
        let whole = made.core();
        let large = made.stores || (made.repeats() && !made.blocks);
        (made.kept_core, made.again) = match candidate.recompute {
            // The result that was kept for the next product is gone by then, and made anew.
            RecomputeName::Selective if large => {
                (made.inputs(), whole - if made.stores { 0 } else { made.query } - made.query)
            }
            _ => (whole, 0),
        };
        made
    }

    /// Says whether activations are narrower than statistics.
    pub(super) fn is_narrow(&self) -> bool {
        self.value < self.state
    }

    /// Bytes of a weight's gradient before it is added to the wide sum: the product, and a wide copy of it.
    pub(super) fn fresh(&self, rows: usize, columns: usize) -> usize {
        if self.is_narrow() {
            rows * columns * (self.value + self.state)
        } else {
            0
        }
    }

    /// Bytes of a gathered or scattered activation that is brought in another order; of one sequence none is.
    pub(super) fn reordered(&self) -> usize {
        if self.sequence_parallel && self.sequences > 1 {
            self.inside
        } else {
            0
        }
    }

    pub(super) fn rotary(&self) -> bool {
        self.family == ArchitectureName::Llama
    }

    /// Queries, keys and values in one tensor.
    pub(super) fn fused(&self) -> usize {
        self.query + 2 * self.key_value
    }

    /// Says whether key/value heads are copied for the query heads that share them: a single one is only viewed.
    pub(super) fn repeats(&self) -> bool {
        self.query > self.key_value && self.key_value_heads > 1
    }

    /// What a norm keeps beside its input.
    pub(super) fn statistics(&self) -> usize {
        match self.family {
            ArchitectureName::Llama => self.between * self.state,
            ArchitectureName::Gpt2 | ArchitectureName::Bert => 2 * self.between * self.value,
        }
    }

    /// The logarithms of softmax's denominators.
    pub(super) fn sums(&self) -> usize {
        self.tokens * self.query_heads * self.state
    }

    /// What the core of attention lets the graph keep, its inputs included.
    pub(super) fn core(&self) -> usize {
        let turned = if self.rotary() { self.query + self.key_value } else { 0 };
        if self.stores {
            // Of several sequences each side of a product is copied; of one the values are still where they were.
            let sides = match self.sequences {
                1 if self.repeats() => 4 * self.query,
                1 => 2 * self.query + self.fused() + if self.rotary() { self.key_value } else { 0 },
                _ => 4 * self.query,
            };
            return sides + 3 * self.weights + self.seq * self.seq;
        }
        if self.exchanges && !self.blocks {
            // The exchanged parts, copied heads of them, and the result on both sides of its exchange.
            return self.fused() + 2 * self.query + if self.repeats() { 2 * self.query } else { 0 } + self.sums();
        }
        if self.blocks {
            // The result in the order of heads, and again in that of positions where it was not.
            let again = if self.dropout { self.query } else { 0 };
            return self.fused() + turned + self.query + again + self.sums();
        }
        if self.repeats() {
            // Copied heads; queries stay in the product's output where nothing has turned them.
            let query = if self.rotary() { self.query } else { self.fused() };
            return query + 3 * self.query + self.sums();
        }
        self.fused() + turned + self.query + self.sums()
    }

    /// What is kept of the core where it is computed again: its inputs, and its output, which the next product reads.
    pub(super) fn inputs(&self) -> usize {
        let turned = if self.rotary() { self.query + self.key_value } else { 0 };
        self.fused() + turned + self.query
    }

    /// The fused kernel's memory for one thread: forward a block of scores and the results, backward two blocks.
    pub(super) fn scratch(&self) -> [usize; 2] {
        let rows = match self.seq {
            768.. => 256,
            192.. => 64,
            _ => 32,
        };
        let (rows, columns) = (rows.min(self.seq), self.seq.min(512));
        let narrow = if self.is_narrow() { self.value } else { 0 };
        let block = rows * columns;
        let results = rows * (2 + self.query_width / self.query_heads.max(1));
        [block * (self.state + narrow) + results * self.state, 2 * block * (self.state + narrow)]
    }

    /// What the backward of the core needs where it ends, with the gradient of its output alive.
    pub(super) fn core_backward(&self) -> usize {
        let wide = |bytes: usize| bytes / self.value * self.state;
        if self.stores {
            // Of weights that were dropped; of queries, keys and values one side each.
            return self.weights + 2 * self.query;
        }
        if self.blocks {
            // Weights, their gradient and that of scores, and the mask, of one block; gone when its keys' gradients are summed.
            let scores = if self.dropout { 4 * wide(self.weights) / self.parts } else { 0 };
            let travelling = if self.ring { 2 * self.key_value } else { 0 };
            let block = 3 * self.query + scores.max(wide(2 * self.key_value));
            return self.query + 2 * self.key_value + travelling + wide(self.query) + block;
        }
        3 * self.query + self.scratch()[1]
    }
}
