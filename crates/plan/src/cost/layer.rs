//! What one layer, the entrance and the exit take for one micro-batch on one rank: the operations that the engine runs, by
//! shape.
//!
//! Legend: `n` tokens of a micro-batch on this rank, `d` width, `q`, `kv` heads of this rank, `k` head width, `f` this rank's
//! columns of the MLP, `v` its rows of the vocabulary, `e` bytes of an activation.

use crate::{
    cost::{Collective, CostModel, Group, Terms},
    ArchitectureName, Axis, Candidate, ContextForm, Job, RecomputeName,
};

/// What forward and both halves of backward take.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Passes {
    /// The forward.
    pub forward: Terms,
    /// The gradient of the input.
    pub input: Terms,
    /// The gradients of the weights.
    pub weight: Terms,
}

/// What the parts of a model take.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Parts {
    /// One layer.
    pub layer: Passes,
    /// The same layer computed again in the backward.
    pub again: Terms,
    /// The embedding.
    pub entrance: Passes,
    /// The head and the loss.
    pub exit: Passes,
}

/// The shapes of a layout's operations.
struct Shapes<'a> {
    job: &'a Job,
    candidate: &'a Candidate,
    costs: &'a dyn CostModel,
    tensor: Group,
    context: Group,
    /// `n`.
    tokens: usize,
    /// Tokens between tensor-parallel regions.
    between: usize,
    query: usize,
    key_value: usize,
    /// Columns of the first product of the MLP.
    widened: usize,
    ffn: usize,
    vocab: usize,
    /// `e`.
    bytes: f64,
}

impl Parts {
    /// Puts times to the parts of a job in a layout, on nodes of `devices`.
    pub fn of(job: &Job, candidate: &Candidate, costs: &dyn CostModel, devices: usize) -> Self {
        let shapes = Shapes::new(job, candidate, costs, devices);
        let layer = shapes.layer();
        let again = match candidate.recompute {
            RecomputeName::Full => recomputed(layer.forward),
            // All but the attention's core is kept.
            RecomputeName::None | RecomputeName::Selective => Terms::default(),
        };
        let mut layer = layer;
        if candidate.recompute == RecomputeName::Selective {
            layer.input.recompute += shapes.core().0;
        }
        Self { layer, again, entrance: shapes.entrance(), exit: shapes.exit() }
    }
}

/// Books all of a pass under what is computed again.
fn recomputed(pass: Terms) -> Terms {
    Terms { recompute: pass.total(), ..Terms::default() }
}

impl<'a> Shapes<'a> {
    fn new(job: &'a Job, candidate: &'a Candidate, costs: &'a dyn CostModel, devices: usize) -> Self {
        let (architecture, tp) = (&job.architecture, candidate.tp);
        let ffn = architecture.ffn / tp;
        Self {
            job,
            candidate,
            costs,
            tensor: Group::of(candidate.neighbours(Axis::Tp, devices)),
            context: Group::of(candidate.neighbours(Axis::Cp, devices)),
            tokens: candidate.tokens(job),
            between: candidate.tokens(job) / candidate.sequence_parts(),
            query: architecture.heads / tp,
            key_value: (architecture.kv_heads / tp).max(1),
            widened: if architecture.name == ArchitectureName::Llama { 2 * ffn } else { ffn },
            ffn,
            vocab: architecture.vocab.div_ceil(tp),
            bytes: job.precision.parameter_bytes() as f64,
        }
    }

    fn product(&self, shape: [usize; 3]) -> f64 {
        self.costs.product(1, shape, self.job.precision)
    }

    /// Times `passes` over `elements` elements in the precision of activations.
    fn sweep(&self, passes: f64, elements: usize, starts: usize) -> f64 {
        self.costs.memory(passes * elements as f64 * self.bytes, starts)
    }

    /// Bytes of an activation that column-parallel layers read.
    fn activation(&self) -> f64 {
        (self.tokens * self.job.architecture.hidden) as f64 * self.bytes
    }

    /// The collective that opens or closes a region forward: a sum of all, or half of one where the sequence is cut.
    fn boundary(&self) -> f64 {
        match self.candidate.sequence_parallel {
            true => self.costs.collective(Collective::AllGather, self.activation(), self.tensor),
            false => self.costs.collective(Collective::AllReduce, self.activation(), self.tensor),
        }
    }

