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
    agree_and_decide(world, result, false).map(|(value, _)| value)
}

/// [`agree`]s, and says whether any rank said yes, in one reduction.
///
/// # Communication
/// One all-reduce of two integers; collective over `world`.
///
/// # Errors
/// Those of [`agree`].
pub fn agree_and_decide<T>(world: &dyn Communicator, result: Result<T>, yes: bool) -> Result<(T, bool)> {
    // The lowest failing rank, and in the last bit whether the run (1) or the input (0) is at fault; then the vote.
    let failing = match &result {
        Ok(_) => i64::MAX,
        Err(error) => 2 * world.rank().0 as i64 + i64::from(!error.is_input()),
    };
    let mut both = [failing, -i64::from(yes)];
    if let Err(error) = world.all_reduce(BufferMut::new(&mut both), ReduceOp::Min) {
        return Err(result.err().unwrap_or(Error::Comm(error)));
    }
    let (rank, input) = ((both[0] / 2) as usize, both[0] % 2 == 0);
    match result {
        Ok(value) if both[0] == i64::MAX => Ok((value, both[1] != 0)),
        Err(error) if rank == world.rank().0 => Err(error),
        _ => Err(Error::Peer { rank, input }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp_comm::threads;

    /// What each of four ranks hears when the ranks of `failing` fail.
    fn outcomes(failing: &[(usize, bool)]) -> Vec<Result<usize>> {
        threads::run(4, |world| {
            let me = world.rank().0;
            let result = match failing.iter().find(|(rank, _)| *rank == me) {
                Some((_, true)) => Err(Error::Assignment { text: me.to_string() }),
                Some((_, false)) => Err(Error::NotFinite { step: me as u64, what: "loss" }),
                None => Ok(me),
            };
            Ok::<_, Error>(agree(&*world, result))
        })
    }

    #[test]
    fn where_all_succeed_each_keeps_its_own() {
        let values: Vec<usize> = outcomes(&[]).into_iter().map(Result::unwrap).collect();
        assert_eq!(values, [0, 1, 2, 3]);
    }

    #[test]
    fn the_lowest_failing_rank_alone_speaks() {
        for failing in [&[(2, true)][..], &[(1, true), (3, false)], &[(0, true), (1, true), (2, true), (3, true)]] {
            let lowest = failing[0].0;
            for (rank, outcome) in outcomes(failing).into_iter().enumerate() {
                match outcome.unwrap_err() {
                    Error::Peer { rank: peer, input: true } => assert!(peer == lowest && rank != lowest),
                    Error::Assignment { .. } => assert_eq!(rank, lowest),
                    other => panic!("{other}"),
                }
            }
        }
    }

    #[test]
    fn all_ranks_blame_the_same() {
        for (input, failing) in [(false, [(0, false), (1, true)]), (true, [(0, true), (1, false)])] {
            assert!(outcomes(&failing).into_iter().all(|outcome| outcome.unwrap_err().is_input() == input));
        }
    }

    #[test]
    fn one_yes_is_enough() {
        let answers = |who: Option<usize>| {
            threads::run(3, |world| agree_and_decide(&*world, Ok(()), who == Some(world.rank().0)).map(|(_, yes)| yes))
        };
        assert_eq!(answers(None), [false; 3]);
        assert_eq!(answers(Some(2)), [true; 3]);
    }
}
