//! RMSNorm, forward and backward, with statistics in single precision where `x` is bfloat16.

use crate::{Kind, Result, Tensor};

/// The kind that statistics are computed in.
fn wide(x: &Tensor) -> Kind {
    match x.kind() {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}

/// Computes `y = x · r · w` with `r = 1/√(mean(x²) + ε)`.
///
/// # Shapes
/// - `x`: `[…, d]`; `w`: `[d]`
/// - returns `y: […, d]` and `r: […, 1]`, the latter in single or double precision
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where the shapes do not fit.
///
/// # Source
/// Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
pub fn forward(x: &Tensor, w: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    let kind = wide(x);
    let scale = x.f_to_kind(kind)?.f_square()?.f_mean_dim([-1i64].as_slice(), true, None)?;
    let scale = scale.f_add_scalar(epsilon)?.f_rsqrt()?;
    let y = x.f_to_kind(kind)?.f_mul(&scale)?.f_mul_(w)?;
    Ok((y.f_to_kind(x.kind())?, scale))
}

/// Computes `dx = r · (g − x · r² · mean(g · x))` with `g = dy · w`, and `dw = Σ dy · x · r`.
///
/// # Shapes
/// - `dy`, `x`: `[…, d]`; `w`: `[d]`; `r`: `[…, 1]`
/// - returns `dx: […, d]` in the kind of `x`, and `dw: [d]` in that of `r`
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where the shapes do not fit.
pub fn backward(dy: &Tensor, x: &Tensor, w: &Tensor, r: &Tensor) -> Result<(Tensor, Tensor)> {
    let kind = r.kind();
    let normal = x.f_to_kind(kind)?.f_mul(r)?;
    let dy = dy.f_to_kind(kind)?;
    let product = dy.f_mul(&normal)?;
    let width = *x.size().last().unwrap_or(&1);
    let dw = product.f_reshape([-1, width])?.f_sum_dim_intlist([0i64].as_slice(), false, None)?;
    // mean(g·x)·r: the part of the gradient along x.
    let along = product.f_mul(w)?.f_mean_dim([-1i64].as_slice(), true, None)?;
    let dx = dy.f_mul(w)?.f_sub_(&normal.f_mul(&along)?)?.f_mul_(r)?;
    Ok((dx.f_to_kind(x.kind())?, dw))
}
