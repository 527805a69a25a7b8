//! The partition of a whole model: for every parameter, which rows or columns each rank holds.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{
    degrees::{check_tensor, refuse_uncut},
    Architecture, Axis, Cut, LoraConfig, Mesh, ParameterSpec, Placement, Result, Stages,
};

pub use crate::degrees::{check_sequence, sequence_parallel};

/// A model's parameters with their placements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Partition {
    /// The model.
    pub architecture: Architecture,
    /// The ranks.
    pub mesh: Mesh,
    /// All parameters, in the order of [`Architecture::parameters`]; after them the adapters, where there are any.
    pub parameters: Vec<PartitionedParameter>,
    /// The vocabulary with its padding: the next multiple of the tensor degree.
    pub vocab_padded: usize,
    /// What is trained instead of the model's own parameters; see [`Partition::adapted`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
}

impl Partition {
    /// Cuts every parameter of a model over the tensor axis of a mesh.
    ///
    /// Embedding and head are cut by vocabulary, queries, keys and values by heads, the attention's output by the same
    /// heads, the MLP by its hidden columns; norms, learned positions and biases of row-parallel layers are whole on
    /// every rank. All other axes replicate.
    ///
    /// # Errors
    /// What [`Architecture::check`] and [`check_tensor`] refuse, and [`Error::Uncut`](crate::Error::Uncut) for a mesh
    /// with an axis along which models are not cut.
    ///
    /// # Source
    /// Shoeybi et al. 2019, arXiv:1909.08053, §3. The paper pads the vocabulary to a multiple of 128 a rank; here each
    /// rank gets the fewest equal rows.
    pub fn new(architecture: &Architecture, mesh: &Mesh) -> Result<Self> {
        let tp = mesh.degree(Axis::Tp);
        architecture.check()?;
        refuse_uncut(&mesh.degrees())?;
        check_tensor(architecture, tp)?;
        let place = |spec: ParameterSpec| {
            let placement = place(architecture, &spec, tp);
            PartitionedParameter { spec, tp: placement, tie: Tie::None }
        };
        Ok(Self {
            architecture: architecture.clone(),
            mesh: *mesh,
            parameters: architecture.parameters().into_iter().map(place).collect(),
            vocab_padded: architecture.vocab.div_ceil(tp) * tp,
            lora: None,
        })
    }

    /// Freezes the model and adds adapters to train in its place; a rank of 0 changes nothing.
    ///
    /// Of the two factors of an adapter the one on the cut side of its matrix is cut like it, and the other is whole on every
    /// tensor rank.
    ///
    /// # Errors
    /// [`Error::Target`](crate::Error::Target), [`Error::Zero`](crate::Error::Zero) and
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for adapters that cannot be.
    pub fn adapted(mut self, lora: &LoraConfig) -> Result<Self> {
        if lora.rank == 0 {
            return Ok(self);
        }
        let base: Vec<ParameterSpec> = self.parameters.iter().map(|parameter| parameter.spec.clone()).collect();
        let tp = self.mesh.degree(Axis::Tp);
        self = self.frozen();
        let adapters = lora.parameters(&base)?.into_iter().map(|spec| {
            let placement = place(&self.architecture, &spec, tp);
            PartitionedParameter { spec, tp: placement, tie: Tie::None }
        });
        self.parameters.extend(adapters);
        self.lora = Some(lora.clone());
        Ok(self)
    }

    /// Takes the parameters that one rank of a pipeline holds, in order.
    ///
    /// # Panics
    /// If the stages are another model's, or there is no such rank.
    pub fn of_rank(&self, stages: &Stages, rank: usize) -> Self {
        assert_eq!(stages.total(), self.architecture.layers, "the stages of this model");
        let (first, last) = (stages.rank_of(0), stages.rank_of(stages.count() - 1));
        let tied = self.architecture.tie_embeddings && first != last;
        let layers = stages.rank_layers(rank);
        let held = |parameter: &&PartitionedParameter| match (parameter.spec.layer, parameter.spec.name.as_str()) {
            (Some(layer), _) => layers.iter().any(|range| range.contains(&layer)),
            (None, "embedding.weight") => rank == first || (tied && rank == last),
            (None, _) if parameter.spec.is_entrance() => rank == first,
            (None, _) => rank == last,
        };
        let marked = |parameter: &PartitionedParameter| {
            let table = parameter.spec.name == "embedding.weight";
            let tie = match (tied && table, rank == first) {
                (false, _) => Tie::None,
                (true, true) => Tie::Original,
                (true, false) => Tie::Copy,
            };
            PartitionedParameter { tie, ..parameter.clone() }
        };
        let parameters = self.parameters.iter().filter(held).map(marked).collect();
        Self { parameters, ..self.clone() }
    }

