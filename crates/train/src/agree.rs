//! All ranks decide together: results and choices that are the same everywhere because a reduction made them so.

use mp_comm::{BufferMut, Communicator, ReduceOp};

use crate::{Error, Result};

/// Makes one rank's failure every rank's failure.
///
/// Where all ranks succeeded each keeps its value. Otherwise the lowest failing rank returns its own error and all
/// others [`Error::Peer`], so that exactly one speaks.
///
/// # Communication
/// One all-reduce of one integer; collective over `world`.
///
/// # Errors
/// Whatever a rank met, or [`Error::Comm`] if the ranks cannot even agree (this rank's own error goes first).
pub fn agree<T>(world: &dyn Communicator, result: Result<T>) -> Result<T> {
    // The lowest failing rank, and in the last bit whether the run (1) or the input (0) is at fault.
    let mut first = [match &result {
        Ok(_) => i64::MAX,
        Err(error) => 2 * world.rank().0 as i64 + i64::from(!error.is_input()),
    }];
    if let Err(error) = world.all_reduce(BufferMut::new(&mut first), ReduceOp::Min) {
        return Err(result.err().unwrap_or(Error::Comm(error)));
    }
    let (rank, input) = ((first[0] / 2) as usize, first[0] % 2 == 0);
    match result {
        Ok(value) if first[0] == i64::MAX => Ok(value),
        Err(error) if rank == world.rank().0 => Err(error),
        _ => Err(Error::Peer { rank, input }),
    }
}

/// Says on every rank whether any rank said yes.
///
/// # Communication
/// One all-reduce of one integer; collective over `world`.
///
/// # Errors
/// [`Error::Comm`].
pub fn decide(world: &dyn Communicator, yes: bool) -> Result<bool> {
    let mut any = [i32::from(yes)];
    world.all_reduce(BufferMut::new(&mut any), ReduceOp::Max)?;
    Ok(any[0] != 0)
}
