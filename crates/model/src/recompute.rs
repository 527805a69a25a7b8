//! Activations that are not kept for the backward but computed again in it.
//!
//! Layers own their weights' gradients and randomness is drawn by place, so that what is computed again is the same to the
//! last bit, and so are the gradients.
//!
//! # Source
//! Chen et al. 2016, arXiv:1604.06174; selective: Korthikanti et al. 2022, arXiv:2205.05198, §5.

use mp_runtime::{autograd, Tensor};

use crate::Result;

/// What is computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// The attention's core: scores, softmax, dropped weights and repeated heads, which grow with the square of the
    /// sequence and cost little. Where the fused kernel or the ring keeps none of them, nothing is left to drop.
    Selective,
    /// Whole layers: of each its input alone is kept.
    Full {
        /// Layers 0, `every`, `2·every`, … are computed again, the others kept.
        every: usize,
    },
}

impl Recompute {
    /// Says whether a layer is computed again as a whole.
    pub fn layer(self, layer: usize) -> bool {
        matches!(self, Recompute::Full { every } if layer.is_multiple_of(every))
    }
}

/// Runs `body` without keeping what it computes on the way; the backward runs it again, recording, and walks that.
///
/// `body` must compute the same each time it is called, collectives included: all ranks of a group run it again at the same
/// point of their backward. What it computes counts as a function of `inputs` alone: where none of them requires a gradient
/// there is no backward, and weights used inside get none.
///
/// # Errors
/// What `body` raises; where that is in the backward, it comes back from there.
///
/// # Examples
/// ```
/// use mp_model::recompute::recomputed;
/// use mp_runtime::{autograd, Tensor};
///
/// let x = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
/// let y = recomputed(&[&x], |inputs| Ok(inputs[0].f_exp()?.f_sin()?))?;
/// autograd::backward(&[&y.f_sum(None)?], &[None], false)?;
/// // The derivative of sin(eˣ).
/// let expected = x.f_exp()?.f_cos()?.f_mul(&x.f_exp()?)?;
/// assert!((x.grad() - expected).abs().max().double_value(&[]) < 1e-14);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn recomputed<F>(inputs: &[&Tensor], body: F) -> Result<Tensor>
where
    F: Fn(&[Tensor]) -> Result<Tensor> + Send + 'static,
{
    let kept = inputs.iter().map(|input| Ok(input.f_detach()?)).collect::<Result<Vec<_>>>()?;
    let y = {
        let _off = autograd::no_grad();
        body(&kept)?
    };
    autograd::attach(inputs, &[y.shallow_clone()], move |gradients| match &gradients[0] {
        Some(dy) => Ok(walk_again(&kept, &body, dy)?),
        None => Ok(kept.iter().map(|_| None).collect()),
    })?;
    Ok(y)
}

/// Runs `body` from `kept` once more and returns the gradients of its inputs.
fn walk_again<F>(kept: &[Tensor], body: &F, dy: &Tensor) -> Result<Vec<Option<Tensor>>>
where
    F: Fn(&[Tensor]) -> Result<Tensor>,
{
    let leaves = kept.iter().map(|input| Ok(input.f_detach()?.f_set_requires_grad(true)?));
    let leaves = leaves.collect::<Result<Vec<_>>>()?;
    let y = autograd::record(|| body(&leaves))?;
    autograd::backward(&[&y], &[Some(dy)], false)?;
    leaves
        .iter()
        .map(|leaf| {
            let gradient = leaf.f_grad()?;
            Ok(gradient.defined().then_some(gradient))
        })
        .collect()
}
