//! Model families, one a file, each readable beside its paper, and the slices of layers that they share.

pub mod block;
pub mod gpt2;
pub mod llama;
pub mod slice;

use crate::build::Shards;
use crate::layers::embedding::LearnedPositions;
use crate::layers::norm::Norm;
use crate::Result;

use block::Block;

/// What makes a family of models: how a layer is put together, and what else differs.
pub trait Family {
    /// Makes learned positions, where the family has them.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter) if the partition is another model's.
    fn positions(&self, shards: &Shards<'_>) -> Result<Option<LearnedPositions>>;

    /// Makes a layer.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter) if the partition is another model's.
    fn block(&self, shards: &Shards<'_>, layer: usize) -> Result<Block>;

    /// Makes the norm of a name.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter) if the partition is another model's.
    fn norm(&self, shards: &Shards<'_>, at: &str) -> Result<Norm>;
}
