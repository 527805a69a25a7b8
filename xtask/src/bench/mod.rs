//! `cargo xtask bench`: runs of our own binaries beside their peers.

mod checkpoint;
mod data;
mod planner;
mod shakespeare;
mod throughput;

use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

use crate::workspace::Workspace;

/// The benchmarks.
#[derive(Subcommand)]
pub enum Which {
    /// Train the small GPT-2 recipe here and in PyTorch, alternately: milliseconds a step and validation loss
    Shakespeare(shakespeare::Options),
    /// Training throughput and the split of its time on one rank, and with tp=2 and dp=2 on two
    Train(throughput::Options),
    /// What each cut costs on two processes: idle share of every schedule beside the simulated one, bytes on the wire beside
    /// the planned ones, and reductions behind the backward beside after it
    Parallel(throughput::Options),
    /// Text to tokens here and with the Python tokenizers package, and tokens to batches
    Data(data::Options),
    /// Saving and loading a GPT-2-sized state on one and two ranks, beside the raw disk, torch.save and
    /// torch.distributed.checkpoint
    Checkpoint(checkpoint::Options),
    /// How long searches for ten thousand devices take; forty layouts of small models on one, two and four ranks: memory and time of a step as the planner says and as runs
    /// measure, and how far they order the layouts alike
    Planner(planner::Options),
}

/// Runs one benchmark.
pub fn command(workspace: &Workspace, which: &Which) -> Result<ExitCode> {
    match which {
        Which::Shakespeare(options) => shakespeare::command(workspace, options),
        Which::Train(options) => throughput::command(workspace, &throughput::TRAIN, options),
        Which::Planner(options) => planner::command(workspace, options),
        Which::Data(options) => data::command(workspace, options),
        Which::Checkpoint(options) => checkpoint::command(workspace, options),
        Which::Parallel(options) => throughput::command(workspace, &throughput::PARALLEL, options),
    }
}
