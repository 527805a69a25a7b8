//! Throughput of training with the split of its time: `mpirun -n N train --tp T --dp D`, on the host or with `--device cuda`.
//!
//! Random tokens, so that nothing but the step is measured. FLOPs are model FLOPs: forward and backward, attention over
//! the full square, nothing recomputed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use mp_benches::gemm;
use mp_benches::place::{self, DeviceName};
use mp_comm::mpi::Mpi;
use mp_comm::{BufferMut, Communicator, Rank, ReduceOp};
use mp_data::{Batch, SampleSource, Targets, TextSource, Tokens};
use mp_plan::{ArchitectureName, MemoryModel, ModelConfig, ParallelConfig};
use mp_runtime::device;
use mp_runtime::rng::Stream;
use mp_train::assemble::Allocated;
use mp_train::config::{Precision, TrainConfig};
use mp_train::layout::Layout;
use mp_train::step::Work;
use mp_train::times::Times;
use mp_train::Config;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Family {
    Llama,
    Gpt2,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Numbers {
    Fp32,
    Bf16,
}

/// The model, the layout and how long to measure.
#[derive(Debug, Parser)]
struct Options {
    #[arg(long, default_value = "llama")]
    architecture: Family,
    #[arg(long, default_value_t = 384)]
    hidden: usize,
    #[arg(long, default_value_t = 6)]
    layers: usize,
    #[arg(long, default_value_t = 6)]
    heads: usize,
    /// 0: as many as heads
    #[arg(long, default_value_t = 0)]
    kv_heads: usize,
    /// 0: the family's rule
    #[arg(long, default_value_t = 0)]
    ffn: usize,
    #[arg(long, default_value_t = 4096)]
    vocab: usize,
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Sequences in a step, over all ranks
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Sequences in a forward of a rank; 0: all that it has
    #[arg(long, default_value_t = 0)]
    micro_batch: usize,
    #[arg(long, default_value_t = 20)]
    steps: u64,
    /// Steps before them that are not timed
    #[arg(long, default_value_t = 5)]
    warmup: u64,
    #[arg(long, default_value_t = 1)]
    tp: usize,
    #[arg(long, default_value_t = 1)]
    dp: usize,
    /// Threads of a rank; 0: the cores divided by the ranks
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[arg(long, default_value = "fp32")]
    precision: Numbers,
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
    /// Where the result goes as one JSON object, beside being printed
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Options {
    fn config(&self) -> Config {
        let model = ModelConfig {
            architecture: match self.architecture {
                Family::Llama => ArchitectureName::Llama,
                Family::Gpt2 => ArchitectureName::Gpt2,
            },
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            ffn: self.ffn,
            vocab: self.vocab,
            ..ModelConfig::default()
        };
        let precision = match self.precision {
            Numbers::Fp32 => Precision::Fp32,
            Numbers::Bf16 => Precision::Bf16,
        };
        let Self { tp, dp, micro_batch, .. } = *self;
        let parallel = ParallelConfig { tp, dp, micro_batch, ..ParallelConfig::default() };
        let train = TrainConfig { global_batch: self.batch, seq: self.seq, precision, ..TrainConfig::default() };
        Config { model, parallel, train, ..Config::default() }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mpi = Mpi::initialize()?;
    let world = mpi.communicator();
    let cores = std::thread::available_parallelism()?.get();
    let threads = if options.threads > 0 { options.threads } else { (cores / world.local_size()).max(1) };
    device::prepare(threads);
    let measured = measure(&options, &world);
    match measured {
        Ok(figures) => figures.print(&options, &*world, threads)?,
        Err(error) => {
            eprintln!("{error:#}");
            mpi.abort(1)
        }
    }
    Ok(())
}

/// What was measured on this rank, in seconds a step.
struct Figures {
    step: f64,
    median: Option<f64>,
    times: Times,
    peak: f64,
    flop: f64,
    parameters: usize,
    /// Bytes at most in a step, as the plan says and as the device's allocator counts.
    predicted_bytes: Option<usize>,
    peak_bytes: u64,
    layout: String,
    loss: f64,
}

fn measure(options: &Options, world: &Arc<dyn Communicator>) -> Result<Figures> {
    let config = options.config();
    let layout = Layout::new(&config, options.vocab, world.size())?;
    let (device, world) = place::find(options.device, Arc::clone(world))?;
    let peak = gemm::peak(&*world, config.train.precision.backend().compute(), device)?;
    let before = device::memory(device)?.current_bytes;
    let groups = layout.groups(&world)?;
    let rank = groups.dp.rank().0;
    let mut trainer = Allocated::new(&config, &layout, &groups, device)?.trainer(&config, &layout, groups)?;
    let source = random_text(options)?;
    let (mut sums, mut seconds, mut loss) = ([0.0; 7], Vec::new(), 0.0);
    for step in 1..=options.warmup + options.steps {
        let batches = (0..layout.batches.micro_batches())
            .map(|micro| Batch::read(&source, layout.batches.samples(step - 1, rank, micro)))
            .collect::<mp_data::Result<Vec<_>>>()?;
        if step == options.warmup + 1 {
            device::reset_peak(device)?;
            world.barrier()?;
        }
        let begun = Instant::now();
        let (targets, global_batch) = (Targets::Every, options.batch);
        let outcome = trainer.step(&Work { step, lr: 1e-3, batches: &batches, global_batch, targets })?;
        if step > options.warmup {
            seconds.push(begun.elapsed().as_secs_f64());
            sums.iter_mut().zip(outcome.times.parts()).for_each(|(sum, part)| *sum += part);
        }
        loss = outcome.loss;
    }
    let steps = options.steps as f64;
    seconds.sort_by(f64::total_cmp);
    let architecture = &layout.partition.architecture;
    Ok(Figures {
        step: seconds.iter().sum::<f64>() / steps,
        median: seconds.get(seconds.len() / 2).copied(),
        times: Times::of_parts(sums.map(|sum| sum / steps)),
        peak,
        flop: architecture.flops_per_token(options.seq) * (options.batch * options.seq) as f64,
        parameters: architecture.parameter_count(),
        predicted_bytes: predicted(&config, &layout),
        peak_bytes: device::memory(device)?.peak_bytes.saturating_sub(before),
        layout: layout.words(config.train.precision),
        loss,
    })
}

/// What the plan says that the fullest rank holds; `None` for what cannot be planned.
fn predicted(config: &Config, layout: &Layout) -> Option<usize> {
    let (job, candidate) = layout.planned(config).ok()?;
    let schedule = &layout.schedule;
    let ranks = MemoryModel::new(&job).ranks(&candidate, &schedule.stages, &schedule.ranks).ok()?;
    ranks.iter().map(mp_plan::RankMemory::total).max()
}

fn random_text(options: &Options) -> Result<impl SampleSource> {
    let needed = (options.warmup + options.steps) as usize * options.batch * options.seq + 2 * options.seq;
    let mut words = vec![0; needed.min(1 << 22)];
    Stream::new(1, "text", 0).words(0, &mut words);
    let ids = words.iter().map(|word| word % options.vocab as u32).collect();
    Ok(TextSource::new(Tokens::new("random tokens", ids), options.seq, 1)?)
}

impl Figures {
    fn print(&self, options: &Options, world: &dyn Communicator, threads: usize) -> Result<()> {
        let mut peaks = [self.peak];
        world.all_reduce(BufferMut::new(&mut peaks), ReduceOp::Sum)?;
        if world.rank() != Rank(0) {
            return Ok(());
        }
        let tokens = (options.batch * options.seq) as f64 / self.step;
        let rate = self.flop / self.step;
        let Times { computing, tensor, context, bubble, data, optimizer, .. } = self.times;
        let communication = tensor + context + bubble + data;
        let share = |seconds: f64| 100.0 * seconds / self.step;
        println!(
            "{} ({} ranks, {threads} threads each): {tokens:.0} tokens/s, {:.1} ms a step, loss {:.4}",
            self.layout,
            world.size(),
            self.step * 1e3,
            self.loss
        );
        println!(
            "  {:.1} GFLOP/s of model FLOPs, {:.1} % of the {:.1} GFLOP/s that products reach here",
            rate / 1e9,
            100.0 * rate / peaks[0],
            peaks[0] / 1e9
        );
        println!(
            "  rank 0: compute {:.1} %, waiting for communication {:.1} %, update {:.1} %",
            share(computing),
            share(communication),
            share(optimizer)
        );
        let result = serde_json::json!({
            "layout": self.layout, "ranks": world.size(), "threads": threads, "tokens_per_second": tokens,
            "step_seconds": self.step, "median_step_seconds": self.median, "gemm_share": rate / peaks[0], "gemm_flop_per_second": peaks[0],
            "flop_per_token": self.flop / (options.batch * options.seq) as f64, "parameters": self.parameters,
            "peak_bytes": self.peak_bytes, "predicted_bytes": self.predicted_bytes,
            "times": self.times, "loss": self.loss,
        });
        println!("{result}");
        options.json.as_ref().map_or(Ok(()), |file| {
            std::fs::write(file, format!("{result}\n")).with_context(|| format!("cannot write {}", file.display()))
        })
    }
}
