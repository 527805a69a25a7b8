//! One optimizer step: the schedule's list of a rank run from zero gradients to updated weights.

use std::sync::Arc;

use mp_comm::{BufferMut, ReduceOp};
use mp_data::{Batch, Tally, Targets};
use mp_model::context::Context;
#[cfg(feature = "faults")]
use mp_model::faults;
use mp_model::pass::DropoutKey;
use mp_model::regions::{Between, TensorGroup};
use mp_model::{Goal, Model, Parameters, Pass};
use mp_plan::{Partition, Schedule, Step};

use crate::assembled::{Assembled, Own};
use crate::clock::Clock;
use crate::groups::Groups;
use crate::inference::Inference;
use crate::optimizer::Optimizer;
use crate::pipeline::{Flight, Line, MicroBatch};
use crate::reduce::{clip, Reducer};
use crate::times::{Doing, Pieces, Times};
use crate::{Error, Result};

/// The lower half of a number.
const LOW: u64 = u32::MAX as u64;

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Mean over the global batch's target tokens, in nats.
    pub loss: f64,
    /// Norm of the model's gradient before clipping.
    pub gradient_norm: f64,
    /// The samples that all ranks of the world worked on, each as often as ranks did.
    pub read: Tally,
    /// Where the step's time went on this rank.
    pub times: Times,
}

/// A rank's model in training.
pub struct Trainer {
    passes: Passes,
    optimizer: Box<dyn Optimizer>,
    worked: Vec<(Step, f64)>,
    /// Whether a step ended with an error in its midst.
    failed: bool,
}

/// What gradients are made of and with.
struct Passes {
    groups: Groups,
    model: Model,
    method: Method,
    reducer: Reducer,
}

/// How a trainer goes about it.
#[derive(Debug, Clone)]
pub struct Method {
    /// The parameters of the whole model, all stages.
    pub whole: Arc<Partition>,
    /// The ranks that share each sequence.
    pub context: Context,
    /// How activations lie between the tensor-parallel regions.
    pub between: Between,
    /// The steps of every rank of the pipeline.
    pub schedule: Schedule,
    /// What dropout draws from.
    pub seed: u64,
    /// The largest norm of a gradient; 0 never clips.
    pub clip_norm: f64,
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
    /// Which of their targets count: the loss is those targets' mean.
    pub targets: Targets,
}

impl Trainer {
    /// Makes a trainer of a model. Collective over the tensor group.
    ///
    /// # Errors
    /// [`Error::Comm`] if the groups of replicas cannot be made.
    pub fn new(mut groups: Groups, model: Model, optimizer: Box<dyn Optimizer>, method: Method) -> Result<Self> {
        let group = TensorGroup { comm: Arc::clone(&groups.tp), between: method.between };
        let reducer = Reducer::new(model.parameters(), &group)?;
        groups.waits.read_on(Clock::of(model.parameters().device()));
        Ok(Self { passes: Passes { groups, model, method, reducer }, optimizer, worked: Vec::new(), failed: false })
    }

    /// Returns the model.
    pub fn model(&self) -> &Model {
        &self.passes.model
    }

    /// Returns this rank's shards.
    pub fn parameters(&self) -> &Parameters {
        self.passes.model.parameters()
    }

    /// Returns the optimizer.
    pub fn optimizer(&self) -> &dyn Optimizer {
        &*self.optimizer
    }

    /// Returns the groups.
    pub fn groups(&self) -> &Groups {
        &self.passes.groups
    }

    /// Returns the computations of the last step, each with the seconds that it took.
    pub fn worked(&self) -> &[(Step, f64)] {
        &self.worked
    }

    /// Returns the parameters of the whole model, all stages.
    pub fn whole(&self) -> &Partition {
        &self.passes.method.whole
    }

