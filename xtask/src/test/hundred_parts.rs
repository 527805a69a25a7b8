//! A model in 100 parts under `mpirun -n 100`: the layout of `docs/hundred-parts.toml` with all its degrees, heads and layers,
//! and matrices so small that the ranks have room on one machine. It must end.

use anyhow::{Context, Result};
use std::fs;
use std::time::Duration;

use super::counts::Counts;
use super::Run;
use crate::environment;

const RANKS: usize = 100;
/// A minute and a half on two busy cores.
const LIMIT: Duration = Duration::from_secs(900);
/// What makes it small. Nothing is held out: a hundred ranks would evaluate for minutes.
const SMALL: [&str; 9] = [
    "model.hidden=40",
    "model.ffn=20",
    "train.seq=16",
    "train.global_batch=2",
    "train.steps=2",
    "train.threads=1",
    "train.precision=fp32",
    "data.validation=0.0",
    "checkpoint.every=0",
];

impl Run<'_> {
    /// Trains two steps.
    pub(super) fn hundred_parts(&self) -> Result<Counts> {
        let target = self.workspace.target()?;
        let folder = target.join("hundred-parts");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut command = environment::mpirun(&self.installs.mpi, RANKS, &target.join("debug/mp-cli"));
        command.arg("train").arg("--config").arg(self.workspace.root.join("docs/hundred-parts.toml"));
        command.args(SMALL.iter().flat_map(|set| ["--set", set]));
        command.current_dir(&folder).env("OMP_NUM_THREADS", "1");
        let ended = self.deadline.watch(&mut command, LIMIT)?.success();
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        Ok(Counts::one(ended))
    }
}
