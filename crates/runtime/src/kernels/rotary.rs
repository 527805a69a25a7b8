//! Rotary positions.

use std::ops::Range;

use crate::kernels::runs;
use crate::{autograd, Device, Kind, Result, Tensor};

/// Returns the frequency of each pair of a head's elements, `theta^(−2i/k)` for `i < k/2`: radians a position.
///
/// # Source
/// Su et al. 2021, arXiv:2104.09864, §3.2.2.
pub fn frequencies(width: usize, theta: f64) -> Vec<f64> {
    (0..width / 2).map(|i| theta.powf(-2.0 * i as f64 / width as f64)).collect()
}

/// The cosines and sines of every position's angles.
#[derive(Debug)]
pub struct Angles {
    cosines_sk: Tensor,
    sines_sk: Tensor,
}

impl Angles {
    /// Tabulates the angles `p · f_i` for positions `p < length` and the given frequencies, one for each pair of a head's
    /// elements, computed in double precision.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where libtorch refuses.
    ///
    /// # Source
    /// Su et al. 2021, arXiv:2104.09864, eq. 15; halves paired as in Llama's published weights.
    pub fn new(length: usize, frequencies: &[f64], kind: Kind, device: Device) -> Result<Self> {
        let positions: Vec<f64> = (0..length).map(|position| position as f64).collect();
        let angles = Tensor::from_slice(&positions).f_outer(&Tensor::from_slice(frequencies))?;
        Ok(Self {
            cosines_sk: angles.f_cos()?.f_to_kind(kind)?.f_to_device(device)?,
            sines_sk: angles.f_sin()?.f_to_kind(kind)?.f_to_device(device)?,
        })
    }

    /// Makes another handle to the same tables.
    pub fn share(&self) -> Self {
        Self { cosines_sk: self.cosines_sk.shallow_clone(), sines_sk: self.sines_sk.shallow_clone() }
    }

    /// Returns the angles of some positions, in the order given; those of a single run are a view.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if a run goes beyond the table.
    pub fn at(&self, positions: &[Range<usize>]) -> Result<Self> {
        Ok(Self {
            cosines_sk: runs::select(&self.cosines_sk, 0, positions)?,
            sines_sk: runs::select(&self.sines_sk, 0, positions)?,
        })
    }

    /// Returns how many positions are tabulated.
    pub fn length(&self) -> usize {
        self.cosines_sk.size()[0] as usize
    }
}

/// Turns the pairs `(x_i, x_{i+k/2})` of each head by the angles of its position: `y₁ = x₁·cos − x₂·sin`,
/// `y₂ = x₂·cos + x₁·sin`. The gradient is turned back.
///
/// # Shapes
/// - `x_bshk`: `[b, s, h, k]`, turned by the first `s` entries of `angles`
/// - returns the same shape, contiguous
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where the shapes do not fit.
pub fn rotate(x_bshk: &Tensor, angles: &Angles) -> Result<Tensor> {
    let length = x_bshk.size()[1];
    // [s, 1, k/2]: the same for every head.
    let cosines = angles.cosines_sk.f_narrow(0, 0, length)?.f_unsqueeze(1)?;
    let sines = angles.sines_sk.f_narrow(0, 0, length)?.f_unsqueeze(1)?;
    let turned = {
        let _off = autograd::no_grad();
        turn(x_bshk, &cosines, &sines, 1.0)?
    };
    autograd::attach(&[x_bshk], &[turned.shallow_clone()], move |gradients| {
        let Some(gradient) = &gradients[0] else { return Ok(vec![None]) };
        Ok(vec![Some(turn(gradient, &cosines, &sines, -1.0)?)])
    })?;
    Ok(turned)
}

/// Turns by the angles times `sign`.
fn turn(x: &Tensor, cosines: &Tensor, sines: &Tensor, sign: f64) -> Result<Tensor> {
    let half = x.size()[3] / 2;
    let (x1, x2) = (x.f_narrow(3, 0, half)?, x.f_narrow(3, half, half)?);
    let y = Tensor::f_empty(x.size(), (x.kind(), x.device()))?;
    let y1 = y.f_narrow(3, 0, half)?;
    let y2 = y.f_narrow(3, half, half)?;
    let _ = x1.f_mul_out(&y1, cosines)?.f_addcmul_(&x2, &sines.f_mul_scalar(-sign)?)?;
    let _ = x2.f_mul_out(&y2, cosines)?.f_addcmul_(&x1, &sines.f_mul_scalar(sign)?)?;
    Ok(y)
}
