//! The plan as it is written to `plan.json` and printed.

use serde::{Deserialize, Serialize};

use crate::{
    table, Architecture, Axis, Candidate, ContextForm, Degrees, Mesh, Partition, PartitionedParameter, Placement,
    RankBytes, RankMemory, RecomputeName, Schedule, ScheduleName, Storage, Traffic, Zero,
};

/// A layout of a model over ranks, complete and self-contained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The model.
    pub architecture: Architecture,
    /// The ranks.
    pub mesh: Mesh,
    /// What is kept for each element.
    pub storage: Storage,
    /// The vocabulary with its padding.
    pub vocab_padded: usize,
    /// The elements of the whole model, without padding.
    pub elements: usize,
    /// The elements that every rank works on, padding included; of stages, the largest's.
    pub rank_elements: usize,
    /// What every rank stores between steps; all but stages are cut in equal parts, and of those it is the largest's.
    pub rank_bytes: RankBytes,
    /// What the data ranks share out.
    #[serde(default)]
    pub zero: Zero,
    /// The order of work in the pipeline, where there is one.
    #[serde(default)]
    pub schedule: Option<ScheduleName>,
    /// What each rank of the pipeline holds; empty without one.
    #[serde(default)]
    pub stages: Vec<PlannedStages>,
    /// What each rank of the pipeline keeps at its fullest, by component; empty where that was not counted.
    #[serde(default)]
    pub memory: Vec<RankMemory>,
    /// What a step does, where a run is planned and not its storage alone.
    #[serde(default)]
    pub work: Option<PlannedWork>,
    /// All parameters, in the order of [`Architecture::parameters`].
    pub parameters: Vec<PlannedParameter>,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedWork {
    /// Sequences of a micro-batch.
    pub micro_batch: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
    /// The order of work in the pipeline.
    pub schedule: ScheduleName,
    /// Virtual stages of each pipeline rank.
    pub chunks: usize,
    /// Whether activations between tensor-parallel regions are cut along the sequence.
    pub sequence_parallel: bool,
    /// How attention reaches the positions of other context ranks.
    pub context: ContextForm,
    /// What the backward computes again.
    pub recompute: RecomputeName,
    /// With full recompute: every how many-th layer; else 0.
    pub recompute_every: usize,
    /// What each rank of the pipeline hands over in a step, as the first of its data ranks.
    pub traffic: Vec<Traffic>,
}

/// What one rank of the pipeline holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStages {
    /// Its place on the pipeline axis.
    pub rank: usize,
    /// First layer and end of each of its stages.
    pub layers: Vec<[usize; 2]>,
    /// The elements of its parameters, padding included.
    pub elements: usize,
    /// What it stores between steps; with the padding of buckets where [`Plan::memory`] was counted.
    pub bytes: RankBytes,
}

/// One parameter of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedParameter {
    /// The name.
    pub name: String,
    /// The full shape, without padding.
    pub shape: Vec<usize>,
    /// The dim that is cut, if any.
    pub dim: Option<usize>,
    /// Each tensor rank's start and end along `dim`, without padding; empty if every rank holds the whole.
    ///
    /// Tensor ranks are innermost: rank `r` of the world holds entry `r mod tp`.
    pub ranges: Vec<[usize; 2]>,
    /// The shape that every rank stores, padding included.
    pub local_shape: Vec<usize>,
    /// On how many tensor ranks each element lies.
    pub replicas: usize,
    /// Bytes of the parameter itself on every rank.
    pub bytes: usize,
}

impl Plan {
    /// Writes down a partition with the bytes it takes.
    pub fn new(partition: &Partition, storage: Storage) -> Self {
        let rank_elements = partition.local_elements();
        let planned = |parameter| PlannedParameter::new(parameter, storage);
        Self {
            architecture: partition.architecture.clone(),
            mesh: partition.mesh,
            storage,
            vocab_padded: partition.vocab_padded,
            elements: partition.parameters.iter().map(|parameter| parameter.spec.elements()).sum(),
            rank_elements,
            rank_bytes: storage.bytes_of(rank_elements, partition.local_trained()),
            zero: Zero::Replicated,
            schedule: None,
            stages: Vec::new(),
            memory: Vec::new(),
            work: None,
            parameters: partition.parameters.iter().map(planned).collect(),
        }
    }

