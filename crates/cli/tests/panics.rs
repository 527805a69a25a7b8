//! A rank that panics takes its peers along.
//!
//! No input makes the program panic, so its frame is compiled into this test as well: the test starts `mpirun` on itself,
//! with [`panicking_rank`] as the only test.

#[allow(dead_code, reason = "what is shared for reading and interrupting runs has no part in a panic")]
#[path = "program/common.rs"]
mod common;
#[allow(dead_code, reason = "a binary has no library to link: its frame is compiled in, of which one path runs here")]
#[path = "../src/failure.rs"]
mod failure;
#[allow(dead_code, reason = "as for `failure`: of the wiring, `World::work` alone runs here")]
#[path = "../src/wire/world.rs"]
mod world;

use std::env::{current_exe, var_os};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{finish, launch, start};

/// Set in the ranks of the test below.
const INSIDE: &str = "MP_CLI_TEST_PANIC";

/// Is one rank of a run in which rank 1 panics while the others wait for it.
#[test]
#[ignore = "started by the other test, under mpirun"]
fn panicking_rank() {
    if var_os(INSIDE).is_none() {
        return;
    }
    let code = world::World::meet().unwrap().work(|world| {
        let communicator = world.communicator();
        communicator.barrier()?;
        if communicator.rank().0 == 1 {
            panic!("on purpose");
        }
        Ok(communicator.barrier()?)
    });
    assert_eq!(code, ExitCode::SUCCESS);
}

#[test]
fn a_panicking_rank_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let mut command = launch(3, folder.path(), &current_exe().unwrap());
    command.args(["--exact", "panicking_rank", "--ignored", "--nocapture", "--test-threads", "1"]).env(INSIDE, "1");
    let ended = finish(start(&mut command));
    assert_eq!(ended.code, 1, "{ended:#?}");
    assert_eq!(ended.err.matches("on purpose").count(), 1, "{ended:#?}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
