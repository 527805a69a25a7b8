//! From a configuration and a world size to a layout: everything that can be refused before a rank allocates.

use std::sync::Arc;

use mp_comm::Communicator;
use mp_data::BatchPlan;
use mp_model::context::Form;
use mp_model::parameter::{Sharing, BUCKET_BYTES};
use mp_model::recompute::Recompute;
use mp_model::regions::Between;
use mp_model::Parameters;
use mp_plan::{
    Architecture, Axis, ContextForm, Mesh, Partition, Plan, RecomputeName, Schedule, Storage, Traffic, Workload, Zero,
};

use crate::config::OptimizerName;
use crate::{Config, Result};

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
    /// Decides everything that the configuration leaves open, for `world` ranks and a tokenizer with `vocab` ids.
    ///
    /// # Errors
    /// [`Error::Plan`](crate::Error::Plan) and [`Error::Data`](crate::Error::Data) for what cannot be cut.
    pub fn new(config: &Config, vocab: usize, world: usize) -> Result<Self> {
        let seq = config.train.seq;
        let architecture = Architecture::resolve(&config.model, vocab, seq)?;
        let mesh = Mesh::resolve(&config.parallel, world, &architecture)?;
        let (tp, dp, pp) = (mesh.degree(Axis::Tp), mesh.degree(Axis::Dp), mesh.degree(Axis::Pp));
        let cp = mesh.degree(Axis::Cp);
        mp_plan::check_sequence(seq, cp, 1)?;
        let form = match config.parallel.context {
            ContextForm::Ring => Form::Ring,
            ContextForm::AllToAll => Form::AllToAll,
        };
        if form == Form::AllToAll {
            mp_plan::check_all_to_all(architecture.heads, architecture.kv_heads, tp, cp)?;
        }
        let between = match mp_plan::sequence_parallel(config.parallel.sequence_parallel, seq, cp, tp)? {
            true => Between::SequenceSharded,
            false => Between::Replicated,
        };
        let global_batch = config.train.global_batch;
        let micro_batch = match config.parallel.micro_batch {
            // Where it does not divide, the batch plan says so.
            0 => default_micro_batch((global_batch / dp).max(1), pp),
            chosen => chosen,
        };
        let batches = BatchPlan::new(global_batch, micro_batch, dp)?;
        let schedule =
            Schedule::resolve(&config.parallel, &architecture, pp, batches.micro_batches(), config.lora.rank > 0)?;
        schedule.check()?;
        Ok(Self {
            partition: Arc::new(Partition::new(&architecture, &mesh)?.adapted(&config.lora)?),
            between,
            form,
            recompute: recompute(config)?,
            batches,
            schedule,
            zero: mp_plan::check_zero(config.parallel.zero.unwrap_or(Zero::Replicated), &mesh)?,
            bucket_bytes: match config.parallel.bucket_bytes {
                0 => BUCKET_BYTES,
                chosen => chosen,
            },
        })
    }

    /// Returns the parameters of one rank of the pipeline.
    pub fn of_rank(&self, rank: usize) -> Arc<Partition> {
        Arc::new(self.partition.of_rank(&self.schedule.stages, rank))
    }

    /// Says how the data ranks, given as a group, share the work of keeping and reducing.
    pub fn sharing(&self, data: Arc<dyn Communicator>) -> Sharing {
        Sharing { data, zero: self.zero, bucket_bytes: self.bucket_bytes }
    }

    /// Writes in words what cuts model and batch.
    pub fn words(&self) -> String {
        let mesh = &self.partition.mesh;
        let mut words = vec![format!("tp={}", mesh.degree(Axis::Tp))];
        if mesh.degree(Axis::Pp) > 1 {
            words.push(format!("pp={} ({})", mesh.degree(Axis::Pp), self.schedule.name));
        }
        if mesh.degree(Axis::Cp) > 1 {
            words.push(format!("cp={}", mesh.degree(Axis::Cp)));
        }
        words.push(format!("dp={}", mesh.degree(Axis::Dp)));
        if self.zero > Zero::Replicated {
            words.push(format!("zero {}", self.zero));
        }
        words.join(" × ")
    }

    /// Counts what rank `rank` of the pipeline, data rank `part`, hands over in a step with these parameters.
    pub fn traffic(&self, config: &Config, parameters: &Parameters, rank: usize, part: usize) -> Traffic {
        let workload = Workload {
            micro_batch: self.batches.micro_batch(),
            seq: config.train.seq,
            sequence_parallel: self.between == Between::SequenceSharded,
            context: config.parallel.context,
            recompute_every: match self.recompute {
                Recompute::Full { every } => every,
                Recompute::None | Recompute::Selective => 0,
            },
            precision: config.train.precision.planned(),
        };
        // Where nothing is shared out, each rank owns the one part there is.
        let part = if self.zero == Zero::Replicated { 0 } else { part };
        Traffic::of(parameters.partition(), parameters.arrangement(), part, &self.schedule, rank, &workload)
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
        Plan::new(&self.partition, storage).cut(&self.partition, &self.schedule, self.zero)
    }
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
