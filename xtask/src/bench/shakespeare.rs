//! `cargo xtask bench shakespeare`: one recipe in two programs, ours and a PyTorch script, run alternately.
//!
//! The two meet in files only: our run folder's `metrics.jsonl`, and the JSON object that the script leaves.

use anyhow::{bail, ensure, Context, Result};
use clap::Args;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::setup::{self, Installs};
use crate::workspace::Workspace;
use crate::{environment, process, train};

const RECIPE: &str = "shakespeare";
const PEER: &str = "benches/peers/shakespeare.py";
/// The script's Python environment: the same libtorch as ours, so that the difference is ours too.
const PEER_PACKAGES: [&str; 3] = ["torch==2.11.0", "numpy", "tokenizers"];
/// Steps that are not timed: caches fill, and the allocator finds its sizes.
const WARM_UP_STEPS: u64 = 50;

/// Arguments of `cargo xtask bench shakespeare`.
#[derive(Args)]
pub struct Options {
    /// The text to train on
    #[arg(long, value_name = "PATH")]
    text: PathBuf,
    /// Optimizer steps of each run
    #[arg(long, value_name = "N", default_value_t = 2000)]
    steps: u64,
    /// Threads of each program
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: u64,
    /// How often each program runs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
}

/// What one run gave.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Measured {
    step_seconds: f64,
    validation_loss: f64,
}

/// Runs both, alternately, and prints them side by side.
pub fn command(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    ensure!(options.steps > WARM_UP_STEPS, "--steps {}: the first {WARM_UP_STEPS} are not timed", options.steps);
    let text = options.text.canonicalize().with_context(|| format!("cannot read {}", options.text.display()))?;
    let installs = setup::ensure(workspace)?;
    let python = peer_python(workspace)?;
    train::build_release(workspace, &installs)?;
    let folder = workspace.target()?.join(format!("bench-shakespeare-{}", std::process::id()));
    fs::create_dir_all(&folder)?;

    let bench = Bench { workspace, installs, python, text, folder, options };
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        ours.push(bench.ours(round)?);
        peers.push(bench.peer(round)?);
    }
    print!("{}", table(&ours, &peers, options.threads));
    println!("run folders and the script's results: {}", bench.folder.display());
    Ok(ExitCode::SUCCESS)
}

struct Bench<'a> {
    workspace: &'a Workspace,
    installs: Installs,
    python: PathBuf,
    text: PathBuf,
    folder: PathBuf,
    options: &'a Options,
}

impl Bench<'_> {
    fn ours(&self, round: u64) -> Result<Measured> {
        let name = format!("mp-{round}");
        let binary = self.workspace.target()?.join("release/mp-cli");
        let mut run = environment::mpirun(&self.installs.mpi, 1, &binary);
        run.args(["train", "--preset", RECIPE]);
        let settings = [
            ("data.path", self.text.display().to_string()),
            ("train.steps", self.options.steps.to_string()),
            ("train.threads", self.options.threads.to_string()),
            ("train.out", self.folder.display().to_string()),
            ("train.name", name.clone()),
        ];
        for (key, value) in settings {
            run.arg("--set").arg(format!("{key}={value}"));
        }
        process::run(&mut run)?;
        of_metrics(&read(&self.folder.join(name).join("metrics.jsonl"))?)
    }

    fn peer(&self, round: u64) -> Result<Measured> {
        let result = self.folder.join(format!("pytorch-{round}.json"));
        let mut run = Command::new(&self.python);
        run.arg(self.workspace.root.join(PEER)).arg("--text").arg(&self.text);
        run.args(["--steps", &self.options.steps.to_string(), "--threads", &self.options.threads.to_string()]);
        run.arg("--json").arg(&result);
        process::run(&mut run)?;
        of_peer(&read(&result)?)
    }
}

