//! `cargo xtask bench train` and `bench parallel`: a bench binary under `mpirun`, one layout after the other.

use anyhow::{Context, Result};
use clap::Args;
use std::process::ExitCode;

use crate::workspace::Workspace;
use crate::{environment, process, setup};

/// A binary, and what it is run with: ranks and arguments.
pub struct Bench {
    binary: &'static str,
    runs: &'static [(usize, &'static [&'static str])],
}

/// Throughput, by the degrees that make up the ranks.
pub const TRAIN: Bench = Bench {
    binary: "train",
    runs: &[(1, &["--tp", "1", "--dp", "1"]), (2, &["--tp", "2", "--dp", "1"]), (2, &["--tp", "1", "--dp", "2"])],
};

/// What each cut costs on two processes.
pub const PARALLEL: Bench = Bench { binary: "parallel", runs: &[(2, &[])] };

/// Arguments of the two commands.
#[derive(Args)]
pub struct Options {
    /// Arguments for the bench binary
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    rest: Vec<String>,
}

/// Builds and runs every layout; the first failure ends the bench with its exit code.
pub fn command(workspace: &Workspace, bench: &Bench, options: &Options) -> Result<ExitCode> {
    let installs = setup::ensure(workspace)?;
    let mut build = workspace.cargo();
    build.args(["build", "--release", "-p", "mp-benches", "--bin", bench.binary]);
    installs.apply(&mut build);
    process::run(&mut build)?;
    let binary = workspace.target()?.join("release").join(bench.binary);
    for (ranks, arguments) in bench.runs {
        let mut run = environment::mpirun(&installs.mpi, *ranks, &binary);
        run.args(*arguments).args(&options.rest);
        eprintln!("{}", process::describe(&run));
        let status = run.status().context("cannot start mpirun")?;
        if !status.success() {
            return Ok(process::exit_code(status));
        }
    }
    Ok(ExitCode::SUCCESS)
}