    /// The width of the attention's first product and of what the second reads.
    fn attention_widths(&self) -> [usize; 2] {
        let k = self.job.architecture.head_dim;
        [(self.query + 2 * self.key_value) * k, self.query * k]
    }

    /// A layer's products by weights as `[out, in]`; every second one is row-parallel.
    fn matrices(&self) -> [[usize; 2]; 4] {
        let d = self.job.architecture.hidden;
        let [entering, leaving] = self.attention_widths();
        [[entering, d], [d, leaving], [self.widened, d], [d, self.ffn]]
    }

    /// Times the gradient of a weight: the product, and adding it to the sum.
    fn weight(&self, matrix: [usize; 2]) -> Terms {
        self.weight_of(self.tokens, matrix)
    }

    /// The same of a matrix that meets so many vectors.
    fn weight_of(&self, vectors: usize, [out, into]: [usize; 2]) -> Terms {
        let products = self.product([out, into, vectors]);
        Terms { products, elements: self.accumulation(out * into), ..Terms::default() }
    }

    /// Adds a fresh gradient to the sum; in the sum's own precision the product does that.
    fn accumulation(&self, elements: usize) -> f64 {
        let (fresh, state) = (self.job.precision.parameter_bytes(), self.job.precision.state_bytes());
        match fresh < state {
            true => self.costs.memory((elements * (fresh + 2 * state)) as f64, 1),
            false => self.costs.memory((elements * state) as f64, 0),
        }
    }

    fn layer(&self) -> Passes {
        let mut passes = Passes::default();
        for (index, matrix) in self.matrices().into_iter().enumerate() {
            let [out, into] = matrix;
            passes.forward.products += self.product([self.tokens, out, into]);
            let input = self.product([self.tokens, into, out]);
            passes.input.products += input;
            let weight = self.weight(matrix);
            passes.weight += weight;
            passes.add_collectives(self, index.is_multiple_of(2), [input, weight.total()]);
        }
        let (forward, backward) = self.core();
        passes.forward.attention += forward;
        passes.input.attention += backward;
        let (forward, backward) = self.ring(forward, backward);
        passes.forward.context += forward;
        passes.input.context += backward;
        let (forward, backward) = self.elements();
        passes.forward.elements += forward;
        passes.input.elements += backward;
        passes
    }

    /// Times the attention's core, forward and backward.
    fn core(&self) -> (f64, f64) {
        let architecture = &self.job.architecture;
        let (k, seq) = (architecture.head_dim, self.job.seq);
        let keys = architecture.window.map_or(seq, |window| window.min(seq));
        let repeats = if self.query > self.key_value { 2 * self.query } else { 0 };
        let copies = self.sweep(2.0, self.tokens * repeats * k, usize::from(repeats > 0));
        // The fused kernel leaves out blocks that no query sees; backward it makes five products to two forward, for it keeps
        // no weights.
        let seen = if architecture.causal() && keys == seq { 0.5 } else { 1.0 };
        let flop = 4.0 * (self.tokens * self.query * k) as f64 * keys as f64 * seen;
        let run = |factor: f64| self.costs.attention(factor * flop, self.job.precision);
        if let (false, Some(forward), Some(backward)) = (self.job.stores_attention(), run(1.0), run(2.5)) {
            return (forward + copies, backward + 2.0 * copies);
        }
        let pieces = self.candidate.micro_batch * self.query;
        let queries = seq / self.candidate.cp;
        let product = |shape| self.costs.product(pieces, shape, self.job.precision);
        let [scores, mixed] = [product([queries, seq, k]), product([queries, k, seq])];
        let weights = pieces * queries * seq;
        // Scores are written, read and masked, read and turned to weights, and those are read, dropped from, and read again.
        let forward = scores + mixed + self.sweep(7.0, weights, 5) + copies;
        // Gradients of dropped weights, weights and scores: written and read, with what was kept of each.
        (forward, 2.0 * (scores + mixed) + self.sweep(10.0, weights, 7) + 2.0 * copies)
    }