    /// Returns the ways between this rank's stages and the others'.
    pub fn line(&self) -> Line<'_> {
        self.passes.assembled().line()
    }

    /// Returns what passes need.
    pub fn assembled(&self) -> Assembled<'_> {
        self.passes.assembled()
    }

    /// Ends the training: what is left is a model that writes.
    ///
    /// # Errors
    /// [`Error::Model`] for what no layer computes.
    pub fn into_writing(self) -> Result<Inference> {
        let Passes { groups, model, method, .. } = self.passes;
        Inference::of_trained(model.into_parameters(), groups, method.schedule.stages)
    }

    /// Makes one step: runs this rank's list of the schedule. Collective over the world.
    ///
    /// # Errors
    /// [`Error::NotFinite`] on every rank, with the weights as they were, if loss or gradient are no numbers;
    /// [`Error::MicroBatches`] if the schedule is for another number of them; [`Error::NoTargets`] on every rank if none
    /// counts; whatever a layer or a collective raises, and after that [`Error::Failed`].
    pub fn step(&mut self, work: &Work<'_>) -> Result<Outcome> {
        if self.failed {
            return Err(Error::Failed);
        }
        let outcome = self.run(work);
        self.failed = !matches!(
            outcome,
            Ok(_) | Err(Error::NotFinite { .. } | Error::MicroBatches { .. } | Error::NoTargets { .. })
        );
        outcome
    }

    fn run(&mut self, work: &Work<'_>) -> Result<Outcome> {
        let _span = tracing::info_span!("step", step = work.step).entered();
        let passes = &self.passes;
        let mut pieces = Pieces::begin(&passes.groups.waits)?;
        if work.batches.len() != passes.method.schedule.micro_batches {
            return Err(Error::MicroBatches {
                given: work.batches.len(),
                planned: passes.method.schedule.micro_batches,
            });
        }
        let share = passes.share(work)?;
        let assembled = passes.assembled();
        let tensors = work.batches.iter().map(|batch| assembled.own(batch)).collect::<Result<Vec<_>>>()?;
        pieces.end(Doing::Preparing)?;
        passes.model.parameters().begin_step(work.batches.len())?;
        pieces.end(Doing::Updating)?;
        let steps = &passes.method.schedule.ranks[passes.groups.pp.rank().0];
        let mut flight =
            Flight::new(assembled.line(), &passes.model, passes.micro_batches(work, &tensors, share), steps)?;
        let (mut loss, mut gradient_norm) = (0.0, 0.0);
        let mut read = Tally::default();
        for &step in steps {
            match step {
                Step::SumTied => passes.sum_tied()?,
                Step::Reduce => {
                    let part = flight.land()?;
                    pieces.end(Doing::Passing)?;
                    passes.reducer.sum(passes.model.parameters())?;
                    #[cfg(feature = "faults")]
                    passes.scale_wrongly(work.batches.len())?;
                    pieces.end(Doing::Summing)?;
                    gradient_norm = passes.reducer.norm(passes.model.parameters(), &passes.groups)?;
                    loss = passes.total(part)?;
                }
                Step::Update => {
                    read = passes.check(work, loss, gradient_norm)?;
                    clip(passes.model.parameters(), gradient_norm, passes.method.clip_norm)?;
                    self.optimizer.update(passes.model.parameters(), work.step, work.lr)?;
                    passes.model.parameters().publish()?;
                }
                pass => flight.run(pass)?,
            }
        }
        pieces.end(Doing::Updating)?;
        // Here a device is waited for, and not before: what it does in a step counts as that step's.
        let times = pieces.times()?;
        self.worked = flight.worked()?;
        Ok(Outcome { loss, gradient_norm, read, times })
    }
}

