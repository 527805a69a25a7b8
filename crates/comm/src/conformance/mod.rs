//! One suite that every [`Communicator`] passes.
//!
//! [`run`] is called by all ranks of a group and returns the same [`Report`] on each: after every check the ranks agree,
//! by a reduction, on how many of them failed. It takes any backend, plain or decorated, of any size; [`run_on`] takes a
//! [`Bench`] as well, which says whether the buffers lie on the host or on a device.
//!
//! What differs between backends (which disagreements between ranks are detected, what a dead peer does) is tested
//! beside each backend.

mod arguments;
mod bench;
mod collectives;
mod groups;
mod messages;
mod pairs;
mod started;
mod values;

use std::fmt;
use std::sync::Arc;

pub use self::bench::{Allocate, Bench, Rounding};
use crate::{BufferMut, Communicator, Error, ReduceOp};

/// Why a check failed on a rank.
#[derive(Debug)]
pub(crate) enum Wrong {
    /// A call failed.
    Call(Error),
    /// A call did something else than it should.
    Outcome(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Call(error) => write!(f, "{error}"),
            Wrong::Outcome(text) => f.write_str(text),
        }
    }
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Self {
        Wrong::Call(error)
    }
}

/// How a check ends on a rank.
pub(crate) type Outcome = Result<(), Wrong>;

/// Fails with the two values where they differ.
pub(crate) fn same<T: PartialEq + fmt::Debug>(what: impl fmt::Display, expected: T, found: T) -> Outcome {
    if expected == found {
        return Ok(());
    }
    Err(Wrong::Outcome(format!("{what}: expected {expected:?}, found {found:?}")))
}

/// A named check.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) body: fn(&Bench) -> Outcome,
}

/// What a suite found, the same on every rank.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many checks passed on every rank.
    pub passed: usize,
    /// One line for each check that failed on any rank; the reasons are this rank's.
    pub failures: Vec<String>,
}

impl Report {
    /// Notes how a check ended on this rank, and agrees with the other ranks of the group.
    ///
    /// # Errors
    /// Where the agreement itself fails.
    pub fn note(
        &mut self,
        comm: &dyn Communicator,
        name: &str,
        outcome: Result<(), impl fmt::Display>,
    ) -> crate::Result<()> {
        let mut failed = [i64::from(outcome.is_err())];
        comm.all_reduce(BufferMut::new(&mut failed), ReduceOp::Sum)?;
        match outcome {
            Ok(()) if failed == [0] => self.passed += 1,
            Ok(()) => self.failures.push(format!("{name}: failed on {} other ranks", failed[0])),
            Err(reason) => self.failures.push(format!("{name}: rank {}: {reason}", comm.rank().0)),
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failures.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        write!(f, "{} passed, {} failed", self.passed, self.failures.len())
    }
}

/// Runs every check on a group, with buffers of the host; all its ranks call this together.
///
/// # Errors
/// Where the ranks cannot even agree on a check's outcome.
///
/// # Examples
/// ```
/// let reports = mp_comm::threads::run(2, |comm| mp_comm::conformance::run(&comm));
/// assert!(reports.iter().all(|report| report.failures.is_empty()));
/// ```
pub fn run(comm: &Arc<dyn Communicator>) -> crate::Result<Report> {
    run_on(&Bench::on_host(Arc::clone(comm)))
}

/// Runs every check on a group, with the buffers where the bench has them; all its ranks call this together.
///
/// # Errors
/// Where the ranks cannot even agree on a check's outcome.
pub fn run_on(bench: &Bench) -> crate::Result<Report> {
    let suites = [collectives::CHECKS, messages::CHECKS, pairs::CHECKS, started::CHECKS, groups::CHECKS];
    all(bench, &[&suites[..], &[arguments::REFUSALS, arguments::CHECKS]].concat())
}

/// Runs the checks of what is refused before anything is sent: all that a rank without peers can pass.
///
/// # Errors
/// As [`run`].
pub fn refusals(comm: &Arc<dyn Communicator>) -> crate::Result<Report> {
    all(&Bench::on_host(Arc::clone(comm)), &[arguments::REFUSALS])
}

fn all(bench: &Bench, suites: &[&[Check]]) -> crate::Result<Report> {
    let mut report = Report::default();
    for check in suites.iter().copied().flatten() {
        report.note(&***bench, check.name, (check.body)(bench))?;
    }
    Ok(report)
}

/// Sends more than 2³¹ bytes, and more than fit a C int in one message, through every path that could count wrongly.
///
/// Takes some 5 GiB a rank, so it is no part of [`run`].
///
/// # Errors
/// A line about the first call that fails, or the first element that is wrong.
pub fn beyond_c_int(comm: &Arc<dyn Communicator>) -> Result<(), String> {
    collectives::beyond_c_int(comm).and_then(|()| messages::beyond_c_int(comm)).map_err(|wrong| wrong.to_string())
}
