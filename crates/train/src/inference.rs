//! A model that is used and not trained: its parameters on a rank's groups, without gradients and optimizer.

use std::sync::Arc;

use mp_comm::Communicator;
use mp_model::context::Context;
use mp_model::recompute::Recompute;
use mp_model::regions::{Between, TensorGroup};
use mp_model::{build, Model, Options, Parameters};
use mp_plan::{Architecture, Axis, LoraConfig, Mesh, Stages, Switch, Zero};
use mp_runtime::Device;

use crate::agree::agree;
use crate::assembled::Assembled;
use crate::crowd::ranks_a_memory;
use crate::groups::Groups;
use crate::layout::Layout;
use crate::room::Used;
use crate::weights::{self, WeightSource};
use crate::{Config, Error, Result};

/// What a model is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Passes over whole sequences, cut over all axes.
    Reading,
    /// One token after the other: one position is not cut, so ranks of the context axis serve as data ranks.
    Writing,
}

/// A rank's share of a model that is used.
pub struct Inference {
    groups: Groups,
    model: Model,
    stages: Stages,
    context: Context,
    between: Between,
    /// What an error of a full device is explained by; nothing where a run in training knows more.
    cut: Option<Cut>,
}

/// How a model that is used lies, and what its device is shared with.
struct Cut {
    config: Config,
    layout: Layout,
    sharing: usize,
}

impl Cut {
    fn used(&self, stage: usize) -> Used<'_> {
        Used { config: &self.config, layout: &self.layout, sharing: self.sharing, stage }
    }
}

impl Inference {
    /// Puts a model on `world` as a configuration cuts it, with the weights of a source. Collective over the world.
    ///
    /// # Errors
    /// On all ranks: what cannot be cut, and what the source lacks.
    pub fn new(
        config: &Config,
        vocab: usize,
        source: &dyn WeightSource,
        world: &Arc<dyn Communicator>,
        device: Device,
        purpose: Use,
    ) -> Result<Self> {
        let sharing = ranks_a_memory(&**world, device)?;
        let cut = |config: &Config| layout(&adapted(config, source)?, vocab, world.size(), purpose);
        let layout = agree(&**world, cut(config))?;
        let groups = layout.groups(world)?;
        let loaded = || -> Result<Parameters> {
            let partition = Arc::new(layout.of_rank(groups.pp.rank().0).as_ref().clone().frozen());
            let sharing = layout.sharing(Arc::clone(&groups.data));
            let precision = config.train.precision.backend();
            let parameters = Parameters::zeros(&partition, groups.tp.rank().0, sharing, precision, device)?;
            weights::load(&parameters, source)?;
            Ok(parameters)
        };
        let loaded = loaded();
        let known = Cut { config: config.clone(), layout, sharing };
        let loaded = loaded.map_err(|error| known.used(groups.pp.rank().0).explain(error, cut));
        let parameters = agree(&**world, loaded)?;
        let layout = &known.layout;
        let context = Context { comm: Arc::clone(&groups.cp), form: layout.form };
        let (stages, between) = (layout.schedule.stages.clone(), layout.between);
        Self::build(parameters, groups, stages, context, between).map(|built| Self { cut: Some(known), ..built })
    }

    /// Makes a model that writes of parameters that were trained, where they lie.
    ///
    /// # Errors
    /// [`Error::Model`] for what no layer computes.
    pub fn of_trained(parameters: Parameters, groups: Groups, stages: Stages) -> Result<Self> {
        Self::build(parameters, groups, stages, Context::alone(), Between::Replicated)
    }

    fn build(
        parameters: Parameters,
        groups: Groups,
        stages: Stages,
        context: Context,
        between: Between,
    ) -> Result<Self> {
        let group = TensorGroup { comm: Arc::clone(&groups.tp), between };
        let chunks = stages.rank_layers(groups.pp.rank().0);
        let options = Options { context: context.clone(), recompute: Recompute::None };
        let model = build(parameters, group, &chunks, &options)?;
        Ok(Self { groups, model, stages, context, between, cut: None })
    }

