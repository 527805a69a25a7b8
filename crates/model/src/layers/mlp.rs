//! The two-layer perceptrons: widened by columns, narrowed by rows.

use mp_runtime::Tensor;

use crate::layers::linear::{ColumnParallel, RowParallel};
use crate::{Pass, Result};

/// What stands between the two products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// GELU in its tanh form: Hendrycks and Gimpel 2016, arXiv:1606.08415, §2.
    Gelu,
    /// GELU as it is defined, by the error function: Hendrycks and Gimpel 2016, arXiv:1606.08415, §2.
    ExactGelu,
    /// `silu(gate) · up`, the two halves of the first product: Shazeer 2020, arXiv:2002.05202, eq. 5 with SiLU.
    SwiGlu,
}

/// A perceptron cut by its hidden columns.
#[derive(Debug)]
pub struct Mlp {
    /// The first product; gate and up stacked for [`Activation::SwiGlu`].
    pub widen: ColumnParallel,
    /// The second product.
    pub narrow: RowParallel,
    /// What stands between.
    pub activation: Activation,
}

impl Mlp {
    /// Computes `activation(X·A)·B`.
    ///
    /// # Shapes
    /// - `x`: `[b, s, d]`, or `[b, s / tp, d]`, its part of the sequence
    /// - returns the same
    ///
    /// # Communication
    /// That of one column-parallel and one row-parallel layer.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the width is not that of the weights.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let wide = self.widen.forward(x, Some(pass))?;
        let active = match self.activation {
            Activation::Gelu => wide.f_gelu("tanh")?,
            Activation::ExactGelu => wide.f_gelu("none")?,
            Activation::SwiGlu => {
                let halves = wide.f_chunk(2, 2)?;
                halves[0].f_silu()?.f_mul(&halves[1])?
            }
        };
        self.narrow.forward(&active, Some(pass))
    }
}
