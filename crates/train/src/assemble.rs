//! From a layout to a rank's trainer: what it keeps, and the groups that it works in.

use std::sync::Arc;

use mp_comm::Communicator;
use mp_model::context::Context;
use mp_model::regions::TensorGroup;
use mp_model::{build, Options, Parameters};
use mp_plan::{lora::is_factor, ParameterSpec};
use mp_runtime::Device;

use crate::groups::Groups;
use crate::layout::Layout;
use crate::optimizer::{optimizer, Optimizer};
use crate::step::{Method, Trainer};
use crate::{Config, Result};

impl Layout {
    /// Cuts the world into this layout's groups. Collective over it.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) if a group cannot be made.
    pub fn groups(&self, world: &Arc<dyn Communicator>) -> Result<Groups> {
        Groups::new(world, &self.partition.mesh, self.schedule.stages.tied_ranks())
    }
}

/// A rank's memory, before anything that needs the other ranks.
pub struct Allocated {
    parameters: Parameters,
    optimizer: Box<dyn Optimizer>,
}

impl Allocated {
    /// Takes the memory for a rank's shards and draws their initial values. Local to each rank.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) if the device has no room.
    pub fn new(config: &Config, layout: &Layout, groups: &Groups, device: Device) -> Result<Self> {
        Self::drawn(config, layout, groups, device, |_| true)
    }

    /// Takes the memory for a rank's shards of a model that comes from somewhere: what is to be loaded is zero, and only
    /// adapters, which may be new, are drawn. Local to each rank.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn to_be_loaded(config: &Config, layout: &Layout, groups: &Groups, device: Device) -> Result<Self> {
        Self::drawn(config, layout, groups, device, |spec| is_factor(&spec.name))
    }

    fn drawn(
        config: &Config,
        layout: &Layout,
        groups: &Groups,
        device: Device,
        which: impl Fn(&ParameterSpec) -> bool,
    ) -> Result<Self> {
        let (partition, sharing) = (layout.of_rank(groups.pp.rank().0), layout.sharing(Arc::clone(&groups.data)));
        let precision = config.train.precision.backend();
        let parameters = Parameters::zeros(&partition, groups.tp.rank().0, sharing, precision, device)?;
        parameters.draw(config.train.seed, which)?;
        let optimizer = optimizer(&config.optimizer, &parameters)?;
        Ok(Self { parameters, optimizer })
    }

    /// Builds the stages. Collective over the groups.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) if the groups of replicas cannot be made.
    pub fn trainer(self, config: &Config, layout: &Layout, groups: Groups) -> Result<Trainer> {
        let context = Context { comm: Arc::clone(&groups.cp), form: layout.form };
        let method = Method {
            whole: Arc::clone(&layout.partition),
            context: context.clone(),
            between: layout.between,
            schedule: layout.schedule.clone(),
            seed: config.train.seed,
            clip_norm: config.train.clip_norm,
        };
        let group = TensorGroup { comm: Arc::clone(&groups.tp), between: layout.between };
        let chunks = layout.schedule.stages.rank_layers(groups.pp.rank().0);
        let options = Options { context, recompute: layout.recompute };
        let model = build(self.parameters, group, &chunks, &options)?;
        Trainer::new(groups, model, self.optimizer, method)
    }
}
