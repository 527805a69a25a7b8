//! Attention of a block of queries to a block of keys, with what such results are merged by: the logarithm of the
//! softmax's denominator.
//!
//! Shape letters: `b` batch, `h` heads, `s` queries, `t` keys, `k` head width. Every function works outside the graph.
//!
//! # Source
//! Milakov and Gimelshein 2018, arXiv:1805.02867, §3 (merging softmaxes); Dao et al. 2022, arXiv:2205.14135, §3 and
//! appendix B.4 (weights computed again from that logarithm in the backward).

mod flash;
pub mod kernel;

use crate::kernels::attention::kernel::{Case, Kernel};
use crate::kernels::dropout;
use crate::{Device, Kind, Result, Tensor};

/// Which keys a query of the block sees.
#[derive(Debug)]
pub enum Mask {
    /// All.
    Full,
    /// Of as many keys as queries, those up to its own number.
    Causal,
    /// Those where this is true: `[b, 1, s, t]`, or `[1, 1, s, t]` where all sequences are alike. A query may see none of the
    /// block's keys, as long as it sees one of another block.
    Seen(Tensor),
}

/// Which weights are dropped.
#[derive(Debug)]
pub struct Dropped {
    /// `[b, h, s, t]`: 1 for weights that are kept, 0 for the others.
    pub mask: Tensor,
    /// The probability that the mask was drawn with.
    pub probability: f64,
}

/// What queries found in a block of keys, or in several.
#[derive(Debug)]
pub struct Attended {
    /// `softmax(Q·Kᵀ/√k)·V` over these keys alone, `[b, h, s, k]`.
    pub y_bhsk: Tensor,
    /// `log Σ exp(q·k/√k)` over these keys, `[b, h, s]`, in single precision, or double where the queries are; −∞ where a
    /// query sees none of them, and its result 0.
    pub log_sum_bhs: Tensor,
}

/// Gradients of queries, keys and values.
#[derive(Debug)]
pub struct Gradients {
    /// `[b, h, s, k]`.
    pub dq_bhsk: Tensor,
    /// `[b, h, t, k]`.
    pub dk_bhtk: Tensor,
    /// `[b, h, t, k]`.
    pub dv_bhtk: Tensor,
}

/// The kind that blocks are merged in, and gradients of blocks summed.
pub fn wide(kind: Kind) -> Kind {
    match kind {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}

impl Attended {
    /// Makes a copy in the kind that blocks are merged in.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where libtorch refuses.
    pub fn to_wide(&self) -> Result<Self> {
        let kind = wide(self.y_bhsk.kind());
        Ok(Self {
            y_bhsk: self.y_bhsk.f_to_dtype(kind, false, true)?,
            log_sum_bhs: self.log_sum_bhs.f_to_dtype(kind, false, true)?,
        })
    }

    /// Views queries `start` to `start + count`.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if there are not as many.
    pub fn queries(&self, start: i64, count: i64) -> Result<Self> {
        Ok(Self {
            y_bhsk: self.y_bhsk.f_narrow(2, start, count)?,
            log_sum_bhs: self.log_sum_bhs.f_narrow(2, start, count)?,
        })
    }

    /// Adds what the same queries found in other keys: each side counts by its share of the common denominator. These
    /// queries have found a key already; in the others they may not.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) where the shapes differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let log_sum = self.log_sum_bhs.f_logaddexp(&other.log_sum_bhs)?;
        let own = weights(&self.log_sum_bhs, &log_sum)?.f_unsqueeze(-1)?;
        let others = weights(&other.log_sum_bhs, &log_sum)?.f_unsqueeze(-1)?;
        let _ = self.y_bhsk.f_mul_(&own)?.f_addcmul_(&other.y_bhsk.f_to_kind(self.y_bhsk.kind())?, &others)?;
        self.log_sum_bhs.f_copy_(&log_sum)?;
        Ok(())
    }
}

