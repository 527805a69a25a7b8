//! The backward of a layer and of the exit, tensor by tensor, as the engine's layers take and give memory.
//!
//! Each begins with all that its forward kept and the gradient of its output, and ends with the gradient of its input alone.
//! Forwards need less: what they take is what they keep, and a little that is gone before the first backward begins.

use super::sizes::Sizes;
use super::tape::Tape;
use crate::ArchitectureName;

/// What is held beside a layer's own backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manner {
    /// Whether the gradient of the output is alive to the end, for whoever gave it holds it.
    pub(super) held: bool,
    /// Whether products for weights are put off: their two sides stay.
    pub(super) deferred: bool,
}

impl Sizes {
    /// Runs a layer's backward.
    pub(super) fn layer_backward(&self, tape: &mut Tape, manner: Manner) {
        let mut held = manner.held;
        if self.family == ArchitectureName::Bert {
            self.norm_backward(tape, held);
            // The gradient of the sum under the norm is the layer's own.
            held = false;
        }
        let read = if manner.deferred && !self.sequence_parallel { 0 } else { self.hidden };
        // A product that waits has the very gradient of the residual stream, where nothing was gathered or dropped.
        let waits = manner.deferred && !self.sequence_parallel && !self.dropout;
        self.mlp_backward(tape, manner.deferred);
        tape.give(read);
        self.half_is_over(tape, held || waits);
        if self.family == ArchitectureName::Bert {
            self.norm_backward(tape, false);
        }
        self.attention_backward(tape, manner.deferred);
        tape.give(read);
        self.half_is_over(tape, waits);
    }

    /// The gradient of a half's input: through the norm where that stands before it, and added to the other way's.
    fn half_is_over(&self, tape: &mut Tape, held: bool) {
        if self.family != ArchitectureName::Bert {
            self.norm_backward(tape, false);
        }
        // In place, where nobody else holds the gradient.
        if held {
            tape.take(self.hidden);
            tape.give(self.hidden);
        } else {
            tape.give(self.hidden);
        }
    }

    /// A norm's backward; its input and statistics go.
    fn norm_backward(&self, tape: &mut Tape, held: bool) {
        let wide = if self.is_narrow() { self.wide } else { 0 };
        if self.family == ArchitectureName::Llama {
            // The normal, its product with the gradient, the result and one more; the gradient as wide as those.
            tape.pass(4 * self.wide + wide + self.between * self.state);
        }
        tape.take(self.hidden);
        tape.give(self.statistics() + self.hidden + if held { 0 } else { self.hidden });
    }

    /// Elements that were dropped: scaled, and masked.
    fn dropout_backward(&self, tape: &mut Tape) -> usize {
        if !self.dropout {
            return 0;
        }
        tape.take(self.hidden);
        tape.replace(self.hidden, self.hidden);
        tape.give(self.hidden);
        self.hidden
    }

    /// A row-parallel layer's backward; returns nothing of the gradient that it was given but the half's own handle.
    fn row_backward(&self, tape: &mut Tape, own: usize, weight: (usize, usize), input: usize, deferred: bool) {
        let gathered = if self.sequence_parallel { self.inside } else { 0 };
        tape.take(gathered);
        if self.reordered() > 0 {
            tape.pass(self.reordered());
        }
        tape.take(input);
        tape.pass(self.fresh(weight.0, weight.1));
        if !deferred {
            tape.give(gathered + own);
        }
    }

    /// A column-parallel layer's backward: `dy` goes, the input's gradient comes.
    fn column_backward(&self, tape: &mut Tape, dy: usize, weight: (usize, usize), deferred: bool) {
        let gathered = if self.sequence_parallel { self.inside } else { 0 };
        tape.take(gathered);
        tape.take(self.inside);
        if self.sequence_parallel {
            tape.take(self.hidden);
            // The parts in the order of the ranks; what was gathered in that of positions.
            tape.replace(self.reordered(), self.reordered());
            tape.replace(self.reordered(), self.reordered());
        }
        tape.pass(self.fresh(weight.0, weight.1));
        if self.sequence_parallel {
            tape.give(self.inside);
        }
        if !deferred {
            tape.give(gathered + dy);
        }
    }

    fn mlp_backward(&self, tape: &mut Tape, deferred: bool) {
        let own = self.dropout_backward(tape);
        self.row_backward(tape, own, (self.width, self.active_width), self.active, deferred);
        tape.give(if deferred { 0 } else { self.active });
        if self.family == ArchitectureName::Llama {
            // Through the product of both halves, the activation, and the cut in halves.
            tape.take(2 * self.active);
            tape.give(2 * self.active);
            tape.replace(self.active, self.active);
            tape.give(self.widened);
            tape.replace(2 * self.active, self.widened);
        } else {
            tape.replace(self.active, self.active);
            tape.give(self.widened);
        }
        self.column_backward(tape, self.widened, (self.widened_width, self.width), deferred);
    }

