//! Cross-entropy over a vocabulary that is cut over the tensor group: the logits are never gathered.

use std::ops::Range;

use mp_comm::{Communicator, ReduceOp};
use mp_runtime::{autograd, Kind, Tensor};

use crate::{collective, Result};

/// Sums `log Σ_v exp(z_v) − z_target` over all targets, in nats; targets of −1 do not count.
///
/// # Shapes
/// - `logits`: `[b, s, v_local]`, this rank's part of the padded vocabulary
/// - `ids`: the token ids of its first `ids.len()` entries; what follows is padding
/// - `targets`: `[b, s]`, replicated
/// - returns a scalar in single precision, double where the logits are
///
/// # Communication
/// Forward: one all-reduce of `b·s` elements (the maximum) and one of `2·b·s` (sum of exponentials, target's logit).
/// Backward: none.
///
/// # Errors
/// [`Error::Comm`](crate::Error::Comm) if a collective fails.
///
/// # Source
/// Shoeybi et al. 2019, arXiv:1909.08053, §3.
pub fn vocab_parallel_cross_entropy(
    logits: &Tensor,
    ids: Range<usize>,
    targets: &Tensor,
    group: &dyn Communicator,
) -> Result<Tensor> {
    let (loss, saved) = {
        let _off = autograd::no_grad();
        forward(logits, ids, &targets.f_view([-1])?, group)?
    };
    let kind = logits.kind();
    let shape = logits.size();
    autograd::attach(&[logits], &[loss.shallow_clone()], move |gradients| {
        let Some(gradient) = &gradients[0] else { return Ok(vec![None]) };
        let dz = saved.gradient(gradient)?;
        Ok(vec![Some(dz.f_to_kind(kind)?.f_view(&shape[..])?)])
    })?;
    Ok(loss)
}

/// What the backward pass needs; `n = b·s`.
struct Saved {
    /// This rank's part of the softmax, `[n, v_local]`.
    softmax: Tensor,
    /// The target's column in this shard, `[n, 1]`; 0 where it lies elsewhere.
    column: Tensor,
    /// 1 where the target lies in this shard, `[n, 1]`.
    here: Tensor,
    /// 1 where the target counts, `[n, 1]`.
    counts: Tensor,
}

fn forward(logits: &Tensor, ids: Range<usize>, targets: &Tensor, group: &dyn Communicator) -> Result<(Tensor, Saved)> {
    let width = *logits.size().last().unwrap_or(&1);
    let kind = if logits.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let z = logits.f_reshape([-1, width])?.f_to_kind(kind)?;
    let padding = width - ids.len() as i64;
    #[cfg(feature = "faults")]
    let padding = if crate::faults::active(crate::faults::Fault::PaddingCounts) { 0 } else { padding };
    let mut z = if padding > 0 { pad_with_nothing(z, ids.len() as i64, padding)? } else { z };

    let mut highest = z.f_amax([-1i64].as_slice(), true)?;
    collective::all_reduce(group, &mut highest, ReduceOp::Max)?;
    // What is no copy is the caller's, and stays as it is.
    let z = if padding > 0 || logits.kind() != kind { z.f_sub_(&highest)? } else { z.f_sub(&highest)? };

    let (column, here) = locate(targets, &ids)?;
    let here = here.f_to_kind(kind)?;
    // Filled, not multiplied: where a shard is all padding the column holds −∞, and −∞ · 0 is no number.
    let elsewhere = here.f_eq(0.0)?;
    let target = z.f_gather(1, &column, false)?.f_masked_fill(&elsewhere, 0.0)?;
    // In place from here on: these are the largest tensors of a step.
    let mut softmax = z;
    let _ = softmax.f_exp_()?;
    let sum = softmax.f_sum_dim_intlist([-1i64].as_slice(), true, None)?;
    let mut both = Tensor::f_stack(&[sum, target], 0)?;
    collective::all_reduce(group, &mut both, ReduceOp::Sum)?;
    let (sum, target) = (both.f_select(0, 0)?, both.f_select(0, 1)?);

    let counts = targets.f_ge(0)?.f_to_kind(kind)?.f_unsqueeze(1)?;
    let loss = sum.f_log()?.f_sub_(&target)?.f_mul_(&counts)?.f_sum(None)?;
    let _ = softmax.f_div_(&sum)?;
    Ok((loss, Saved { softmax, column, here, counts }))
}

/// Keeps padded columns out of every sum. A shard of padding alone has a maximum of −∞, and adds nothing.
fn pad_with_nothing(z: Tensor, valid: i64, padding: i64) -> Result<Tensor> {
    let nothing = z.f_narrow(1, valid, padding)?.f_full_like(f64::NEG_INFINITY)?;
    Ok(Tensor::f_cat(&[z.f_narrow(1, 0, valid)?, nothing], 1)?)
}

/// Finds each target's column in this shard, and whether it lies there.
fn locate(targets: &Tensor, ids: &Range<usize>) -> Result<(Tensor, Tensor)> {
    let (start, end) = (ids.start as i64, ids.end as i64);
    let here = targets.f_ge(start)?.f_logical_and(&targets.f_lt(end)?)?;
    let column = targets.f_sub_scalar(start)?.f_masked_fill(&here.f_logical_not()?, 0)?;
    Ok((column.f_unsqueeze(1)?, here.f_unsqueeze(1)?))
}

impl Saved {
    /// Computes `(softmax − onehot(target)) · gradient`.
    fn gradient(&self, gradient: &Tensor) -> mp_runtime::Result<Tensor> {
        let factor = self.counts.f_mul(gradient)?;
        let mut dz = self.softmax.f_mul(&factor)?;
        let at_target = self.here.f_mul(&factor)?.f_neg()?;
        let _ = dz.f_scatter_add_(1, &self.column, &at_target)?;
        Ok(dz)
    }
}
