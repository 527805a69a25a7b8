//! The conformance suite over the backends of one process, plain and decorated.

use std::sync::Arc;

use mp_comm::conformance::{self, Report};
use mp_comm::faulty::{Fault, Faulty};
use mp_comm::ledger::{Ledger, Log};
use mp_comm::solo::Solo;
use mp_comm::stopwatch::{Stopwatch, Waited};
use mp_comm::{threads, Communicator, Error};
use rstest::rstest;

fn all_passed(reports: impl IntoIterator<Item = Report>) {
    for report in reports {
        assert!(report.failures.is_empty() && report.passed > 20, "{report}");
    }
}

#[test]
fn solo() {
    let solo: Arc<dyn Communicator> = Arc::new(Solo::new("alone"));
    all_passed(conformance::run(&solo));
}

#[rstest]
fn threads_of(#[values(1, 2, 3, 4, 8)] size: usize) {
    all_passed(threads::run(size, |comm| conformance::run(&comm)));
}

#[rstest]
fn ledger_over_threads(#[values(1, 3)] size: usize) {
    all_passed(threads::run(size, |comm| {
        let log = Arc::new(Log::new());
        let comm: Arc<dyn Communicator> = Arc::new(Ledger::new(comm, Arc::clone(&log)));
        let report = conformance::run(&comm)?;
        let calls: Vec<u64> = log.take().iter().map(|entry| entry.sequence).collect();
        assert!(calls.len() > 500 && calls.windows(2).all(|pair| pair[0] < pair[1]));
        Ok::<_, Error>(report)
    }));
}

#[rstest]
fn stopwatch_over_threads(#[values(1, 3)] size: usize) {
    all_passed(threads::run(size, |comm| {
        let waited = Arc::new(Waited::default());
        let comm: Arc<dyn Communicator> = Arc::new(Stopwatch::new(comm, waited));
        conformance::run(&comm)
    }));
}

#[test]
fn faulty_that_never_fails() {
    all_passed(threads::run(2, |comm| {
        let comm: Arc<dyn Communicator> = Arc::new(Faulty::new(comm, u64::MAX, Fault::Fail));
        conformance::run(&comm)
    }));
}