/// `$MP_BENCH_PYTHON`, else an environment in the cache.
pub(super) fn peer_python(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(own) = std::env::var_os("MP_BENCH_PYTHON") {
        return Ok(own.into());
    }
    let folder = workspace.cache.join("bench-python");
    let python = folder.join("bin/python");
    let stamp = folder.join(".complete");
    let wanted = PEER_PACKAGES.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    eprintln!(
        "installing {} into {} (some gigabytes, once; MP_BENCH_PYTHON names a Python that has them)",
        PEER_PACKAGES.join(", "),
        folder.display()
    );
    // pip goes on from what is installed already, so an interrupted environment is kept.
    fs::create_dir_all(&workspace.cache)?;
    process::run(Command::new(setup::host_python()?).args(["-m", "venv"]).arg(&folder))?;
    process::run(Command::new(&python).args(["-m", "pip", "install", "--no-cache-dir"]).args(PEER_PACKAGES))?;
    fs::write(stamp, wanted)?;
    Ok(python)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The median step after the warm-up, and the last evaluation.
fn of_metrics(text: &str) -> Result<Measured> {
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of_kind = |kind: &'static str| lines.iter().filter(move |line| line["kind"] == kind);
    let timed = of_kind("step").filter(|line| line["step"].as_u64() > Some(WARM_UP_STEPS));
    let step_seconds = median(timed.filter_map(|line| line["step_seconds"].as_f64()).collect());
    let validation_loss = of_kind("eval").filter_map(|line| line["loss"].as_f64()).next_back();
    Ok(Measured {
        step_seconds: step_seconds.with_context(|| format!("metrics.jsonl has no step past {WARM_UP_STEPS}"))?,
        validation_loss: validation_loss.context("metrics.jsonl has no evaluation")?,
    })
}

/// `{"step_seconds": median, "validation_loss": …}`.
fn of_peer(text: &str) -> Result<Measured> {
    let result: Value = serde_json::from_str(text).context("the script left no JSON")?;
    match (result["step_seconds"].as_f64(), result["validation_loss"].as_f64()) {
        (Some(step_seconds), Some(validation_loss)) => Ok(Measured { step_seconds, validation_loss }),
        _ => bail!("the script's result lacks step_seconds or validation_loss: {result}"),
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn table(ours: &[Measured], peers: &[Measured], threads: u64) -> String {
    let row = |name: &str, runs: &[Measured]| {
        let times: Vec<String> = runs.iter().map(|run| format!("{:.1}", run.step_seconds * 1e3)).collect();
        let losses: Vec<String> = runs.iter().map(|run| format!("{:.4}", run.validation_loss)).collect();
        format!("{name:<26} {:<24} {}\n", times.join("  "), losses.join("  "))
    };
    let middle = |runs: &[Measured]| median(runs.iter().map(|run| run.step_seconds).collect()).unwrap_or(f64::NAN);
    let mut text = format!("{:<26} {:<24} {}\n", "each run", "ms/step (median)", "validation loss (nats/byte)");
    text.push_str(&row(&format!("mp, 1 rank, {threads} threads"), ours));
    text.push_str(&row(&format!("PyTorch, {threads} threads"), peers));
    text.push_str(&format!("mp takes {:.3} of PyTorch's time a step\n", middle(ours) / middle(peers)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warm_up_is_left_out_and_the_last_evaluation_counts() {
        let step =
            |step: u64, seconds: f64| format!("{{\"kind\":\"step\",\"step\":{step},\"step_seconds\":{seconds}}}\n");
        let mut text: String = (1..=50).map(|number| step(number, 9.0)).collect();
        text.push_str("{\"kind\":\"eval\",\"step\":50,\"loss\":3.0}\n");
        text.extend([(51, 0.2), (52, 0.1), (53, 0.4)].map(|(number, seconds)| step(number, seconds)));
        text.push_str("{\"kind\":\"eval\",\"step\":53,\"loss\":1.5}\n{\"kind\":\"end\",\"step\":53}\n");
        assert_eq!(of_metrics(&text).unwrap(), Measured { step_seconds: 0.2, validation_loss: 1.5 });
    }

    #[test]
    fn missing_numbers_are_named() {
        assert!(of_metrics("{\"kind\":\"eval\",\"loss\":1.0}\n").unwrap_err().to_string().contains("no step past 50"));
        assert!(of_peer("{\"step_seconds\": 1}").unwrap_err().to_string().contains("validation_loss"));
    }

    #[test]
    fn the_table_compares_medians() {
        let run = |step_seconds| Measured { step_seconds, validation_loss: 1.9 };
        let text = table(&[run(0.05), run(0.04), run(0.9)], &[run(0.1), run(0.1)], 2);
        assert!(text.contains("mp takes 0.500 of"), "{text}");
        assert!(text.contains("50.0  40.0  900.0"), "{text}");
    }
}
