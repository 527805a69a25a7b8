//! `cargo xtask`: set-up, the training run, the tests, tidiness and benches. Neither libtorch nor MPI is needed to build it.
//!
//! Reading order: `workspace` (where things lie), `process` (how commands are run), `setup` (what is installed),
//! `environment` (what `mpirun` needs), then one module a command.

mod bench;
mod bundle;
mod environment;
mod gpu_check;
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
    /// Make a folder that runs where no more is installed than a driver and a Python with PyTorch
    Bundle(bundle::Options),
    /// Run what must be seen on a GPU, from a bundle, and write docs/results/gpu.md
    GpuCheck(gpu_check::Options),
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
    let located = Workspace::locate();
    match command {
        Command::Setup(options) => setup::command(&located?, &options),
        Command::Env => environment::command(&located?),
        Command::Train(options) => train::command(&located?, &options),
        Command::Test(options) => test::command(located, &options),
        Command::Tidy => tidy::command(&located?),
        Command::Bench(arguments) => bench::command(&located?, &arguments.which),
        Command::Bundle(options) => bundle::command(&located?, &options),
        Command::GpuCheck(options) => gpu_check::command(located, &options),
    }
}
