//! One optimizer step: forward and backward of each micro-batch, the sum over ranks, clipping, the update.

use std::time::Instant;

use mp_comm::{BufferMut, ReduceOp};
use mp_data::Batch;
use mp_model::pass::DropoutKey;
use mp_model::regions::{Between, TensorGroup};
use mp_model::{Model, Parameters, Pass};
use mp_runtime::{autograd, Device, Tensor};

use crate::groups::Groups;
use crate::optimizer::Optimizer;
use crate::reduce::{clip, Reducer};
use crate::{Error, Result};

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Mean over the global batch's target tokens, in nats.
    pub loss: f64,
    /// Norm of the model's gradient before clipping.
    pub gradient_norm: f64,
    /// Where the step's time went.
    pub seconds: Seconds,
}

/// Where a step's time went, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seconds {
    /// Forward and backward passes, with the communication inside them.
    pub passes: f64,
    /// Summing, measuring and clipping the gradient.
    pub reduction: f64,
    /// The update.
    pub update: f64,
}

/// A rank's model in training.
pub struct Trainer {
    groups: Groups,
    model: Model,
    reducer: Reducer,
    optimizer: Box<dyn Optimizer>,
    seed: u64,
    clip_norm: f64,
}

/// What a step works on.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// Number of this update, from 1.
    pub step: u64,
    /// Its learning rate.
    pub lr: f64,
    /// This rank's micro-batches.
    pub batches: &'a [Batch],
    /// Sequences in the global batch.
    pub global_batch: usize,
}

impl Trainer {
    /// Makes a trainer of a model. Collective over the tensor group.
    ///
    /// # Errors
    /// [`Error::Comm`] if the groups of replicas cannot be made.
    pub fn new(
        groups: Groups,
        model: Model,
        between: Between,
        optimizer: Box<dyn Optimizer>,
        seed: u64,
        clip_norm: f64,
    ) -> Result<Self> {
        let group = TensorGroup { comm: std::sync::Arc::clone(&groups.tp), between };
        let reducer = Reducer::new(model.parameters(), &group)?;
        Ok(Self { groups, model, reducer, optimizer, seed, clip_norm })
    }

    /// Returns the model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns this rank's shards.
    pub fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }

    /// Returns the optimizer.
    pub fn optimizer(&self) -> &dyn Optimizer {
        &*self.optimizer
    }

    /// Returns the groups.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Makes one step. Collective over the world.
    ///
    /// # Errors
    /// [`Error::NotFinite`] on every rank, with the weights as they were, if loss or gradient are no numbers; whatever
    /// a layer or a collective raises.
    pub fn step(&mut self, work: &Work<'_>) -> Result<Outcome> {
        let _span = tracing::info_span!("step", step = work.step).entered();
        let begun = Instant::now();
        let loss = self.accumulate(work)?;
        let passed = Instant::now();
        let gradient_norm = self.reduce()?;
        let loss = self.total(loss)?;
        self.check(work.step, loss, gradient_norm)?;
        clip(self.parameters(), gradient_norm, self.clip_norm)?;
        let reduced = Instant::now();
        self.optimizer.update(self.model.parameters(), work.step, work.lr)?;
        self.parameters().publish()?;
        let seconds = Seconds {
            passes: (passed - begun).as_secs_f64(),
            reduction: (reduced - passed).as_secs_f64(),
            update: reduced.elapsed().as_secs_f64(),
        };
        Ok(Outcome { loss, gradient_norm, seconds })
    }

    /// Runs all micro-batches forward and backward from zero gradients; returns this rank's part of the mean loss.
    ///
    /// # Errors
    /// Whatever a layer or a collective raises.
    pub fn accumulate(&self, work: &Work<'_>) -> Result<f64> {
        self.parameters().begin_step(work.batches.len())?;
        let per_rank = work.global_batch / self.groups.dp.size();
        let mut first_sample = self.groups.dp.rank().0 * per_rank;
        let mut loss = 0.0;
        for (micro_batch, batch) in work.batches.iter().enumerate() {
            let _span = tracing::debug_span!("micro_batch", micro_batch).entered();
            let share = 1.0 / (work.global_batch * batch.seq) as f64;
            loss += self.pass(work.step, batch, first_sample, share)?;
            first_sample += batch.batch;
        }
        Ok(loss)
    }

    /// Runs one micro-batch forward and backward; its loss and gradients are the sum over targets times `share`.
    fn pass(&self, step: u64, batch: &Batch, first_sample: usize, share: f64) -> Result<f64> {
        let (tokens, targets) = tensors(batch, self.parameters().device())?;
        let dropout = Some(DropoutKey { seed: self.seed, step });
        let sum = self.model.loss_sum(&Pass { tokens: &tokens, first_sample, dropout }, &targets)?;
        let loss = sum.f_mul_scalar(share).map_err(mp_runtime::Error::from)?;
        autograd::backward(&[&loss], &[None], false)?;
        Ok(loss.double_value(&[]))
    }

    /// Sums and measures the gradient over all ranks.
    ///
    /// # Errors
    /// [`Error::Comm`].
    pub fn reduce(&self) -> Result<f64> {
        self.reducer.sum(self.parameters())?;
        self.reducer.norm(self.parameters(), &self.groups)
    }

    /// Sums the parts of a loss that the data ranks saw.
    ///
    /// # Errors
    /// [`Error::Comm`].
    pub fn total(&self, part: f64) -> Result<f64> {
        let mut sum = [part];
        self.groups.data.all_reduce(BufferMut::new(&mut sum), ReduceOp::Sum)?;
        Ok(sum[0])
    }

    /// Refuses a step whose loss or gradient is no number, on all ranks if on any.
    fn check(&self, step: u64, loss: f64, gradient_norm: f64) -> Result<()> {
        let mut bad = [i32::from(!loss.is_finite()), i32::from(!gradient_norm.is_finite())];
        self.groups.world.all_reduce(BufferMut::new(&mut bad), ReduceOp::Max)?;
        match bad {
            [0, 0] => Ok(()),
            [0, _] => Err(Error::NotFinite { step, what: "gradient norm" }),
            _ => Err(Error::NotFinite { step, what: "loss" }),
        }
    }
}

/// Puts a batch on a device: tokens and targets, `[b, s]` each.
pub(crate) fn tensors(batch: &Batch, device: Device) -> Result<(Tensor, Tensor)> {
    let shape = [batch.batch as i64, batch.seq as i64];
    let put = |ids: &[i64]| -> mp_runtime::Result<Tensor> {
        Ok(Tensor::f_from_slice(ids)?.f_view(shape)?.f_to_device(device)?)
    };
    Ok((put(&batch.tokens)?, put(&batch.targets)?))
}
