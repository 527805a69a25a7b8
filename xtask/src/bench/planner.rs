//! `cargo xtask bench planner`: how long the planner searches where there is most to look at, and what it says of forty layouts
//! of small models, beside what their runs measure. It succeeds where the layouts of every number of ranks were run, and meet
//! what they must.

use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::workspace::Workspace;
use crate::{environment, process, setup};

/// Layouts are for so many ranks.
const RANKS: [usize; 3] = [1, 2, 4];

/// Arguments of `cargo xtask bench planner`.
#[derive(Args)]
pub struct Options {
    /// Where machines and runs are written; default: the build folder
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Steps of each run
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// How often each layout is run; the fastest counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
}

/// Times searches, measures the machine with as many ranks as then train on it, and trains. Layouts that fall short keep no
/// others from being run.
pub fn command(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let mut search = workspace.cargo();
    search.args(["run", "--release", "-p", "mp-plan", "--example", "speed"]);
    process::run(&mut search)?;
    let installs = setup::ensure(workspace)?;
    for (package, binary) in [("mp-cli", "mp-cli"), ("mp-benches", "planner")] {
        let mut build = workspace.cargo();
        build.args(["build", "--release", "-p", package, "--bin", binary]);
        installs.apply(&mut build);
        process::run(&mut build)?;
    }
    let target = workspace.target()?;
    let folder = options.folder.clone().unwrap_or_else(|| target.clone());
    let mut met = true;
    for ranks in RANKS {
        let machine = folder.join(format!("bench-planner-{}-{ranks}.toml", std::process::id()));
        let mut measure = environment::mpirun(&installs.mpi, ranks, &target.join("release/mp-cli"));
        measure.args(["plan", "--measure"]).arg(&machine).args(["--set", "train.threads=1"]);
        process::run(&mut measure)?;
        let mut run = environment::mpirun(&installs.mpi, ranks, &target.join("release/planner"));
        run.arg("--cluster").arg(&machine).arg("--folder").arg(&folder);
        run.args(["--steps", &options.steps.to_string(), "--rounds", &options.rounds.to_string()]);
        if let Err(error) = process::run(&mut run) {
            eprintln!("{error:#}");
            met = false;
        }
        std::fs::remove_file(&machine)?;
    }
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
