//! The conformance suite over the backends of one process, plain and decorated.

use std::sync::Arc;

use mp_comm::conformance::{self, Report};
use mp_comm::solo::Solo;
use mp_comm::{threads, Communicator};
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
