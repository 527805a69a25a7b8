//! Self-attention, cut by heads.
//!
//! Shape letters: `b` batch, `s` sequence, `h` this rank's query heads, `g` query heads for each key/value head, `k`
//! head width.

mod all_to_all;
pub mod mask;
mod ring;

use std::ops::Range;
use std::sync::Arc;

use mp_runtime::kernels::dropout;
use mp_runtime::kernels::rotary::{rotate, Angles};
use mp_runtime::{autograd, Kind, Tensor};

use crate::context::{Context, Form};
use crate::layers::attention::mask::Visibility;
use crate::layers::attention::ring::Ring;
use crate::layers::dropout::{Dropout, WeightDropout};
use crate::layers::linear::{ColumnParallel, RowParallel};
use crate::pass::{Pass, Positions};
use crate::recompute::{recomputed, Recompute};
use crate::Result;

/// The heads of one rank.
#[derive(Debug, Clone)]
pub struct Heads {
    /// Query heads of the whole model.
    pub all: usize,
    /// This rank's query heads.
    pub query: Range<usize>,
    /// How many key/value heads this rank holds.
    pub key_value: usize,
    /// Width of a head.
    pub width: usize,
}

/// What a layer's positions see of each other in every pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// Not those after them.
    pub causal: bool,
    /// Only those fewer positions away than this.
    pub window: Option<usize>,
}

impl Sight {
    /// Joins to it what tells the segments of one pass apart.
    fn of(self, pass: &Pass<'_>) -> Visibility {
        let Self { causal, window } = self;
        Visibility { causal, window, segments: pass.segments.map(Tensor::shallow_clone) }
    }
}

/// Self-attention with this rank's heads.
#[derive(Debug)]
pub struct SelfAttention {
    /// The layer's index in the whole model.
    pub layer: usize,
    /// Queries, keys and values in one product.
    pub project: ColumnParallel,
    /// The output projection.
    pub output: RowParallel,
    /// Which heads.
    pub heads: Heads,
    /// Rotary angles, where positions are rotary.
    pub angles: Option<Angles>,
    /// Whether a position sees those after it, and how far it sees.
    pub sight: Sight,
    /// Dropout of the attention's weights.
    pub dropout: Dropout,
    /// The ranks that hold the other positions.
    pub context: Context,
    /// What is computed again in the backward.
    pub recompute: Recompute,
}

impl SelfAttention {
    /// Attends from each position to those that it sees.
    ///
    /// # Shapes
    /// - `x`: `[b, s, d]`, or `[b, s / tp, d]`, its part of the pass's positions
    /// - returns the same
    ///
    /// # Communication
    /// That of one column-parallel and one row-parallel layer. Over a context group of `cp` ranks also: as a ring, `cp − 1`
    /// messages of the rank's keys and values, and twice as many in the backward; as an exchange, two all-to-alls each
    /// way.
    ///
    /// # Errors
    /// [`Error::TooLong`](crate::Error::TooLong) beyond the rotary table; [`Error::Positions`](crate::Error::Positions) for
    /// a pass over other positions than the context group gives this rank.
    ///
    /// # Source
    /// Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let Heads { query, key_value, width, .. } = &self.heads;
        let (h, kv, k) = (query.len() as i64, *key_value as i64, *width as i64);
        let fused = self.project.forward(x, Some(pass))?;
        let (b, s) = (fused.size()[0], fused.size()[1]);
        let parts = fused.f_view([b, s, h + 2 * kv, k])?.f_split_with_sizes([h, kv, kv].as_slice(), 2)?;
        let (mut q_bshk, mut k_bshk) = (parts[0].shallow_clone(), parts[1].shallow_clone());
        if let Some(angles) = &self.angles {
            let (seq, max_seq) = (pass.positions.seq(), angles.length());
            if seq > max_seq {
                return Err(crate::Error::TooLong { seq, max_seq });
            }
            let angles = angles.at(pass.positions.runs())?;
            q_bshk = rotate(&q_bshk, &angles)?;
            k_bshk = rotate(&k_bshk, &angles)?;
        }
        let y_bshk = self.attend([&q_bshk, &k_bshk, &parts[2]], pass)?;
        self.output.forward(&y_bshk.f_reshape([b, s, h * k])?, Some(pass))
    }

    /// Attends within the rank, to what a cache holds, or over the context group.
    fn attend(&self, [q, k, v]: [&Tensor; 3], pass: &Pass<'_>) -> Result<Tensor> {
        let Context { comm, form } = &self.context;
        if let Some(cached) = pass.cached {
            cached.keep(self.layer, k, v)?;
            if cached.is_step() {
                return cached.attend(self.layer, q, self.sight);
            }
        }
        self.context.check(&pass.positions)?;
        let (seq, visibility) = (pass.positions.seq(), self.sight.of(pass));
        let dropped = self.dropout.weights(pass, self.heads.query.clone(), self.heads.all);
        match form {
            _ if comm.size() == 1 => self.whole([q, k, v], visibility, dropped),
            Form::Ring => Ring { comm: Arc::clone(comm), seq, visibility, dropped }.attend(q, k, v),
            Form::AllToAll => all_to_all::attend(comm, [q, k, v], |inputs, heads| {
                self.whole(inputs, visibility, dropped.map(|dropout| dropout.of_heads(heads)))
            }),
        }
    }

    /// Attends over whole sequences.
    fn whole(&self, inputs: [&Tensor; 3], visibility: Visibility, dropped: Option<WeightDropout>) -> Result<Tensor> {
        let [q, k, v] = inputs;
        let seq = q.size()[1] as usize;
        if !visibility.is_causal_alone(seq) {
            // libtorch's own graph would keep each layer's mask; a ring of one rank makes it again.
            return Ring { comm: Context::alone().comm, seq, visibility, dropped }.attend(q, k, v);
        }
        // The fused kernel keeps no weights: without copies of heads it would be run again for nothing.
        let large = dropped.is_some() || q.size()[2] > k.size()[2];
        if self.recompute == Recompute::Selective && large {
            return recomputed(&inputs, move |again| core([&again[0], &again[1], &again[2]], dropped.as_ref()));
        }
        core(inputs, dropped.as_ref())
    }
}

