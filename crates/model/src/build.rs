//! The one place where a plan meets a model: names become weights, weights become layers.

use std::ops::Range;

use mp_plan::{Architecture, ArchitectureName};
use mp_runtime::kernels::rotary::Angles;
use mp_runtime::{Device, Kind};

use crate::context::{Context, Form};
use crate::layers::attention::{Heads, SelfAttention};
use crate::layers::dropout::Dropout;
use crate::layers::embedding::VocabParallelEmbedding;
use crate::layers::linear::{ColumnParallel, RowParallel};
use crate::layers::mlp::{Activation, Mlp};
use crate::layers::norm::Norm;
use crate::models::block::{Block, Layer};
use crate::models::gpt2::Gpt2;
use crate::models::llama::Llama;
use crate::models::slice::{Entrance, Exit, Slice};
use crate::models::Family;
use crate::parameter::Parameters;
use crate::recompute::Recompute;
use crate::regions::TensorGroup;
use crate::stage::{Model, Stage};
use crate::weight::Weight;
use crate::{Error, Result};

/// How a model computes, beside what it is.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The ranks that share each sequence.
    pub context: Context,
    /// What is computed again in the backward instead of kept.
    pub recompute: Recompute,
}

/// Builds a rank's share of a model: one stage for each range of layers, with the entrance before layer 0 and the exit
/// after the last.
///
/// # Errors
/// [`Error::UnknownParameter`] if the partition lacks a parameter that a stage needs; [`Error::Plan`] if heads cannot be
/// exchanged over the context group; [`Error::Unbuilt`] for what no layer computes.
pub fn build(parameters: Parameters, group: TensorGroup, chunks: &[Range<usize>], options: &Options) -> Result<Model> {
    if options.recompute == (Recompute::Full { every: 0 }) {
        return Err(Error::Unbuilt("recomputing every 0th layer".into()));
    }
    let shards = Shards { parameters: &parameters, group: &group, options };
    let family: Box<dyn Family> = match shards.architecture().name {
        ArchitectureName::Gpt2 => Box::new(Gpt2),
        ArchitectureName::Llama => Box::new(Llama::new(&shards)?),
        other => return Err(Error::Unbuilt(format!("architecture {other:?}"))),
    };
    let stage = |layers: &Range<usize>| -> Result<Box<dyn Stage>> { Ok(Box::new(shards.slice(&*family, layers)?)) };
    #[cfg(feature = "faults")]
    let chunks = &crate::faults::layers(chunks, shards.architecture().layers)[..];
    let stages = chunks.iter().map(stage).collect::<Result<_>>()?;
    Ok(Model::new(parameters, stages))
}

/// A rank's parameters as a model's constructor asks for them.
#[derive(Debug)]
pub struct Shards<'a> {
    parameters: &'a Parameters,
    group: &'a TensorGroup,
    options: &'a Options,
}

