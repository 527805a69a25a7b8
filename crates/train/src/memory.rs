//! Whether a machine has room for its ranks, before one of them allocates.

use mp_plan::{Cluster, Job};
use mp_runtime::{device, Device};

use crate::layout::Layout;
use crate::{Config, Error, Result};

/// Refuses a model whose weights, gradients and optimizer state are more than this machine has free. What passes may still
/// not fit: activations come on top. So many `sharing` ranks take from the same memory.
///
/// # Errors
/// [`Error::Memory`].
pub fn check(config: &Config, layout: &Layout, sharing: usize, device: Device) -> Result<()> {
    // Where the system does not say what is free, the allocator will.
    let Some(free) = device::free_bytes(device) else { return Ok(()) };
    let host = device == Device::Cpu;
    let elements = layout.partition.architecture.parameter_count();
    let copy = copy_bytes(config, elements, layout.partition.mesh.size(), host);
    let beside = copy.saturating_add(if host { batch_bytes(config, layout) } else { 0 });
    let rank_bytes = rank_bytes(config, layout).saturating_add(beside);
    let memory = if host { "machine" } else { "device" };
    match rank_bytes.saturating_mul(sharing as u64) > free {
        true => Err(Error::Memory { memory, rank_bytes, ranks: sharing, free }),
        false => Ok(()),
    }
}

/// Returns the bytes that a rank stores between steps: the mean over the ranks, whose stages differ.
fn rank_bytes(config: &Config, layout: &Layout) -> u64 {
    let plan = layout.plan(config);
    match plan.stages.len() {
        0 => plan.rank_bytes.total() as u64,
        ranks => plan.stages.iter().map(|stages| stages.bytes.total() as u64).sum::<u64>() / ranks as u64,
    }
}

/// Leaves room on a machine for what a run keeps beside the tensors that layouts are counted by: on a host, the copy that
/// checkpoints are written from. Batches that are read ahead are as large as those of the step, which are counted, and little
/// beside them.
pub fn with_room(machine: Cluster, config: &Config, job: &Job, ranks: usize) -> Cluster {
    let copy = copy_bytes(config, job.architecture.parameter_count(), ranks, machine.is_host());
    Cluster { set_aside: usize::try_from(copy).unwrap_or(usize::MAX), ..machine }
}

/// Returns the bytes of the copy that checkpoints of so many elements are written from: each element on one rank. It lies in the
/// memory of the host; where ranks compute elsewhere it takes nothing of theirs.
pub(crate) fn copy_bytes(config: &Config, elements: usize, world: usize, host: bool) -> u64 {
    if !config.checkpoint.asynchronous || !host {
        return 0;
    }
    let width = config.train.precision.backend().master().elt_size_in_bytes() as u64;
    let tensors = 1 + Layout::moments(config) as u64;
    (elements as u64).saturating_mul(width * tensors) / world as u64
}

/// Returns the bytes of the batches that are read ahead: two numbers of eight bytes for each position.
fn batch_bytes(config: &Config, layout: &Layout) -> u64 {
    let sequences = config.train.global_batch as u64 / layout.partition.mesh.degrees().dp as u64;
    sequences.saturating_mul(config.train.seq as u64).saturating_mul(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_beyond_any_machine_is_refused_with_its_bytes() {
        let config = |hidden: &str| Config::load(None, None, &["model.layers=1".into(), hidden.into()]).unwrap();
        let checked = |config: &Config| {
            let layout = Layout::new(config, 256, 1).unwrap();
            check(config, &layout, 1, Device::Cpu)
        };
        checked(&config("model.hidden=64")).unwrap();
        let error = checked(&config("model.hidden=1000000")).unwrap_err();
        // Four matrices of attention, three of width 8/3 in the MLP; four numbers of 4 bytes for each element.
        assert!(
            matches!(error, Error::Memory { rank_bytes, ranks: 1, .. } if rank_bytes > 190_000_000_000_000),
            "{error}"
        );
        assert!(error.is_input());
    }

    #[test]
    fn what_ranks_share_out_counts_once() {
        let bytes = |sets: &[&str], world: usize| {
            let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
            let config = Config::load(None, None, &sets).unwrap();
            rank_bytes(&config, &Layout::new(&config, 256, world).unwrap())
        };
        let whole = bytes(&[], 1);
        assert_eq!(bytes(&["parallel.tp=1"], 2), whole);
        let (zero_1, zero_3) = (["parallel.tp=1", "parallel.zero=1"], ["parallel.tp=1", "parallel.zero=3"]);
        assert_eq!(bytes(&zero_1, 2), whole * 3 / 4);
        assert_eq!(bytes(&zero_3, 2), whole / 2);
    }
}
