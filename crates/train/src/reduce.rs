//! From a rank's gradients to the model's: completed over the tensor group, summed over the data group, measured and
//! clipped as one vector.

use std::ops::Range;

use mp_comm::{BufferMut, ReduceOp};
use mp_model::gradient::Completion;
use mp_model::regions::TensorGroup;
use mp_model::{collective, Parameters};

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

    /// Sums the gradients over all that contributed: every rank ends with its shard of the global batch's gradient.
    ///
    /// # Communication
    /// That of [`Completion::run`], and one all-reduce of the flat gradient over the data group.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm).
    pub fn sum(&self, parameters: &Parameters, groups: &Groups) -> Result<()> {
        self.completion.run(parameters)?;
        let mut gradients = parameters.gradients().all().shallow_clone();
        Ok(collective::all_reduce(&*groups.dp, &mut gradients, ReduceOp::Sum)?)
    }

    /// Computes the norm of the model's gradient, each element counted once whatever the layout.
    ///
    /// # Communication
    /// One all-reduce of one number over the tensor group.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm).
    pub fn norm(&self, parameters: &Parameters, groups: &Groups) -> Result<f64> {
        let mut squares = [0.0f64];
        for range in &self.counted {
            let part = parameters.gradients().range(range.clone())?;
            let norm = part.f_norm().map_err(mp_runtime::Error::from)?.double_value(&[]);
            squares[0] += norm * norm;
        }
        groups.tp.all_reduce(BufferMut::new(&mut squares), ReduceOp::Sum)?;
        Ok(squares[0].sqrt())
    }
}

/// Finds the ranges that this rank counts: of parameters that lie on several tensor ranks, the first one's.
fn counted(parameters: &Parameters) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (index, parameter) in parameters.partition().parameters.iter().enumerate() {
        if !parameters.tp_rank().is_multiple_of(parameter.replicas()) {
            continue;
        }
        let range = parameters.gradients().layout().range(index);
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
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
