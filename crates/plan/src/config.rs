//! The `[model]` and `[parallel]` sections of a configuration, as typed by the user.
//!
//! Zero and "auto" mean "choose for me". What they resolve to is decided in [`crate::architecture`],
//! [`crate::mesh`] and [`crate::schedule`]; nothing here checks one value against another.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ParallelKey, ScheduleName, Zero};

/// The model families that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ArchitectureName {
    /// RMSNorm, rotary positions, SwiGLU, grouped-query attention.
    Llama,
    /// LayerNorm, learned positions, GELU, biases.
    Gpt2,
    /// LayerNorm behind each half of a layer, learned positions, token types, exact GELU, biases, attention in both
    /// directions; trained on masked tokens.
    Bert,
}

/// A rotary-position scaling rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Every angle divided by `factor`.
    Linear {
        /// The divisor of positions.
        factor: f64,
    },
    /// As in Llama 3.1: slow angles, of which the original context saw few turns, divided by `factor`, fast ones kept, those
    /// between blended.
    Llama3 {
        /// The divisor of slow angles.
        factor: f64,
        /// An angle is slow that makes at most so many turns in the original context.
        low_freq_factor: f64,
        /// An angle is fast that makes at least so many turns in it.
        high_freq_factor: f64,
        /// The original context, in positions.
        original_max_position_embeddings: usize,
    },
}

/// Which projections of the attention carry a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionBias {
    /// None.
    None,
    /// Those of queries, keys and values.
    Qkv,
    /// These and the output's.
    All,
}

/// `[model]`: a model's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// The folder of a published model or of a run, where shape and weights come from; unset: the keys below, and random
    /// weights.
    pub from: Option<PathBuf>,
    /// The folder of the model under the adapters that `from` names, where it is not where they say.
    pub base: Option<PathBuf>,
    /// The family.
    pub architecture: ArchitectureName,
    /// Width `d`.
    pub hidden: usize,
    /// Number of transformer layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads; 0: as many as `heads`.
    pub kv_heads: usize,
    /// Hidden width of the MLP; 0: `4·hidden` (gpt2, bert), or two thirds of that rounded up to a multiple of 32 (llama).
    pub ffn: usize,
    /// Vocabulary size; 0: the tokenizer's.
    pub vocab: usize,
    /// Longest sequence; 0: `train.seq`.
    pub max_seq: usize,
    /// Whether the head is the embedding's matrix; unset: false for llama alone.
    pub tie_embeddings: Option<bool>,
    /// Dropout probability.
    pub dropout: f64,
    /// Width of one head; 0: `hidden / heads`.
    pub head_dim: usize,
    /// Whether linear layers (and LayerNorm) carry a bias; unset: false for llama alone. `attention_bias` goes before it.
    pub bias: Option<bool>,
    /// Which projections of the attention carry a bias; unset: all where `bias` holds, else none.
    pub attention_bias: Option<AttentionBias>,
    /// How many positions a query sees, its own and those before it; 0: all.
    pub window: usize,
    /// How many types of tokens there are, in bert; 0: 2.
    pub token_types: usize,
    /// Whether a second head tells if a sequence's second half follows its first, in bert.
    pub next_sentence: bool,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Scaling of the rotary angles.
    pub rope_scaling: Option<RopeScaling>,
    /// Epsilon of the norms; unset: 1e-5.
    pub norm_eps: f64,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            from: None,
            base: None,
            architecture: ArchitectureName::Llama,
            hidden: 128,
            layers: 4,
            heads: 4,
            kv_heads: 0,
            ffn: 0,
            vocab: 0,
            max_seq: 0,
            tie_embeddings: None,
            dropout: 0.0,
            head_dim: 0,
            bias: None,
            attention_bias: None,
            window: 0,
            token_types: 0,
            next_sentence: false,
            rope_theta: 10_000.0,
            rope_scaling: None,
            norm_eps: 1e-5,
        }
    }
}

/// A value, or "auto".
///
/// # Examples
///
/// ```
/// use mp_plan::{ParallelConfig, Switch};
///
/// let config: ParallelConfig = toml::from_str("sequence_parallel = false").unwrap();
/// assert_eq!(config.sequence_parallel, Switch::Set(false));
/// let config: ParallelConfig = toml::from_str("sequence_parallel = 'auto'").unwrap();
/// assert_eq!(config.sequence_parallel, Switch::Auto);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(untagged, expecting = "neither a legal value nor \"auto\"")]
pub enum Switch<T> {
    // First, so that the word is never taken for a value.
    /// Chosen by the planner.
    #[default]
    #[serde(with = "auto")]
    Auto,
    /// Chosen by the user.
    Set(T),
}

mod auto {
    //! The word "auto".
    use serde::{de::Error, Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("auto")
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "auto" => Ok(()),
            other => Err(D::Error::custom(format!("`{other}` is neither a value nor \"auto\""))),
        }
    }
}

impl<T> Switch<T> {
    /// Says whether nothing is chosen.
    pub fn is_auto(&self) -> bool {
        matches!(self, Switch::Auto)
    }

