//! From a configuration and a world size to a layout: everything that can be refused before a rank allocates.
//!
//! | file | is |
//! |---|---|
//! | `layout.rs` | what is decided, and in which order it is refused |
//! | `layout/uneven.rs` | the ways out for a global batch that does not come out even |
//! | `layout/words.rs` | a layout in one line |

mod uneven;
mod words;

use std::sync::Arc;

use mp_comm::Communicator;
use mp_data::BatchPlan;
use mp_model::context::Form;
use mp_model::parameter::{Sharing, BUCKET_BYTES};
use mp_model::recompute::Recompute;
use mp_model::regions::Between;
use mp_model::Parameters;
use mp_plan::{
    Architecture, Arrangement, Axis, Candidate, ContextForm, Degrees, Executor, Job, MemoryModel, Mesh, Partition,
    Plan, PlannedWork, RecomputeName, Schedule, Sequences, Storage, Traffic, Workload, Zero,
};

use crate::config::{DataFormat, OptimizerName};
use crate::{Config, Error, Result};

/// How a run is cut.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Every parameter's slices, with mesh and architecture.
    pub partition: Arc<Partition>,
    /// How activations lie between the tensor-parallel regions.
    pub between: Between,
    /// How attention reaches the positions of other context ranks.
    pub form: Form,
    /// What the backward computes again.
    pub recompute: Recompute,
    /// Which samples each data rank takes.
    pub batches: BatchPlan,
    /// The stages of the model, and in which order each rank of the pipeline works on them.
    pub schedule: Schedule,
    /// What the data ranks share out.
    pub zero: Zero,
    /// Bytes of gradients that are reduced together.
    pub bucket_bytes: usize,
}

impl Layout {
    /// Decides everything that the configuration leaves open, for `world` ranks and a tokenizer with `vocab` ids: by rules of
    /// thumb, also where it asks the planner, which [`choose`](crate::choose) hears.
    ///
    /// # Errors
    /// [`Error::Plan`] for what cannot be cut, and for options that would change nothing;
    /// [`Error::Config`] for a global batch that does not come out even, with the values that would.
    pub fn new(config: &Config, vocab: usize, world: usize) -> Result<Self> {
        let config = &config.for_ranks(world);
        Self::attempt(config, vocab, world).map_err(|error| uneven::explained(error, config, vocab, world))
    }

    /// Decides as [`new`](Self::new); a global batch that does not come out even is [`Error::Data`].
    fn attempt(config: &Config, vocab: usize, world: usize) -> Result<Self> {
        let (architecture, mesh) = meshed(config, vocab, world)?;
        let sequences = Sequences { seq: config.train.seq, within_documents: within_documents(config) };
        mp_plan::check_effect(&config.parallel, &mesh, &architecture, sequences)?;
        Self::cut(config, &architecture, mesh)
    }

    /// Decides how a model is cut that is used and not trained: options for training may then change nothing.
    ///
    /// # Errors
    /// [`Error::Plan`] and [`Error::Data`] for what cannot be cut.
    pub(crate) fn of_use(config: &Config, vocab: usize, world: usize) -> Result<Self> {
        let (architecture, mesh) = meshed(config, vocab, world)?;
        Self::cut(config, &architecture, mesh)
    }

    fn cut(config: &Config, architecture: &Architecture, mesh: Mesh) -> Result<Self> {
        let (parallel, seq) = (&config.parallel, config.train.seq);
        let Degrees { pp, dp, cp, tp, .. } = mesh.degrees();
        // Before what depends on the batch: no batch makes up for it.
        let zero = mp_plan::check_zero(parallel.zero.unwrap_or(Zero::Replicated), &mesh)?;
        mp_plan::check_sequence(seq, cp, 1)?;
        let form = match parallel.context {
            ContextForm::Ring => Form::Ring,
            ContextForm::AllToAll => Form::AllToAll,
        };
        if form == Form::AllToAll {
            mp_plan::check_all_to_all(architecture.heads, architecture.kv_heads, tp, cp)?;
        }
        let between = match mp_plan::sequence_parallel(parallel.sequence_parallel, seq, cp, tp)? {
            true => Between::SequenceSharded,
            false => Between::Replicated,
        };
        Self::job_of(config, architecture.clone()).check()?;
        let batches = batches(config, pp, dp)?;
        let frozen = config.lora.rank > 0;
        let schedule = Schedule::resolve(parallel, architecture, seq, pp, batches.micro_batches(), frozen)?;
        schedule.check()?;
        Ok(Self {
            partition: Arc::new(Partition::new(architecture, &mesh)?.adapted(&config.lora)?),
            between,
            form,
            recompute: recompute(config)?,
            batches,
            schedule,
            zero,
            bucket_bytes: bucket_bytes(config),
        })
    }

