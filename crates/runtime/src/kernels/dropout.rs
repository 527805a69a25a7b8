//! Dropout whose mask is a function of the element's place in the whole model's activation, not of the layout.

use crate::rng::Stream;
use crate::{autograd, bytes, Kind, Result, Tensor};

/// Which elements of the full activation a tensor holds: each of its rows (all dims but the last) starts at a global
/// element index.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The global index of the first element of each row, in order.
    pub rows: &'a [u64],
    /// The stream of this layer at this step.
    pub stream: Stream,
}

/// Draws the mask that keeps an element with probability `1 − p`: 1 where it is kept, 0 where it is dropped. What is
/// kept is to be scaled by `1/(1 − p)`, as a scalar: in a mask of bfloat16 it would be rounded.
///
/// # Shapes
/// - returns `shape`, of the kind and on the device of `like`; `place.rows` has one entry for each row of `shape`'s last dim
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) where the rows do not fit the shape.
pub fn mask(shape: &[i64], p: f64, place: Place<'_>, like: &Tensor) -> Result<Tensor> {
    let width = *shape.last().unwrap_or(&1) as usize;
    // A word below the threshold drops its element: the probability is exact to 2⁻³².
    let threshold = (p * 4_294_967_296.0) as u64;
    let mut mask = Tensor::f_empty(shape, (Kind::Uint8, tch::Device::Cpu))?;
    let memory = bytes::view_mut(&mut mask)?;
    if memory.len() != place.rows.len() * width {
        return Err(crate::Error::Tensor {
            what: "drawing a dropout mask",
            shape: shape.to_vec(),
            kind: Kind::Uint8,
            wanted: "one global index for each row",
        });
    }
    let mut words = vec![0u32; width];
    for (row, &first) in memory.chunks_exact_mut(width.max(1)).zip(place.rows) {
        place.stream.words(first, &mut words);
        for (keep, &word) in row.iter_mut().zip(&words) {
            *keep = u8::from(u64::from(word) >= threshold);
        }
    }
    Ok(mask.f_to_kind(like.kind())?.f_to_device(like.device())?)
}

/// Drops elements of `x` with probability `p` and scales the others by `1/(1 − p)`; `p = 0` returns `x`.
///
/// # Shapes
/// - `x`: any; `place.rows` has one entry for each row of its last dim
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) where the rows do not fit the shape.
///
/// # Source
/// Srivastava et al. 2014.
pub fn dropout(x: &Tensor, p: f64, place: Place<'_>) -> Result<Tensor> {
    if p == 0.0 {
        return Ok(x.shallow_clone());
    }
    let mask = {
        let _off = autograd::no_grad();
        mask(&x.size(), p, place, x)?
    };
    apply(x, &mask, p)
}

/// Multiplies by a mask drawn with [`mask`], and by `1/(1 − p)`.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where the shapes do not fit.
pub fn apply(x: &Tensor, mask: &Tensor, p: f64) -> Result<Tensor> {
    // In place: no backward needs the product as it was.
    Ok(x.f_mul(mask)?.f_mul_scalar_(1.0 / (1.0 - p))?)
}