    /// Times what the context group is waited for, with the core's own times to hide behind.
    fn ring(&self, forward: f64, backward: f64) -> (f64, f64) {
        let cp = self.candidate.cp;
        if cp == 1 {
            return (0.0, 0.0);
        }
        let k = self.job.architecture.head_dim;
        let state = self.job.precision.state_bytes() as f64;
        let pair = (2 * self.tokens * self.key_value * k) as f64;
        match self.job.context {
            ContextForm::Ring => {
                let inside = self.context.neighbours == self.context.size;
                let hops = (cp - 1) as f64;
                let message = |bytes: f64| self.costs.message(bytes, inside);
                let overlap = self.costs.overlap();
                let wait =
                    |time: f64, message: f64| hops * (message - (time / cp as f64).min(overlap * message)).max(0.0);
                // What blocks found is merged, and their gradients are added, with all digits.
                let merged = hops * self.costs.memory(4.0 * state * (self.tokens * self.query * k) as f64, 4);
                let added = hops * self.costs.memory(3.0 * state * pair, 2);
                (
                    merged + wait(forward, message(pair * self.bytes)),
                    merged + added + wait(backward, message(pair * self.bytes) + message(pair * state)),
                )
            }
            ContextForm::AllToAll => {
                let given = self.tokens * (2 * self.query + 2 * self.key_value.max(cp)) * k;
                let bytes = given as f64 * self.bytes / 2.0;
                let both = 2.0 * self.costs.collective(Collective::AllToAll, bytes, self.context);
                (both, both)
            }
        }
    }

    /// Times a layer's operations element by element, forward and backward.
    fn elements(&self) -> (f64, f64) {
        let architecture = &self.job.architecture;
        let between = self.between * architecture.hidden;
        // Two norms (read, write) and two sums (two read, one written); what is dropped or biased on the way to a sum reads a
        // mask, is read once more and written once more in part, for such operations are fused as far as they can be.
        let drops = if architecture.dropout > 0.0 { 1.0 } else { 0.0 };
        let biases = if architecture.bias { 1.0 } else { 0.0 };
        let outside = self.sweep(10.0 + 3.0 * drops + 2.0 * biases, between, 6);
        // Norms read gradient and input and write; where ways meet again gradients are added.
        let outside_back = self.sweep(12.0 + 4.0 * drops + 2.0 * biases, between, 8);
        let hidden = self.tokens * self.ffn;
        let (inside, inside_back) = match architecture.name {
            // silu reads and writes, the product reads two; backward reads four, writes three.
            ArchitectureName::Llama => (self.sweep(5.0, hidden, 2), self.sweep(8.0, hidden, 4)),
            ArchitectureName::Gpt2 | ArchitectureName::Bert => (self.sweep(2.0, hidden, 1), self.sweep(3.0, hidden, 1)),
        };
        let heads = self.tokens * (self.query + self.key_value) * architecture.head_dim;
        let turned = match architecture.name {
            ArchitectureName::Llama => self.sweep(4.0, heads, 4),
            ArchitectureName::Gpt2 | ArchitectureName::Bert => 0.0,
        };
        // Gradients of queries, keys and values are put side by side.
        let joined = self.sweep(2.0, self.tokens * self.attention_widths()[0], 1);
        (outside + inside + turned, outside_back + inside_back + turned + joined)
    }

    /// Times the embedding: rows are read and written, their gradients added to the table.
    fn entrance(&self) -> Passes {
        let d = self.job.architecture.hidden;
        let mut passes = Passes::default();
        passes.forward.elements = self.sweep(3.0, self.tokens * d, 2) + self.sweep(4.0, self.between * d, 2);
        passes.forward.tensor = self.boundary();
        if self.job.architecture.name == ArchitectureName::Bert {
            // Types are looked up and added; the sum is normed, and backward through the norm.
            passes.forward.elements += self.sweep(5.0, self.between * d, 3);
            passes.input.elements = self.sweep(3.0, self.between * d, 1);
        }
        let state = self.job.precision.state_bytes() as f64;
        passes.weight.elements = self.costs.memory(3.0 * state * (self.tokens * d) as f64, 3);
        if self.candidate.sequence_parallel {
            passes.weight.tensor = self.costs.collective(Collective::AllGather, self.activation(), self.tensor);
        }
        passes
    }

