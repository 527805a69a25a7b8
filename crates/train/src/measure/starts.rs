//! What an operation of a training step takes beside its work: dispatch, the graph, and the engine's own code around it.
//!
//! A bare operation takes less than one in a step, where it is recorded and walked back. So the engine itself is timed, on
//! a model so small that nothing else counts: what a layer more takes, less what its products and sweeps take alone, is shared out
//! over the operations that the planner counts of it.

use std::sync::Arc;

use mp_comm::solo::Solo;
use mp_comm::Communicator;
use mp_data::{Batch, SampleSource, TextSource, Tokens};
use mp_plan::cluster::Efficiency;
use mp_plan::cost::{self, layer::Parts};
use mp_plan::{Candidate, Cluster, ModelConfig, Precision};
use mp_runtime::Device;

use super::bench::Bench;
use crate::assemble::Allocated;
use crate::config::{self, TrainConfig};
use crate::layout::Layout;
use crate::step::{Trainer, Work};
use crate::{Config, Result};

/// Layers of the two models.
const FEW: usize = 2;
const MANY: usize = 10;
const SEQ: usize = 16;
const VOCAB: usize = 32;
/// No operation takes less: a start that noise has swallowed.
const LEAST: f64 = 1e-7;

/// Returns what the start of an operation takes, in seconds.
pub(super) fn launch(bench: &Bench<'_>, machine: &Cluster, precision: Precision, device: Device) -> Result<f64> {
    let seconds = |layers: usize| step(bench, &tiny(layers, precision), device);
    let layer = (seconds(MANY)? - seconds(FEW)?) / (MANY - FEW) as f64;
    let job = Layout::job(&tiny(FEW, precision), VOCAB)?;
    let predicted = |launch: f64| {
        let machine = Cluster { efficiency: Efficiency { launch, ..machine.efficiency }, ..machine.clone() };
        Parts::of(&job, &Candidate::default(), &*cost::of(&machine), 1).layer.total()
    };
    let (work, starts) = (predicted(0.0), predicted(1.0) - predicted(0.0));
    Ok(((layer - work) / starts).max(LEAST))
}

/// Configures a model of which only the starts count.
fn tiny(layers: usize, precision: Precision) -> Config {
    let model = ModelConfig { layers, hidden: 16, heads: 2, ffn: 32, vocab: VOCAB, ..ModelConfig::default() };
    let precision = match precision {
        Precision::Bf16 => config::Precision::Bf16,
        Precision::Fp32 => config::Precision::Fp32,
        Precision::Fp64 => config::Precision::Fp64,
    };
    let train = TrainConfig { seq: SEQ, global_batch: 1, precision, ..TrainConfig::default() };
    Config { model, train, ..Config::default() }
}

/// Times a step of a model that every rank trains alone.
fn step(bench: &Bench<'_>, config: &Config, device: Device) -> Result<f64> {
    let made = || -> Result<(Trainer, Box<dyn SampleSource>)> {
        let alone: Arc<dyn Communicator> = Arc::new(Solo::new("measured"));
        let layout = Layout::new(config, VOCAB, 1)?;
        let groups = layout.groups(&alone)?;
        let trainer = Allocated::new(config, &layout, &groups, device)?.trainer(config, &layout, groups)?;
        let ids = (0..4 * SEQ as u32).map(|id| id % VOCAB as u32).collect();
        Ok((trainer, Box::new(TextSource::new(Tokens::new("counted tokens", ids), SEQ, config.train.seed)?)))
    };
    let (mut trainer, source) = crate::agree::agree(bench.world(), made())?;
    let batches = [Batch::read(&*source, 0..1)?];
    let mut step = 0;
    // A small difference of two steps counts, which noise would fill where one sample stood for each.
    bench.seconds_in(bench.either(0.1, 0.5), || {
        step += 1;
        let work = Work { step, lr: 1e-3, batches: &batches, global_batch: 1, targets: source.targets() };
        trainer.step(&work).map(drop)
    })
}
