//! A linear layer whose matrix is whole on every tensor rank: for products too small to be worth a message.

use mp_runtime::Tensor;

use crate::weight::Weight;
use crate::Result;

/// Multiplies by a whole matrix, position by position. Under sequence shards the gradients of matrix and bias are partial:
/// each rank saw its own positions only.
#[derive(Debug)]
pub struct Dense {
    /// `[d_out, d_in]`.
    pub weight: Weight,
    /// `[d_out]`.
    pub bias: Option<Weight>,
}

impl Dense {
    /// Computes `Y = X·A + b`.
    ///
    /// # Shapes
    /// - `x`: `[…, d_in]`
    /// - returns `[…, d_out]`
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where the width is not that of the weights.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(Weight::tracked).transpose()?;
        Ok(x.f_linear(&self.weight.tracked()?, bias)?)
    }
}
