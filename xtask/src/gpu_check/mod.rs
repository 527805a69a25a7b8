//! `cargo xtask gpu-check`: what must be seen on a GPU, run from a bundle and written down.
//!
//! The machine with the GPU may have no Rust: a bundle carries this very program, and its script `gpu-check` starts it there.
//! What came of each check is on the disk when the next one begins, so that a run that is cut short keeps what it did.
//!
//! | file | is |
//! |---|---|
//! | `mod.rs` | the command: run here, run in a bundle, or write the page from what runs left |
//! | `checks.rs` | the checks by name, in the order of their worth, each with its time |
//! | `bench.rs` | the bundle, a place to work in, and programs with a deadline |
//! | `layouts.rs` | layouts and communicators beside one rank |
//! | `models.rs` | published models and checkpoints, on the host and on the device |
//! | `speed.rs` | throughput beside PyTorch |
//! | `recipe.rs` | a whole training |
//! | `machine.rs` | what the checks ran on |
//! | `results.rs` | the file of results |
//! | `page.rs` | the page that is made of it |
//! | `stop.rs` | what becomes of a run that is told to end |

mod bench;
mod checks;
mod layouts;
mod machine;
mod models;
mod page;
mod recipe;
pub mod results;
mod speed;
mod stop;

use anyhow::{bail, ensure, Context, Result};
use clap::{Args, ValueEnum};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use self::bench::Bench;
use self::checks::Check;
use self::results::{Outcome, Results, Verdict};
use crate::bundle;
use crate::workspace::Workspace;

/// Where the page and its figures lie in the checkout.
const DOCUMENTS: &str = "docs/results";

/// Where results of a bundle go. Whoever stands in the bundle has `gpu-check` there already: the script.
const RESULTS: &str = "gpu-results";

/// Arguments of `cargo xtask gpu-check`.
#[derive(Args)]
pub struct Options {
    /// Run only checks whose name begins so; may come several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// What the checks run on; cpu tries this program with tiny models, and is no result
    #[arg(long, value_name = "DEVICE", default_value = "cuda")]
    device: Device,
    /// Begin no check after so many minutes, and end the one under way
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    minutes: Option<u64>,
    /// Where results go; default: gpu-check in the build folder, or for a bundle gpu-results in the current folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A text to take along in the bundle, for the recipe that trains on Shakespeare's plays
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bundle", "from"])]
    text: Option<PathBuf>,
    /// Run the checks of a bundle instead of making one
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Write docs/results/gpu.md and gpu.json from what runs elsewhere left in these folders; a later one goes before an
    /// earlier one, and without any all is listed as not run
    #[arg(long, value_name = "DIR", num_args = 0.., conflicts_with_all = ["bundle", "only", "minutes", "out"])]
    from: Option<Vec<PathBuf>>,
}

/// What the checks run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Device {
    /// A GPU.
    Cuda,
    /// The host, with tiny models.
    Cpu,
}

impl Device {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Cpu => "cpu",
        }
    }
}

/// Runs the command.
pub fn command(workspace: Result<Workspace>, options: &Options) -> Result<ExitCode> {
    if let Some(folders) = &options.from {
        return publish(&workspace?, folders);
    }
    let checks = checks::chosen(&options.only)?;
    if let Some(folder) = &options.bundle {
        let out = options.out.clone().unwrap_or_else(|| RESULTS.into());
        return run(folder, &out, &checks, options);
    }
    let workspace = workspace?;
    let folder = bundle::make(&workspace, None, options.text.as_deref())?;
    let out = match &options.out {
        Some(out) => out.clone(),
        None => workspace.target()?.join("gpu-check"),
    };
    let code = run(&folder, &out, &checks, options)?;
    if options.device == Device::Cuda && results::path(&out).exists() {
        publish(&workspace, &[out])?;
    }
    Ok(code)
}

/// Runs checks of a bundle, each as its own step, and writes what came of it after each.
fn run(bundle: &Path, out: &Path, checks: &[Check], options: &Options) -> Result<ExitCode> {
    ensure!(
        bundle.join(bundle::DESCRIPTION).exists(),
        "{} is no bundle: make one with `cargo xtask bundle`",
        bundle.display()
    );
    fs::create_dir_all(out)
        .with_context(|| format!("cannot make {}, where results go; name another folder with --out", out.display()))?;
    let mut bench = Bench::open(bundle, out, options.device)?;
    stop::heed(out, &bench.work)?;
    let machine = match machine::examine(&mut bench) {
        Ok(machine) => machine,
        Err(error) => {
            eprintln!("gpu-check: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    eprintln!("on {}", machine.words());
    let mut results = Results::read_or_new(out)?;
    ensure!(
        results.checks.is_empty() || results.trial == (options.device == Device::Cpu),
        "{} has results of another device: name another folder with --out",
        out.display()
    );
    results.trial = options.device == Device::Cpu;
    let end = options.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let mut failed = false;
    for check in checks {
        let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
        let outcome = bench.run(check, left, &machine);
        stop::rest();
        eprintln!("{}", outcome.words());
        failed |= matches!(outcome.verdict, Verdict::Failed | Verdict::TimedOut);
        results.add(outcome, &machine);
        results.write(out)?;
    }
    fs::write(out.join("gpu.md"), page::page(&results)).context("cannot write gpu.md")?;
    eprintln!("results in {}", out.display());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Writes the page and its figures into the checkout.
fn publish(workspace: &Workspace, folders: &[PathBuf]) -> Result<ExitCode> {
    let mut all = Results::default();
    for folder in folders {
        let results = Results::read(folder)?;
        if results.trial {
            bail!("{} has the trial of this program on the host, which is no result of a GPU", folder.display());
        }
        all.merge(results);
    }
    all.complete(&results::today()?);
    let place = workspace.root.join(DOCUMENTS);
    results::write_as(&all, &place.join("gpu.json"))?;
    fs::write(place.join("gpu.md"), page::page(&all)).context("cannot write gpu.md")?;
    let run = all.checks.iter().filter(|outcome| outcome.verdict != Verdict::NotRun).count();
    let failed = page::failures(&all).map_or(String::new(), |names| format!("; not passed: {names}"));
    eprintln!("{DOCUMENTS}/gpu.md: {run} of {} checks have run{failed}", all.checks.len());
    Ok(ExitCode::SUCCESS)
}

impl Outcome {
    /// A line for people.
    fn words(&self) -> String {
        format!("{}: {}, {:.0} s: {}", self.name, self.verdict.words(), self.seconds, self.summary)
    }
}

#[cfg(test)]
mod tests;
