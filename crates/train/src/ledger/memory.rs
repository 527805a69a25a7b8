//! What every rank was to keep, beside what it did.

use mp_comm::{Buffer, BufferMut, Communicator};
use mp_plan::{Axis, MemoryModel, RankMemory as Planned};

use super::{Bytes, Memory, Part, RankMemory, Watch};
use crate::layout::Layout;
use crate::step::Trainer;
use crate::{Config, Result};

/// The parts, by name.
///
/// `working` is what a step adds to the others: activations, workspace and buffers, which an allocator does not tell apart.
const PARTS: [&str; 6] = ["parameters", "gradients", "master", "moments", "tables", "working"];

/// What each rank sends: its parts, and what tells its process from others'.
const SENT: usize = PARTS.len() + 2;

/// Tells a process from those of other machines that have its number: no two have it at the same place.
static PLACE: u8 = 0;

/// Gathers what the ranks measured and sets it beside what the plan says; `None` before the first step.
///
/// # Communication
/// One all-gather of eight integers; collective over the world.
///
/// # Errors
/// [`Error::Comm`](crate::Error::Comm).
pub(crate) fn account(config: &Config, layout: &Layout, trainer: &Trainer, watch: &Watch) -> Result<Option<Memory>> {
    let Some([standing, peak]) = watch.measured() else { return Ok(None) };
    let world = &*trainer.groups().world;
    let measured = gather(world, parts(trainer, standing, peak))?;
    let shared = shared_process(&measured);
    let planned = planned(config, layout);
    let reason = match (&planned, shared) {
        (Err(reason), _) => Some(reason.clone()),
        (_, true) => Some("ranks share a process, whose memory is not told apart".to_string()),
        _ => None,
    };
    let mesh = &layout.partition.mesh;
    let rank = |(rank, measured): (usize, &[i64])| {
        let planned = planned.as_ref().ok().map(|planned| by_part(&planned[mesh.coordinate(Axis::Pp, rank)]));
        compared(rank, planned, (!shared).then_some(&measured[..PARTS.len()]))
    };
    Ok(Some(Memory { reason, ranks: measured.chunks(SENT).enumerate().map(rank).collect() }))
}

/// Lists what this rank has measured, in the order of [`PARTS`]: what flat buffers allocated, what else there was when the
/// first step began, and what steps added to it.
fn parts(trainer: &Trainer, standing: u64, peak: u64) -> [u64; PARTS.len()] {
    let [parameters, gradients, master] = trainer.parameters().bytes().map(|bytes| bytes as u64);
    let moments = trainer.optimizer().state().iter().map(|(_, flat)| flat.bytes() as u64).sum();
    let flat = parameters + gradients + master + moments;
    [parameters, gradients, master, moments, standing.saturating_sub(flat), peak.saturating_sub(standing)]
}

/// Gathers every rank's parts, and its process and place.
fn gather(world: &dyn Communicator, parts: [u64; PARTS.len()]) -> Result<Vec<i64>> {
    let place = [u64::from(std::process::id()), (&raw const PLACE) as u64];
    let own: Vec<i64> = parts.iter().chain(&place).map(|&number| number as i64).collect();
    let mut all = vec![0i64; SENT * world.size()];
    world.all_gather(Buffer::new(&own), BufferMut::new(&mut all))?;
    Ok(all)
}

fn shared_process(measured: &[i64]) -> bool {
    let mut places: Vec<&[i64]> = measured.chunks(SENT).map(|rank| &rank[PARTS.len()..]).collect();
    places.sort_unstable();
    places.windows(2).any(|pair| pair[0] == pair[1])
}

/// Plans each rank of the pipeline, or says why that cannot be.
fn planned(config: &Config, layout: &Layout) -> std::result::Result<Vec<Planned>, String> {
    let (job, candidate) = layout.planned(config).map_err(|error| error.to_string())?;
    let schedule = &layout.schedule;
    let ranks = MemoryModel::new(&job).ranks(&candidate, &schedule.stages, &schedule.ranks);
    ranks.map_err(|error| error.to_string())
}

/// Sums a plan's components up in the order of [`PARTS`].
fn by_part(planned: &Planned) -> [u64; PARTS.len()] {
    let Planned { parameters, gradients, master, moments, tables, activations, workspace, buffers } = *planned;
    [parameters, gradients, master, moments, tables, activations + workspace + buffers].map(|bytes| bytes as u64)
}

fn compared(rank: usize, planned: Option<[u64; PARTS.len()]>, measured: Option<&[i64]>) -> RankMemory {
    let part = |(index, name): (usize, &&str)| Part {
        name: (*name).into(),
        bytes: Bytes::new(planned.map(|parts| parts[index]), measured.map(|parts| parts[index] as u64)),
    };
    let total = Bytes::new(
        planned.map(|parts| parts.iter().sum()),
        measured.map(|parts| parts.iter().map(|&bytes| bytes as u64).sum()),
    );
    RankMemory { rank, parts: PARTS.iter().enumerate().map(part).collect(), total }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_apart_by_number_and_place() {
        let rank = |process: i64, place: i64| [0, 0, 0, 0, 0, 0, process, place];
        assert!(!shared_process(&[rank(1, 7), rank(2, 7), rank(1, 8)].concat()));
        assert!(shared_process(&[rank(1, 7), rank(2, 7), rank(1, 7)].concat()));
    }

    #[test]
    fn the_sum_of_the_parts_is_the_whole() {
        let ledger = compared(3, Some([1, 2, 3, 4, 5, 6]), Some(&[2, 2, 3, 4, 5, 6]));
        assert_eq!((ledger.rank, ledger.total), (3, Bytes::new(Some(21), Some(22))));
        assert_eq!(ledger.parts[0].bytes, Bytes::new(Some(1), Some(2)));
        assert_eq!(ledger.parts[5].name, "working");
        assert_eq!(compared(0, None, Some(&[1; 6])).total, Bytes::new(None, Some(6)));
    }
}