/// Attends from a block of queries to a block of keys.
///
/// # Shapes
/// - `q`: `[b, h, s, k]`; `k`, `v`: `[b, h, t, k]`, elements of a head side by side
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where the shapes do not fit.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask, dropped: Option<&Dropped>) -> Result<Attended> {
    match Case::of(q, k, mask, dropped)?.kernel() {
        Kernel::Host => host_forward([q, k, v], mask),
        Kernel::Flash => flash::forward([q, k, v], matches!(mask, Mask::Causal)),
        Kernel::Plain => plain_forward(q, k, v, mask, dropped),
    }
}

fn host_forward([q, k, v]: [&Tensor; 3], mask: &Mask) -> Result<Attended> {
    with_blind(mask, |mask| {
        let (causal, added) = (matches!(mask, Mask::Causal), added(mask, q)?);
        let (y_bhsk, log_sum_bhs) =
            Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, added, None)?;
        Ok(Attended { y_bhsk, log_sum_bhs })
    })
}

/// Attends where queries may see no key at all: a softmax over nothing is no number, so they are shown all keys, and what
/// they found is taken from them.
fn with_blind(mask: &Mask, attend: impl FnOnce(&Mask) -> Result<Attended>) -> Result<Attended> {
    let Mask::Seen(seen) = mask else { return attend(mask) };
    let blind = seen.f_any_dim(-1, true)?.f_logical_not()?;
    // To ask a device would be to wait for it.
    if blind.device() == Device::Cpu && blind.f_any()?.f_int64_value(&[])? == 0 {
        return attend(mask);
    }
    let Attended { mut y_bhsk, mut log_sum_bhs } = attend(&Mask::Seen(seen.f_logical_or(&blind)?))?;
    let _ = y_bhsk.f_masked_fill_(&blind, 0.0)?;
    let _ = log_sum_bhs.f_masked_fill_(&blind.f_squeeze_dim(-1)?, f64::NEG_INFINITY)?;
    Ok(Attended { y_bhsk, log_sum_bhs })
}

/// Returns what the fused kernel adds to the scores: −∞ where a query does not see a key.
fn added(mask: &Mask, q: &Tensor) -> Result<Option<Tensor>> {
    let Mask::Seen(seen) = mask else { return Ok(None) };
    let zeros = Tensor::f_zeros(seen.size(), (q.kind(), q.device()))?;
    Ok(Some(zeros.f_masked_fill(&seen.f_logical_not()?, f64::NEG_INFINITY)?))
}

/// Computes the gradients of one block from the result over *all* keys: `attended` may be merged from several blocks, of
/// which this is one. The gradients of all blocks sum to that of the whole.
///
/// # Shapes
/// - `dy`, `q`: `[b, h, s, k]`; `k`, `v`: `[b, h, t, k]`
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where the shapes do not fit.
pub fn backward(
    dy: &Tensor,
    [q, k, v]: [&Tensor; 3],
    attended: &Attended,
    mask: &Mask,
    dropped: Option<&Dropped>,
) -> Result<Gradients> {
    match Case::of(q, k, mask, dropped)?.kernel() {
        Kernel::Host => host_backward(dy, [q, k, v], attended, mask),
        Kernel::Flash => flash::backward(dy, [q, k, v], attended, matches!(mask, Mask::Causal)),
        Kernel::Plain => plain_backward(dy, [q, k, v], attended, mask, dropped),
    }
}

fn host_backward(dy: &Tensor, [q, k, v]: [&Tensor; 3], attended: &Attended, mask: &Mask) -> Result<Gradients> {
    let (causal, Attended { y_bhsk, log_sum_bhs }) = (matches!(mask, Mask::Causal), attended);
    let (dq_bhsk, dk_bhtk, dv_bhtk) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
        dy,
        q,
        k,
        v,
        y_bhsk,
        log_sum_bhs,
        0.0,
        causal,
        added(mask, q)?,
        None,
    )?;
    Ok(Gradients { dq_bhsk, dk_bhtk, dv_bhtk })
}

