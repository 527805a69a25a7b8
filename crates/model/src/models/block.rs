//! The residual block that all families share: what differs is the norms and where they stand, the positions and the
//! perceptron it is made with.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mp_runtime::Tensor;

use crate::layers::attention::SelfAttention;
use crate::layers::dropout::Dropout;
use crate::layers::mlp::Mlp;
use crate::layers::norm::Norm;
use crate::pass::Pass;
use crate::recompute::{recomputed, Recompute};
use crate::regions::TensorGroup;
use crate::unit::Residence;
use crate::Result;

/// Where the norm of each half of a block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOrder {
    /// Before the half, beside the residual stream.
    Before,
    /// Behind the sum, in the residual stream.
    Behind,
}

/// One transformer layer.
#[derive(Debug)]
pub struct Block {
    /// Its index in the whole model.
    pub layer: usize,
    /// When its values are there.
    pub residence: Residence,
    /// Where the norms stand.
    pub order: NormOrder,
    /// Of the attention's half.
    pub attention_norm: Norm,
    /// The attention.
    pub attention: SelfAttention,
    /// Of the attention's output.
    pub attention_dropout: Dropout,
    /// Of the perceptron's half.
    pub mlp_norm: Norm,
    /// The perceptron.
    pub mlp: Mlp,
    /// Of the perceptron's output.
    pub mlp_dropout: Dropout,
}

impl Block {
    /// Computes `x ← x + attention(norm(x))`, then `x ← x + mlp(norm(x))`; with the norms behind, `x ← norm(x + attention(x))`,
    /// then `x ← norm(x + mlp(x))`.
    ///
    /// # Shapes
    /// - `x`: `[b, s, d]`, or `[b, s / tp, d]`, its part of the sequence
    /// - returns the same
    ///
    /// # Errors
    /// Whatever a layer raises.
    ///
    /// # Source
    /// Vaswani et al. 2017, arXiv:1706.03762, §3.1; Radford et al. 2019, §2.3 (norms moved to the input of each sub-block).
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>, group: &TensorGroup) -> Result<Tensor> {
        let attend = |x: &Tensor| self.attention_dropout.forward(self.attention.forward(x, pass)?, pass, group);
        let widen = |x: &Tensor| self.mlp_dropout.forward(self.mlp.forward(x, pass)?, pass, group);
        match self.order {
            NormOrder::Before => {
                let x = x.f_add(&attend(&self.attention_norm.forward(x)?)?)?;
                Ok(x.f_add(&widen(&self.mlp_norm.forward(&x)?)?)?)
            }
            NormOrder::Behind => {
                let x = self.attention_norm.forward(&x.f_add(&attend(x)?)?)?;
                self.mlp_norm.forward(&x.f_add(&widen(&x)?)?)
            }
        }
    }
}

/// A block as a model runs it: the graph may hold it too, to compute it again in the backward.
#[derive(Debug)]
pub struct Layer {
    layer: usize,
    residence: Residence,
    /// Behind a lock because the graph may be walked on another thread; nobody ever waits for it.
    block: Arc<Mutex<Block>>,
}

impl Layer {
    /// Takes a block.
    pub fn new(block: Block) -> Self {
        Self { layer: block.layer, residence: block.residence.clone(), block: Arc::new(Mutex::new(block)) }
    }

    /// Runs the layer, and lets the graph keep all that its backward needs, or its input alone.
    ///
    /// # Shapes
    /// As [`Block::forward`].
    ///
    /// # Errors
    /// Whatever a layer raises.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>, group: &TensorGroup, recompute: Recompute) -> Result<Tensor> {
        let _span = tracing::trace_span!("layer", layer = self.layer).entered();
        // Inside: values that are gathered for the backward serve both the second forward and the walk.
        self.residence.around(x, |x| match recompute.layer(self.layer) {
            true => self.recomputed(x, pass, group),
            false => lock(&self.block).forward(x, pass, group),
        })
    }

    fn recomputed(&self, x: &Tensor, pass: &Pass<'_>, group: &TensorGroup) -> Result<Tensor> {
        let (block, group, pass) = (Arc::clone(&self.block), group.clone(), pass.keep());
        recomputed(&[x], move |inputs| lock(&block).forward(&inputs[0], &pass.lend(), &group))
    }
}

/// Locks a block; one whose forward panicked is as good as before, for it holds weights alone.
fn lock(block: &Mutex<Block>) -> MutexGuard<'_, Block> {
    block.lock().unwrap_or_else(PoisonError::into_inner)
}
