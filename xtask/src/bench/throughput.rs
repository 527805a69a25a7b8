//! `cargo xtask bench train`: the bench binary under `mpirun`, one layout after the other.

use anyhow::{Context, Result};
use clap::Args;
use std::process::ExitCode;

use crate::workspace::Workspace;
use crate::{environment, process, setup};

/// Ranks, and the degrees that make them up.
const LAYOUTS: [(usize, [&str; 4]); 3] =
    [(1, ["--tp", "1", "--dp", "1"]), (2, ["--tp", "2", "--dp", "1"]), (2, ["--tp", "1", "--dp", "2"])];

/// Arguments of `cargo xtask bench train`.
#[derive(Args)]
pub struct Options {
    /// Arguments for the bench binary
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    rest: Vec<String>,
}

/// Builds and runs every layout; the first failure ends the bench with its exit code.
pub fn command(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let installs = setup::ensure(workspace)?;
    let mut build = workspace.cargo();
    build.args(["build", "--release", "-p", "mp-benches", "--bin", "train"]);
    installs.apply(&mut build);
    process::run(&mut build)?;
    let binary = workspace.target()?.join("release/train");
    for (ranks, degrees) in LAYOUTS {
        let mut run = environment::mpirun(&installs.mpi, ranks, &binary);
        run.args(degrees).args(&options.rest);
        eprintln!("{}", process::describe(&run));
        let status = run.status().context("cannot start mpirun")?;
        if !status.success() {
            return Ok(process::exit_code(status));
        }
    }
    Ok(ExitCode::SUCCESS)
}
