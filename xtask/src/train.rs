//! `cargo xtask train`: set-up, the release build, and the run itself.

use anyhow::{Context, Result};
use clap::Args;
use std::process::ExitCode;

use crate::workspace::Workspace;
use crate::{environment, process, setup};

/// What cargo is told to build `mp-cli` in the release profile.
pub const RELEASE_BUILD: [&str; 4] = ["build", "--release", "-p", "mp-cli"];

/// Arguments of `cargo xtask train`.
#[derive(Args)]
pub struct Options {
    /// Number of ranks
    #[arg(short = 'n', value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    ranks: u32,
    /// Arguments for `mp-cli train`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    rest: Vec<String>,
}

/// Builds and runs; the exit code of `mpirun` passes through.
pub fn command(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let installs = setup::ensure(workspace)?;
    build_release(workspace, &installs)?;
    let binary = workspace.target()?.join("release/mp-cli");
    let mut run = environment::mpirun(&installs.mpi, options.ranks as usize, &binary);
    run.arg("train").args(&options.rest);
    eprintln!("{}", process::describe(&run));
    let status = run.status().context("cannot start mpirun")?;
    Ok(process::exit_code(status))
}

/// Builds `mp-cli` in the release profile.
pub fn build_release(workspace: &Workspace, installs: &setup::Installs) -> Result<()> {
    let mut build = workspace.cargo();
    build.args(RELEASE_BUILD);
    installs.apply(&mut build);
    process::run(&mut build)
}
