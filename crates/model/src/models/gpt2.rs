//! GPT-2: learned positions, LayerNorm before each half of a block, GELU, biases, tied head.
//!
//! # Source
//! Radford et al. 2019, "Language models are unsupervised multitask learners", §2.3.

use mp_runtime::Tensor;

use crate::build::Shards;
use crate::layers::dropout::Dropout;
use crate::layers::embedding::{Positions, VocabParallelEmbedding};
use crate::layers::mlp::Activation;
use crate::layers::norm::Norm;
use crate::models::block::{self, Block};
use crate::models::Body;
use crate::pass::Pass;
use crate::regions::TensorGroup;
use crate::Result;

/// GPT-2 up to its final norm.
#[derive(Debug)]
pub struct Gpt2 {
    embedding: VocabParallelEmbedding,
    positions: Positions,
    dropout: Dropout,
    blocks: Vec<Block>,
    norm: Norm,
    group: TensorGroup,
}

impl Gpt2 {
    /// Makes the model from a rank's shards.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter) if the partition is another model's.
    pub fn new(shards: &Shards<'_>) -> Result<Self> {
        let blocks = (0..shards.architecture().layers).map(|layer| block(shards, layer)).collect::<Result<_>>()?;
        Ok(Self {
            embedding: shards.embedding()?,
            positions: Positions::new(shards.weight("positions.weight")?, shards.group()),
            dropout: shards.dropout("embedding"),
            blocks,
            norm: shards.layer_norm("final_norm")?,
            group: shards.group().clone(),
        })
    }
}

/// Makes layer `layer`.
fn block(shards: &Shards<'_>, layer: usize) -> Result<Block> {
    let at = |part: &str| format!("layers.{layer}.{part}");
    Ok(Block {
        attention_norm: shards.layer_norm(&at("attention_norm"))?,
        attention: shards.attention(&at("attention"), None)?,
        attention_dropout: shards.dropout(&at("attention.output")),
        mlp_norm: shards.layer_norm(&at("mlp_norm"))?,
        mlp: shards.mlp(&at("mlp"), Activation::Gelu)?,
        mlp_dropout: shards.dropout(&at("mlp")),
    })
}

impl Body for Gpt2 {
    fn forward(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.positions.forward(&self.embedding.forward(pass.tokens)?, pass.seq())?;
        let x = self.dropout.forward(x, pass, &self.group)?;
        self.norm.forward(&block::run(&self.blocks, x, pass, &self.group)?)
    }
}
