//! GPT-2: learned positions, LayerNorm before each half of a block, GELU, biases, tied head.
//!
//! # Source
//! Radford et al. 2019, "Language models are unsupervised multitask learners", §2.3.

use mp_runtime::kernels::rotary::Angles;

use crate::layers::embedding::LearnedPositions;
use crate::layers::mlp::Activation;
use crate::layers::norm::Norm;
use crate::models::Family;
use crate::shards::Shards;
use crate::Result;

/// The GPT-2 family.
#[derive(Debug)]
pub struct Gpt2;

impl Family for Gpt2 {
    fn positions(&self, shards: &Shards<'_>) -> Result<Option<LearnedPositions>> {
        Ok(Some(LearnedPositions::new(shards.weight("positions.weight")?, shards.group())))
    }

    fn angles(&self) -> Option<Angles> {
        None
    }

    fn activation(&self) -> Activation {
        Activation::Gelu
    }

    fn norm(&self, shards: &Shards<'_>, at: &str) -> Result<Norm> {
        shards.layer_norm(at)
    }
}
