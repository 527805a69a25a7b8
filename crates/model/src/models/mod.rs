//! Whole models, one a file, each readable beside its paper, and the head that they share.

pub mod block;
pub mod gpt2;
pub mod head;
pub mod llama;

use mp_runtime::Tensor;

use crate::{Pass, Result};

/// A model up to its final norm.
pub trait Body: Send {
    /// Computes the last hidden states.
    ///
    /// # Shapes
    /// - returns `[b, s, d]`, or `[b, s / tp, d]`, its part of the sequence
    ///
    /// # Errors
    /// Whatever a layer raises.
    fn forward(&self, pass: &Pass<'_>) -> Result<Tensor>;
}
