//! The process groups of a run: the world cut along the axes of the mesh.

use std::sync::Arc;

use mp_comm::Communicator;
use mp_plan::{Axis, Mesh};

use crate::Result;

/// One rank's groups.
#[derive(Debug, Clone)]
pub struct Groups {
    /// All ranks.
    pub world: Arc<dyn Communicator>,
    /// Ranks that share each matrix.
    pub tp: Arc<dyn Communicator>,
    /// Ranks that hold the same shards and read different samples.
    pub dp: Arc<dyn Communicator>,
}

impl Groups {
    /// Cuts the world. Collective over it.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) if a group cannot be made.
    pub fn new(world: &Arc<dyn Communicator>, mesh: &Mesh) -> Result<Self> {
        let cut = |axis: Axis| -> Result<Arc<dyn Communicator>> {
            let (color, key) = mesh.split_key(axis, world.rank().0);
            let group = world.split(Some(color), key, axis.name())?;
            Ok(group.expect("a rank that names a color joins a group"))
        };
        Ok(Self { world: Arc::clone(world), tp: cut(Axis::Tp)?, dp: cut(Axis::Dp)? })
    }
}