impl Passes {
    fn assembled(&self) -> Assembled<'_> {
        let Self { groups, model, method, .. } = self;
        let Method { schedule, context, between, .. } = method;
        Assembled { groups, model, stages: &schedule.stages, context, between: *between }
    }

    fn micro_batches<'a>(&self, work: &Work<'_>, tensors: &'a [Own], share: f64) -> Vec<MicroBatch<'a>> {
        let per_rank = work.global_batch / self.groups.dp.size();
        let mut first_sample = self.groups.dp.rank().0 * per_rank;
        #[cfg(feature = "faults")]
        faults::forget_rank(&mut first_sample);
        let dropout = Some(DropoutKey { seed: self.method.seed, step: work.step });
        let micro_batch = |(batch, own): (&Batch, &'a Own)| {
            let made = MicroBatch {
                pass: Pass { first_sample, dropout, ..own.pass() },
                goal: Goal {
                    targets: &own.targets,
                    share,
                    sentences: own.labels.as_ref().map(|labels| (labels, 1.0 / work.global_batch as f64)),
                },
                shape: self.assembled().activation_shape(batch.batch, own.positions.count()),
            };
            first_sample += batch.batch;
            made
        };
        work.batches.iter().zip(tensors).map(micro_batch).collect()
    }

    /// Returns what a target's loss is multiplied with: one over the targets of the global batch that count.
    ///
    /// The mean of micro-batches' means would be another number where they count unevenly many.
    fn share(&self, work: &Work<'_>) -> Result<f64> {
        let whole = work.batches.first().map_or(0, |batch| work.global_batch * batch.seq);
        let mut count = [whole as i64];
        if work.targets == Targets::Counted {
            // Context ranks have the same batches, so the data ranks alone have all of them.
            count = [work.batches.iter().map(Batch::target_count).sum::<usize>() as i64];
            self.groups.dp.all_reduce(BufferMut::new(&mut count), ReduceOp::Sum)?;
        }
        match count {
            [0] => Err(Error::NoTargets { step: work.step }),
            [count] => Ok(1.0 / count as f64),
        }
    }

    /// Scales the gradient by what a mistake leaves in it.
    #[cfg(feature = "faults")]
    fn scale_wrongly(&self, micro_batches: usize) -> Result<()> {
        let factor = faults::gradient_factor(micro_batches, self.groups.dp.size(), self.groups.cp.size());
        let mut gradients = self.model.parameters().gradients().all().shallow_clone();
        let _ = gradients.f_mul_scalar_(factor).map_err(mp_runtime::Error::from)?;
        Ok(())
    }

    fn sum_tied(&self) -> Result<()> {
        let ends = self.groups.ends.as_deref().ok_or(mp_model::Error::NotHere { what: "an end of the model" })?;
        Ok(self.model.parameters().sum_tied(ends)?)
    }

    /// Sums the parts of a loss that the ranks saw.
    fn total(&self, part: f64) -> Result<f64> {
        let mut sum = [part];
        for group in [&self.groups.data, &self.groups.pp] {
            group.all_reduce(BufferMut::new(&mut sum), ReduceOp::Sum)?;
        }
        Ok(sum[0])
    }

    /// Refuses a step whose loss or gradient is no number, on all ranks if on any; in the same reduction, adds up what the
    /// ranks have read.
    fn check(&self, work: &Work<'_>, loss: f64, gradient_norm: f64) -> Result<Tally> {
        let bad = [!loss.is_finite(), !gradient_norm.is_finite()].map(i64::from);
        let own = Tally::of(work.batches.iter().flat_map(|batch| batch.numbers.iter().copied()));
        // The sum in halves, which no number of ranks makes overflow.
        let mut sums = [bad[0], bad[1], own.count as i64, (own.sum & LOW) as i64, (own.sum >> 32) as i64];
        self.groups.world.all_reduce(BufferMut::new(&mut sums), ReduceOp::Sum)?;
        let [loss, norm, count, low, high] = sums.map(|sum| sum as u64);
        let step = work.step;
        match (loss, norm) {
            (0, 0) => Ok(Tally { count, sum: low.wrapping_add(high << 32) }),
            (0, _) => Err(Error::NotFinite { step, what: "gradient norm" }),
            _ => Err(Error::NotFinite { step, what: "loss" }),
        }
    }
}