    /// Returns the user's choice, or `default`.
    pub fn unwrap_or(self, default: T) -> T {
        match self {
            Switch::Set(value) => value,
            Switch::Auto => default,
        }
    }

    /// Returns the user's choice, or `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match self {
            Switch::Set(_) => self,
            Switch::Auto => other,
        }
    }
}

/// What the backward computes again instead of keeping it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecomputeName {
    /// Nothing.
    #[default]
    None,
    /// The attention's core: scores, softmax, dropout, values.
    Selective,
    /// Whole layers.
    Full,
}

/// How attention reaches positions that other context ranks hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContextForm {
    /// Keys and values go around a ring, block by block.
    #[default]
    Ring,
    /// Positions are exchanged for heads.
    AllToAll,
}

/// What carries tensors on devices between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportName {
    /// Whatever serves best.
    #[default]
    Auto,
    /// NCCL, with a device for each rank.
    Nccl,
    /// MPI; device pointers go straight to it where it takes them.
    Mpi,
    /// MPI, always through memory of the host.
    Staged,
}

impl TransportName {
    /// Returns the name as configurations have it.
    pub fn name(self) -> &'static str {
        match self {
            TransportName::Auto => "auto",
            TransportName::Nccl => "nccl",
            TransportName::Mpi => "mpi",
            TransportName::Staged => "staged",
        }
    }

    fn is_auto(&self) -> bool {
        *self == TransportName::Auto
    }
}

/// `[parallel]`: how model and batch are cut.
///
/// What is left open, as 0 or auto, is decided by rules of thumb, which stand with each key, or by the planner where
/// [`asks`](Self::asks) says so. Written out, a configuration leaves open keys away: in a file they would ask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParallelConfig {
    /// Tensor-parallel degree; 0: 2 on an even world size, else 1.
    #[serde(skip_serializing_if = "is_open")]
    pub tp: usize,
    /// Pipeline degree; 0: 1.
    #[serde(skip_serializing_if = "is_open")]
    pub pp: usize,
    /// Data-parallel degree; 0: the ranks that the other degrees leave.
    #[serde(skip_serializing_if = "is_open")]
    pub dp: usize,
    /// Context-parallel degree; 0: 1.
    #[serde(skip_serializing_if = "is_open")]
    pub cp: usize,
    /// Whether activations between the tensor-parallel regions are cut along the sequence; auto: with `tp` > 1 where it
    /// divides.
    #[serde(skip_serializing_if = "Switch::is_auto")]
    pub sequence_parallel: Switch<bool>,
    /// Sequences in a micro-batch; 0: the global batch divided by `dp`, with stages a part of it that makes up to four
    /// micro-batches a stage.
    #[serde(skip_serializing_if = "is_open")]
    pub micro_batch: usize,
    /// What the backward computes again instead of keeping it; auto: nothing.
    #[serde(skip_serializing_if = "Switch::is_auto")]
    pub recompute: Switch<RecomputeName>,
    /// With full recompute: every how many-th layer; 0: each.
    #[serde(skip_serializing_if = "is_open")]
    pub recompute_every: usize,
    /// What the data ranks share out (ZeRO stage): 0 nothing, 1 the optimizer's state, 2 also gradients, 3 also
    /// parameters; auto: nothing.
    #[serde(skip_serializing_if = "Switch::is_auto")]
    pub zero: Switch<Zero>,
    /// Bytes of gradients that are reduced together; 0: 25 MiB.
    pub bucket_bytes: usize,
    /// How attention reaches the positions of other context ranks.
    pub context: ContextForm,
    /// Virtual stages of each pipeline rank; 0: as the schedule needs.
    #[serde(skip_serializing_if = "is_open")]
    pub chunks: usize,
    /// The order of forwards and backwards in the pipeline; auto: 1F1B.
    #[serde(skip_serializing_if = "Switch::is_auto")]
    pub schedule: Switch<ScheduleName>,
    /// Layers of each virtual stage; empty: by cost.
    pub split: Vec<usize>,
    /// What carries tensors between ranks.
    #[serde(skip_serializing_if = "TransportName::is_auto")]
    pub transport: TransportName,
    /// The machine that layouts are chosen for and utilisation is measured by: a cluster file, or a preset's name; empty:
    /// where layouts are chosen, the one at hand, measured.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// The keys of this section that the planner has chosen in a run: on another number of ranks they are open again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chosen: Vec<ParallelKey>,
    /// Whether the planner chooses what is open. No key of a file: one that is written as 0 or "auto" asks.
    #[serde(skip)]
    pub asks: bool,
}

fn is_open(number: &usize) -> bool {
    *number == 0
}

impl Default for ParallelConfig {
    fn default() -> Self {
        Self {
            tp: 0,
            pp: 0,
            dp: 0,
            cp: 0,
            sequence_parallel: Switch::Auto,
            micro_batch: 0,
            recompute: Switch::Auto,
            recompute_every: 0,
            zero: Switch::Auto,
            bucket_bytes: 0,
            context: ContextForm::Ring,
            chunks: 0,
            schedule: Switch::Auto,
            split: Vec::new(),
            transport: TransportName::Auto,
            cluster: String::new(),
            chosen: Vec::new(),
            asks: false,
        }
    }
}
