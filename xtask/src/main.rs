//! `cargo xtask`: set-up, the training run, the tests, tidiness and benches. Neither libtorch nor MPI is needed to build it.
//!
//! Reading order: `workspace` (where things lie), `process` (how commands are run), `setup` (what is installed),
//! `environment` (what `mpirun` needs), then one module a command.

mod bench;
mod environment;
mod process;
mod setup;
mod test;
mod tidy;
mod train;
mod workspace;

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

use crate::workspace::Workspace;

/// Set-up, runs, tests and benches of the mp workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install libtorch, MPI and libclang, so that plain `cargo build` works
    Setup(setup::Options),
    /// Print shell lines that make `mpirun -n 4 mp-cli train` work: eval "$(cargo xtask env)"
    Env,
    /// Set up, build the release binary and run `mpirun -n N mp-cli train ARGS`
    Train(train::Options),
    /// Set up and run every check; the last line is `N passed, N failed`
    Test(test::Options),
    /// Check the rules of the house: crate edges, unsafe code, links, file sizes, words
    Tidy,
    /// Run a benchmark
    Bench(BenchArguments),
}

#[derive(Args)]
struct BenchArguments {
    #[command(subcommand)]
    which: bench::Which,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match command {
        Command::Setup(options) => setup::command(&workspace, &options),
        Command::Env => environment::command(&workspace),
        Command::Train(options) => train::command(&workspace, &options),
        Command::Test(options) => test::command(&workspace, &options),
        Command::Tidy => tidy::command(&workspace),
        Command::Bench(arguments) => bench::command(&workspace, &arguments.which),
    }
}
