//! The layout of a run, where its configuration leaves that to the planner, and the machine that it is on.

use mp_comm::Communicator;
use mp_plan::Cluster;

use crate::agree::agree;
use crate::{cluster, Config, Result};

/// What a run trains with.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The configuration, with nothing left to the planner.
    pub config: Config,
    /// The machine, where it is known: `parallel.cluster`, for as many nodes as the ranks need.
    pub machine: Option<Cluster>,
}

/// Completes a configuration for the ranks of `world`. Collective; every rank gets the same.
///
/// # Errors
/// On all ranks, a machine that `parallel.cluster` does not describe.
pub fn choose(config: &Config, world: &dyn Communicator) -> Result<Chosen> {
    let config = config.for_ranks(world.size());
    let machine = agree(world, named(&config.parallel.cluster))?.map(|machine| machine.with_ranks(world.size()));
    Ok(Chosen { config, machine })
}

/// Reads the machine that the configuration names.
fn named(name: &str) -> Result<Option<Cluster>> {
    match name {
        "" => Ok(None),
        name => cluster::load(name).map(Some),
    }
}
