//! The two sharded linear layers, `Y = X·A + b`. Torch stores `Aᵀ: [d_out, d_in]`.
//!
//! Column-parallel: `A = [A_1, …, A_p]`, each rank computes `Y_i = X·A_i`; the gradient of `X` is `Σ dY_i·A_iᵀ`, a sum
//! over the group that travels while `dA_i = Xᵀ·dY_i` is computed.
//! Row-parallel: `A = [A_1; …; A_p]`, each rank computes the partial product `X_i·A_i`, and `Y` is their sum.

use mp_comm::ReduceOp;
use mp_runtime::{autograd, Tensor};

use crate::collective::{start_all_gather, start_all_reduce, start_reduce_scatter, Arriving};
use crate::layers::low_rank::{Kept, LowRank};
use crate::pass::Pass;
use crate::regions::{Between, TensorGroup, SEQUENCE};
use crate::weight::Weight;
use crate::{Error, Result};

/// Multiplies by this rank's columns.
#[derive(Debug)]
pub struct ColumnParallel {
    weight: Weight,
    bias: Option<Weight>,
    adapters: Option<LowRank>,
    group: TensorGroup,
}

impl ColumnParallel {
    /// Makes the layer from this rank's columns (stored as rows, `[d_out / tp, d_in]`).
    pub fn new(weight: Weight, bias: Option<Weight>, group: &TensorGroup) -> Self {
        Self { weight, bias, adapters: None, group: group.clone() }
    }

    /// Puts adapters beside the matrix.
    #[must_use]
    pub fn with_adapters(self, adapters: Option<LowRank>) -> Self {
        Self { adapters, ..self }
    }

    /// Computes `Y_i = X · A_i + b_i`, and adds what the adapters make of `X` in this pass; without a pass
    /// nothing of it is dropped.
    ///
    /// # Shapes
    /// - `x`: `[b, s, d_in]`, replicated over `tp`; or `[b, s / tp, d_in]`, its part of the sequence
    /// - returns `[b, s, d_out / tp]`, sharded(2)
    ///
    /// # Communication
    /// Forward: none; with sequence shards one all-gather of `b·s·d_in` elements. Backward: one all-reduce (with
    /// sequence shards one all-gather and one reduce-scatter) of as many, behind the products; nothing is gathered again
    /// where nothing is trained.
    ///
    /// # Errors
    /// [`Error::Shape`] if the last dim of `x` is not `d_in`.
    ///
    /// # Source
    /// Shoeybi et al. 2019, arXiv:1909.08053, §3; Korthikanti et al. 2022, arXiv:2205.05198, §4.2.2.
    pub fn forward(&self, x: &Tensor, pass: Option<&Pass<'_>>) -> Result<Tensor> {
        check_width("the input of a column-parallel layer", x, &self.weight)?;
        let (y, kept) = {
            let _off = autograd::no_grad();
            let x = self.enter(x)?.map_or_else(|| Ok(x.shallow_clone()), Arriving::wait)?;
            let y = x.f_linear(&self.weight.value()?, self.bias.as_ref().map(Weight::value).transpose()?)?;
            let kept = self.adapters.as_ref().map(|adapters| adapters.forward(&y, &x, pass)).transpose()?;
            (y, kept)
        };
        let backward = Self {
            weight: self.weight.share(),
            bias: self.bias.as_ref().map(Weight::share),
            adapters: self.adapters.as_ref().map(LowRank::share),
            group: self.group.clone(),
        };
        let saved = x.detach();
        autograd::attach(&[x, self.weight.anchor()], &[y.shallow_clone()], move |gradients| {
            let Some(dy) = &gradients[0] else { return Ok(vec![None, None]) };
            Ok(vec![Some(backward.backward(&saved, kept.as_ref(), dy)?), None])
        })?;
        Ok(y)
    }

    /// Starts gathering the sequence, where it is cut.
    fn enter(&self, x: &Tensor) -> Result<Option<Arriving>> {
        match self.group.between {
            Between::Replicated => Ok(None),
            Between::SequenceSharded => Ok(Some(start_all_gather(&*self.group.comm, x, SEQUENCE)?)),
        }
    }

    fn backward(&self, x: &Tensor, kept: Option<&Kept>, dy: &Tensor) -> Result<Tensor> {
        // The gathered input is not kept: it is gathered again behind the first product.
        let reads = kept.is_some() || !self.weight.is_frozen();
        let gathering = if reads { self.enter(x)? } else { None };
        let mut dx = dy.f_matmul(&self.weight.value()?)?;
        let adapting = self.adapters.as_ref().zip(kept);
        let adapting = adapting.map(|(adapters, kept)| adapters.backward(kept, dy, &mut dx)).transpose()?;
        let reducing = match self.group.between {
            Between::Replicated => start_all_reduce(&*self.group.comm, dx, ReduceOp::Sum)?,
            Between::SequenceSharded => {
                let reducing = start_reduce_scatter(&*self.group.comm, &dx, SEQUENCE)?;
                // What travels may be a copy in the order of the ranks.
                drop(dx);
                reducing
            }
        };
        let x = gathering.map_or_else(|| Ok(x.shallow_clone()), Arriving::wait)?;
        accumulate(&self.weight, dy, &x)?;
        if let Some(bias) = &self.bias {
            accumulate_bias(bias, dy)?;
        }
        if let Some(adapting) = adapting {
            adapting.accumulate(&x)?;
        }
        reducing.wait()
    }
}

