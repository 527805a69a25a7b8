//! GPT-2: learned positions, LayerNorm before each half of a block, GELU, biases, tied head.
//!
//! # Source
//! Radford et al. 2019, "Language models are unsupervised multitask learners", §2.3.

use crate::build::Shards;
use crate::layers::embedding::LearnedPositions;
use crate::layers::mlp::Activation;
use crate::layers::norm::Norm;
use crate::models::block::Block;
use crate::models::Family;
use crate::Result;

/// The GPT-2 family.
#[derive(Debug)]
pub struct Gpt2;

impl Family for Gpt2 {
    fn positions(&self, shards: &Shards<'_>) -> Result<Option<LearnedPositions>> {
        Ok(Some(LearnedPositions::new(shards.weight("positions.weight")?, shards.group())))
    }

    fn block(&self, shards: &Shards<'_>, layer: usize) -> Result<Block> {
        let at = |part: &str| format!("layers.{layer}.{part}");
        Ok(Block {
            layer,
            residence: shards.residence(layer),
            attention_norm: self.norm(shards, &at("attention_norm"))?,
            attention: shards.attention(&at("attention"), None)?,
            attention_dropout: shards.dropout(&at("attention.output")),
            mlp_norm: self.norm(shards, &at("mlp_norm"))?,
            mlp: shards.mlp(&at("mlp"), Activation::Gelu)?,
            mlp_dropout: shards.dropout(&at("mlp")),
        })
    }

    fn norm(&self, shards: &Shards<'_>, at: &str) -> Result<Norm> {
        shards.layer_norm(at)
    }
}