    fn attention_backward(&self, tape: &mut Tape, deferred: bool) {
        let own = self.dropout_backward(tape);
        self.row_backward(tape, own, (self.width, self.query_width), self.query, deferred);
        self.core_walk(tape, deferred);
        if self.rotary() {
            tape.pass(self.query);
            tape.pass(self.key_value);
        }
        tape.replace(self.fused(), self.fused());
        self.column_backward(tape, self.fused(), (self.fused_width, self.width), deferred);
    }

    /// The core's backward, from the gradient of its output to those of queries, keys and values.
    fn core_walk(&self, tape: &mut Tape, deferred: bool) {
        tape.take(self.again);
        tape.pass(self.core_backward());
        // The result is read by the next product too, whose side may have been put off.
        tape.give(self.kept_core + self.again - if deferred { self.query } else { 0 });
        tape.replace(self.query, self.fused());
    }

    /// Runs the backward of what follows the last layer, from the loss.
    pub(super) fn exit_backward(&self, tape: &mut Tape, deferred: bool) {
        let positions = self.tokens * self.state;
        // Of the logits, as wide as the loss; then as narrow as they were.
        tape.take(self.wide_logits + 2 * positions);
        if self.is_narrow() {
            tape.take(self.logits);
            tape.give(self.wide_logits);
        }
        tape.give(2 * positions + self.loss());
        self.column_backward(tape, self.logits, (self.vocab, self.width), deferred);
        tape.give(if deferred && !self.sequence_parallel { 0 } else { self.hidden });
        self.norm_backward(tape, false);
        if self.family == ArchitectureName::Bert {
            tape.replace(self.hidden, self.hidden);
            tape.give(self.hidden);
            let square = self.width * self.width;
            tape.take(self.hidden);
            let wide = if self.is_narrow() { square * self.state } else { 0 };
            tape.pass(square * self.value + wide);
            tape.give(2 * self.hidden);
        }
    }

    /// What the loss keeps: its softmax, and of each position its column, whether it lies here, and whether it counts.
    pub(super) fn loss(&self) -> usize {
        self.wide_logits + self.tokens * (8 + 2 * self.state)
    }

    /// What the loss takes beside that while it is computed: the logits, and of each position some numbers.
    pub(super) fn loss_forward(&self) -> usize {
        let padded = if self.padded_vocab && self.is_narrow() { self.wide_logits } else { 0 };
        self.logits + padded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::kept::layer;
    use crate::{Architecture, Candidate, ContextForm, Executor, Job, ModelConfig, Precision, RecomputeName};

    fn jobs() -> Vec<Job> {
        let mut jobs = Vec::new();
        for name in [ArchitectureName::Llama, ArchitectureName::Gpt2, ArchitectureName::Bert] {
            for (dropout, kv_heads) in [(0.0, 4), (0.1, 4), (0.0, 2), (0.1, 2)] {
                let config = ModelConfig { architecture: name, dropout, kv_heads, ..ModelConfig::default() };
                for (precision, context) in
                    [(Precision::Bf16, ContextForm::Ring), (Precision::Fp32, ContextForm::AllToAll)]
                {
                    jobs.push(Job {
                        architecture: Architecture::resolve(&config, 256, 64).unwrap(),
                        seq: 64,
                        global_batch: 8,
                        precision,
                        moments: 2,
                        bucket_elements: 1000,
                        context,
                        within_documents: false,
                        split: Vec::new(),
                        executor: Executor::ENGINE,
                    });
                }
            }
        }
        jobs
    }

    /// What the forward kept goes, tensor by tensor, and what is left is the gradient of the input.
    #[test]
    fn a_backward_gives_back_all_that_its_forward_kept() {
        let layouts = [(1, 1, false), (2, 1, true), (2, 1, false), (1, 2, false), (4, 1, true)];
        for job in jobs() {
            for ((tp, cp, sequence_parallel), micro_batch) in layouts.into_iter().flat_map(|l| [(l, 1), (l, 2)]) {
                for recompute in [RecomputeName::None, RecomputeName::Selective] {
                    let candidate =
                        Candidate { tp, cp, sequence_parallel, micro_batch, recompute, ..Candidate::default() };
                    let sizes = Sizes::new(&job, &candidate);
                    let kept = layer(&sizes);
                    let mut tape = Tape::from(kept + sizes.hidden);
                    sizes.layer_backward(&mut tape, Manner { held: false, deferred: false });
                    assert_eq!(tape.live(), sizes.hidden, "{job:?} {candidate:?}");
                    assert!(tape.peak() > kept + sizes.hidden);
                    let mut tape = Tape::from(kept + sizes.hidden);
                    sizes.layer_backward(&mut tape, Manner { held: true, deferred: false });
                    assert_eq!(tape.live(), 2 * sizes.hidden, "the giver's too: {job:?} {candidate:?}");
                }
            }
        }
    }
}