    /// Says what a configuration trains, whatever the layout, for a tokenizer with `vocab` ids.
    ///
    /// # Errors
    /// [`Error::Plan`] for a model that cannot be, [`Error::Config`] for adapters, beside which layouts are not chosen.
    pub fn job(config: &Config, vocab: usize) -> Result<Job> {
        if config.lora.rank > 0 {
            let rule = "layouts are chosen for models that are trained whole; choose one with lora.rank 0 and set its degrees in \
                        [parallel], or see without a cluster where the parameters of a layout lie"
                .into();
            return Err(Error::Config { key: "lora.rank", value: config.lora.rank.to_string(), rule });
        }
        Ok(Self::job_of(config, Architecture::resolve(&config.model, vocab, config.train.seq)?))
    }

    fn job_of(config: &Config, architecture: Architecture) -> Job {
        let precision = config.train.precision.planned();
        Job {
            architecture,
            seq: config.train.seq,
            global_batch: config.train.global_batch,
            precision,
            moments: Self::moments(config),
            bucket_elements: bucket_bytes(config) / precision.state_bytes(),
            context: config.parallel.context,
            within_documents: within_documents(config),
            split: config.parallel.split.clone(),
            executor: Executor::ENGINE,
        }
    }

    /// Says what this layout trains, and how it lies, in the planner's words; its stages are in the schedule.
    ///
    /// # Errors
    /// [`Error::Config`] for adapters, which the planner does not know.
    pub fn planned(&self, config: &Config) -> Result<(Job, Candidate)> {
        if config.lora.rank > 0 {
            let rule = "memory and time are predicted for models that are trained whole".into();
            return Err(Error::Config { key: "lora.rank", value: config.lora.rank.to_string(), rule });
        }
        let Degrees { pp, dp, cp, tp, ep } = self.partition.mesh.degrees();
        let (recompute, recompute_every) = match self.recompute {
            Recompute::None => (RecomputeName::None, 0),
            Recompute::Selective => (RecomputeName::Selective, 0),
            Recompute::Full { every } => (RecomputeName::Full, every),
        };
        let candidate = Candidate {
            tp,
            pp,
            dp,
            cp,
            ep,
            chunks: self.schedule.stages.chunks(),
            schedule: self.schedule.name,
            micro_batch: self.batches.micro_batch(),
            zero: self.zero,
            recompute,
            recompute_every,
            sequence_parallel: self.between == Between::SequenceSharded,
        };
        Ok((Self::job_of(config, self.partition.architecture.clone()), candidate))
    }

    /// Returns the parameters of one rank of the pipeline.
    pub fn of_rank(&self, rank: usize) -> Arc<Partition> {
        Arc::new(self.partition.of_rank(&self.schedule.stages, rank))
    }

    /// Says how the data ranks, given as a group, share the work of keeping and reducing.
    pub fn sharing(&self, data: Arc<dyn Communicator>) -> Sharing {
        Sharing { data, zero: self.zero, bucket_bytes: self.bucket_bytes }
    }

    /// Counts what rank `rank` of the pipeline, data rank `part`, hands over in a step with these parameters.
    pub fn traffic(&self, config: &Config, parameters: &Parameters, rank: usize, part: usize) -> Traffic {
        // Where nothing is shared out, each rank owns the one part there is.
        let part = if self.zero == Zero::Replicated { 0 } else { part };
        let (partition, workload) = (parameters.partition(), self.workload(config));
        Traffic::of(partition, parameters.arrangement(), part, &self.schedule, rank, &workload)
    }

    fn workload(&self, config: &Config) -> Workload {
        Workload {
            micro_batch: self.batches.micro_batch(),
            seq: config.train.seq,
            sequence_parallel: self.between == Between::SequenceSharded,
            context: config.parallel.context,
            recompute_every: match self.recompute {
                Recompute::Full { every } => every,
                Recompute::None | Recompute::Selective => 0,
            },
            precision: config.train.precision.planned(),
        }
    }

