//! The ranks' world, from their meeting to their parting.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use mp_comm::mpi::{Mpi, MpiWorld};
use mp_comm::solo::Solo;
use mp_comm::{Communicator, ReduceOp, Request};

use crate::failure::Failure;

/// How long a rank that failed waits for the others to part in good order before it ends them.
const PATIENCE: Duration = Duration::from_secs(5);

/// Variables that a launcher sets for each rank: Open MPI; MPICH, Intel MPI and Slurm; anything that speaks PMIx.
const LAUNCHERS: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"];

/// Says whether a launcher started this process as one of several.
pub fn launched() -> bool {
    LAUNCHERS.iter().any(|name| std::env::var_os(name).is_some())
}

/// Returns this process's rank as a launcher tells it, before ranks meet.
pub fn launched_rank() -> Option<usize> {
    LAUNCHERS.iter().find_map(|name| std::env::var(name).ok()?.parse().ok())
}

/// All ranks of this command. One that was started without a launcher is a world of its own.
pub struct World {
    communicator: Arc<dyn Communicator>,
    /// A group of the same ranks for their parting words alone, which no unfinished call of the run can meet.
    parting: Arc<dyn Communicator>,
    mpi: Option<MpiWorld>,
}

impl World {
    /// Joins the ranks that were started with this one.
    ///
    /// # Errors
    /// What MPI refuses.
    pub fn meet() -> mp_comm::Result<Self> {
        if launched() {
            return Self::mpi();
        }
        let solo = |name| -> Arc<dyn Communicator> { Arc::new(Solo::new(name)) };
        Ok(Self { communicator: solo("world"), parting: solo("parting"), mpi: None })
    }

    /// Starts MPI, which makes a world of one where no launcher is at work.
    ///
    /// # Errors
    /// What MPI refuses.
    pub fn mpi() -> mp_comm::Result<Self> {
        let mpi = Mpi::initialize()?;
        let communicator = mpi.communicator();
        let parting = communicator.split(Some(0), 0, "parting")?.expect("every rank gave a color");
        Ok(Self { communicator, parting, mpi: Some(mpi) })
    }

    /// Returns the group of all ranks.
    pub fn communicator(&self) -> &Arc<dyn Communicator> {
        &self.communicator
    }

    /// Says whether this is the rank that speaks to people.
    pub fn is_first(&self) -> bool {
        self.communicator.rank().0 == 0
    }

    /// Does this rank's part, and ends it.
    pub fn work(self, part: impl FnOnce(&Self) -> Result<(), Failure>) -> ExitCode {
        // A panic has printed its message by then. Peers may wait for this rank for ever, so it takes them along.
        let outcome = catch_unwind(AssertUnwindSafe(|| part(&self))).unwrap_or_else(|_| self.abort(1));
        self.part(outcome)
    }

    /// Ends all ranks at once.
    pub fn abort(&self, code: u8) -> ! {
        match &self.mpi {
            Some(mpi) => mpi.abort(code.into()),
            None => std::process::exit(code.into()),
        }
    }

    /// Ends this rank's part: the lowest rank with a failure of its own prints it, MPI is finalised, and all ranks
    /// return the highest code of any.
    ///
    /// A failed rank whose peers hang in a call of the run ends them after a few seconds.
    pub fn part(self, outcome: Result<(), Failure>) -> ExitCode {
        let (code, speaks) = match &outcome {
            Ok(()) => (0, false),
            Err(failure) => (failure.code(), failure.speaks()),
        };
        let me = self.communicator.rank().0 as i64;
        // Least of all ranks: who speaks, and the highest code.
        let words = vec![if speaks { me } else { i64::MAX }, -i64::from(code)];
        let agreed = self.parting.start_all_reduce(words.into(), ReduceOp::Min);
        let agreed = agreed.and_then(|request| match code {
            0 => request.wait().map(Some),
            _ => wait_for(request, PATIENCE),
        });
        match agreed {
            Ok(Some(words)) => {
                let words = words.to_vec::<i64>();
                if let Err(failure) = outcome {
                    if words[0] == me {
                        failure.print();
                    }
                }
                ExitCode::from((-words[1]).clamp(0, 255) as u8)
            }
            // Peers that hang, or a broken network.
            _ => {
                if let Err(failure) = &outcome {
                    if failure.speaks() {
                        failure.print();
                    }
                }
                self.abort(code.max(1))
            }
        }
    }
}

/// Waits for a request, but not for ever.
fn wait_for(mut request: Request, patience: Duration) -> mp_comm::Result<Option<mp_comm::OwnedBuffer>> {
    let begun = Instant::now();
    while !request.is_complete()? {
        if begun.elapsed() > patience {
            // What never completes must not be waited for when it is dropped; the process ends next.
            std::mem::forget(request);
            return Ok(None);
        }
        sleep(Duration::from_millis(1));
    }
    request.wait().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_never_comes_is_not_waited_for() {
        let group = mp_comm::threads::Threads::group(2, "parting");
        let request = group[0].start_all_reduce(vec![1i64].into(), ReduceOp::Min).unwrap();
        assert!(wait_for(request, Duration::from_millis(20)).unwrap().is_none());
        drop(group);
    }

    #[test]
    fn peers_that_come_are_heard() {
        let least = mp_comm::threads::run(3, |world| {
            let request = world.start_all_reduce(vec![world.rank().0 as i64].into(), ReduceOp::Max)?;
            Ok::<_, mp_comm::Error>(wait_for(request, PATIENCE)?.unwrap().to_vec::<i64>())
        });
        assert_eq!(least, [[2], [2], [2]]);
    }
}