/// Computes `softmax(Q·Kᵀ/√k)·V` of whole sequences under a causal mask: with libtorch's fused kernel, or step by step where weights are
/// dropped, since the mask must not depend on the layout.
///
/// # Shapes
/// - `q_bshk`: `[b, s, h, k]`; `k_bshk`, `v_bshk`: `[b, s, kv, k]`
/// - returns `[b, s, h, k]`
fn core([q_bshk, k_bshk, v_bshk]: [&Tensor; 3], dropped: Option<&WeightDropout>) -> Result<Tensor> {
    let g = q_bshk.size()[2] / k_bshk.size()[2];
    let q = q_bshk.f_transpose(1, 2)?;
    let (k, v) = (repeat(k_bshk, g)?.f_transpose(1, 2)?, repeat(v_bshk, g)?.f_transpose(1, 2)?);
    let Some(dropped) = dropped else {
        let y = Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, true, None, false)?;
        return Ok(y.f_transpose(1, 2)?);
    };
    let weights_bhst = causal_weights(&q, &k)?;
    let mask = {
        let _off = autograd::no_grad();
        let all = Positions::whole(q_bshk.size()[1] as usize);
        dropped.mask(&all, &all, &weights_bhst)?
    };
    let kept = dropout::apply(&weights_bhst, &mask, dropped.probability())?;
    Ok(kept.f_matmul(&v)?.f_transpose(1, 2)?)
}

/// Computes `softmax(Q·Kᵀ/√k)` with weights of later positions zero.
fn causal_weights(q: &Tensor, k: &Tensor) -> Result<Tensor> {
    let s = q.size()[2];
    let scale = 1.0 / (q.size()[3] as f64).sqrt();
    let later = Tensor::f_ones([s, s], (Kind::Bool, q.device()))?.f_triu(1)?;
    let scores = q.f_mul_scalar(scale)?.f_matmul(&k.f_transpose(-2, -1)?)?;
    Ok(scores.f_masked_fill(&later, f64::NEG_INFINITY)?.f_softmax(-1, None)?)
}

/// Repeats each key/value head for the `g` query heads that share it.
///
/// # Shapes
/// - `x_bshk`: `[b, s, kv, k]`
/// - returns `[b, s, kv·g, k]`
fn repeat(x_bshk: &Tensor, g: i64) -> Result<Tensor> {
    if g == 1 {
        return Ok(x_bshk.shallow_clone());
    }
    let size = x_bshk.size();
    let (b, s, kv, k) = (size[0], size[1], size[2], size[3]);
    Ok(x_bshk.f_unsqueeze(3)?.f_expand([b, s, kv, g, k], false)?.f_reshape([b, s, kv * g, k])?)
}
