//! Several runs of one dim, side by side.

use std::ops::Range;

use crate::{Result, Tensor};

/// Takes runs of `x` along `dim`, in the order given; a single run is a view.
///
/// # Shapes
/// - returns the shape of `x` with `dim` as long as all runs together
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) if a run goes beyond the dim.
pub fn select(x: &Tensor, dim: i64, runs: &[Range<usize>]) -> Result<Tensor> {
    let one = |run: &Range<usize>| Ok(x.f_narrow(dim, run.start as i64, run.len() as i64)?);
    match runs {
        [run] => one(run),
        _ => Ok(Tensor::f_cat(&runs.iter().map(one).collect::<Result<Vec<_>>>()?, dim)?),
    }
}