    /// Says more of an error that passes over `batch` texts at a time have met, where the device had no memory for them.
    #[must_use]
    pub fn explained(&self, error: Error, batch: usize) -> Error {
        match &self.cut {
            Some(cut) => cut.used(self.groups.pp.rank().0).explain_pass(error, batch),
            None => error,
        }
    }

    /// Returns what passes need.
    pub fn assembled(&self) -> Assembled<'_> {
        let Self { groups, model, stages, context, between, .. } = self;
        Assembled { groups, model, stages, context, between: *between }
    }
}

/// Takes the adapters that a source holds, as they are: nothing is rounded that training did not round.
fn adapted(config: &Config, source: &dyn WeightSource) -> Result<Config> {
    let lora = match source.adapters() {
        Some(adapters) => adapters.lora.clone(),
        None if config.lora.rank > 0 => {
            let rule = format!("`{}` holds no adapters; leave `lora` out", source.origin().display());
            return Err(Error::Config { key: "lora.rank", value: config.lora.rank.to_string(), rule });
        }
        None => LoraConfig::default(),
    };
    Ok(Config { lora, ..config.clone() })
}

/// Decides how a model that is not trained is cut. What only training has, batches and optimizer, does not restrict it.
fn layout(config: &Config, vocab: usize, world: usize, purpose: Use) -> Result<Layout> {
    let mut config = config.for_ranks(world);
    if purpose == Use::Writing {
        let parallel = &mut config.parallel;
        parallel.dp *= parallel.cp.max(1);
        parallel.cp = 1;
        parallel.sequence_parallel = Switch::Set(false);
    }
    // Without gradients and optimizer state, sharing these out is sharing nothing.
    config.parallel.zero = match config.parallel.zero {
        Switch::Set(Zero::Parameters) => Switch::Set(Zero::Parameters),
        _ => Switch::Set(Zero::Replicated),
    };
    let architecture = Architecture::resolve(&config.model, vocab, config.train.seq)?;
    if !architecture.causal() {
        let value = format!("{:?}", architecture.name).to_lowercase();
        let rule = "sees a whole text at once: measuring and writing take a model that reads it token by token".into();
        return Err(Error::Config { key: "model.architecture", value, rule });
    }
    let mesh = Mesh::resolve(&config.parallel, world, &architecture)?;
    config.parallel.micro_batch = 1;
    config.train.global_batch = mesh.degree(Axis::Dp) * mesh.degree(Axis::Pp);
    Layout::of_use(&config, vocab, world)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout_of(sets: &[&str], world: usize, purpose: Use) -> Result<Layout> {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        layout(&Config::load(None, None, &sets).unwrap(), 256, world, purpose)
    }

    #[test]
    fn batches_of_training_do_not_restrict_a_model_that_is_used() {
        // A global batch of 16 cannot be shared by three ranks.
        let layout = layout_of(&["parallel.dp=3"], 3, Use::Reading).unwrap();
        assert_eq!(layout.partition.mesh.degree(Axis::Dp), 3);
    }

    #[test]
    fn a_model_that_sees_both_sides_is_refused() {
        let error = layout_of(&["model.architecture=bert"], 1, Use::Writing).err().unwrap();
        assert!(error.is_input() && error.to_string().contains("`model.architecture` is bert"), "{error}");
    }

    #[test]
    fn context_ranks_write_as_data_ranks() {
        let sets = ["parallel.tp=1", "parallel.cp=2", "parallel.dp=2", "parallel.zero=2"];
        let layout = |purpose| layout_of(&sets, 4, purpose).unwrap();
        let (writing, reading) = (layout(Use::Writing), layout(Use::Reading));
        let degrees = |layout: &Layout| [Axis::Dp, Axis::Cp].map(|axis| layout.partition.mesh.degree(axis));
        assert_eq!((degrees(&writing), degrees(&reading)), ([4, 1], [2, 2]));
        assert_eq!((writing.between, writing.zero), (Between::Replicated, Zero::Replicated));
    }
}
