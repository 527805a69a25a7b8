//! What a rank hands over to the others in one training step, by group: exact in bytes, as a ledger records it.
//!
//! Bytes handed over are those of the buffer given to a call: all of it for an all-reduce or a reduce-scatter, the own
//! part for an all-gather, the message for a send; receiving counts nothing.
//!
//! Legend: `b` sequences of a micro-batch, `s` tokens of a sequence that a rank holds, `d` width, `e` bytes of an
//! activation, `g` bytes of a gradient.

use serde::{Deserialize, Serialize};

use crate::{
    lora::FIRST_FACTOR, Arrangement, Axis, ContextForm, GradientSync, Partition, PartitionedParameter, Payload,
    Precision, Schedule, Step, Tie, Zero,
};

/// What a step works on, beside the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Sequences in a micro-batch.
    pub micro_batch: usize,
    /// Tokens of a whole sequence.
    pub seq: usize,
    /// Whether activations between tensor-parallel regions are cut along the sequence.
    pub sequence_parallel: bool,
    /// How attention reaches other ranks' positions.
    pub context: ContextForm,
    /// Every how many-th layer runs forward once more in the backward; 0: none.
    pub recompute_every: usize,
    /// The numbers.
    pub precision: Precision,
}

/// Bytes that a rank hands over in a step, by group. Groups of one rank have nobody to hand to.
///
/// # Units
/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// To the ranks that share each matrix, those that share key/value heads included.
    pub tp: u64,
    /// To the ranks that share each sequence.
    pub cp: u64,
    /// To the ranks that hold the same shards and see different tokens.
    pub data: u64,
    /// To the ranks of other stages.
    pub pp: u64,
    /// To the other rank that holds a table of both ends.
    pub ends: u64,
}

/// A number that all ranks of a group add up: the squared norm, the loss.
const SCALAR: usize = 8;

impl Traffic {
    /// Counts one step of rank `rank` of the pipeline, which holds `partition` arranged as `arrangement`, as the data
    /// rank that owns part `part` of each bucket.
    pub fn of(
        partition: &Partition,
        arrangement: &Arrangement,
        part: usize,
        schedule: &Schedule,
        rank: usize,
        workload: &Workload,
    ) -> Self {
        let count = Count { partition, arrangement, part, schedule, rank, workload };
        let degree = |axis| partition.mesh.degree(axis);
        let counted = |degree: usize, bytes: usize| if degree > 1 { bytes as u64 } else { 0 };
        Self {
            tp: counted(degree(Axis::Tp), count.tensor()),
            cp: counted(degree(Axis::Cp), count.context()),
            data: counted(degree(Axis::Dp) * degree(Axis::Cp), count.data()),
            pp: counted(degree(Axis::Pp), count.pipeline()),
            ends: count.ends() as u64,
        }
    }

    /// Adds everything up.
    pub fn total(&self) -> u64 {
        self.tp + self.cp + self.data + self.pp + self.ends
    }
}

struct Count<'a> {
    partition: &'a Partition,
    arrangement: &'a Arrangement,
    part: usize,
    schedule: &'a Schedule,
    rank: usize,
    workload: &'a Workload,
}