/// [`forward`] step by step, with all weights in memory.
///
/// # Errors
/// As [`forward`].
pub fn plain_forward(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask, dropped: Option<&Dropped>) -> Result<Attended> {
    let kind = wide(q.kind());
    with_blind(mask, |mask| {
        let scores = scores(q, k, mask)?;
        let log_sum_bhs = scores.f_logsumexp([-1i64].as_slice(), false)?;
        let weights = kept(&weights(&scores, &log_sum_bhs.f_unsqueeze(-1)?)?, dropped)?;
        Ok(Attended { y_bhsk: weights.f_matmul(&v.f_to_kind(kind)?)?.f_to_kind(q.kind())?, log_sum_bhs })
    })
}

/// [`backward`] step by step: with weights `P` and the kept ones `P̃ = P∘M/(1 − p)`,
/// `dV = P̃ᵀ·dY` and `dS = P∘(dY·Vᵀ∘M/(1 − p) − Σ dY∘Y)`.
///
/// # Errors
/// As [`backward`].
pub fn plain_backward(
    dy: &Tensor,
    [q, k, v]: [&Tensor; 3],
    attended: &Attended,
    mask: &Mask,
    dropped: Option<&Dropped>,
) -> Result<Gradients> {
    let kind = wide(q.kind());
    let weights = weights(&scores(q, k, mask)?, &attended.log_sum_bhs.f_unsqueeze(-1)?)?;
    let dy = dy.f_to_kind(kind)?;
    let dv_bhtk = kept(&weights, dropped)?.f_transpose(-2, -1)?.f_matmul(&dy)?;
    let dweights = kept(&dy.f_matmul(&v.f_to_kind(kind)?.f_transpose(-2, -1)?)?, dropped)?;
    let along = dy.f_mul(&attended.y_bhsk)?.f_sum_dim_intlist([-1i64].as_slice(), true, None)?;
    let dscores = dweights.f_sub(&along)?.f_mul_(&weights)?.f_mul_scalar_(scale(q))?;
    Ok(Gradients {
        dq_bhsk: dscores.f_matmul(&k.f_to_kind(kind)?)?.f_to_kind(q.kind())?,
        dk_bhtk: dscores.f_transpose(-2, -1)?.f_matmul(&q.f_to_kind(kind)?)?.f_to_kind(q.kind())?,
        dv_bhtk: dv_bhtk.f_to_kind(q.kind())?,
    })
}

fn scale(q: &Tensor) -> f64 {
    1.0 / (q.size()[3] as f64).sqrt()
}

/// Computes `Q·Kᵀ/√k`, −∞ where a query does not see a key.
fn scores(q: &Tensor, k: &Tensor, mask: &Mask) -> Result<Tensor> {
    let kind = wide(q.kind());
    let scores = q.f_to_kind(kind)?.f_mul_scalar(scale(q))?.f_matmul(&k.f_to_kind(kind)?.f_transpose(-2, -1)?)?;
    let hidden = match mask {
        Mask::Full => return Ok(scores),
        Mask::Causal => Tensor::f_ones(&scores.size()[2..], (Kind::Bool, q.device()))?.f_triu(1)?,
        Mask::Seen(seen) => seen.f_logical_not()?,
    };
    Ok(scores.f_masked_fill(&hidden, f64::NEG_INFINITY)?)
}

/// Computes shares of a sum: `exp(scores)` over `exp(log_sum)`.
fn weights(scores: &Tensor, log_sum: &Tensor) -> Result<Tensor> {
    Ok(scores.f_sub(log_sum)?.f_exp_()?)
}

fn kept(weights: &Tensor, dropped: Option<&Dropped>) -> Result<Tensor> {
    match dropped {
        Some(Dropped { mask, probability }) => dropout::apply(weights, mask, *probability),
        None => Ok(weights.shallow_clone()),
    }
}
