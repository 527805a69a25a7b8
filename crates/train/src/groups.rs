//! The process groups of a run: the world cut along the axes of the mesh.

use std::sync::Arc;

use mp_comm::stopwatch::{Stopwatch, Waited};
use mp_comm::Communicator;
use mp_plan::{Axis, Mesh};

use crate::times::Waits;
use crate::Result;

/// One rank's groups, all of which count how long the rank waits for them.
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
    /// How long they were waited for.
    pub waits: Waits,
}

/// Has a group count how long it is waited for; in one of a single rank nobody waits.
fn timed(group: Arc<dyn Communicator>, waited: &Arc<Waited>) -> Arc<dyn Communicator> {
    match group.size() {
        1 => group,
        _ => Arc::new(Stopwatch::new(group, Arc::clone(waited))),
    }
}

impl Groups {
    /// Cuts the world; `ends` are the pipeline ranks of the first and the last stage, where they are two. Collective
    /// over the world.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) if a group cannot be made.
    pub fn new(world: &Arc<dyn Communicator>, mesh: &Mesh, ends: Option<(usize, usize)>) -> Result<Self> {
        let (rank, waits) = (world.rank().0, Waits::default());
        let cut = |(color, key): (u32, u32), name: &str, waited: &Arc<Waited>| -> Result<Arc<dyn Communicator>> {
            let group = world.split(Some(color), key, name)?;
            Ok(timed(group.expect("a rank that names a color joins a group"), waited))
        };
        let along = |axis: Axis, waited| cut(mesh.split_key(axis, rank), axis.name(), waited);
        Ok(Self {
            world: timed(Arc::clone(world), &waits.world),
            tp: along(Axis::Tp, &waits.tensor)?,
            dp: along(Axis::Dp, &waits.data)?,
            cp: along(Axis::Cp, &waits.context)?,
            data: cut(mesh.data_split_key(rank), "data", &waits.data)?,
            pp: along(Axis::Pp, &waits.pipeline)?,
            ends: match ends {
                Some((first, last)) => {
                    let (color, stage) = mesh.split_key(Axis::Pp, rank);
                    let joins = [first, last].contains(&(stage as usize));
                    let pair = world.split(joins.then_some(color), stage, "ends")?;
                    pair.map(|pair| timed(pair, &waits.data))
                }
                None => None,
            },
            waits,
        })
    }
}
