//! A few steps of training under a layout, and what they left on this rank.

use std::collections::HashMap;
use std::sync::Arc;

use mp_comm::{Communicator, Rank};
use mp_data::{Batch, BatchPlan, MaskedSource, Masking, SampleSource, TextSource, Tokens};
use mp_model::{accelerator, shard};
use mp_plan::{ArchitectureName, PartitionedParameter};
use mp_runtime::flat::Flat;
use mp_runtime::rng::Stream;
use mp_runtime::{Device, Tensor};

use super::shrink::{CLIP_NORM, LR, VOCAB};
use crate::assemble::Allocated;
use crate::layout::Layout;
use crate::step::{Trainer, Work};
use crate::{Config, Result};

/// How long to train, and what to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// For proof: the first step shows gradients of equal models, the second those of updated ones, the third moments
    /// that were carried on; values before and after each are kept.
    Full,
    /// For noise, which two steps show: one before and one after an update. Gradients alone are kept.
    Short,
}

impl Length {
    fn steps(self) -> u64 {
        match self {
            Length::Full => 3,
            Length::Short => 2,
        }
    }
}

/// Tokens of the text; their number is no multiple of anything.
const TEXT: usize = 1999;

/// What training left on one rank.
#[derive(Debug)]
pub(super) struct Trace {
    /// Which trained parameters this rank holds, as indices into the whole model's, in execution order.
    pub held: Vec<usize>,
    /// Whether this rank speaks for its parameters: one does of those that hold them.
    pub speaks: bool,
    /// Before the first step, in full; empty for [`Length::Short`].
    pub initial: Vec<Tensor>,
    /// By step.
    pub steps: Vec<Left>,
}

/// What one step left.
#[derive(Debug)]
pub(super) struct Left {
    pub loss: f64,
    /// Of the gradient before clipping.
    pub norm: f64,
    /// Each held parameter's gradient before clipping, in full.
    pub gradients: Vec<Tensor>,
    /// Each held parameter's updated value in the optimizer's precision, in full; empty for [`Length::Short`].
    pub values: Vec<Tensor>,
}

/// Trains as a layout's configuration says on the ranks of `world`, exactly as many as it takes. Collective.
pub(super) fn train(config: &Config, world: &Arc<dyn Communicator>, device: Device, length: Length) -> Result<Trace> {
    let layout = Layout::new(config, VOCAB, world.size())?;
    let groups = layout.groups(world)?;
    let mut trainer = Allocated::new(config, &layout, &groups, device)?.trainer(config, &layout, groups)?;
    let source = source(config)?;
    let initial = values(&trainer, length)?;
    let one = |step| one(&mut trainer, &*source, &layout.batches, step, length);
    let steps = (1..=length.steps()).map(one).collect::<Result<_>>()?;
    let name = |parameter: &PartitionedParameter| parameter.spec.name.clone();
    let whole: HashMap<String, usize> = trainer.whole().trained().map(name).zip(0..).collect();
    let held = trainer.parameters().partition().trained().map(|parameter| whole[&name(parameter)]).collect();
    let groups = trainer.groups();
    let speaks = groups.tp.rank() == Rank(0) && groups.data.rank() == Rank(0);
    Ok(Trace { held, speaks, initial, steps })
}

/// Trains on one rank, each global batch in one piece: what layouts are held against.
pub(super) fn one_rank(config: &Config, device: Device, length: Length) -> Result<Trace> {
    train(config, &accelerator::alone("one rank", device)?, device, length)
}

fn one(trainer: &mut Trainer, source: &dyn SampleSource, plan: &BatchPlan, step: u64, length: Length) -> Result<Left> {
    let rank = trainer.groups().dp.rank().0;
    let read = |micro| Batch::read(source, plan.samples(step - 1, rank, micro));
    let batches = (0..plan.micro_batches()).map(read).collect::<mp_data::Result<Vec<_>>>()?;
    let targets = source.targets();
    let work = Work { step, lr: LR, batches: &batches, global_batch: plan.global_batch(), targets };
    let outcome = trainer.step(&work)?;
    let parameters = trainer.parameters();
    let mut gradients = gathered(trainer, parameters.gradients())?;
    if outcome.gradient_norm > CLIP_NORM {
        for gradient in &mut gradients {
            let _ = gradient.f_mul_scalar_(outcome.gradient_norm / CLIP_NORM).map_err(mp_runtime::Error::from)?;
        }
    }
    Ok(Left { loss: outcome.loss, norm: outcome.gradient_norm, gradients, values: values(trainer, length)? })
}

/// Copies the values of every parameter that this rank holds, where they are kept.
fn values(trainer: &Trainer, length: Length) -> Result<Vec<Tensor>> {
    match length {
        Length::Full => gathered(trainer, trainer.parameters().masters()),
        Length::Short => Ok(Vec::new()),
    }
}

/// Copies every trained parameter that this rank holds, in full.
fn gathered(trainer: &Trainer, from: &Flat) -> Result<Vec<Tensor>> {
    let parameters = trainer.parameters();
    let gather = |index: usize| -> Result<Tensor> {
        let full = shard::gather(parameters, index, from, &*trainer.groups().tp)?;
        Ok(full.f_detach_copy().map_err(mp_runtime::Error::from)?)
    };
    let all = parameters.partition().parameters.iter().enumerate();
    all.filter(|(_, parameter)| !parameter.spec.frozen).map(|(index, _)| gather(index)).collect()
}

/// Special tokens of a masked model.
const SPECIAL: usize = 3;

/// Makes samples of a text of random tokens, as the model learns from.
fn source(config: &Config) -> Result<Box<dyn SampleSource>> {
    let (seq, seed) = (config.train.seq, config.train.seed);
    if config.model.architecture != ArchitectureName::Bert {
        return Ok(Box::new(text(seq, seed, VOCAB)?));
    }
    let inner = Arc::new(text(seq, seed, VOCAB - SPECIAL)?);
    let masking = Masking::plain(VOCAB - SPECIAL, seed);
    Ok(Box::new(MaskedSource::new(inner, masking, config.model.next_sentence)?))
}

/// Makes a text of random tokens.
fn text(seq: usize, seed: u64, vocab: usize) -> Result<TextSource> {
    let mut words = vec![0; TEXT];
    Stream::new(seed, "text of a verification", 0).words(0, &mut words);
    let ids = words.into_iter().map(|word| word % vocab as u32).collect();
    Ok(TextSource::new(Tokens::new("random tokens", ids), seq, seed)?)
}
