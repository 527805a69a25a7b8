//! What gradients still need on the tensor axis after a backward pass: parameters that lie on several tensor ranks, each
//! of which saw only a part of what they were used for.
//!
//! Key/value heads shared by several ranks saw each rank's own query heads; under sequence shards, norms, biases of
//! row-parallel layers and learned positions saw each rank's own positions.

use std::ops::Range;
use std::sync::Arc;

use mp_comm::{Communicator, ReduceOp};
use mp_plan::{GradientSync, SUMMED_APART};
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
    /// The elements to sum, in the pieces of each call: those that this rank owns, as all ranks of the group do.
    calls: Vec<Vec<Range<usize>>>,
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
                .filter_map(|(group, pieces)| Some(Sum { group: group?, calls: calls(pieces) }))
                .collect(),
        })
    }

    /// Completes the gradients that this rank owns, of one backward pass or of several that were accumulated.
    ///
    /// # Communication
    /// All-reduces of [`SUMMED_APART`] elements and more: long pieces where they lie, short ones copied together.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) if one fails.
    pub fn run(&self, parameters: &Parameters) -> Result<()> {
        for sum in &self.sums {
            for pieces in &sum.calls {
                let part = |piece: &Range<usize>| Ok(parameters.gradients().range(piece.clone())?);
                let parts = pieces.iter().map(part).collect::<Result<Vec<_>>>()?;
                add_up(&*sum.group, parts)?;
            }
        }
        Ok(())
    }
}

/// Sums tensors over a group, in one call.
fn add_up(group: &dyn Communicator, mut parts: Vec<Tensor>) -> Result<()> {
    if let [part] = &mut parts[..] {
        return collective::all_reduce(group, part, ReduceOp::Sum);
    }
    let mut joined = Tensor::f_cat(&parts, 0)?;
    collective::all_reduce(group, &mut joined, ReduceOp::Sum)?;
    let lengths: Vec<i64> = parts.iter().map(|part| part.numel() as i64).collect();
    for (mut part, summed) in parts.into_iter().zip(joined.f_split_with_sizes(&lengths[..], 0)?) {
        part.f_copy_(&summed)?;
    }
    Ok(())
}

/// Cuts pieces into calls: one of [`SUMMED_APART`] elements or more has its own, shorter ones share theirs until they are as
/// many.
fn calls(pieces: Vec<Range<usize>>) -> Vec<Vec<Range<usize>>> {
    let (mut made, mut short, mut elements) = (Vec::new(), Vec::new(), 0);
    for piece in pieces {
        if piece.len() >= SUMMED_APART {
            made.push(vec![piece]);
            continue;
        }
        elements += piece.len();
        short.push(piece);
        if elements >= SUMMED_APART {
            made.push(std::mem::take(&mut short));
            elements = 0;
        }
    }
    if !short.is_empty() {
        made.push(short);
    }
    made
}

/// Finds what a rank owns of some parameters.
fn pieces(parameters: &Parameters, indices: &[usize]) -> Vec<Range<usize>> {
    let layout = parameters.gradients().layout();
    indices.iter().flat_map(|&index| parameters.owned_of(layout.range(index))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_pieces_are_summed_where_they_lie_and_short_ones_together() {
        let half = SUMMED_APART / 2;
        let pieces =
            vec![0..3, 10..10 + SUMMED_APART, 200_000..200_000 + half, 400_000..400_000 + half, 900_000..900_001];
        let calls = calls(pieces.clone());
        let [first, long, one, other, last] = &pieces[..] else { unreachable!("five") };
        assert_eq!(calls, [vec![long.clone()], vec![first.clone(), one.clone(), other.clone()], vec![last.clone()]]);
        let longest = calls.iter().filter(|call| call.len() > 1).map(|call| call.iter().map(Range::len).sum::<usize>());
        assert!(longest.max().unwrap() < 2 * SUMMED_APART, "what copies take");
        assert!(super::calls(Vec::new()).is_empty());
    }
}