    /// Times the last norm, the heads and the loss, which is computed with all digits.
    fn exit(&self) -> Passes {
        let (d, n) = (self.job.architecture.hidden, self.tokens);
        let mut passes = Passes::default();
        passes.forward.products = self.product([n, self.vocab, d]);
        passes.input.products = self.product([n, d, self.vocab]);
        let weight = self.weight([self.vocab, d]);
        passes.weight = weight;
        passes.add_collectives(self, true, [passes.input.products, weight.total()]);
        let state = self.job.precision.state_bytes() as f64;
        let (logits, wide) = ((n * self.vocab) as f64 * self.bytes, (n * self.vocab) as f64 * state);
        // Converted; largest found, taken off, exponentials, summed, divided.
        let loss = self.costs.memory(logits + 9.0 * wide, 8);
        passes.forward.elements = loss + self.sweep(2.0, self.between * d, 1);
        passes.input.elements = self.costs.memory(logits + 3.0 * wide, 3) + self.sweep(3.0, self.between * d, 1);
        // The largest logit; the sum of exponentials and the target's logit.
        let sum =
            |numbers: usize| self.costs.collective(Collective::AllReduce, (numbers * n) as f64 * state, self.tensor);
        passes.forward.tensor += sum(1) + sum(2);
        if self.job.architecture.name == ArchitectureName::Bert {
            passes.add(&self.transform());
        }
        if self.job.architecture.next_sentence {
            passes.add(&self.next_sentence());
        }
        passes
    }

    /// Times what bert's last hidden states go through before they meet the vocabulary: a square matrix, whole on every tensor
    /// rank, and an activation; the norm is that of every exit.
    fn transform(&self) -> Passes {
        let d = self.job.architecture.hidden;
        let mut passes = self.dense(self.between, [d, d]);
        passes.forward.elements = self.sweep(2.0, self.between * d, 1);
        passes.input.elements = self.sweep(3.0, self.between * d, 1);
        passes
    }

    /// Times the head for whole sequences, of which each has one vector.
    fn next_sentence(&self) -> Passes {
        let (d, sequences) = (self.job.architecture.hidden, self.candidate.micro_batch);
        let mut passes = self.dense(sequences, [d, d]);
        passes.add(&self.dense(sequences, [2, d]));
        if self.candidate.sequence_parallel {
            // The loss is told by the rank that has the first position.
            let number = self.job.precision.state_bytes() as f64;
            passes.forward.tensor = self.costs.collective(Collective::AllReduce, number, self.tensor);
        }
        passes
    }

    /// Times a linear layer that is whole on every tensor rank, of so many vectors.
    fn dense(&self, vectors: usize, matrix: [usize; 2]) -> Passes {
        let [out, into] = matrix;
        let mut passes = Passes { weight: self.weight_of(vectors, matrix), ..Passes::default() };
        passes.forward.products = self.product([vectors, out, into]);
        passes.input.products = self.product([vectors, into, out]);
        passes
    }
}

impl Passes {
    /// Adds what a linear layer waits for the tensor group: a column-parallel one where its input enters, and backward for
    /// the sum that travels behind the product for the weights; a row-parallel one where its output leaves. `behind` is what
    /// the gradients of input and weights take.
    ///
    /// Where a schedule puts the product for the weights off, nothing travels behind it.
    fn add_collectives(&mut self, shapes: &Shapes<'_>, column: bool, behind: [f64; 2]) {
        let boundary = shapes.boundary();
        let overlap = shapes.costs.overlap();
        let waits = |behind: f64, hides: bool| if hides { boundary - behind.min(overlap * boundary) } else { boundary };
        let hides = shapes.job.executor.hides_tensor;
        let [input, weight] = behind;
        let reduced = waits(weight, hides && !shapes.candidate.schedule.splits_backward());
        match (column, shapes.candidate.sequence_parallel) {
            (true, true) => {
                self.forward.tensor += boundary;
                // Gathered again behind the product for the input, and then that is scattered, which takes as long.
                self.input.tensor += waits(input, hides) + reduced;
            }
            (true, false) => self.input.tensor += reduced,
            (false, true) => {
                self.forward.tensor += boundary;
                self.input.tensor += boundary;
            }
            (false, false) => self.forward.tensor += boundary,
        }
    }
}