impl Count<'_> {
    fn degree(&self, axis: Axis) -> usize {
        self.partition.mesh.degree(axis)
    }

    fn layers(&self) -> usize {
        self.schedule.stages.rank_layers(self.rank).iter().map(|layers| layers.len()).sum()
    }

    /// Layers that run forward twice.
    fn repeated(&self) -> usize {
        let every = self.workload.recompute_every;
        let layers = self.schedule.stages.rank_layers(self.rank).into_iter().flatten();
        layers.filter(|layer| every > 0 && layer.is_multiple_of(every)).count()
    }

    fn holds(&self, stage: usize) -> bool {
        self.schedule.stages.rank_of(stage) == self.rank
    }

    /// Tokens of a micro-batch that this rank sees.
    fn tokens(&self) -> usize {
        self.workload.micro_batch * self.workload.seq / self.degree(Axis::Cp)
    }

    /// Bytes of an activation as column-parallel layers read it, `b·s·d·e`.
    fn activation(&self) -> usize {
        self.tokens() * self.partition.architecture.hidden * self.workload.precision.parameter_bytes()
    }

    /// Says whether a matrix is trained.
    fn trains(&self, name: &str) -> bool {
        self.partition.get(name).is_some_and(|parameter| !parameter.spec.frozen)
    }

    /// Counts the column-parallel products of a layer that read their input again in the backward: those that train
    /// something, be it an adapter.
    fn reads_again(&self, layer: usize) -> usize {
        let products = [
            ["query", "key", "value"].map(|name| format!("layers.{layer}.attention.{name}")).to_vec(),
            ["gate", "up"].map(|name| format!("layers.{layer}.mlp.{name}")).to_vec(),
        ];
        let trained =
            |name: &String| ["weight", FIRST_FACTOR].iter().any(|last| self.trains(&format!("{name}.{last}")));
        products.iter().filter(|names| names.iter().any(trained)).count()
    }

    /// A layer has two column- and two row-parallel products. Without sequence shards each pair all-reduces once forward
    /// and once backward; with them a column-parallel product gathers forward and again backward, and scatters its input's
    /// gradient; a row-parallel one scatters forward and gathers backward.
    fn tensor(&self) -> usize {
        let (all, own) = match self.workload.sequence_parallel {
            true => (self.activation(), self.activation() / self.degree(Axis::Tp)),
            false => (self.activation(), 0),
        };
        let mut bytes = self.layers() * (4 * all + 4 * own) + self.repeated() * (2 * all + 2 * own);
        let layers = self.schedule.stages.rank_layers(self.rank).into_iter().flatten();
        bytes += layers.map(|layer| self.reads_again(layer) * own).sum::<usize>();
        if self.holds(0) {
            bytes += all + if self.trains("embedding.weight") { own } else { 0 };
        }
        if self.holds(self.schedule.stages.count() - 1) {
            // The largest logit; the sum of exponentials and the target's logit.
            let table = if self.partition.architecture.tie_embeddings { "embedding.weight" } else { "head.weight" };
            bytes += all + own + if self.trains(table) { own } else { 0 };
            bytes += 3 * self.tokens() * self.workload.precision.state_bytes();
            // The sequences' loss, known to the rank that holds their first token.
            let told = self.workload.sequence_parallel && self.partition.architecture.next_sentence;
            bytes += if told { self.workload.precision.state_bytes() } else { 0 };
        }
        bytes * self.schedule.micro_batches + self.completion() + SCALAR
    }

    /// What completes the gradients of parameters on several tensor ranks: each rank's own elements.
    fn completion(&self) -> usize {
        let owned = |index: usize| -> usize {
            let range = self.arrangement.ranges()[index].clone();
            self.arrangement.owned_of(self.part, range).iter().map(|piece| piece.len()).sum()
        };
        let partial = |index: &usize| {
            let parameter = &self.partition.parameters[*index];
            parameter.gradient_sync(self.workload.sequence_parallel) != GradientSync::None
        };
        let partial = (0..self.partition.parameters.len()).filter(partial);
        let elements: usize = partial.map(owned).sum();
        elements * self.workload.precision.state_bytes()
    }

    /// A ring passes keys and values on forward, and backward again with their gradients behind; an exchange gives away
    /// queries, keys and values, takes the result back, and the same in the backward.
    fn context(&self) -> usize {
        let (tp, cp) = (self.degree(Axis::Tp), self.degree(Axis::Cp));
        let architecture = &self.partition.architecture;
        let (query, key_value) = (architecture.heads / tp, (architecture.kv_heads / tp).max(1));
        let precision = self.workload.precision;
        let head = self.tokens() * architecture.head_dim;
        let (forward, backward) = match self.workload.context {
            ContextForm::Ring => {
                let pair = (cp - 1) * 2 * key_value * head;
                let forward = pair * precision.parameter_bytes();
                (forward, forward + pair * precision.state_bytes())
            }
            ContextForm::AllToAll => {
                let both = (2 * query + 2 * key_value.max(cp)) * head * precision.parameter_bytes();
                (both, both)
            }
        };
        (self.layers() * (forward + backward) + self.repeated() * forward) * self.schedule.micro_batches
    }

    /// Gradients, by the stage of sharing: all-reduced or scattered once a step, or scattered in each micro-batch; updated
    /// values gathered once a step, or those of each unit twice in each micro-batch, of the entrance once (its backward
    /// multiplies by nothing), and a table that is also the head with the exit.
    fn data(&self) -> usize {
        let precision = self.workload.precision;
        let gradients = self.arrangement.trained_elements() * precision.state_bytes();
        let values = self.arrangement.own_elements() * precision.parameter_bytes();
        let micro_batches = self.schedule.micro_batches;
        match self.arrangement.zero() {
            Zero::Replicated => gradients + SCALAR,
            Zero::Optimizer => gradients + values + 2 * SCALAR,
            Zero::Gradients => micro_batches.saturating_mul(gradients).saturating_add(values + 2 * SCALAR),
            Zero::Parameters => {
                let entrance: usize = self.arrangement.units().first().map_or(0, |unit| {
                    unit.buckets.clone().map(|bucket| self.arrangement.own_part(bucket, self.part).len()).sum()
                });
                let values = self.arrangement.kept_elements() * precision.parameter_bytes();
                let entrance = entrance * precision.parameter_bytes();
                let gathered = match self.partition.architecture.tie_embeddings {
                    true => 2 * values + entrance,
                    false => 2 * values - entrance,
                };
                micro_batches.saturating_mul(gradients + gathered).saturating_add(2 * SCALAR)
            }
        }
    }

    /// One message for each of the list's sends; the norm and the loss.
    fn pipeline(&self) -> usize {
        let sent = |step: &&Step| matches!(step, Step::Send { payload: Payload::Activation | Payload::Gradient, .. });
        let messages = self.schedule.ranks[self.rank].iter().filter(sent).count();
        let message = match self.workload.sequence_parallel {
            true => self.activation() / self.degree(Axis::Tp),
            false => self.activation(),
        };
        messages * message + 2 * SCALAR
    }

    fn ends(&self) -> usize {
        let sums = |parameter: &&PartitionedParameter| parameter.tie != Tie::None && !parameter.spec.frozen;
        let tied = self.partition.parameters.iter().find(sums);
        tied.map_or(0, |table| table.local_elements() * self.workload.precision.state_bytes())
    }
}
