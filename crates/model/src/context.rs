//! The context axis: each rank holds a part of every sequence, and attention brings the parts together.
//!
//! A sequence is cut into `2·cp` equal pieces; rank `r` holds pieces `r` and `2·cp − 1 − r`. Under a causal mask the cost of
//! a piece's queries grows with its number, so that every rank has the same work.
//!
//! # Source
//! Liu et al. 2023, arXiv:2310.01889 (ring attention); Brandon et al. 2023, arXiv:2311.09431 (balance under a causal
//! mask, there by stripes); Jacobs et al. 2023, arXiv:2309.14509 (all-to-all).

use std::ops::Range;
use std::sync::Arc;

use mp_comm::solo::Solo;
use mp_comm::Communicator;
use mp_runtime::kernels::runs;
use mp_runtime::Tensor;

use crate::pass::Positions;
use crate::{Error, Result};

/// How attention reaches the positions of other ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Keys and values go around a ring, block by block.
    Ring,
    /// Positions are exchanged for heads, and each rank attends with its heads over the whole sequence.
    AllToAll,
}

/// A context group with the form of its attention.
#[derive(Debug, Clone)]
pub struct Context {
    /// The ranks that share each sequence.
    pub comm: Arc<dyn Communicator>,
    /// How attention reaches all of it.
    pub form: Form,
}

impl Context {
    /// A group of one rank, which holds whole sequences.
    pub fn alone() -> Self {
        Self { comm: Arc::new(Solo::new("cp")), form: Form::Ring }
    }

    /// Returns the positions that this rank holds of a sequence of `seq` tokens.
    ///
    /// # Errors
    /// [`Error::Plan`] if the sequence cannot be cut.
    pub fn positions(&self, seq: usize) -> Result<Positions> {
        positions(seq, self.comm.size(), self.comm.rank().0)
    }

    /// Takes this rank's positions of full sequences.
    ///
    /// # Shapes
    /// - `full`: `[b, s]`
    /// - returns `[b, s / cp]`, contiguous
    ///
    /// # Errors
    /// As [`positions`](Self::positions).
    pub fn own(&self, full: &Tensor) -> Result<Tensor> {
        let held = self.positions(full.size()[1] as usize)?;
        Ok(runs::select(full, 1, held.runs())?.f_contiguous()?)
    }

    /// Refuses a pass over other positions than this rank holds.
    ///
    /// # Errors
    /// [`Error::Positions`].
    pub fn check(&self, held: &Positions) -> Result<()> {
        let expected = self.positions(held.seq())?;
        if *held != expected {
            let (held, expected) = (held.runs().to_vec(), expected.runs().to_vec());
            return Err(Error::Positions { held, expected });
        }
        Ok(())
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::alone()
    }
}

/// Returns the positions that a rank of `cp` holds; one rank alone holds a sequence of any length.
///
/// # Errors
/// [`Error::Plan`] if the sequence cannot be cut.
pub fn positions(seq: usize, cp: usize, rank: usize) -> Result<Positions> {
    match cp {
        1 => Ok(Positions::whole(seq)),
        _ => Ok(Positions::new(seq, zigzag(seq, cp, rank)?)),
    }
}

/// Returns the two pieces of a sequence that a rank of `cp` holds.
///
/// # Errors
/// [`Error::Plan`] if `seq` is no multiple of `2·cp`.
///
/// # Examples
/// ```
/// use mp_model::context::zigzag;
///
/// assert_eq!(zigzag(16, 2, 0)?, [0..4, 12..16]);
/// assert_eq!(zigzag(16, 2, 1)?, [4..8, 8..12]);
/// # Ok::<(), mp_model::Error>(())
/// ```
pub fn zigzag(seq: usize, cp: usize, rank: usize) -> Result<[Range<usize>; 2]> {
    mp_plan::check_sequence(seq, cp, 1)?;
    let length = seq / (2 * cp);
    let piece = |number: usize| number * length..(number + 1) * length;
    Ok([piece(rank), piece(2 * cp - 1 - rank)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_has_one_rank_and_every_rank_the_same_work() {
        for cp in 1..=5 {
            let seq = 2 * cp * 3;
            let mut owners = vec![0; seq];
            let mut work = Vec::new();
            for rank in 0..cp {
                let held = zigzag(seq, cp, rank).unwrap();
                held.iter().cloned().flatten().for_each(|position| owners[position] += 1);
                work.push(held.iter().cloned().flatten().map(|position| position + 1).sum::<usize>());
            }
            assert_eq!(owners, vec![1; seq], "cp={cp}");
            assert!(work.iter().all(|&pairs| pairs == work[0]), "cp={cp}: {work:?}");
        }
    }
}
