//! Low-rank adapters beside the matrices of a sharded linear layer: `Y += (alpha / r) · (X·Aᵀ)·Bᵀ`.
//!
//! They need no communication of their own. Beside a column-parallel layer `A` is whole and `B` is cut like the matrix: what
//! each rank adds to the input's gradient travels in the layer's own sum, and the gradient of `A` is a part of a sum that is
//! made once a step. Beside a row-parallel layer `A` is cut and `B` is whole: the outputs are summed with the layer's, and the
//! gradient of `B` is the part.
//!
//! # Source
//! Hu et al. 2021, arXiv:2106.09685, §4.1.

use std::ops::Range;

use mp_runtime::kernels::dropout;
use mp_runtime::Tensor;

use crate::layers::dropout::Dropout;
use crate::layers::linear::rows;
use crate::weight::Weight;
use crate::{Pass, Result};

/// The adapters beside matrices that read one input.
#[derive(Debug)]
pub struct LowRank {
    /// The first factors, stacked: `[n·r, d_in]`, or this rank's columns of them.
    pub first: Weight,
    /// Each second factor, `[d_out, r]` or this rank's rows of it, with the columns of the layer's output that it adds to.
    pub second: Vec<(Range<usize>, Weight)>,
    /// What their outputs are multiplied by.
    pub scale: f64,
    /// Of what they read; one mask for all of them.
    pub dropout: Dropout,
    /// Which columns of the whole activation this rank reads.
    pub columns: Range<usize>,
    /// How many there are.
    pub width: usize,
}

/// What a forward keeps for its backward.
#[derive(Debug)]
pub struct Kept {
    /// `(alpha / r) · X·Aᵀ`, `[b, s, n·r]`.
    hidden: Tensor,
    mask: Option<Tensor>,
}

impl LowRank {
    /// Makes other handles to the same memory.
    pub(crate) fn share(&self) -> Self {
        Self {
            first: self.first.share(),
            second: self.second.iter().map(|(columns, weight)| (columns.clone(), weight.share())).collect(),
            scale: self.scale,
            dropout: self.dropout.clone(),
            columns: self.columns.clone(),
            width: self.width,
        }
    }

    /// Adds the adapters' outputs to `y`, in place and outside the graph.
    ///
    /// # Shapes
    /// - `y`: `[b, s, d_out]`, this rank's columns or its part of the sum
    /// - `x`: `[b, s, d_in]`, this rank's columns, at all positions of the pass
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where the shapes do not fit.
    pub(crate) fn forward(&self, y: &Tensor, x: &Tensor, pass: Option<&Pass<'_>>) -> Result<Kept> {
        let mask = pass.map(|pass| self.dropout.inside(x, pass, &self.columns, self.width)).transpose()?.flatten();
        let read = self.dropped(x, mask.as_ref())?;
        let hidden = read.f_linear(&self.first.value()?, None::<Tensor>)?.f_mul_scalar(self.scale)?;
        for (index, (columns, second)) in self.second.iter().enumerate() {
            let part = self.part(&hidden, index)?.f_matmul(&second.value()?.f_tr()?)?;
            let _ = of_columns(y, columns)?.f_add_(&part)?;
        }
        Ok(Kept { hidden, mask })
    }

    /// Adds what flows back through the adapters to the gradient of `x`; what their own gradients are made of comes back.
    ///
    /// # Shapes
    /// - `dy`: as `y` in [`forward`](Self::forward)
    /// - `dx`: as `x` there
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where the shapes do not fit.
    pub(crate) fn backward<'a>(&'a self, kept: &'a Kept, dy: &Tensor, dx: &mut Tensor) -> Result<Adapting<'a>> {
        let gradient = |(columns, second): &(Range<usize>, Weight)| -> Result<Tensor> {
            Ok(of_columns(dy, columns)?.f_matmul(&second.value()?)?)
        };
        let parts = self.second.iter().map(gradient).collect::<Result<Vec<_>>>()?;
        let hidden = Tensor::f_cat(&parts, -1)?.f_mul_scalar(self.scale)?;
        let through = hidden.f_matmul(&self.first.value()?)?;
        let _ = dx.f_add_(&self.dropped(&through, kept.mask.as_ref())?)?;
        Ok(Adapting { adapters: self, kept, hidden, dy: dy.shallow_clone() })
    }

    fn dropped(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        match mask {
            Some(mask) => Ok(dropout::apply(x, mask, self.dropout.probability())?),
            None => Ok(x.shallow_clone()),
        }
    }

    /// Takes the columns of one adapter.
    fn part(&self, hidden: &Tensor, index: usize) -> Result<Tensor> {
        let rank = self.second[index].1.shape()[1];
        Ok(hidden.f_narrow(-1, index as i64 * rank, rank)?)
    }
}

/// A backward pass whose products for the factors are still to be made.
#[must_use = "the factors' gradients are still to be added"]
pub(crate) struct Adapting<'a> {
    adapters: &'a LowRank,
    kept: &'a Kept,
    /// Gradient of `X·Aᵀ`.
    hidden: Tensor,
    dy: Tensor,
}

impl Adapting<'_> {
    /// Adds the gradients of all factors.
    ///
    /// # Shapes
    /// - `x`: as in [`LowRank::forward`]
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where the shapes do not fit.
    pub(crate) fn accumulate(self, x: &Tensor) -> Result<()> {
        let Self { adapters, kept, hidden, dy } = self;
        let read = adapters.dropped(x, kept.mask.as_ref())?;
        adapters.first.accumulate_product(&rows(&hidden)?, &rows(&read)?)?;
        for (index, (columns, second)) in adapters.second.iter().enumerate() {
            let part = adapters.part(&kept.hidden, index)?;
            second.accumulate_product(&rows(&of_columns(&dy, columns)?)?, &rows(&part)?)?;
        }
        Ok(())
    }
}

fn of_columns(y: &Tensor, columns: &Range<usize>) -> Result<Tensor> {
    Ok(y.f_narrow(-1, columns.start as i64, columns.len() as i64)?)
}
