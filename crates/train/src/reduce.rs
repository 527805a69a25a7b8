//! From a rank's gradients to the model's: summed over the data ranks, completed over the tensor group, measured and
//! clipped as one vector.

use std::ops::Range;

use mp_comm::{BufferMut, ReduceOp};
use mp_model::gradient::Completion;
use mp_model::regions::TensorGroup;
use mp_model::Parameters;
use mp_plan::{Tie, Zero};
use mp_runtime::kernels::norm::sum_of_squares;

use crate::groups::Groups;
use crate::Result;

/// What turns gradients of micro-batches into that of the global batch.
#[derive(Debug)]
pub struct Reducer {
    completion: Completion,
    /// The ranges that this rank counts in the norm.
    counted: Vec<Range<usize>>,
}

impl Reducer {
    /// Makes the reducer. Collective over the tensor group.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) if the groups of replicas cannot be made.
    pub fn new(parameters: &Parameters, group: &TensorGroup) -> Result<Self> {
        Ok(Self { completion: Completion::new(parameters, group)?, counted: counted(parameters) })
    }

    /// Completes the step's gradient: what this rank owns of its shards is the global batch's gradient after it.
    ///
    /// # Communication
    /// What is left of the buckets' reductions over the data ranks, and that of [`Completion::run`].
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) if a part of the model was left out, [`Error::Comm`](crate::Error::Comm).
    pub fn sum(&self, parameters: &Parameters) -> Result<()> {
        parameters.finish_reduction()?;
        Ok(self.completion.run(parameters)?)
    }

    /// Computes the norm of the model's gradient, each element counted once whatever the layout.
    ///
    /// # Communication
    /// One all-reduce of one number over each group whose ranks own different elements.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm).
    pub fn norm(&self, parameters: &Parameters, groups: &Groups) -> Result<f64> {
        let mut squares = [0.0f64];
        for range in &self.counted {
            squares[0] += sum_of_squares(&parameters.gradients().range(range.clone())?)?;
        }
        groups.tp.all_reduce(BufferMut::new(&mut squares), ReduceOp::Sum)?;
        if parameters.sharing().zero != Zero::Replicated {
            groups.data.all_reduce(BufferMut::new(&mut squares), ReduceOp::Sum)?;
        }
        groups.pp.all_reduce(BufferMut::new(&mut squares), ReduceOp::Sum)?;
        Ok(squares[0].sqrt())
    }
}

/// Finds the ranges that this rank counts of those it owns: of parameters that lie on several tensor ranks, the first
/// one's; of a table on two ranks of the pipeline, the first stage's.
fn counted(parameters: &Parameters) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (index, parameter) in parameters.partition().parameters.iter().enumerate() {
        let replica = !parameters.tp_rank().is_multiple_of(parameter.replicas());
        #[cfg(feature = "faults")]
        let replica = replica && !mp_model::faults::active(mp_model::faults::Fault::NormCountsReplicas);
        if replica || parameter.tie == Tie::Copy {
            continue;
        }
        for range in parameters.owned_of(parameters.gradients().layout().range(index)) {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
    }
    ranges
}

/// Scales the gradients down so that their norm is at most `limit`; 0 leaves them.
///
/// # Errors
/// [`Error::Runtime`](crate::Error::Runtime) where libtorch refuses.
///
/// # Source
/// Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.
pub fn clip(parameters: &Parameters, norm: f64, limit: f64) -> Result<()> {
    if limit > 0.0 && norm > limit {
        let mut gradients = parameters.gradients().all().shallow_clone();
        let _ = gradients.f_mul_scalar_(limit / norm).map_err(mp_runtime::Error::from)?;
    }
    Ok(())
}
