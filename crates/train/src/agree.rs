//! All ranks decide together: results and choices that are the same everywhere because a reduction made them so.

use mp_comm::{BufferMut, Communicator, Rank, ReduceOp};
use serde::{de::DeserializeOwned, Serialize};

use crate::{Error, Result};

/// Makes one rank's failure every rank's failure.
///
/// Where all ranks succeeded each keeps its value. Otherwise the lowest failing rank returns its own error and all
/// others [`Error::Peer`], so that exactly one speaks.
///
/// # Communication
/// One all-reduce of four integers; collective over `world`.
///
/// # Errors
/// Whatever a rank met, or [`Error::Comm`] if the ranks cannot even agree (this rank's own error goes first).
pub fn agree<T>(world: &dyn Communicator, result: Result<T>) -> Result<T> {
    agree_and_vote(world, result, Votes::default()).map(|(value, _)| value)
}

/// What ranks decide beside whether they succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Votes {
    /// Whether to stop: one rank is enough.
    pub stop: bool,
    /// Whether to save: one rank is enough.
    pub save: bool,
    /// Whether what goes on behind the steps is over: it takes all ranks.
    pub settled: bool,
}

/// [`agree`]s, and counts the ranks' votes, in one reduction.
///
/// # Communication
/// One all-reduce of four integers; collective over `world`.
///
/// # Errors
/// Those of [`agree`].
pub fn agree_and_vote<T>(world: &dyn Communicator, result: Result<T>, votes: Votes) -> Result<(T, Votes)> {
    // The lowest failing rank, and in the last bit whether the run (1) or the input (0) is at fault; then the votes.
    let failing = match &result {
        Ok(_) => i64::MAX,
        Err(error) => 2 * world.rank().0 as i64 + i64::from(!error.is_input()),
    };
    let mut all = [failing, -i64::from(votes.stop), -i64::from(votes.save), i64::from(votes.settled)];
    if let Err(error) = world.all_reduce(BufferMut::new(&mut all), ReduceOp::Min) {
        return Err(result.err().unwrap_or(Error::Comm(error)));
    }
    let (rank, input) = ((all[0] / 2) as usize, all[0] % 2 == 0);
    match result {
        Ok(value) if all[0] == i64::MAX => {
            Ok((value, Votes { stop: all[1] != 0, save: all[2] != 0, settled: all[3] != 0 }))
        }
        Err(error) if rank == world.rank().0 => Err(error),
        _ => Err(Error::Peer { rank, input }),
    }
}

/// Gives every rank what rank 0 knows: its `value`, which on the others counts for nothing.
///
/// # Communication
/// Two broadcasts; collective over `world`.
///
/// # Errors
/// [`Error::Comm`].
///
/// # Panics
/// If rank 0 has no value, or one that JSON cannot carry.
pub fn told<T: Serialize + DeserializeOwned>(world: &dyn Communicator, value: Option<T>) -> Result<T> {
    let mut bytes = match world.rank() {
        Rank(0) => serde_json::to_vec(&value.expect("rank 0 knows")).expect("plain data is JSON"),
        _ => Vec::new(),
    };
    let mut length = [bytes.len() as i64];
    world.broadcast(BufferMut::new(&mut length), Rank(0))?;
    bytes.resize(length[0] as usize, 0);
    world.broadcast(BufferMut::new(&mut bytes), Rank(0))?;
    Ok(serde_json::from_slice(&bytes).expect("what rank 0 wrote is read"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp_comm::threads;

    #[test]
    fn all_ranks_are_told_what_the_first_one_knows() {
        let heard = threads::run(3, |world| {
            let known = (world.rank() == Rank(0)).then(|| (0.1 + 0.2, vec!["a".to_string()]));
            told(&*world, known)
        });
        assert_eq!(heard, vec![(0.1 + 0.2, vec!["a".to_string()]); 3]);
    }

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
    fn one_is_enough_to_stop_or_save_and_all_must_have_settled() {
        let counted = |who: usize| {
            threads::run(3, |world| {
                let me = world.rank().0 == who;
                agree_and_vote(&*world, Ok(()), Votes { stop: me, save: me, settled: !me }).map(|(_, votes)| votes)
            })
        };
        assert_eq!(counted(9), [Votes { stop: false, save: false, settled: true }; 3]);
        assert_eq!(counted(2), [Votes { stop: true, save: true, settled: false }; 3]);
    }
}
