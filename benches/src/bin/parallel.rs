//! What cuts cost, on two processes: `mpirun -n 2 parallel`.
//!
//! Three tables: the idle share of each schedule beside the simulated one; the bytes that a rank sends in a step beside
//! the planned ones; and a step with gradients reduced behind the backward beside one that reduces after it.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, Result};
use clap::Parser;
use mp_comm::ledger::{Ledger, Log};
use mp_comm::mpi::Mpi;
use mp_comm::{BufferMut, Communicator, Rank, ReduceOp};
use mp_data::{Batch, Targets, TextSource, Tokens};
use mp_plan::simulate::{Costs, StageCosts};
use mp_plan::{simulate, ScheduleName, Step, Traffic};
use mp_runtime::rng::Stream;
use mp_runtime::{device, Device};
use mp_train::assemble::Allocated;
use mp_train::layout::Layout;
use mp_train::step::{Trainer, Work};
use mp_train::times::Times;
use mp_train::traffic::sent;
use mp_train::Config;

/// The model and how long to measure.
#[derive(Debug, Parser)]
struct Options {
    #[arg(long, default_value_t = 256)]
    hidden: usize,
    #[arg(long, default_value_t = 8)]
    layers: usize,
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// Sequences in an update; each is a micro-batch of the schedules
    #[arg(long, default_value_t = 8)]
    batch: usize,
    #[arg(long, default_value_t = 8)]
    steps: u64,
    /// Steps before them that are not timed
    #[arg(long, default_value_t = 3)]
    warmup: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mpi = Mpi::initialize()?;
    let log = Arc::new(Log::new());
    let world: Arc<dyn Communicator> = Arc::new(Ledger::new(mpi.communicator(), Arc::clone(&log)));
    device::prepare(1);
    if let Err(error) = all(&options, &world, &log) {
        eprintln!("{error:#}");
        mpi.abort(1)
    }
    Ok(())
}

fn all(options: &Options, world: &Arc<dyn Communicator>, log: &Log) -> Result<()> {
    if world.size() != 2 {
        bail!("this measures two processes, and there are {}; run it with `mpirun -n 2`", world.size());
    }
    let first = world.rank() == Rank(0);
    let say = |line: String| {
        if first {
            println!("{line}");
        }
    };
    say("idle share of the passes, pp=2, one thread a rank".into());
    say(format!("{:12} {:>10} {:>10} {:>10} {:>12}", "schedule", "measured", "simulated", "difference", "equal costs"));
    for name in ScheduleName::ALL {
        let idle = bubble(options, world, name)?;
        let [measured, simulated, equal] = idle.map(|share| 100.0 * share);
        let difference = measured - simulated;
        say(format!("{:12} {measured:8.1} % {simulated:8.1} % {difference:8.1} % {equal:10.1} %", name.to_string()));
    }
    say("\nbytes that rank 0 sends in a step, by the ledger, and as planned".into());
    for sets in WIRES {
        let (got, planned) = wire(options, world, log, sets)?;
        let verdict = if got == planned { "equal" } else { "DIFFERENT" };
        say(format!(
            "{:58} tp {:>9} cp {:>9} data {:>9} pp {:>9}  {verdict}",
            sets.join(" "),
            got.tp,
            got.cp,
            got.data,
            got.pp
        ));
        if got != planned {
            bail!("planned {planned:?}, sent {got:?}");
        }
    }
    say("\na step with gradients reduced behind the backward, dp=2".into());
    let overlapped = seconds(options, world, &["parallel.tp=1", "parallel.bucket_bytes=1000000"])?;
    let after = seconds(options, world, &["parallel.tp=1", "parallel.bucket_bytes=1000000000"])?;
    say(format!("buckets of 1 MB: {:.1} ms; one bucket, after the backward: {:.1} ms", overlapped * 1e3, after * 1e3));
    Ok(())
}

/// One layout an axis and option.
const WIRES: [&[&str]; 9] = [
    &["parallel.tp=2", "parallel.sequence_parallel=false"],
    &["parallel.tp=2", "parallel.sequence_parallel=true"],
    &["parallel.tp=1", "parallel.zero=0"],
    &["parallel.tp=1", "parallel.zero=1"],
    &["parallel.tp=1", "parallel.zero=2"],
    &["parallel.tp=1", "parallel.zero=3"],
    &["parallel.tp=1", "parallel.cp=2", "parallel.context=ring"],
    &["parallel.tp=1", "parallel.cp=2", "parallel.context=all-to-all"],
    &["parallel.tp=1", "parallel.pp=2", "parallel.schedule=1f1b"],
];

/// A run's rank, ready to step.
struct Bench {
    config: Config,
    layout: Layout,
    trainer: Trainer,
    source: TextSource,
    step: u64,
}

