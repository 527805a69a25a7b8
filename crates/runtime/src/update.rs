//! Update rules, each over flat ranges: one fused call for all ranges that share their settings.

use crate::{autograd, ffi, Result, Tensor};

/// AdamW's settings for one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Number of this update, from 1: the bias corrections' exponent.
    pub step: u64,
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub decay: f64,
}

/// The tensors of one update, equally long lists.
#[derive(Debug)]
pub struct AdamWState<'a> {
    /// Values to update.
    pub parameters: &'a [Tensor],
    /// Their gradients.
    pub gradients: &'a [Tensor],
    /// First moments.
    pub first: &'a [Tensor],
    /// Second moments.
    pub second: &'a [Tensor],
}

/// Updates in place: `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`,
/// `w ← w − lr·decay·w − lr · (m/(1−β₁ᵗ)) / (√(v/(1−β₂ᵗ)) + ε)`.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where shapes or kinds differ.
///
/// # Source
/// Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
pub fn adamw(settings: &AdamW, state: &AdamWState<'_>) -> Result<()> {
    if state.parameters.is_empty() {
        return Ok(());
    }
    ffi::fused_adamw(&ffi::FusedAdamW {
        parameters: state.parameters,
        gradients: state.gradients,
        first: state.first,
        second: state.second,
        step: settings.step,
        lr: settings.lr,
        betas: settings.betas,
        decay: settings.decay,
        epsilon: settings.epsilon,
    })
}

/// SGD's settings for one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Share of the last direction that is kept.
    pub momentum: f64,
    /// Weight decay, added to the gradient.
    pub decay: f64,
}

/// Updates in place: `d ← momentum·d + g + decay·w`, `w ← w − lr·d`.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where shapes or kinds differ.
///
/// # Source
/// Sutskever et al. 2013, with the convention (no factor `lr` inside the direction) that PyTorch uses.
pub fn sgd(settings: &Sgd, parameter: &Tensor, gradient: &Tensor, direction: &Tensor) -> Result<()> {
    let _off = autograd::no_grad();
    let mut direction = direction.shallow_clone();
    // A scaled copy would be as long as all matrices together.
    let scalar = |value: f64| Tensor::f_full([0i64; 0], value, (parameter.kind(), parameter.device()));
    let _ = direction.f_mul_scalar_(settings.momentum)?.f_add_(gradient)?;
    if settings.decay != 0.0 {
        let _ = direction.f_addcmul_(parameter, &scalar(settings.decay)?)?;
    }
    let _ = parameter.shallow_clone().f_addcmul_(&direction, &scalar(-settings.lr)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adamw_is_its_formula() {
        let (lr, (b1, b2), epsilon, decay) = (0.1, (0.9, 0.99), 1e-8, 0.01);
        let w = Tensor::from_slice(&[1.0, -2.0]);
        let (m, v) = (Tensor::from_slice(&[0.0, 0.0]), Tensor::from_slice(&[0.0, 0.0]));
        let mut expected = [(1.0, 0.0, 0.0), (-2.0, 0.0, 0.0)];
        for step in 1..=3u64 {
            let g = [0.5 * step as f64, -0.25];
            let settings = AdamW { step, lr, betas: (b1, b2), epsilon, decay };
            let gradient = Tensor::from_slice(&g);
            let lists = [&w, &gradient, &m, &v].map(|t| vec![t.shallow_clone()]);
            adamw(
                &settings,
                &AdamWState { parameters: &lists[0], gradients: &lists[1], first: &lists[2], second: &lists[3] },
            )
            .unwrap();
            for ((w, m, v), g) in expected.iter_mut().zip(g) {
                *w -= lr * decay * *w;
                *m = b1 * *m + (1.0 - b1) * g;
                *v = b2 * *v + (1.0 - b2) * g * g;
                let t = step as i32;
                *w -= lr * (*m / (1.0 - b1.powi(t))) / ((*v / (1.0 - b2.powi(t))).sqrt() + epsilon);
            }
        }
        for (index, (value, _, _)) in expected.iter().enumerate() {
            assert!((w.double_value(&[index as i64]) - value).abs() < 1e-14);
        }
    }

    #[test]
    fn sgd_is_its_formula() {
        let settings = Sgd { lr: 0.1, momentum: 0.9, decay: 0.01 };
        let (w, d) = (Tensor::from_slice(&[1.0]), Tensor::from_slice(&[0.0]));
        let (mut w_expected, mut d_expected) = (1.0, 0.0);
        for _ in 0..3 {
            sgd(&settings, &w, &Tensor::from_slice(&[0.5]), &d).unwrap();
            d_expected = 0.9 * d_expected + 0.5 + 0.01 * w_expected;
            w_expected -= 0.1 * d_expected;
        }
        assert!((w.double_value(&[0]) - w_expected).abs() < 1e-15);
    }
}
