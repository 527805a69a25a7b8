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
    /// Ranks that share each sequence.
    pub cp: Arc<dyn Communicator>,
    /// Ranks that hold the same shards and see different tokens.
    pub data: Arc<dyn Communicator>,
    /// Ranks that hold consecutive stages.
    pub pp: Arc<dyn Communicator>,
    /// The ranks of the first and the last stage, on those two alone and where they are two.
    pub ends: Option<Arc<dyn Communicator>>,
}

impl Groups {
    /// Cuts the world; `ends` are the pipeline ranks of the first and the last stage, where they are two. Collective
    /// over the world.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) if a group cannot be made.
    pub fn new(world: &Arc<dyn Communicator>, mesh: &Mesh, ends: Option<(usize, usize)>) -> Result<Self> {
        let rank = world.rank().0;
        let cut = |(color, key): (u32, u32), name: &str| -> Result<Arc<dyn Communicator>> {
            let group = world.split(Some(color), key, name)?;
            Ok(group.expect("a rank that names a color joins a group"))
        };
        let along = |axis: Axis| cut(mesh.split_key(axis, rank), axis.name());
        Ok(Self {
            world: Arc::clone(world),
            tp: along(Axis::Tp)?,
            dp: along(Axis::Dp)?,
            cp: along(Axis::Cp)?,
            data: cut(mesh.data_split_key(rank), "data")?,
            pp: along(Axis::Pp)?,
            ends: match ends {
                Some((first, last)) => {
                    let (color, stage) = mesh.split_key(Axis::Pp, rank);
                    let joins = [first, last].contains(&(stage as usize));
                    world.split(joins.then_some(color), stage, "ends")?
                }
                None => None,
            },
        })
    }
}
