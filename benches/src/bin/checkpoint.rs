//! Saving and loading a state beside the raw disk: `mpirun -n N checkpoint --folder DIR`.
//!
//! Raw bytes, checkpoints behind the steps, checkpoints that are waited for, and loads take turns, so that a disk that
//! changes its pace changes it for all. Reads come from what the system still has in memory, raw ones too.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use clap::Parser;
use mp_comm::mpi::Mpi;
use mp_comm::{BufferMut, Communicator, Rank, ReduceOp};
use mp_runtime::{device, Device};
use mp_train::assemble::Allocated;
use mp_train::checkpoint::{About, CheckpointStore, DirectoryStore, Verify};
use mp_train::layout::Layout;
use mp_train::saving::Saver;
use mp_train::state::{self, Shard};
use mp_train::step::Trainer;
use mp_train::Config;

/// Raw bytes are written and read in runs of this length.
const RUN_BYTES: usize = 8 << 20;

/// What is saved, where and how often.
#[derive(Debug, Parser)]
struct Options {
    /// The folder of everything that is written; what the bench leaves there is removed
    #[arg(long)]
    folder: PathBuf,
    /// The model, by preset
    #[arg(long, default_value = "gpt2-124m")]
    preset: String,
    /// A configuration key, such as parallel.zero=1
    #[arg(long = "set")]
    sets: Vec<String>,
    /// How often each is measured; the medians count
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where the figures go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mpi = Mpi::initialize()?;
    let world = mpi.communicator();
    device::prepare((std::thread::available_parallelism()?.get() / world.local_size()).max(1));
    if let Err(error) = run(&options, &world) {
        eprintln!("{error:#}");
        mpi.abort(1)
    }
    Ok(())
}

fn run(options: &Options, world: &Arc<dyn Communicator>) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds 0: nothing would be measured");
    let config = Config::load(None, Some(&options.preset), &options.sets)?;
    let layout = Layout::new(&config, config.model.vocab.max(256), world.size())?;
    let groups = layout.groups(world)?;
    let trainer = Allocated::new(&config, &layout, &groups, Device::Cpu)?.trainer(&config, &layout, groups)?;
    let bytes = Shard::new(&trainer)?.bytes();
    let words = layout.words(config.train.precision);
    let folder = options.folder.join(format!("bench-checkpoint-{}", words.replace([' ', '×', ','], "")));
    fs::create_dir_all(&folder)?;
    let mut bench = Bench::new(&config, Arc::clone(world), &trainer, folder.join("checkpoints"));
    bench.behind.prepare(&trainer)?;
    let mut rounds = Vec::new();
    for round in 0..options.rounds as u64 {
        let raw = raw(&**world, &folder, bytes)?;
        rounds.push(bench.round(round, raw)?);
    }
    world.barrier()?;
    if world.rank() == Rank(0) {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let mut total = [bytes as f64];
    world.all_reduce(BufferMut::new(&mut total), ReduceOp::Sum)?;
    report(options, &words, world, total[0], &rounds)
}

/// Seconds of one round, of the slowest rank.
struct Seconds([f64; 8]);

/// What [`Seconds`] are of, and whether they are of moving all bytes.
const NAMES: [(&str, bool); 8] = [
    ("raw write, flushed", true),
    ("raw read", true),
    ("save behind the steps, until complete", true),
    ("  of which a step is held up", false),
    ("save that is waited for", true),
    ("load, every byte checked", true),
    ("load, lengths checked", true),
    ("checking alone", true),
];

struct Bench<'a> {
    trainer: &'a Trainer,
    world: Arc<dyn Communicator>,
    store: Arc<DirectoryStore>,
    config: &'a Config,
    behind: Saver,
    waited: Saver,
}

