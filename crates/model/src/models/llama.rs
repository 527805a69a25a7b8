//! Llama: rotary positions, RMSNorm before each half of a block, SwiGLU, grouped-query attention.
//!
//! # Source
//! Touvron et al. 2023, arXiv:2302.13971, §2.2; grouped queries as in arXiv:2307.09288, §2.2.

use mp_plan::RopeScaling;
use mp_runtime::kernels::rotary::Angles;
use mp_runtime::Tensor;

use crate::build::Shards;
use crate::layers::dropout::Dropout;
use crate::layers::embedding::VocabParallelEmbedding;
use crate::layers::mlp::Activation;
use crate::layers::norm::Norm;
use crate::models::block::{self, Block};
use crate::models::Body;
use crate::pass::Pass;
use crate::regions::TensorGroup;
use crate::Result;

/// Llama up to its final norm.
#[derive(Debug)]
pub struct Llama {
    embedding: VocabParallelEmbedding,
    dropout: Dropout,
    blocks: Vec<Block>,
    norm: Norm,
    group: TensorGroup,
}

impl Llama {
    /// Makes the model from a rank's shards.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter) if the partition is another model's.
    pub fn new(shards: &Shards<'_>) -> Result<Self> {
        let architecture = shards.architecture();
        let factor = match architecture.rope_scaling {
            Some(RopeScaling::Linear { factor }) => factor,
            _ => 1.0,
        };
        let (length, width) = (architecture.max_seq, architecture.head_dim);
        let (kind, device) = (shards.kind(), shards.device());
        let angles = Angles::new(length, width, architecture.rope_theta, factor, kind, device)?;
        let blocks = (0..architecture.layers).map(|layer| block(shards, layer, &angles)).collect::<Result<_>>()?;
        Ok(Self {
            embedding: shards.embedding()?,
            dropout: shards.dropout("embedding"),
            blocks,
            norm: shards.root_mean_square_norm("final_norm")?,
            group: shards.group().clone(),
        })
    }
}

/// Makes layer `layer`.
fn block(shards: &Shards<'_>, layer: usize, angles: &Angles) -> Result<Block> {
    let at = |part: &str| format!("layers.{layer}.{part}");
    Ok(Block {
        attention_norm: shards.root_mean_square_norm(&at("attention_norm"))?,
        attention: shards.attention(&at("attention"), Some(angles.share()))?,
        attention_dropout: shards.dropout(&at("attention.output")),
        mlp_norm: shards.root_mean_square_norm(&at("mlp_norm"))?,
        mlp: shards.mlp(&at("mlp"), Activation::SwiGlu)?,
        mlp_dropout: shards.dropout(&at("mlp")),
    })
}

impl Body for Llama {
    fn forward(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.dropout.forward(self.embedding.forward(pass.tokens)?, pass, &self.group)?;
        self.norm.forward(&block::run(&self.blocks, x, pass, &self.group)?)
    }
}
