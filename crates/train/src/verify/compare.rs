//! How far two traces are apart, and what of that is rounding.
//!
//! # In double precision
//!
//! All differences are relative, and none may pass [`LIMIT`]:
//!
//! | of | is | against |
//! |---|---|---|
//! | loss, clip norm | the difference | the value |
//! | a parameter's gradient | the largest element's difference | the largest of the tensor, or 1e-3 of the model's largest |
//! | a parameter's value | the largest element's difference | the largest of the tensor, or the learning rate |
//!
//! Some gradients are zero but for rounding (a key bias's without rotary positions): hence the model's largest element.
//! Adam divides a gradient by the root of its own square and would make a full update of such a one. Its epsilon is
//! therefore raised to the clip norm, which no element of a clipped gradient passes. One update is `lr·m/(√v + ε)`, where
//! `m` and `v` are means of gradients and of their squares; a difference of `δ` in each gradient moves it by
//! `lr·(|δm| + |m|/(√v + ε)·|δ√v|)/(√v + ε)` at most, and since `|m| ≤ c·√v` with a `c` near 1 for a few steps, and `√v`
//! moves by no more than `δ` either, by less than `2c·lr·δ/ε`. With `δ ≤ 1e-13·ε`, as double precision has it, three
//! updates stay below `1e-12·lr`, while a gradient that is wrong by a part in a million shows.
//!
//! # In the run's own precision
//!
//! What rounding does is seen on one rank alone: its difference from the same steps in double precision. The noise of a
//! layout is its difference from one rank in the run's precision, in parts of that. Both are root mean squares of each
//! tensor's gradient, over the root mean square of the gradient, squared and added over tensors and steps.
//!
//! Were every rounding of a layout independent of those on one rank and as large, the difference would be √2 of what is
//! expected. A layout rounds more often in one place: a row-parallel product is rounded on each rank and again as a sum,
//! which doubles the variance of that place at most, and makes it √3 ≈ 1.7. A sum that one rank makes of fewer, longer
//! parts errs more, not less. [`NOISE_LIMIT`] is twice that and a little more, for layers that amplify.

use mp_runtime::{Kind, Tensor};

use super::shrink::LR;
use super::trace::{Left, Trace};
use crate::Result;

/// The largest relative difference in double precision.
pub const LIMIT: f64 = 1e-10;
/// The largest difference in the run's own precision, in parts of the rounding expected.
pub const NOISE_LIMIT: f64 = 4.0;
/// The least scale of a gradient, in parts of the model's largest.
const FLOOR: f64 = 1e-3;

/// What of a step is compared. In the order in which one is named that differs: a wrong loss has wrong gradients, and a
/// gradient says where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// A parameter's gradient.
    Gradient,
    /// The loss.
    Loss,
    /// The gradient's norm before clipping.
    Norm,
    /// A parameter's updated value; in step 0 its initial one.
    Value,
}

impl Quantity {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gradient, Self::Loss, Self::Norm, Self::Value];

    /// Returns the name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gradient => "gradient",
            Self::Loss => "loss",
            Self::Norm => "clip norm",
            Self::Value => "value",
        }
    }
}

/// One difference from one rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Difference {
    pub step: usize,
    pub quantity: Quantity,
    /// The parameter's index in the whole model; 0 for loss and norm.
    pub parameter: usize,
    /// Relative. What is no number is as large as can be.
    pub by: f64,
}

/// Compares a trace with that of one rank, which holds everything.
pub(super) fn differences(got: &Trace, expected: &Trace) -> Result<Vec<Difference>> {
    let mut all = Vec::new();
    let mut values = |step: usize, got_values: &[Tensor], expected: &[Tensor]| -> Result<()> {
        for (&parameter, got) in got.held.iter().zip(got_values) {
            let by = distance(got, &expected[parameter], LR)?;
            all.push(Difference { step, quantity: Quantity::Value, parameter, by });
        }
        Ok(())
    };
    values(0, &got.initial, &expected.initial)?;
    for (index, (got, expected)) in got.steps.iter().zip(&expected.steps).enumerate() {
        values(index + 1, &got.values, &expected.values)?;
    }
    for (index, (left, expected)) in got.steps.iter().zip(&expected.steps).enumerate() {
        let step = index + 1;
        for (quantity, a, b) in [(Quantity::Loss, left.loss, expected.loss), (Quantity::Norm, left.norm, expected.norm)]
        {
            all.push(Difference { step, quantity, parameter: 0, by: number((a - b).abs() / b.abs()) });
        }
        let floor = FLOOR * largest_of_all(&expected.gradients)?;
        for (&parameter, gradient) in got.held.iter().zip(&left.gradients) {
            let by = distance(gradient, &expected.gradients[parameter], floor)?;
            all.push(Difference { step, quantity: Quantity::Gradient, parameter, by });
        }
    }
    Ok(all)
}

/// Adds up the squares of a trace's noise and of the rounding expected, over the parameters that this rank speaks for.
pub(super) fn noise(got: &Trace, one_rank: &Trace, exact: &Trace) -> Result<[f64; 2]> {
    let mut squares = [0.0; 2];
    if !got.speaks {
        return Ok(squares);
    }
    for ((left, rounded), exact) in got.steps.iter().zip(&one_rank.steps).zip(&exact.steps) {
        let scales = scales(exact)?;
        for (&parameter, gradient) in got.held.iter().zip(&left.gradients) {
            let (rounded, exact) = (&rounded.gradients[parameter], &exact.gradients[parameter]);
            squares[0] += (apart(gradient, rounded)? / scales[parameter]).powi(2);
            squares[1] += (apart(rounded, exact)? / scales[parameter]).powi(2);
        }
    }
    Ok(squares.map(number))
}

/// Returns each gradient's root mean square, or the least that counts.
fn scales(step: &Left) -> Result<Vec<f64>> {
    let all = step.gradients.iter().map(root_mean_square).collect::<Result<Vec<_>>>()?;
    let floor = FLOOR * all.iter().copied().fold(0.0, f64::max);
    Ok(all.into_iter().map(|scale| scale.max(floor)).collect())
}

/// Returns the largest element's difference in parts of the largest element, or of `floor`.
fn distance(got: &Tensor, expected: &Tensor, floor: f64) -> Result<f64> {
    if got.size() != expected.size() {
        return Ok(f64::MAX);
    }
    let difference = got.f_sub(expected).map_err(mp_runtime::Error::from)?;
    Ok(number(largest(&difference)? / largest(expected)?.max(floor)))
}

fn apart(a: &Tensor, b: &Tensor) -> Result<f64> {
    let double = |tensor: &Tensor| tensor.f_to_kind(Kind::Double);
    let difference = double(a).and_then(|a| a.f_sub(&double(b)?)).map_err(mp_runtime::Error::from)?;
    root_mean_square(&difference)
}

fn root_mean_square(tensor: &Tensor) -> Result<f64> {
    let norm = tensor.f_norm().map_err(mp_runtime::Error::from)?.double_value(&[]);
    Ok(norm / (tensor.numel().max(1) as f64).sqrt())
}

fn largest(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.f_abs().and_then(|all| all.f_max()).map_err(mp_runtime::Error::from)?.double_value(&[]))
}

fn largest_of_all(tensors: &[Tensor]) -> Result<f64> {
    tensors.iter().map(largest).try_fold(0.0, |most: f64, one| Ok(most.max(one?)))
}

/// Makes what is no finite number as large as can be, so that it is above every limit and survives a reduction.
fn number(value: f64) -> f64 {
    if value.is_finite() {
        value
    } else {
        f64::MAX
    }
}