impl<'a> Bench<'a> {
    fn new(config: &'a Config, world: Arc<dyn Communicator>, trainer: &'a Trainer, folder: PathBuf) -> Self {
        let store = Arc::new(DirectoryStore::new(folder, 1));
        let saver = |asynchronous: bool| {
            let config = mp_train::config::CheckpointConfig { asynchronous, ..config.checkpoint.clone() };
            Saver::new(&config, Arc::<DirectoryStore>::clone(&store), Arc::clone(&world), Vec::new())
        };
        let (behind, waited) = (saver(true), saver(false));
        Self { trainer, world, store, config, behind, waited }
    }

    fn round(&mut self, round: u64, [written, read]: [f64; 2]) -> Result<Seconds> {
        let about = |step| About::new(step, self.config);
        let (trainer, world) = (self.trainer, Arc::clone(&self.world));
        let behind = timed(&*world, || {
            self.behind.begin(trainer, about(2 * round + 1), Ok(()))?;
            self.behind.finish()
        })?;
        let held = self.behind.held().as_secs_f64();
        let waited = timed(&*world, || {
            self.waited.begin(trainer, about(2 * round + 2), Ok(()))?;
            self.waited.finish()
        })?;
        let (rank, of) = (world.rank().0, world.size());
        let load = |verify: Verify| -> Result<()> {
            let reader = self.store.latest(verify)?.context("there is no checkpoint")?;
            Ok(state::restore(trainer, reader)?)
        };
        let checked = timed(&*world, || load(Verify::Share { rank, of }))?;
        let trusted = timed(&*world, || load(Verify::Lengths))?;
        let checking = timed(&*world, || Ok::<_, anyhow::Error>(self.store.latest(Verify::Share { rank, of })?))?;
        let mut all = [written, read, behind, held, waited, checked, trusted, checking];
        world.all_reduce(BufferMut::new(&mut all), ReduceOp::Max)?;
        Ok(Seconds(all))
    }
}

/// Measures from when all ranks begin until this one is done.
fn timed<T, E: Into<anyhow::Error>>(
    world: &dyn Communicator,
    work: impl FnOnce() -> std::result::Result<T, E>,
) -> Result<f64> {
    world.barrier()?;
    let begun = Instant::now();
    work().map_err(Into::into)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Writes as many bytes as this rank saves in one file, flushes it and reads it again; returns the seconds of each.
fn raw(world: &dyn Communicator, folder: &Path, bytes: usize) -> Result<[f64; 2]> {
    let path = folder.join(format!("raw-{}", world.rank().0));
    // Not zeros, which a file system may not write.
    let mut run: Vec<u8> = (0..RUN_BYTES).map(|at| ((at * 2_654_435_761) >> 16) as u8).collect();
    let written = timed(world, || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        for start in (0..bytes).step_by(RUN_BYTES) {
            file.write_all(&run[..RUN_BYTES.min(bytes - start)])?;
        }
        file.sync_all()
    })?;
    let read = timed(world, || -> std::io::Result<()> {
        let mut file = File::open(&path)?;
        while file.read(&mut run)? > 0 {}
        Ok(())
    })?;
    fs::remove_file(&path)?;
    Ok([written, read])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

fn report(
    options: &Options,
    layout: &str,
    world: &Arc<dyn Communicator>,
    bytes: f64,
    rounds: &[Seconds],
) -> Result<()> {
    if world.rank() != Rank(0) {
        return Ok(());
    }
    println!("mp, {} ranks ({layout}), {:.0} MB, medians of {}", world.size(), bytes / 1e6, rounds.len());
    let mut figures = serde_json::Map::new();
    for (index, (name, moves)) in NAMES.into_iter().enumerate() {
        let seconds = median(rounds.iter().map(|round| round.0[index]).collect());
        let pace = if moves { format!("{:8.0} MB/s", bytes / 1e6 / seconds) } else { String::new() };
        let first = rounds[0].0[index];
        println!("  {name:<40} {seconds:8.3} s {pace:<14} (first {first:.3} s)");
        figures.insert(name.trim().into(), seconds.into());
    }
    if let Some(path) = &options.json {
        let all = serde_json::json!({ "ranks": world.size(), "layout": layout, "bytes": bytes, "seconds": figures });
        fs::write(path, all.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
