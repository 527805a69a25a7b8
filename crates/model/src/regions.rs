//! Conjugate regions: where activations pass between a tensor group's replicated and sharded parts, and their gradients
//! pass back the other way.
//!
//! | forward | backward | between |
//! |---|---|---|
//! | identity | all-reduce | a replicated input and column-parallel layers (`f`) |
//! | all-reduce | identity | row-parallel products and a replicated output (`g`) |
//! | all-gather along the sequence | reduce-scatter | a sequence shard and column-parallel layers (`g`) |
//! | reduce-scatter along the sequence | all-gather | row-parallel products and a sequence shard (`ḡ`) |
//!
//! The linear layers fuse these with their products, to overlap the two; the embedding calls them alone.
//!
//! # Source
//! Shoeybi et al. 2019, arXiv:1909.08053, §3; Korthikanti et al. 2022, arXiv:2205.05198, §4.2.2.

use std::sync::Arc;

use mp_comm::{Communicator, ReduceOp};
use mp_runtime::Tensor;

use crate::{collective, Result};

/// How activations lie on the tensor group between its column- and row-parallel layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// The same on every rank.
    Replicated,
    /// Cut along the sequence, dim 1.
    SequenceSharded,
}

/// A tensor group with the way activations lie between its regions.
#[derive(Debug, Clone)]
pub struct TensorGroup {
    /// The ranks that share each matrix.
    pub comm: Arc<dyn Communicator>,
    /// How activations lie between the regions.
    pub between: Between,
}

/// The dim of `[b, s, d]` along which a sequence is cut.
pub(crate) const SEQUENCE: i64 = 1;

impl TensorGroup {
    /// Sums partial products over the group, outside the graph: forward of a region's end.
    ///
    /// # Errors
    /// What the collective raises.
    pub fn leave(&self, mut partial: Tensor) -> Result<Tensor> {
        match self.between {
            Between::Replicated => {
                collective::all_reduce(&*self.comm, &mut partial, ReduceOp::Sum)?;
                Ok(partial)
            }
            Between::SequenceSharded => collective::reduce_scatter(&*self.comm, &partial, SEQUENCE),
        }
    }

    /// Brings the gradient of a region's end back inside: backward of [`leave`](Self::leave).
    ///
    /// # Errors
    /// What the collective raises.
    pub fn leave_backward(&self, gradient: &Tensor) -> Result<Tensor> {
        match self.between {
            Between::Replicated => Ok(gradient.f_contiguous()?),
            Between::SequenceSharded => collective::all_gather(&*self.comm, gradient, SEQUENCE),
        }
    }

    /// Returns which of `seq` tokens, as the group holds them inside its regions, this rank holds between them.
    pub fn positions(&self, seq: usize) -> std::ops::Range<usize> {
        match self.between {
            Between::Replicated => 0..seq,
            Between::SequenceSharded => {
                let length = seq / self.comm.size();
                self.comm.rank().0 * length..(self.comm.rank().0 + 1) * length
            }
        }
    }
}
