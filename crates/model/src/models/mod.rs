//! Model families, one a file, each readable beside its paper, and the slices of layers that they share.

pub mod bert;
pub mod block;
pub mod gpt2;
pub mod llama;
pub mod slice;

use mp_runtime::kernels::rotary::Angles;

use crate::layers::embedding::LearnedPositions;
use crate::layers::mlp::Activation;
use crate::layers::norm::Norm;
use crate::models::block::NormOrder;
use crate::models::slice::Neck;
use crate::shards::Shards;
use crate::Result;

/// What makes a family of models: all in which its layers and its ends differ from another's.
pub trait Family {
    /// Makes learned positions, where the family has them.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter) if the partition is another model's.
    fn positions(&self, shards: &Shards<'_>) -> Result<Option<LearnedPositions>>;

    /// Returns the rotary angles, where positions are rotary.
    fn angles(&self) -> Option<Angles>;

    /// Returns what stands between the perceptron's two products.
    fn activation(&self) -> Activation;

    /// Says where each half of a layer has its norm.
    fn order(&self) -> NormOrder {
        NormOrder::Before
    }

    /// Makes what comes after the last layer and before the vocabulary: a product with its activation, where the family has
    /// one, and a norm.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter) if the partition is another model's.
    fn neck(&self, shards: &Shards<'_>) -> Result<Neck> {
        Ok(Neck { dense: None, norm: self.norm(shards, "final_norm")? })
    }

    /// Makes the norm of a name.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter) if the partition is another model's.
    fn norm(&self, shards: &Shards<'_>, at: &str) -> Result<Norm>;
}