    /// Finds a parameter by name.
    pub fn get(&self, name: &str) -> Option<&PartitionedParameter> {
        self.parameters.iter().find(|parameter| parameter.spec.name == name)
    }

    /// Counts the elements that every rank stores, padding included.
    pub fn local_elements(&self) -> usize {
        self.parameters.iter().map(PartitionedParameter::local_elements).sum()
    }

    /// Returns the same parameters, none of them trained.
    #[must_use]
    pub fn frozen(mut self) -> Self {
        self.parameters.iter_mut().for_each(|parameter| parameter.spec.frozen = true);
        self
    }

    /// Lists the parameters that are trained.
    pub fn trained(&self) -> impl Iterator<Item = &PartitionedParameter> {
        self.parameters.iter().filter(|parameter| !parameter.spec.frozen)
    }

    /// Counts those of them that are trained.
    pub fn local_trained(&self) -> usize {
        self.trained().map(PartitionedParameter::local_elements).sum()
    }
}

/// Cuts one parameter.
fn place(architecture: &Architecture, spec: &ParameterSpec, tp: usize) -> Placement {
    let &Architecture { heads, kv_heads, head_dim, ffn, .. } = architecture;
    match spec.cut {
        Cut::Nothing | Cut::Partial => Placement::Replicated { ranks: tp },
        Cut::Vocabulary => Placement::padded(0, architecture.vocab, tp),
        Cut::QueryHeads { dim } => Placement::by_units(dim, heads, head_dim, tp),
        Cut::KeyValueHeads => Placement::by_units(0, kv_heads, head_dim, tp),
        Cut::Hidden { dim } => Placement::by_units(dim, ffn, 1, tp),
    }
}

/// A parameter with its placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartitionedParameter {
    /// The whole parameter.
    pub spec: ParameterSpec,
    /// How it lies on the tensor axis.
    pub tp: Placement,
    /// Whether another pipeline rank holds it too.
    #[serde(default, skip_serializing_if = "Tie::is_none")]
    pub tie: Tie,
}

/// Whether another pipeline rank holds a parameter too: a table that is both embedding and head, with the two ends of
/// the model on different ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tie {
    /// No other.
    #[default]
    None,
    /// This is the embedding, which counts; the last stage holds a copy.
    Original,
    /// This is the head, a copy of the first stage's embedding.
    Copy,
}

impl Tie {
    fn is_none(&self) -> bool {
        *self == Tie::None
    }
}

impl PartitionedParameter {
    /// Returns the shape that every rank stores, padding included.
    pub fn local_shape(&self) -> Vec<usize> {
        let mut shape = self.spec.shape.clone();
        if let Placement::Sharded { dim, local_len, .. } = self.tp {
            shape[dim] = local_len;
        }
        shape
    }

    /// Counts the elements that every rank stores, padding included.
    pub fn local_elements(&self) -> usize {
        self.local_shape().iter().product()
    }

    /// Returns the dim and the range of the full, unpadded tensor that a tensor rank holds, or `None` if all of it.
    ///
    /// The range fills the first rows of the shard; what is left up to [`local_shape`](Self::local_shape) is padding.
    ///
    /// # Panics
    /// If `tp_rank` is not below the tensor degree.
    pub fn range(&self, tp_rank: usize) -> Option<(usize, Range<usize>)> {
        self.tp.range(tp_rank)
    }

    /// Returns on how many tensor ranks each element lies.
    pub fn replicas(&self) -> usize {
        self.tp.replicas()
    }

    /// Returns what a gradient still needs on the tensor axis after a backward pass, before any sum over data ranks.
    pub fn gradient_sync(&self, sequence_parallel: bool) -> GradientSync {
        match (&self.tp, self.replicas()) {
            _ if self.spec.frozen => GradientSync::None,
            (_, 1) => GradientSync::None,
            (Placement::Replicated { .. }, _) if self.spec.cut == Cut::Partial => GradientSync::SumOverTp,
            // Each replica saw only its own query heads.
            (Placement::Sharded { .. }, group_size) => GradientSync::SumOverReplicas { group_size },
            // Each rank saw only its own part of the sequence; without that cut, all saw the same.
            (Placement::Replicated { .. }, _) if sequence_parallel => GradientSync::SumOverTp,
            (Placement::Replicated { .. }, _) => GradientSync::None,
        }
    }
}

/// What a gradient still needs on the tensor axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum GradientSync {
    /// Nothing: it is complete.
    None,
    /// A sum over each set of consecutive tensor ranks that hold the same elements.
    SumOverReplicas {
        /// The number of ranks in a set; set `i` is tensor ranks `i·group_size .. (i+1)·group_size`.
        group_size: usize,
    },
    /// A sum over the tensor group.
    SumOverTp,
}