impl Shards<'_> {
    /// Makes the stage of some layers.
    fn slice(&self, family: &dyn Family, layers: &Range<usize>) -> Result<Slice> {
        let (first, last) = (layers.start == 0, layers.end == self.architecture().layers);
        Ok(Slice {
            entrance: if first { Some(self.entrance(family)?) } else { None },
            blocks: layers.clone().map(|layer| self.block(family, layer).map(Layer::new)).collect::<Result<_>>()?,
            recompute: self.options.recompute,
            exit: if last { Some(self.exit(family)?) } else { None },
            group: self.group.clone(),
        })
    }

    fn entrance(&self, family: &dyn Family) -> Result<Entrance> {
        let (name, vocab) = ("embedding.weight", self.architecture().vocab);
        Ok(Entrance {
            embedding: VocabParallelEmbedding::new(self.weight(name)?, self.range(name)?, vocab, self.group),
            positions: family.positions(self)?,
            dropout: self.dropout("embedding"),
            residence: self.parameters.entrance(),
        })
    }

    fn block(&self, family: &dyn Family, layer: usize) -> Result<Block> {
        let at = |part: &str| format!("layers.{layer}.{part}");
        Ok(Block {
            layer,
            residence: self.parameters.layer(layer),
            attention_norm: family.norm(self, &at("attention_norm"))?,
            attention: self.attention(&at("attention"), family.angles())?,
            attention_dropout: self.dropout(&at("attention.output")),
            mlp_norm: family.norm(self, &at("mlp_norm"))?,
            mlp: self.mlp(&at("mlp"), family.activation())?,
            mlp_dropout: self.dropout(&at("mlp")),
        })
    }

    fn exit(&self, family: &dyn Family) -> Result<Exit> {
        let table = if self.architecture().tie_embeddings { "embedding.weight" } else { "head.weight" };
        Ok(Exit {
            norm: family.norm(self, "final_norm")?,
            head: ColumnParallel::new(self.weight(table)?, None, self.group),
            ids: self.range(table)?,
            vocab: self.architecture().vocab,
            residence: self.parameters.exit(),
        })
    }

    /// Returns the model's shape.
    pub fn architecture(&self) -> &Architecture {
        &self.parameters.partition().architecture
    }

    /// Returns the tensor group.
    pub fn group(&self) -> &TensorGroup {
        self.group
    }

    /// Returns the kind of weights and activations.
    pub fn kind(&self) -> Kind {
        self.parameters.compute_kind()
    }

    /// Returns where tensors lie.
    pub fn device(&self) -> Device {
        self.parameters.device()
    }

    /// Hands out one parameter.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn weight(&self, name: &str) -> Result<Weight> {
        self.parameters.weight(name)
    }

    /// Makes a LayerNorm.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn layer_norm(&self, at: &str) -> Result<Norm> {
        let (weight, bias) = (self.weight(&format!("{at}.weight"))?, self.bias(at)?);
        Ok(Norm::Layer { weight, bias, epsilon: self.architecture().norm_eps })
    }

    /// Makes an RMSNorm.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn root_mean_square_norm(&self, at: &str) -> Result<Norm> {
        let weight = self.weight(&format!("{at}.weight"))?;
        Ok(Norm::RootMeanSquare { weight, epsilon: self.architecture().norm_eps })
    }

    /// Makes a self-attention with this rank's heads.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`]; [`Error::Plan`] if they cannot be exchanged over the context group.
    fn attention(&self, at: &str, angles: Option<Angles>) -> Result<SelfAttention> {
        let width = self.architecture().head_dim;
        let query = self.range(&format!("{at}.query.weight"))?;
        let heads = Heads {
            all: self.architecture().heads,
            query: query.start / width..query.end / width,
            key_value: self.range(&format!("{at}.key.weight"))?.len() / width,
            width,
        };
        let context = self.options.context.clone();
        if context.form == Form::AllToAll {
            mp_plan::check_all_to_all(heads.query.len(), heads.key_value, 1, context.comm.size())?;
        }
        Ok(SelfAttention {
            context,
            recompute: self.options.recompute,
            project: self.columns(at, &["query", "key", "value"])?,
            output: self.rows(&format!("{at}.output"))?,
            heads,
            angles,
            dropout: self.dropout(&format!("{at}.weights")),
        })
    }

    /// Makes a perceptron.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    fn mlp(&self, at: &str, activation: Activation) -> Result<Mlp> {
        let parts: &[&str] = match activation {
            Activation::Gelu => &["up"],
            Activation::SwiGlu => &["gate", "up"],
        };
        Ok(Mlp { widen: self.columns(at, parts)?, narrow: self.rows(&format!("{at}.down"))?, activation })
    }

    /// Makes a dropout named after its place.
    fn dropout(&self, at: &str) -> Dropout {
        Dropout::new(self.architecture().dropout, format!("{at}.dropout"))
    }

    /// Makes one column-parallel layer of neighbouring matrices.
    fn columns(&self, at: &str, parts: &[&str]) -> Result<ColumnParallel> {
        let names = |last: &str| parts.iter().map(|part| format!("{at}.{part}.{last}")).collect::<Vec<_>>();
        let bias = match self.has_bias() {
            true => Some(self.parameters.stacked(&names("bias"))?),
            false => None,
        };
        Ok(ColumnParallel::new(self.parameters.stacked(&names("weight"))?, bias, self.group))
    }

    fn rows(&self, at: &str) -> Result<RowParallel> {
        Ok(RowParallel::new(self.weight(&format!("{at}.weight"))?, self.bias(at)?, self.group))
    }

    fn bias(&self, at: &str) -> Result<Option<Weight>> {
        if !self.has_bias() {
            return Ok(None);
        }
        self.weight(&format!("{at}.bias")).map(Some)
    }

    fn has_bias(&self) -> bool {
        self.architecture().bias
    }

    /// Returns which rows of a parameter cut along dim 0 this rank holds.
    fn range(&self, name: &str) -> Result<Range<usize>> {
        let parameter = &self.parameters.partition().parameters[self.parameters.index(name)?];
        Ok(parameter.range(self.parameters.tp_rank()).map_or(0..parameter.spec.shape[0], |(_, range)| range))
    }
}