    /// Writes down how stages are dealt out and what the data ranks share.
    ///
    /// # Panics
    /// If partition or schedule are another model's.
    #[must_use]
    pub fn cut(mut self, partition: &Partition, schedule: &Schedule, zero: Zero) -> Self {
        let stages = &schedule.stages;
        let parts = self.mesh.degree(Axis::Dp) * self.mesh.degree(Axis::Cp);
        let held = |rank: usize| {
            let held = partition.of_rank(stages, rank);
            let elements = held.local_elements();
            let bytes = self.storage.bytes_of(elements, held.local_trained());
            let layers = stages.rank_layers(rank).into_iter().map(|layers| [layers.start, layers.end]).collect();
            PlannedStages { rank, layers, elements, bytes: bytes.shared(zero, parts) }
        };
        let all: Vec<PlannedStages> = (0..stages.pp()).map(held).collect();
        if let Some(largest) = all.iter().max_by_key(|stages| stages.elements) {
            (self.rank_elements, self.rank_bytes) = (largest.elements, largest.bytes);
        }
        self.zero = zero;
        if stages.pp() > 1 {
            (self.schedule, self.stages) = (Some(schedule.name), all);
        }
        self
    }

    /// Writes down what a step does.
    #[must_use]
    pub fn running(self, work: PlannedWork) -> Self {
        Self { work: Some(work), ..self }
    }

    /// Writes down what each rank of the pipeline keeps. What it stores between steps is then told with the padding of buckets.
    ///
    /// # Panics
    /// If there is no rank.
    #[must_use]
    pub fn keeping(mut self, memory: Vec<RankMemory>) -> Self {
        let stored = |memory: &RankMemory| RankBytes {
            parameters: memory.parameters,
            gradients: memory.gradients,
            master: memory.master,
            moments: memory.moments,
        };
        self.stages.iter_mut().zip(&memory).for_each(|(stages, memory)| stages.bytes = stored(memory));
        let bytes = memory.iter().map(stored).max_by_key(RankBytes::total).expect("a pipeline has a rank");
        Self { memory, rank_bytes: bytes, ..self }
    }

    /// Returns the layout as searches have it.
    pub fn candidate(&self) -> Candidate {
        let Degrees { pp, dp, cp, tp, ep } = self.mesh.degrees();
        let bare = Candidate { pp, dp, cp, tp, ep, zero: self.zero, ..Candidate::default() };
        match &self.work {
            None => bare,
            Some(work) => Candidate {
                chunks: work.chunks,
                schedule: work.schedule,
                micro_batch: work.micro_batch,
                recompute: work.recompute,
                recompute_every: work.recompute_every,
                sequence_parallel: work.sequence_parallel,
                ..bare
            },
        }
    }

    /// Writes the plan for people: a line a parameter with its name, full shape, cut dim, each tensor rank's range, and
    /// bytes a rank, where `layers.*` stands for each layer; what each rank of the pipeline holds and keeps; then the sums.
    ///
    /// With more than four tensor ranks, lines show only the first two and the last, and a table has all.
    pub fn table(&self) -> String {
        table::table(self)
    }
}

impl PlannedParameter {
    fn new(parameter: &PartitionedParameter, storage: Storage) -> Self {
        let (dim, ranges) = match &parameter.tp {
            Placement::Replicated { .. } => (None, Vec::new()),
            Placement::Sharded { dim, ranges, .. } => {
                (Some(*dim), ranges.iter().map(|range| [range.start, range.end]).collect())
            }
        };
        Self {
            name: parameter.spec.name.clone(),
            shape: parameter.spec.shape.clone(),
            dim,
            ranges,
            local_shape: parameter.local_shape(),
            replicas: parameter.replicas(),
            bytes: storage.bytes(parameter.local_elements()).parameters,
        }
    }
}