/// Multiplies this rank's part of the input by its rows and sums over the group.
#[derive(Debug)]
pub struct RowParallel {
    weight: Weight,
    bias: Option<Weight>,
    adapters: Option<LowRank>,
    group: TensorGroup,
}

impl RowParallel {
    /// Makes the layer from this rank's rows (stored as columns, `[d_out, d_in / tp]`) and the whole bias.
    pub fn new(weight: Weight, bias: Option<Weight>, group: &TensorGroup) -> Self {
        Self { weight, bias, adapters: None, group: group.clone() }
    }

    /// Puts an adapter beside the matrix.
    #[must_use]
    pub fn with_adapters(self, adapters: Option<LowRank>) -> Self {
        Self { adapters, ..self }
    }

    /// Computes `Y = Σ_i X_i · A_i + b`, and adds what the adapter makes of `X` in this pass; without a pass
    /// nothing of it is dropped.
    ///
    /// # Shapes
    /// - `x`: `[b, s, d_in / tp]`, sharded(2)
    /// - returns `[b, s, d_out]`, replicated over `tp`; or `[b, s / tp, d_out]`, its part of the sequence
    ///
    /// # Communication
    /// Forward: one all-reduce (with sequence shards one reduce-scatter) of `b·s·d_out` elements. Backward: none; with
    /// sequence shards one all-gather of as many.
    ///
    /// # Errors
    /// [`Error::Shape`] if the last dim of `x` is not `d_in / tp`.
    ///
    /// # Source
    /// Shoeybi et al. 2019, arXiv:1909.08053, §3; Korthikanti et al. 2022, arXiv:2205.05198, §4.2.2.
    pub fn forward(&self, x: &Tensor, pass: Option<&Pass<'_>>) -> Result<Tensor> {
        check_width("the input of a row-parallel layer", x, &self.weight)?;
        let (y, kept) = {
            let _off = autograd::no_grad();
            let partial = x.f_linear(&self.weight.value()?, None::<Tensor>)?;
            // Before the reduction: the adapter's output is linear in what each rank reads, and is summed with the rest.
            let kept = self.adapters.as_ref().map(|adapters| adapters.forward(&partial, x, pass)).transpose()?;
            let y = self.group.leave(partial)?;
            let y = match &self.bias {
                // After the reduction; before it, the bias would count once a rank.
                Some(bias) => y.shallow_clone().f_add_(&bias.value()?)?,
                None => y,
            };
            (y, kept)
        };
        let (weight, bias) = (self.weight.share(), self.bias.as_ref().map(Weight::share));
        let adapters = self.adapters.as_ref().map(LowRank::share);
        let (group, saved) = (self.group.clone(), x.detach());
        autograd::attach(&[x, self.weight.anchor()], &[y.shallow_clone()], move |gradients| {
            let Some(dy) = &gradients[0] else { return Ok(vec![None, None]) };
            if let Some(bias) = &bias {
                accumulate_bias(bias, dy)?;
            }
            let dy = group.leave_backward(dy)?;
            let mut dx = dy.f_matmul(&weight.value()?)?;
            accumulate(&weight, &dy, &saved)?;
            if let Some((adapters, kept)) = adapters.as_ref().zip(kept.as_ref()) {
                adapters.backward(kept, &dy, &mut dx)?.accumulate(&saved)?;
            }
            Ok(vec![Some(dx), None])
        })?;
        Ok(y)
    }
}

/// Adds `dYᵀ · X` to the weight's gradient, all leading dims summed over.
fn accumulate(weight: &Weight, dy: &Tensor, x: &Tensor) -> Result<()> {
    weight.accumulate_product(&rows(dy)?, &rows(x)?)
}

fn accumulate_bias(bias: &Weight, dy: &Tensor) -> Result<()> {
    if bias.is_frozen() {
        return Ok(());
    }
    // Summed in the gradient's precision: a sum over all tokens of bfloat16 values would lose most of them.
    let kind = bias.gradient_kind();
    bias.accumulate(&rows(dy)?.f_sum_dim_intlist([0i64].as_slice(), false, kind)?)
}

/// Views `[…, d]` as `[n, d]`.
pub(crate) fn rows(tensor: &Tensor) -> Result<Tensor> {
    let width = *tensor.size().last().unwrap_or(&1);
    Ok(tensor.f_reshape([-1, width])?)
}

fn check_width(what: &str, x: &Tensor, weight: &Weight) -> Result<()> {
    let width = weight.shape()[1];
    if x.dim() != 3 || x.size()[2] != width {
        return Err(Error::Shape { what: what.into(), shape: x.size(), expected: format!("[b, s, {width}]") });
    }
    Ok(())
}
