//! Causal self-attention, cut by heads.
//!
//! Shape letters: `b` batch, `s` sequence, `h` this rank's query heads, `g` query heads for each key/value head, `k`
//! head width.

use std::ops::Range;

use mp_runtime::kernels::dropout::{self, Place};
use mp_runtime::kernels::rotary::{rotate, Angles};
use mp_runtime::{Kind, Tensor};

use crate::layers::dropout::Dropout;
use crate::layers::linear::{ColumnParallel, RowParallel};
use crate::pass::Pass;
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

/// Self-attention with this rank's heads.
#[derive(Debug)]
pub struct SelfAttention {
    /// Queries, keys and values in one product.
    pub project: ColumnParallel,
    /// The output projection.
    pub output: RowParallel,
    /// Which heads.
    pub heads: Heads,
    /// Rotary angles, where positions are rotary.
    pub angles: Option<Angles>,
    /// Dropout of the attention's weights.
    pub dropout: Dropout,
}

impl SelfAttention {
    /// Attends from each position to itself and those before it.
    ///
    /// # Shapes
    /// - `x`: `[b, s, d]`, or `[b, s / tp, d]`, its part of the sequence
    /// - returns the same
    ///
    /// # Communication
    /// That of one column-parallel and one row-parallel layer.
    ///
    /// # Errors
    /// [`Error::TooLong`](crate::Error::TooLong) beyond the rotary table.
    ///
    /// # Source
    /// Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let Heads { query, key_value, width, .. } = &self.heads;
        let (h, kv, k) = (query.len() as i64, *key_value as i64, *width as i64);
        let fused = self.project.forward(x)?;
        let (b, s) = (fused.size()[0], fused.size()[1]);
        let parts = fused.f_view([b, s, h + 2 * kv, k])?.f_split_with_sizes([h, kv, kv].as_slice(), 2)?;
        let (mut q_bshk, mut k_bshk) = (parts[0].shallow_clone(), parts[1].shallow_clone());
        if let Some(angles) = &self.angles {
            if s as usize > angles.length() {
                return Err(crate::Error::TooLong { seq: s as usize, max_seq: angles.length() });
            }
            q_bshk = rotate(&q_bshk, angles)?;
            k_bshk = rotate(&k_bshk, angles)?;
        }
        let y_bhsk = self.attend(
            &q_bshk.f_transpose(1, 2)?,
            &repeat(&k_bshk, h / kv)?.f_transpose(1, 2)?,
            &repeat(&parts[2], h / kv)?.f_transpose(1, 2)?,
            pass,
        )?;
        self.output.forward(&y_bhsk.f_transpose(1, 2)?.f_reshape([b, s, h * k])?)
    }

    /// Computes `softmax(Q·Kᵀ/√k)·V`: libtorch's fused kernel, or step by step where weights are dropped, since the
    /// mask must not depend on the layout.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let Some(stream) = self.dropout.stream(pass) else {
            return Ok(Tensor::f_scaled_dot_product_attention(q, k, v, None::<Tensor>, 0.0, true, None, false)?);
        };
        let weights_bhst = causal_weights(q, k)?;
        let rows = self.rows(pass);
        let kept = dropout::dropout(&weights_bhst, self.dropout.probability(), Place { rows: &rows, stream })?;
        Ok(kept.f_matmul(v)?)
    }

    /// Returns the global index of the first weight of each row `(b, h, s)`.
    fn rows(&self, pass: &Pass<'_>) -> Vec<u64> {
        let (seq, all) = (pass.seq(), self.heads.all);
        let mut rows = Vec::with_capacity(pass.batch() * self.heads.query.len() * seq);
        for sample in pass.first_sample..pass.first_sample + pass.batch() {
            for head in self.heads.query.clone() {
                rows.extend((0..seq).map(|position| (((sample * all + head) * seq + position) * seq) as u64));
            }
        }
        rows
    }
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