    /// Says what a step does.
    fn work(&self, config: &Config) -> PlannedWork {
        let workload = self.workload(config);
        let parts = self.partition.mesh.degree(Axis::Dp) * self.partition.mesh.degree(Axis::Cp);
        let bucket_elements = self.bucket_bytes / workload.precision.state_bytes();
        let traffic = |rank: usize| {
            let partition = self.partition.of_rank(&self.schedule.stages, rank);
            let arrangement = Arrangement::new(&partition.parameters, self.zero, parts, bucket_elements);
            Traffic::of(&partition, &arrangement, 0, &self.schedule, rank, &workload)
        };
        PlannedWork {
            micro_batch: workload.micro_batch,
            micro_batches: self.batches.micro_batches(),
            schedule: self.schedule.name,
            chunks: self.schedule.stages.chunks(),
            sequence_parallel: workload.sequence_parallel,
            context: workload.context,
            recompute: match self.recompute {
                Recompute::None => RecomputeName::None,
                Recompute::Selective => RecomputeName::Selective,
                Recompute::Full { .. } => RecomputeName::Full,
            },
            recompute_every: workload.recompute_every,
            traffic: (0..self.schedule.stages.pp()).map(traffic).collect(),
        }
    }

    /// Returns how many numbers the optimizer keeps of each element.
    pub(crate) fn moments(config: &Config) -> usize {
        match config.optimizer.name {
            OptimizerName::AdamW => 2,
            OptimizerName::Sgd => 1,
        }
    }

    /// Makes the plan that a run folder keeps.
    pub fn plan(&self, config: &Config) -> Plan {
        let storage = Storage { precision: config.train.precision.planned(), moments: Self::moments(config) };
        let plan = Plan::new(&self.partition, storage).cut(&self.partition, &self.schedule, self.zero);
        let plan = plan.running(self.work(config));
        // Beside adapters passes keep other things than those that are counted.
        let Ok((job, candidate)) = self.planned(config) else { return plan };
        match MemoryModel::new(&job).ranks(&candidate, &self.schedule.stages, &self.schedule.ranks) {
            Ok(memory) => plan.keeping(memory),
            Err(_) => plan,
        }
    }
}

/// Says whether attention stays within documents. Examples are packed, and kept apart, always.
fn within_documents(config: &Config) -> bool {
    config.data.attend_across == Some(false) || config.data.format != DataFormat::Text
}

fn bucket_bytes(config: &Config) -> usize {
    match config.parallel.bucket_bytes {
        0 => BUCKET_BYTES,
        chosen => chosen,
    }
}

/// Resolves model and mesh.
fn meshed(config: &Config, vocab: usize, world: usize) -> Result<(Architecture, Mesh)> {
    let architecture = Architecture::resolve(&config.model, vocab, config.train.seq)?;
    let mesh = Mesh::resolve(&config.parallel, world, &architecture)?;
    Ok((architecture, mesh))
}

/// Deals a global batch out.
fn batches(config: &Config, pp: usize, dp: usize) -> Result<BatchPlan> {
    let global_batch = config.train.global_batch;
    let micro_batch = match config.parallel.micro_batch {
        // Where it does not divide, the batch plan says so.
        0 => default_micro_batch((global_batch / dp).max(1), pp),
        chosen => chosen,
    };
    Ok(BatchPlan::new(global_batch, micro_batch, dp)?)
}

fn recompute(config: &Config) -> Result<Recompute> {
    Ok(match mp_plan::recompute(&config.parallel)? {
        (RecomputeName::None, _) => Recompute::None,
        (RecomputeName::Selective, _) => Recompute::Selective,
        (RecomputeName::Full, every) => Recompute::Full { every },
    })
}

/// Chooses the sequences in a micro-batch of `per_rank`: all, or with stages so few that the bubble is small, that is,
/// four micro-batches a stage where as many come out even.
fn default_micro_batch(per_rank: usize, pp: usize) -> usize {
    let most = if pp > 1 { 4 * pp } else { 1 };
    // A multiple of the stages where there is one, as the interleaved schedule needs.
    let fits = |count: &usize| per_rank.is_multiple_of(*count);
    let even = (1..=most).filter(fits).filter(|count| count.is_multiple_of(pp)).max();
    per_rank / even.or_else(|| (1..=most).filter(fits).max()).unwrap_or(1)
}
