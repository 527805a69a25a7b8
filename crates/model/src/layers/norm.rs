//! LayerNorm and RMSNorm. Their weights are whole on every tensor rank; under sequence shards each rank's gradient is
//! partial, for it saw its own positions only.

use mp_runtime::{autograd, kernels, Tensor};

use crate::weight::Weight;
use crate::Result;

/// A norm over the last dim.
#[derive(Debug)]
pub enum Norm {
    /// `(x − mean) / √(variance + ε) · w + b`.
    Layer {
        /// Scale `w`.
        weight: Weight,
        /// Shift `b`.
        bias: Option<Weight>,
        /// ε.
        epsilon: f64,
    },
    /// `x / √(mean(x²) + ε) · w`.
    RootMeanSquare {
        /// Scale `w`.
        weight: Weight,
        /// ε.
        epsilon: f64,
    },
}

impl Norm {
    /// Normalises each position.
    ///
    /// # Shapes
    /// - `x`: `[…, d]`
    /// - returns the same
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where the width is not that of the weights.
    ///
    /// # Source
    /// Ba et al. 2016, arXiv:1607.06450, eq. 4; Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Norm::Layer { weight, bias, epsilon } => {
                let shape = weight.shape();
                let bias = bias.as_ref().map(Weight::tracked).transpose()?;
                Ok(x.f_layer_norm(shape, Some(weight.tracked()?), bias, *epsilon, false)?)
            }
            Norm::RootMeanSquare { weight, epsilon } => root_mean_square(x, weight, *epsilon),
        }
    }
}

fn root_mean_square(x: &Tensor, weight: &Weight, epsilon: f64) -> Result<Tensor> {
    let (y, scale) = {
        let _off = autograd::no_grad();
        kernels::rms_norm::forward(x, &weight.value()?, epsilon)?
    };
    let (saved, owner) = (x.detach(), weight.share());
    autograd::attach(&[x, weight.anchor()], &[y.shallow_clone()], move |gradients| {
        let Some(dy) = &gradients[0] else { return Ok(vec![None, None]) };
        let (dx, dw) = kernels::rms_norm::backward(dy, &saved, &owner.value()?, &scale)?;
        owner.accumulate(&dw)?;
        Ok(vec![Some(dx), None])
    })?;
    Ok(y)
}
