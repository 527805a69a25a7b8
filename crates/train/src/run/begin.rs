//! Where a run begins: at a checkpoint of its own, at weights from elsewhere, or at step 1.

use std::path::Path;

use mp_comm::{BufferMut, Communicator, ReduceOp};

use crate::adapted::mark;
use crate::checkpoint::{About, CheckpointReader, CheckpointStore, DirectoryStore, Verify};
use crate::step::Trainer;
use crate::weights;
use crate::{state, Config, Error, Result};

/// Continues from the newest checkpoint where the configuration says so, and returns what it says of the run; otherwise takes
/// the weights from where the model comes from. Under adapters also returns the [`mark`] of the model.
pub(super) fn begin(
    config: &Config,
    store: &DirectoryStore,
    trainer: &Trainer,
) -> Result<(Option<About>, Option<String>)> {
    let resumed = if config.checkpoint.resume { latest(store, trainer)? } else { None };
    let proof = Verify::shared(&*trainer.groups().world);
    let base = match &config.model.from {
        // What a run freezes is in none of its checkpoints.
        Some(from) if config.lora.rank > 0 => Some(adapted(config, from, trainer, resumed.is_none())?),
        Some(from) if resumed.is_none() => {
            weights::load(trainer.parameters(), &*weights::open_merged(from, config.model.base.as_deref(), proof)?)?;
            None
        }
        _ => None,
    };
    let Some(reader) = resumed else { return Ok((None, base)) };
    let about = reader.manifest().about.clone();
    if let (Some(from), Some(then), Some(now)) = (&config.model.from, &about.base, &base) {
        if then != now {
            return Err(Error::Checkpoint { path: reader.path().into(), problem: weights::changed(from) });
        }
    }
    state::restore(trainer, reader)?;
    Ok((Some(about), base))
}

/// Loads the model under adapters, and where the run begins those that are beside it already; returns its mark.
fn adapted(config: &Config, from: &Path, trainer: &Trainer, begins: bool) -> Result<String> {
    let proof = Verify::shared(&*trainer.groups().world);
    let source = weights::open(from, config.model.base.as_deref(), proof)?;
    match source.adapters() {
        Some(_) if begins => weights::load(trainer.parameters(), &*source)?,
        _ => weights::load_base(trainer.parameters(), &*source)?,
    }
    mark(&*source)
}

/// Opens the newest checkpoint of a run, where there is one.
fn latest(store: &DirectoryStore, trainer: &Trainer) -> Result<Option<Box<dyn CheckpointReader>>> {
    store.latest(Verify::shared(&*trainer.groups().world))
}

/// Refuses to go on where ranks found different checkpoints, as nodes with folders of their own do, or one of another order
/// than the configuration's. Collective.
pub(super) fn same_place(
    world: &dyn Communicator,
    store: &DirectoryStore,
    config: &Config,
    resumed: Option<&About>,
) -> Result<()> {
    let place = resumed.map_or([0; 3], |about| [about.step, about.samples, about.seed]);
    // As they are, and with all bits turned over, whose least is the most's.
    let mut bounds = [place, place.map(|number| !number)].concat().iter().map(|&n| n as i64).collect::<Vec<_>>();
    world.all_reduce(BufferMut::new(&mut bounds), ReduceOp::Min)?;
    let refused = |problem| Err(Error::RunFolder { path: store.root().into(), problem });
    for (index, what) in ["step", "sample", "seed"].into_iter().enumerate() {
        let (least, most) = (bounds[index] as u64, !bounds[index + 3] as u64);
        if least != most {
            return refused(format!(
                "holds {what} {least} on some ranks and {what} {most} on others; put it where all nodes see it"
            ));
        }
    }
    match resumed {
        Some(about) if about.seed != config.train.seed => {
            let (held, asked) = (about.seed, config.train.seed);
            refused(format!("holds a checkpoint of seed {held}, and `train.seed` is {asked}; one of them was changed"))
        }
        _ => Ok(()),
    }
}