impl Bench {
    fn new(options: &Options, world: &Arc<dyn Communicator>, sets: &[&str]) -> Result<Self> {
        let base = [
            format!("model.hidden={}", options.hidden),
            format!("model.layers={}", options.layers),
            "model.vocab=2048".into(),
            format!("train.seq={}", options.seq),
            format!("train.global_batch={}", options.batch),
        ];
        let sets: Vec<String> = base.into_iter().chain(sets.iter().map(|set| (*set).to_string())).collect();
        let config = Config::load(None, None, &sets)?;
        let layout = Layout::new(&config, 2048, world.size())?;
        let groups = layout.groups(world)?;
        let trainer = Allocated::new(&config, &layout, &groups, Device::Cpu)?.trainer(&config, &layout, groups)?;
        let mut words = vec![0; 1 << 16];
        Stream::new(1, "text", 0).words(0, &mut words);
        let ids = words.iter().map(|word| word % 2048).collect();
        let source = TextSource::new(Tokens::new("random tokens", ids), options.seq, 1)?;
        Ok(Self { config, layout, trainer, source, step: 0 })
    }

    /// Makes a step; returns its seconds, and those until all ranks of the pipeline are done with their passes.
    fn step(&mut self) -> Result<[f64; 2]> {
        let dp = self.trainer.groups().dp.rank().0;
        let batches = (0..self.layout.batches.micro_batches())
            .map(|micro| Batch::read(&self.source, self.layout.batches.samples(self.step, dp, micro)))
            .collect::<mp_data::Result<Vec<_>>>()?;
        self.step += 1;
        self.trainer.groups().world.barrier()?;
        let begun = Instant::now();
        let global_batch = self.config.train.global_batch;
        let targets = Targets::Every;
        let outcome =
            self.trainer.step(&Work { step: self.step, lr: 1e-4, batches: &batches, global_batch, targets })?;
        let Times { computing, tensor, context, bubble, .. } = outcome.times;
        Ok([begun.elapsed().as_secs_f64(), computing + tensor + context + bubble])
    }
}

/// Returns the idle share as measured, as simulated from the measured costs of each stage, and at equal costs.
fn bubble(options: &Options, world: &Arc<dyn Communicator>, name: ScheduleName) -> Result<[f64; 3]> {
    let schedule = format!("parallel.schedule={name}");
    let mut bench =
        Bench::new(options, world, &["parallel.pp=2", "parallel.tp=1", "parallel.micro_batch=1", &schedule])?;
    let stages = bench.layout.schedule.stages.clone();
    // Seconds of each stage's forward, whole backward, input part and weight part, and how often each was done.
    let mut sums = vec![0.0; 8 * stages.count()];
    let (mut busy, mut passes) = (0.0, 0.0);
    for step in 0..options.warmup + options.steps {
        let [_, spent] = bench.step()?;
        if step < options.warmup {
            continue;
        }
        passes += spent;
        for &(work, seconds) in bench.trainer.worked() {
            let Some((chunk, _)) = work.computes() else { continue };
            let kind = match work {
                Step::Forward { .. } => 0,
                Step::Backward { .. } => 1,
                Step::BackwardInput { .. } => 2,
                _ => 3,
            };
            let at = 8 * stages.stage_of(world.rank().0, chunk) + 2 * kind;
            sums[at] += seconds;
            sums[at + 1] += 1.0;
            busy += seconds;
        }
    }
    world.all_reduce(BufferMut::new(&mut sums), ReduceOp::Sum)?;
    let mut idle = [busy, passes];
    world.all_reduce(BufferMut::new(&mut idle), ReduceOp::Sum)?;
    let mean = |stage: usize, kind: usize| sums[8 * stage + 2 * kind] / sums[8 * stage + 2 * kind + 1].max(1.0);
    let cost = |stage: usize| StageCosts {
        forward: mean(stage, 0),
        // A whole backward is not measured in parts; the simulation adds them up again.
        backward_input: mean(stage, 1) + mean(stage, 2),
        backward_weight: mean(stage, 3),
    };
    let costs = Costs { stages: (0..stages.count()).map(cost).collect(), transfer: 0.0 };
    let equal = StageCosts { forward: 1.0, backward_input: 1.0, backward_weight: 1.0 };
    let simulated = simulate(&bench.layout.schedule, &costs).bubble;
    let at_equal = simulate(&bench.layout.schedule, &Costs::equal(stages.count(), equal)).bubble;
    Ok([1.0 - idle[0] / idle[1], simulated, at_equal])
}

/// Returns what this rank sent in one step, and what is planned.
fn wire(options: &Options, world: &Arc<dyn Communicator>, log: &Log, sets: &[&str]) -> Result<(Traffic, Traffic)> {
    let mut bench = Bench::new(options, world, sets)?;
    bench.step()?;
    log.take();
    bench.step()?;
    let got = sent(&log.take(), &bench.layout.partition.mesh);
    let groups = bench.trainer.groups();
    let (rank, part) = (groups.pp.rank().0, groups.data.rank().0);
    Ok((got, bench.layout.traffic(&bench.config, bench.trainer.parameters(), rank, part)))
}

/// Returns the mean seconds of a step.
fn seconds(options: &Options, world: &Arc<dyn Communicator>, sets: &[&str]) -> Result<f64> {
    let mut bench = Bench::new(options, world, sets)?;
    let mut total = 0.0;
    for step in 0..options.warmup + options.steps {
        let [spent, _] = bench.step()?;
        total += if step < options.warmup { 0.0 } else { spent };
    }
    Ok(total / options.steps as f64)
}
