//! How one tensor lies on one axis of the mesh.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What each rank of an axis holds of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Placement {
    /// Everything, on each of the axis's ranks.
    Replicated {
        /// The axis's degree.
        ranks: usize,
    },
    /// One contiguous range of a dim.
    Sharded {
        /// The dim that is cut.
        dim: usize,
        /// Each rank's range in the full tensor, without padding: shorter than `local_len`, even empty, where the
        /// rank's share is padding in part or whole.
        ranges: Vec<Range<usize>>,
        /// The length along `dim` that every rank stores.
        local_len: usize,
        /// How many consecutive ranks hold each range.
        replicas: usize,
    },
}

impl Placement {
    /// Cuts a dim of `len` in equal parts, the last ones padded where it does not divide.
    ///
    /// # Panics
    /// If `ranks` is 0.
    pub fn padded(dim: usize, len: usize, ranks: usize) -> Self {
        let local_len = len.div_ceil(ranks);
        let bound = |rank: usize| (rank * local_len).min(len);
        let ranges = (0..ranks).map(|rank| bound(rank)..bound(rank + 1)).collect();
        Self::Sharded { dim, ranges, local_len, replicas: 1 }
    }

    /// Cuts a dim of `units` inseparable units, each `width` long, over `ranks` ranks; with more ranks than units,
    /// `ranks / units` consecutive ranks hold the same one.
    ///
    /// # Panics
    /// If neither of `units` and `ranks` divides the other.
    pub fn by_units(dim: usize, units: usize, width: usize, ranks: usize) -> Self {
        let replicas = if units >= ranks { 1 } else { ranks / units };
        let parts = ranks / replicas;
        assert!(parts * replicas == ranks && units.is_multiple_of(parts), "{units} units over {ranks} ranks");
        let local_len = units / parts * width;
        let start = |rank: usize| rank / replicas * local_len;
        let ranges = (0..ranks).map(|rank| start(rank)..start(rank) + local_len).collect();
        Self::Sharded { dim, ranges, local_len, replicas }
    }

    /// Returns the number of the axis's ranks.
    pub fn ranks(&self) -> usize {
        match self {
            Self::Replicated { ranks } => *ranks,
            Self::Sharded { ranges, .. } => ranges.len(),
        }
    }

    /// Returns the dim and the range of one rank, or `None` if it holds everything.
    ///
    /// # Panics
    /// If `rank` is not below the axis's degree.
    pub fn range(&self, rank: usize) -> Option<(usize, Range<usize>)> {
        match self {
            Self::Replicated { ranks } => {
                assert!(rank < *ranks, "rank {rank} of an axis of {ranks}");
                None
            }
            Self::Sharded { dim, ranges, .. } => Some((*dim, ranges[rank].clone())),
        }
    }

    /// Returns on how many of the axis's ranks each element lies.
    pub fn replicas(&self) -> usize {
        match self {
            Self::Replicated { ranks } => *ranks,
            Self::Sharded { replicas, .. } => *replicas,
        }
    }
}
