//! What gradients still need on the tensor axis after a backward pass: parameters that lie on several tensor ranks, each
//! of which saw only a part of what they were used for.
//!
//! Key/value heads shared by several ranks saw each rank's own query heads; under sequence shards, norms, biases of
//! row-parallel layers and learned positions saw each rank's own positions.

use std::ops::Range;
use std::sync::Arc;

use mp_comm::{Communicator, ReduceOp};
use mp_plan::GradientSync;
use mp_runtime::Tensor;

use crate::regions::{Between, TensorGroup};
use crate::{collective, Parameters, Result};

/// The sums that complete a rank's gradients, fixed when the model is made.
#[derive(Debug)]
pub struct Completion {
    sums: Vec<Sum>,
}

#[derive(Debug)]
struct Sum {
    group: Arc<dyn Communicator>,
    /// The elements to sum: those that this rank owns, as all ranks of the group do.
    pieces: Vec<Range<usize>>,
}

impl Completion {
    /// Finds which parameters need a sum. Collective over the tensor group.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) if the groups of replicas cannot be made.
    pub fn new(parameters: &Parameters, group: &TensorGroup) -> Result<Self> {
        let sequence_parallel = group.between == Between::SequenceSharded;
        let (mut whole, mut shared, mut replicas) = (Vec::new(), Vec::new(), 1);
        for (index, parameter) in parameters.partition().parameters.iter().enumerate() {
            match parameter.gradient_sync(sequence_parallel) {
                GradientSync::SumOverTp => whole.push(index),
                GradientSync::SumOverReplicas { group_size } => {
                    replicas = group_size;
                    shared.push(index);
                }
                _ => {}
            }
        }
        #[cfg(feature = "faults")]
        whole.retain(|&index| !crate::faults::unsummed(&parameters.partition().parameters[index].spec.name));
        let rank = group.comm.rank().0;
        let color = u32::try_from(rank / replicas).unwrap_or(u32::MAX);
        let sharing = group.comm.split(Some(color), rank as u32, "tp-replicas")?;
        let sums = [(Some(Arc::clone(&group.comm)), whole), (sharing, shared)];
        Ok(Self {
            sums: sums
                .into_iter()
                .map(|(group, indices)| (group, pieces(parameters, &indices)))
                .filter(|(_, pieces)| !pieces.is_empty())
                .filter_map(|(group, pieces)| Some(Sum { group: group?, pieces }))
                .collect(),
        })
    }

    /// Completes the gradients that this rank owns, of one backward pass or of several that were accumulated.
    ///
    /// # Communication
    /// At most two all-reduces, each of all the gradients it concerns in one piece.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) if one fails.
    pub fn run(&self, parameters: &Parameters) -> Result<()> {
        for sum in &self.sums {
            let part = |piece: &Range<usize>| Ok(parameters.gradients().range(piece.clone())?);
            let parts = sum.pieces.iter().map(part).collect::<Result<Vec<_>>>()?;
            let mut joined = Tensor::f_cat(&parts, 0)?;
            collective::all_reduce(&*sum.group, &mut joined, ReduceOp::Sum)?;
            let lengths: Vec<i64> = parts.iter().map(|part| part.numel() as i64).collect();
            for (mut part, summed) in parts.into_iter().zip(joined.f_split_with_sizes(&lengths[..], 0)?) {
                part.f_copy_(&summed)?;
            }
        }
        Ok(())
    }
}

/// Finds what a rank owns of some parameters.
fn pieces(parameters: &Parameters, indices: &[usize]) -> Vec<Range<usize>> {
    let layout = parameters.gradients().layout();
    indices.iter().flat_map(|&index| parameters.owned_of(layout.range(index))).collect()
}
