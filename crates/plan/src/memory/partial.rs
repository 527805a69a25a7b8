//! Elements whose gradients are complete only as a sum over tensor ranks, at the end of a step.

use crate::{GradientSync, PartitionedParameter};

/// What a rank sums up with tensor ranks, before its data ranks share it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Partial {
    /// Of parameters that lie whole on every tensor rank, each of which saw its own positions: where the sequence is cut.
    pub cut: Pieces,
    /// Of key/value heads that several tensor ranks share.
    pub shared: Pieces,
    /// How many ranks share each of those.
    pub sharers: usize,
}

/// Parameters that are summed as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pieces {
    /// How many.
    pub count: usize,
    /// Their elements on a rank.
    pub elements: usize,
}

impl Partial {
    /// Counts them among a rank's parameters.
    pub(super) fn of(parameters: &[PartitionedParameter]) -> Self {
        let mut partial = Self::default();
        for parameter in parameters {
            let pieces = match parameter.gradient_sync(true) {
                GradientSync::None => continue,
                GradientSync::SumOverTp => &mut partial.cut,
                GradientSync::SumOverReplicas { group_size } => {
                    partial.sharers = group_size;
                    &mut partial.shared
                }
            };
            pieces.count += 1;
            pieces.elements += parameter.local_elements();
        }
        partial
    }
}
