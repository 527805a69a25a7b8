//! The pre-norm residual block that both families share: what differs is the norms, the positions and the perceptron it
//! is made with.

use mp_runtime::Tensor;

use crate::layers::attention::SelfAttention;
use crate::layers::dropout::Dropout;
use crate::layers::mlp::Mlp;
use crate::layers::norm::Norm;
use crate::pass::Pass;
use crate::regions::TensorGroup;
use crate::unit::Residence;
use crate::Result;

/// One transformer layer.
#[derive(Debug)]
pub struct Block {
    /// Its index in the whole model.
    pub layer: usize,
    /// When its values are there.
    pub residence: Residence,
    /// Before the attention.
    pub attention_norm: Norm,
    /// The attention.
    pub attention: SelfAttention,
    /// Of the attention's output.
    pub attention_dropout: Dropout,
    /// Before the perceptron.
    pub mlp_norm: Norm,
    /// The perceptron.
    pub mlp: Mlp,
    /// Of the perceptron's output.
    pub mlp_dropout: Dropout,
}

impl Block {
    /// Computes `x ← x + attention(norm(x))`, then `x ← x + mlp(norm(x))`.
    ///
    /// # Shapes
    /// - `x`: `[b, s, d]`, or `[b, s / tp, d]`, its part of the sequence
    /// - returns the same
    ///
    /// # Errors
    /// Whatever a layer raises.
    ///
    /// # Source
    /// Radford et al. 2019, §2.3 (norms moved to the input of each sub-block).
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>, group: &TensorGroup) -> Result<Tensor> {
        let attended = self.attention.forward(&self.attention_norm.forward(x)?, pass)?;
        let x = x.f_add(&self.attention_dropout.forward(attended, pass, group)?)?;
        let widened = self.mlp.forward(&self.mlp_norm.forward(&x)?)?;
        Ok(x.f_add(&self.mlp_dropout.forward(widened, pass, group)?)?)
    }
}
