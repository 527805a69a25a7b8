//! From a configuration and a world size to a layout: everything that can be refused before a rank allocates.

use std::sync::Arc;

use mp_comm::Communicator;
use mp_data::BatchPlan;
use mp_model::parameter::{Sharing, BUCKET_BYTES};
use mp_model::regions::Between;
use mp_plan::{Architecture, Axis, Mesh, Partition, Plan, Storage, Zero};

use crate::config::{OptimizerName, Precision};
use crate::{Config, Result};

/// How a run is cut.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Every parameter's slices, with mesh and architecture.
    pub partition: Arc<Partition>,
    /// How activations lie between the tensor-parallel regions.
    pub between: Between,
    /// Which samples each data rank takes.
    pub batches: BatchPlan,
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
        let (tp, dp) = (mesh.degree(Axis::Tp), mesh.degree(Axis::Dp));
        let between = match mp_plan::sequence_parallel(config.parallel.sequence_parallel, seq, tp)? {
            true => Between::SequenceSharded,
            false => Between::Replicated,
        };
        let global_batch = config.train.global_batch;
        let micro_batch = match config.parallel.micro_batch {
            // Where it does not divide, the batch plan says so.
            0 => (global_batch / dp).max(1),
            chosen => chosen,
        };
        Ok(Self {
            partition: Arc::new(Partition::new(&architecture, &mesh)?),
            between,
            batches: BatchPlan::new(global_batch, micro_batch, dp)?,
            zero: mp_plan::check_zero(config.parallel.zero.unwrap_or(Zero::Replicated), &mesh)?,
            bucket_bytes: match config.parallel.bucket_bytes {
                0 => BUCKET_BYTES,
                chosen => chosen,
            },
        })
    }

    /// Says how the data ranks, given as a group, share the work of keeping and reducing.
    pub fn sharing(&self, data: Arc<dyn Communicator>) -> Sharing {
        Sharing { data, zero: self.zero, bucket_bytes: self.bucket_bytes }
    }

    /// Writes the degrees in words.
    pub fn words(&self) -> String {
        let mesh = &self.partition.mesh;
        format!("tp={} × dp={}", mesh.degree(Axis::Tp), mesh.degree(Axis::Dp))
    }

    /// Makes the plan that a run folder keeps.
    pub fn plan(&self, config: &Config) -> Plan {
        let precision = match config.train.precision {
            Precision::Fp32 => mp_plan::Precision::Fp32,
            Precision::Bf16 => mp_plan::Precision::Bf16,
            Precision::Fp64 => mp_plan::Precision::Fp64,
        };
        let moments = match config.optimizer.name {
            OptimizerName::AdamW => 2,
            OptimizerName::Sgd => 1,
        };
        Plan::new(&self.partition, Storage { precision, moments })
    }
}
