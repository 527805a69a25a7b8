//! What operations take within a training step: starts, that is, dispatch, the graph and the engine's own code around
//! them; and work, which is slower there than where one operation is repeated, for operands lie farther away.
//!
//! So the engine itself is timed, on a model so small that starts are nearly all there is, and on one whose layers work. Of both,
//! what a layer more takes is `starts · launch + work / program`, with the starts that the planner counts of it and the work as
//! measured operation by operation: two equations for the two.

use mp_data::{Batch, SampleSource, TextSource, Tokens};
use mp_model::accelerator;
use mp_plan::cluster::Efficiency;
use mp_plan::cost::{self, layer::Parts};
use mp_plan::{Candidate, Cluster, ModelConfig, Precision};

use super::bench::Bench;
use crate::assemble::Allocated;
use crate::config::{self, TrainConfig};
use crate::layout::Layout;
use crate::step::{Trainer, Work};
use crate::{Config, Result};

/// Layers of the models, of each size two.
const FEW: usize = 2;
const MANY: usize = 10;
const VOCAB: usize = 32;
/// No operation takes less: a start that noise has swallowed.
const LEAST: f64 = 1e-7;

/// How operations fare within a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Within {
    /// What the start of one takes, in seconds.
    pub(super) launch: f64,
    /// The share of the rates measured one by one that they reach.
    pub(super) program: f64,
}

/// What a layer takes, and what of it the planner knows.
#[derive(Debug, Clone, Copy)]
struct Layer {
    seconds: f64,
    /// How many starts the planner counts.
    starts: f64,
    /// What all the rest takes by what was measured one by one, in seconds.
    work: f64,
}

/// A model that is measured.
#[derive(Debug, Clone, Copy)]
struct Size {
    hidden: usize,
    ffn: usize,
    seq: usize,
}

/// Of which only starts count.
const TINY: Size = Size { hidden: 16, ffn: 32, seq: 16 };
/// Whose work counts for more.
const WORKING: Size = Size { hidden: 128, ffn: 512, seq: 256 };

/// Measures how operations fare within a step.
pub(super) fn within_a_step(bench: &Bench<'_>, machine: &Cluster, precision: Precision) -> Result<Within> {
    let layer = |size: Size| -> Result<Layer> {
        let seconds = |layers: usize| step(bench, &model(size, layers, precision));
        let seconds = (seconds(MANY)? - seconds(FEW)?) / (MANY - FEW) as f64;
        let job = Layout::job(&model(size, FEW, precision), VOCAB)?;
        let predicted = |launch: f64| {
            let machine = Cluster { efficiency: Efficiency { launch, ..machine.efficiency }, ..machine.clone() };
            Parts::of(&job, &Candidate::default(), &*cost::of(&machine), 1).layer.total()
        };
        let work = predicted(0.0);
        Ok(Layer { seconds, starts: predicted(1.0) - work, work })
    };
    Ok(Within::of(layer(TINY)?, layer(WORKING)?))
}

impl Within {
    /// Solves the two equations. Where noise has it that work within a step is quicker than alone, it is as quick, and starts
    /// are what the smaller layer leaves.
    fn of(tiny: Layer, working: Layer) -> Self {
        let determinant = tiny.starts * working.work - working.starts * tiny.work;
        let slower = (tiny.starts * working.seconds - working.starts * tiny.seconds) / determinant;
        let slower = if slower.is_finite() { slower.max(1.0) } else { 1.0 };
        Self { launch: ((tiny.seconds - tiny.work * slower) / tiny.starts).max(LEAST), program: 1.0 / slower }
    }
}

/// Configures a model of one size.
fn model(size: Size, layers: usize, precision: Precision) -> Config {
    let Size { hidden, ffn, seq } = size;
    let model = ModelConfig { layers, hidden, heads: 2, ffn, vocab: VOCAB, ..ModelConfig::default() };
    let precision = match precision {
        Precision::Bf16 => config::Precision::Bf16,
        Precision::Fp32 => config::Precision::Fp32,
        Precision::Fp64 => config::Precision::Fp64,
    };
    let train = TrainConfig { seq, global_batch: 1, precision, ..TrainConfig::default() };
    Config { model, train, ..Config::default() }
}

/// Times a step of a model that every rank trains alone.
fn step(bench: &Bench<'_>, config: &Config) -> Result<f64> {
    let made = || -> Result<(Trainer, Box<dyn SampleSource>)> {
        let alone = accelerator::alone("measured", bench.device())?;
        let layout = Layout::new(config, VOCAB, 1)?;
        let groups = layout.groups(&alone)?;
        let trainer = Allocated::new(config, &layout, &groups, bench.device())?.trainer(config, &layout, groups)?;
        let seq = config.train.seq;
        let ids = (0..4 * seq as u32).map(|id| id % VOCAB as u32).collect();
        Ok((trainer, Box::new(TextSource::new(Tokens::new("counted tokens", ids), seq, config.train.seed)?)))
    };
    let (mut trainer, source) = bench.prepared(made)?;
    let batches = [Batch::read(&*source, 0..1)?];
    let mut step = 0;
    // A small difference of two steps counts, which noise would fill where one sample stood for each.
    bench.seconds_in(bench.either(0.1, 0.5), || {
        step += 1;
        let work = Work { step, lr: 1e-3, batches: &batches, global_batch: 1, targets: source.targets() };
        trainer.step(&work).map(drop)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer on a machine where both are known.
    fn layer(starts: f64, work: f64, known: Within) -> Layer {
        Layer { seconds: starts * known.launch + work / known.program, starts, work }
    }

    #[test]
    fn two_layers_tell_starts_and_pace() {
        let known = Within { launch: 8e-6, program: 0.75 };
        let found = Within::of(layer(60.0, 20e-6, known), layer(64.0, 5e-3, known));
        // A few roundings of sums of the same numbers.
        assert!((found.launch / known.launch - 1.0).abs() < 1e-12, "{found:?}");
        assert!((found.program / known.program - 1.0).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn noise_makes_nothing_impossible() {
        let quick = Within::of(
            layer(60.0, 20e-6, Within { launch: 8e-6, program: 1.0 }),
            Layer { seconds: 1e-3, starts: 64.0, work: 5e-3 },
        );
        assert_eq!(quick.program, 1.0);
        assert!((quick.launch / 8e-6 - 1.0).abs() < 1e-12, "{quick:?}");
        let none = Layer { seconds: -1e-6, starts: 60.0, work: 20e-6 };
        assert_eq!(Within::of(none, none), Within { launch: LEAST, program: 1.0 });
    }
}
