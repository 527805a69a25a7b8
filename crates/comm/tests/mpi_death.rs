//! A rank that dies takes its peers down: `mpirun` returns within seconds, never hangs.
//!
//! Each test starts `mpirun` on this very binary, with [`dying_rank`] as the only test and the manner of death in an
//! environment variable.

use std::process::Command;
use std::time::{Duration, Instant};

use mp_comm::mpi::Mpi;

const MANNER: &str = "MP_COMM_TEST_DEATH";

/// Far above what a healthy end takes on a busy machine, far below "never".
const SECONDS: u64 = 60;

/// Is one rank of a run in which rank 1 dies while the others wait for it.
#[test]
#[ignore = "started by the other tests, under mpirun"]
fn dying_rank() {
    let Ok(manner) = std::env::var(MANNER) else { return };
    let world = Mpi::initialize().expect("MPI starts");
    let comm = world.communicator();
    comm.barrier().expect("all are there");
    if comm.rank().0 == 1 {
        match manner.as_str() {
            "abort" => world.abort(3),
            "panic" => panic!("on purpose"),
            "exit" => std::process::exit(0),
            _ => std::process::abort(),
        }
    }
    comm.barrier().expect("rank 1 never comes");
}

fn run(manner: &str) -> bool {
    let start = Instant::now();
    let binary = std::env::current_exe().expect("a path to this test");
    let mut mpirun = Command::new(env!("MP_COMM_MPIRUN"))
        .args(["-n", "3", "--bind-to", "none"])
        .arg(binary)
        .args(["--exact", "dying_rank", "--ignored", "--test-threads", "1"])
        .env(MANNER, manner)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_MCA_mpi_yield_when_idle", "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("mpirun starts");
    loop {
        if let Some(status) = mpirun.try_wait().expect("mpirun can be waited for") {
            return status.success();
        }
        if start.elapsed() > Duration::from_secs(SECONDS) {
            _ = mpirun.kill();
            panic!("mpirun still runs {SECONDS} s after a rank's death by {manner}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_aborting_rank_ends_the_run() {
    assert!(!run("abort"));
}

#[test]
fn a_panicking_rank_ends_the_run() {
    assert!(!run("panic"));
}

#[test]
fn a_killed_rank_ends_the_run() {
    assert!(!run("signal"));
}

#[test]
fn a_rank_that_leaves_without_a_word_ends_the_run() {
    assert!(!run("exit"));
}
