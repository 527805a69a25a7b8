//! The collectives that the model of time counts of a step are those that a step makes, call by call and to the byte.

use std::sync::Arc;

use mp_comm::ledger::Entry;
use mp_comm::{threads, Call, Communicator};
use mp_plan::{Axis, Cluster, Collective, CostModel, Estimator, Group, Mesh, Precision};
use mp_train::layout::Layout;
use mp_train::{Config, Result};

use crate::{config, second_step};

/// Collectives by what waits for them are booked under: those of tensor ranks, of stages, and all others.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Made {
    /// How many.
    calls: [f64; 3],
    /// Of whole buffers.
    bytes: [f64; 3],
}

/// A machine on which a collective takes a second, or as many as it has bytes, and hides behind nothing; nothing else takes time.
struct Counting {
    bytes: bool,
}

impl CostModel for Counting {
    fn peak(&self, _: Precision) -> Option<f64> {
        Some(1.0)
    }
    fn product(&self, _: usize, _: [usize; 3], _: Precision) -> f64 {
        0.0
    }
    fn attention(&self, _: f64, _: Precision) -> Option<f64> {
        Some(0.0)
    }
    fn memory(&self, _: f64, _: usize) -> f64 {
        0.0
    }
    fn collective(&self, _: Collective, bytes: f64, group: Group) -> f64 {
        match (group.size, self.bytes) {
            (1, _) => 0.0,
            (_, true) => bytes,
            (_, false) => 1.0,
        }
    }
    fn message(&self, _: f64, _: bool) -> f64 {
        0.0
    }
    fn overlap(&self) -> f64 {
        0.0
    }
}

/// Counts what each rank of the pipeline is timed for.
fn timed(config: &Config, layout: &Layout) -> Result<Vec<Made>> {
    let (job, candidate) = layout.planned(config)?;
    let cluster = Cluster::preset("cpu").unwrap();
    let terms =
        |bytes: bool| Estimator::new(&job, &cluster, &Counting { bytes }).rank_terms(&candidate, &layout.schedule);
    let [calls, bytes] = [terms(false)?.unwrap(), terms(true)?.unwrap()];
    let parts = |terms: &mp_plan::Terms| [terms.tensor + terms.recompute, terms.bubble, terms.data];
    Ok(calls.iter().zip(&bytes).map(|(calls, bytes)| Made { calls: parts(calls), bytes: parts(bytes) }).collect())
}

/// Adds up what a rank called.
fn made(entries: &[Entry], mesh: &Mesh) -> Made {
    let mut made = Made::default();
    for entry in entries {
        let size = |axis| mesh.degree(axis) as f64;
        let (place, size) = match &*entry.group {
            "tp" => (0, size(Axis::Tp)),
            "tp-replicas" => (0, 0.0),
            "pp" => (1, size(Axis::Pp)),
            "data" => (2, size(Axis::Dp) * size(Axis::Cp)),
            _ => (2, 0.0),
        };
        let parts = match entry.call {
            Call::AllReduce | Call::StartAllReduce | Call::ReduceScatter | Call::StartReduceScatter => 1.0,
            Call::AllGather | Call::StartAllGather => size,
            _ => continue,
        };
        if size != 1.0 {
            made.calls[place] += 1.0;
            made.bytes[place] += parts * entry.bytes as f64;
        }
    }
    // The norm is summed when the passes are over, where the wait is none of theirs.
    if mesh.degree(Axis::Tp) > 1 {
        for (place, sign) in [(0, -1.0), (2, 1.0)] {
            made.calls[place] += sign;
            made.bytes[place] += 8.0 * sign;
        }
    }
    made
}

/// Returns the rank's place in the pipeline, what its second step called and what is timed of it.
fn called(world: Arc<dyn Communicator>, config: &Config) -> Result<(usize, Made, Made)> {
    let seen = second_step(world, config)?;
    let (mut made, mut timed) =
        (made(&seen.called, &seen.layout.partition.mesh), timed(config, &seen.layout)?[seen.stage]);
    // Stages are timed to wait for each other, too, which is no call of theirs.
    for (made, timed) in [(&mut made.calls, &mut timed.calls), (&mut made.bytes, &mut timed.bytes)] {
        assert!(timed[1] >= made[1], "{made:?}, timed {timed:?}");
        (made[1], timed[1]) = (0.0, 0.0);
    }
    Ok((seen.stage, made, timed))
}

#[test]
fn every_collective_of_a_step_is_timed() {
    for (ranks, sets) in [
        (2, ["parallel.tp=2", "parallel.sequence_parallel=false"].as_slice()),
        (2, &["parallel.tp=2", "parallel.sequence_parallel=true"]),
        // Key/value heads that two ranks share.
        (4, &["parallel.tp=4", "parallel.sequence_parallel=true", "parallel.micro_batch=2"]),
        (4, &["parallel.tp=4", "parallel.sequence_parallel=false", "model.bias=true"]),
        (2, &["parallel.tp=2", "parallel.sequence_parallel=true", "parallel.recompute=full"]),
        (2, &["parallel.tp=1", "parallel.zero=0"]),
        (4, &["parallel.tp=1", "parallel.zero=1"]),
        (4, &["parallel.tp=1", "parallel.zero=2", "parallel.micro_batch=1"]),
        (4, &["parallel.tp=1", "parallel.zero=3", "parallel.micro_batch=1"]),
        (4, &["parallel.tp=2", "parallel.zero=3", "model.tie_embeddings=true"]),
        (4, &["parallel.tp=2", "parallel.zero=1", "parallel.sequence_parallel=true"]),
        (4, &["parallel.tp=2", "parallel.cp=2", "train.precision=bf16"]),
        (2, &["parallel.pp=2", "parallel.tp=1", "model.tie_embeddings=true"]),
        (4, &["parallel.pp=2", "parallel.tp=2", "parallel.schedule=zb-v", "parallel.sequence_parallel=true"]),
        (4, &["parallel.pp=2", "parallel.tp=1", "parallel.schedule=interleaved", "parallel.zero=1"]),
        (
            4,
            &[
                "parallel.tp=2",
                "parallel.sequence_parallel=true",
                "model.architecture=bert",
                "model.next_sentence=true",
                "parallel.zero=1",
            ],
        ),
    ] {
        // A vocabulary that four ranks can cut evenly.
        let config = config(&[&["model.vocab=40"], sets].concat());
        let all = threads::run(ranks, |world| called(world, &config));
        // Of what tensor ranks sum up one data rank owns more than another, and one may own nothing: the calls that are timed are
        // those of the first one, the bytes the mean.
        for (rank, (stage, made, timed)) in all.iter().enumerate() {
            let fewer = all.iter().take(rank).any(|(other, ..)| other == stage);
            let same = made.calls == timed.calls || (fewer && made.calls[0] < timed.calls[0]);
            assert!(same, "{sets:?}, rank {rank} of {ranks}: {made:?}, timed {timed:?}");
        }
        let add = |sum: [f64; 3], one: [f64; 3]| [0, 1, 2].map(|place| sum[place] + one[place]);
        let made = all.iter().map(|(_, made, _)| made.bytes).fold([0.0; 3], add);
        let timed = all.iter().map(|(.., timed)| timed.bytes).fold([0.0; 3], add);
        assert_eq!(made, timed, "{sets:?}");
    }
}
