//! `cargo xtask bench checkpoint`: our saves and loads on one and two ranks, and PyTorch's, on the same disk in one run.

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use super::shakespeare::peer_python;
use crate::workspace::Workspace;
use crate::{environment, process, setup};

const PEER: &str = "benches/peers/checkpoint.py";

/// Arguments of `cargo xtask bench checkpoint`.
#[derive(Args)]
pub struct Options {
    /// The disk to measure, by a folder on it; default: the build folder
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The model, by preset; gpt2-124m with its moments is 1.5 GB
    #[arg(long, value_name = "NAME", default_value = "gpt2-124m")]
    preset: String,
    /// One configuration key, such as model.layers=2; may come several times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
}

/// Runs ours, then the peers on a state of the same size.
pub fn command(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let installs = setup::ensure(workspace)?;
    let python = peer_python(workspace)?;
    let mut build = workspace.cargo();
    build.args(["build", "--release", "-p", "mp-benches", "--bin", "checkpoint"]);
    installs.apply(&mut build);
    process::run(&mut build)?;
    let target = workspace.target()?;
    let folder = options.folder.clone().unwrap_or_else(|| target.clone());
    let result = folder.join(format!("bench-checkpoint-{}.json", std::process::id()));
    for (ranks, layout) in [(1, "parallel.dp=1"), (2, "parallel.dp=2")] {
        let mut run = environment::mpirun(&installs.mpi, ranks, &target.join("release/checkpoint"));
        run.arg("--folder").arg(&folder).args(["--preset", &options.preset]);
        for set in options.sets.iter().map(String::as_str).chain(["parallel.tp=1", layout]) {
            run.args(["--set", set]);
        }
        run.args(["--rounds", &options.rounds.to_string()]).arg("--json").arg(&result);
        process::run(&mut run)?;
    }
    let text = fs::read_to_string(&result).with_context(|| format!("cannot read {}", result.display()))?;
    let bytes = serde_json::from_str::<Value>(&text)?["bytes"].as_f64().context("our result lacks `bytes`")?;
    let mut peer = Command::new(python);
    peer.arg(workspace.root.join(PEER)).arg("--folder").arg(&folder);
    peer.args(["--bytes", &format!("{bytes:.0}"), "--rounds", &options.rounds.to_string()]);
    process::run(&mut peer)?;
    fs::remove_file(&result)?;
    Ok(ExitCode::SUCCESS)
}
