//! The planner beside runs of small models: `mpirun -n N planner [--cluster FILE]`.
//!
//! Each layout for so many ranks is trained for some steps, as any run is, and its ledger says what was predicted and what
//! was measured. Layouts take turns, so that a machine that changes its pace changes it for all; of all rounds the fastest step
//! counts, since others on the machine only ever make a step longer. Each rank computes with one thread. It exits with 1 where
//! [`verdict`](mp_benches::verdict) finds something, which is told in a line each.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use mp_benches::correlation::of_ranks;
use mp_benches::layouts::{Case, BASE, CASES};
use mp_benches::verdict::shortfalls;
use mp_comm::mpi::Mpi;
use mp_comm::{Communicator, Rank};
use mp_runtime::{device, Device};
use mp_train::ledger::Ledger;
use mp_train::records::{Observer, StepRecord};
use mp_train::{run, Config};

/// The machine, and how long to measure.
#[derive(Debug, Parser)]
struct Options {
    /// The machine as `mp-cli plan --measure` wrote it, on as many ranks; without it no time is predicted
    #[arg(long)]
    cluster: Option<String>,
    /// Where runs are written; each is removed once it is read
    #[arg(long)]
    folder: std::path::PathBuf,
    /// Steps of each run
    #[arg(long, default_value_t = 40)]
    steps: u64,
    /// How often each layout is run
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let mpi = Mpi::initialize()?;
    let world = mpi.communicator();
    device::prepare(1);
    match bench(&options, &world) {
        Ok(shortfalls) => {
            shortfalls.iter().for_each(|line| eprintln!("{line}"));
            Ok(if shortfalls.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(error) => {
            eprintln!("{error:#}");
            mpi.abort(1)
        }
    }
}

/// Hears a run's ledger, and stops it after its steps: without evaluating and writing, which nobody reads here.
struct Ear<'a> {
    last: u64,
    stop: &'a AtomicBool,
    /// The fastest step's seconds.
    fastest: f64,
    ledger: Option<Ledger>,
}

impl Observer for Ear<'_> {
    fn step(&mut self, record: &StepRecord) {
        self.fastest = self.fastest.min(record.step_seconds);
        if record.step == self.last {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn ledger(&mut self, ledger: &Ledger) {
        self.ledger = Some(ledger.clone());
    }
}

/// What is known of a layout: the fullest rank's bytes and the step's seconds, predicted and measured.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    bytes: [Option<u64>; 2],
    seconds: [Option<f64>; 2],
}

/// Runs all layouts; returns on rank 0 what they fall short of.
fn bench(options: &Options, world: &Arc<dyn Communicator>) -> Result<Vec<String>> {
    let cases: Vec<&Case> = CASES.iter().filter(|(ranks, _)| *ranks == world.size()).collect();
    let mut figures: Vec<Vec<Figures>> = vec![Vec::new(); cases.len()];
    for _ in 0..options.rounds {
        for ((_, sets), figures) in cases.iter().zip(&mut figures) {
            figures.extend(trained(options, world, sets)?);
        }
    }
    if world.rank() != Rank(0) {
        return Ok(Vec::new());
    }
    let layouts: Vec<Layout> = cases.iter().zip(&figures).map(|((_, sets), rounds)| Layout::of(sets, rounds)).collect();
    let correlation = report(world.size(), &layouts);
    let memory: Vec<_> = layouts.into_iter().map(|layout| (layout.words, layout.figures.bytes)).collect();
    Ok(shortfalls(world.size(), &memory, correlation))
}

/// A layout in words, and what is known of it.
struct Layout {
    words: String,
    figures: Figures,
}

impl Layout {
    /// Takes the fastest of its rounds.
    fn of(sets: &[&str], rounds: &[Figures]) -> Self {
        let seconds = |figures: &Figures| figures.seconds[1].unwrap_or(f64::INFINITY);
        let fastest = rounds.iter().min_by(|one, other| seconds(one).total_cmp(&seconds(other)));
        let words = sets.join(" ").replace("parallel.", "").replace("model.", "").replace("train.", "");
        Self { words, figures: fastest.copied().unwrap_or_default() }
    }
}

/// Trains under a layout; rank 0 gets what came of it.
fn trained(options: &Options, world: &Arc<dyn Communicator>, sets: &[&str]) -> Result<Option<Figures>> {
    let place = options.folder.join("planner-bench");
    let mut own = vec![
        format!("train.out={}", place.display()),
        "train.name=layout".to_owned(),
        format!("train.steps={}", options.steps + 1),
    ];
    own.extend(options.cluster.iter().map(|cluster| format!("parallel.cluster={cluster}")));
    let sets = BASE.iter().chain(sets).map(|set| (*set).to_owned());
    let config = Config::load(None, None, &sets.chain(own).collect::<Vec<_>>())?;
    let stop = AtomicBool::new(false);
    let mut ear = Ear { last: options.steps, stop: &stop, fastest: f64::INFINITY, ledger: None };
    run::train(&config, Arc::clone(world), Device::Cpu, &stop, &mut ear)?;
    if world.rank() == Rank(0) {
        remove(&place)?;
    }
    world.barrier()?;
    Ok(ear.ledger.map(|ledger| of(&ledger, ear.fastest)))
}

fn remove(place: &Path) -> Result<()> {
    std::fs::remove_dir_all(place).with_context(|| format!("cannot remove {}", place.display()))
}

fn of(ledger: &Ledger, fastest: f64) -> Figures {
    let memory = || ledger.memory.ranks.iter().map(|rank| rank.total);
    let time = || ledger.time.ranks.iter().map(|rank| rank.total);
    Figures {
        bytes: [
            memory().filter_map(|total| total.predicted_bytes).max(),
            memory().filter_map(|total| total.measured_bytes).max(),
        ],
        seconds: [time().filter_map(|total| total.predicted_seconds).reduce(f64::max), Some(fastest)],
    }
}

/// Prints all of it; returns the rank correlation of the steps' times.
fn report(ranks: usize, layouts: &[Layout]) -> Option<f64> {
    println!("\n{ranks} ranks\n");
    println!("| layout | memory predicted (MB) | measured | off by | step predicted (ms) | measured | off by |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for Layout { words, figures: Figures { bytes, seconds } } in layouts {
        let memory = columns(bytes.map(|bytes| bytes.map(|bytes| bytes as f64 / 1e6)));
        println!("| {words} | {memory} | {} |", columns(seconds.map(|seconds| seconds.map(|seconds| 1e3 * seconds))));
    }
    let figures = || layouts.iter().map(|layout| layout.figures);
    let memory = errors(figures().map(|figures| figures.bytes.map(|bytes| bytes.map(|bytes| bytes as f64))));
    let time = errors(figures().map(|figures| figures.seconds));
    let pairs = figures().filter_map(|figures| Some((figures.seconds[0]?, figures.seconds[1]?)));
    let (predicted, measured): (Vec<f64>, Vec<f64>) = pairs.unzip();
    println!();
    for (what, [mean, worst]) in [("memory", memory), ("time", time)] {
        println!("{what}: off by {:.1} % on average, {:.1} % at worst", 100.0 * mean, 100.0 * worst);
    }
    let correlation = of_ranks(&predicted, &measured);
    if let Some(correlation) = correlation {
        println!("rank correlation of the steps' times: {correlation:.3}");
    }
    correlation
}

/// Writes what was predicted and measured, and by how much the one is off, as columns.
fn columns(pair: [Option<f64>; 2]) -> String {
    let [predicted, measured] = pair.map(|value| value.map_or("n/a".to_owned(), |value| format!("{value:.2}")));
    let off = match pair {
        [Some(predicted), Some(measured)] => format!("{:+.1} %", 100.0 * (predicted / measured - 1.0)),
        _ => "n/a".to_owned(),
    };
    format!("{predicted} | {measured} | {off}")
}

/// Returns the mean and the largest of the shares by which predictions are off; 0 without any.
fn errors(pairs: impl Iterator<Item = [Option<f64>; 2]>) -> [f64; 2] {
    let errors: Vec<f64> =
        pairs.filter_map(|[predicted, measured]| Some((predicted? / measured? - 1.0).abs())).collect();
    let sum: f64 = errors.iter().sum();
    [sum / errors.len().max(1) as f64, errors.iter().copied().fold(0.0, f64::max)]
}
