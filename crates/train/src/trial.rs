//! What a layout's stages take on the device at hand: one rank's shards of each are really built, and one micro-batch is
//! run through them, without the ranks that would run the others.
//!
//! | file | is |
//! |---|---|
//! | `trial.rs` | which stages, how many of their layers, and how often |
//! | `trial/shard.rs` | one rank's shards: built, run, updated |
//!
//! Collectives are answered at once by [`Absent`](mp_comm::absent::Absent) groups, in the right shapes: what is timed is
//! computation alone. Values mean nothing, and nothing is learned; no trainer can be made with such groups.

mod shard;

use std::collections::{hash_map::Entry, HashMap};
use std::time::{Duration, Instant};

use mp_plan::memory::MemoryModel;
use mp_plan::{Candidate, Job, Sizes, StageCosts, TimedStage, Trial};
use mp_runtime::{device, Device};

use self::shard::Shard;
use crate::{Config, Error, Result};

/// The most repetitions of a trial behind its warm-up, and the fewest that there must be time for.
const REPETITIONS: usize = 9;
const LEAST_REPETITIONS: usize = 3;
/// How long one trial is repeated; it runs at least once behind its warm-up.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a layout takes where every device is the one at hand.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// One micro-batch, by virtual stage.
    pub stages: Vec<TimedStage>,
    /// Clearing, measuring, clipping and applying the gradients of the rank that owns most.
    ///
    /// # Units
    /// Seconds.
    pub update_seconds: f64,
}

/// A trial's outcome.
struct Outcome {
    stage: TimedStage,
    update: Update,
}

/// An update of some elements.
#[derive(Clone, Copy)]
struct Update {
    elements: usize,
    seconds: f64,
}

/// Times each distinct stage of a layout: its forward, the two halves of its backward (where the schedule does not divide
/// backwards all of it counts as the first half), and the update, each the median of some repetitions.
///
/// Where the machine has no room for all layers of a stage, or they would take too long, fewer are timed, and the time of
/// all is read from two numbers of them ([`Trial::sizes`]).
///
/// # Errors
/// [`Error::Trial`] before anything is allocated, if two layers of a stage already need more memory than is free;
/// [`Error::Plan`] as [`Candidate::check`]; what layers raise.
pub fn time(config: &Config, job: &Job, candidate: &Candidate, device: Device) -> Result<Timed> {
    candidate.check(job)?;
    let stages = candidate.stages(job)?;
    let mut known: HashMap<Trial, Outcome> = HashMap::new();
    let mut timed = Vec::with_capacity(stages.count());
    for stage in 0..stages.count() {
        let trial = Trial::of(candidate, &stages, stage);
        let outcome = match known.entry(trial) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Bench { config, job, candidate, device }.outcome(trial)?),
        };
        timed.push(outcome.stage.clone());
    }
    // An update sweeps over its elements: the largest one timed says what an element takes.
    let largest = known.values().map(|outcome| outcome.update).max_by_key(|update| update.elements);
    let mut memory = MemoryModel::new(job);
    let mut most = 0;
    for rank in 0..stages.pp() {
        most = most.max(memory.stored(candidate, &stages, rank)?.1.own);
    }
    let each = |update: Update| update.seconds / update.elements.max(1) as f64;
    Ok(Timed { stages: timed, update_seconds: largest.map_or(0.0, |update| each(update) * most as f64) })
}

/// Where trials are made.
#[derive(Clone, Copy)]
struct Bench<'a> {
    config: &'a Config,
    job: &'a Job,
    candidate: &'a Candidate,
    device: Device,
}

impl Bench<'_> {
    /// Times a stage, as much of it as there is room and time for.
    fn outcome(&self, whole: Trial) -> Result<Outcome> {
        let least = whole.layers.min(2 * whole.group);
        let first = Trial { layers: least, ..whole };
        self.check(first)?;
        let mut shard = Shard::build(self, first)?;
        shard.warm_up()?;
        let once = shard.warm_up()?.as_secs_f64();
        drop(shard);
        let fits = |layers: usize| self.check(Trial { layers, ..whole }).is_ok();
        let soon = |layers: usize| {
            let expected = once * layers as f64 / least as f64;
            layers <= least || expected * LEAST_REPETITIONS as f64 <= PATIENCE.as_secs_f64()
        };
        match whole.sizes(|layers| fits(layers) && soon(layers)) {
            Some(Sizes::Slope { small, large }) => {
                let (one, _) = self.medians(Trial { layers: small, ..whole })?;
                let (other, update) = self.medians(Trial { layers: large, ..whole })?;
                let seconds = StageCosts::of_layers((small, one), (large, other), whole.layers);
                Ok(Outcome { stage: TimedStage { layers: whole.layers, timed: vec![small, large], seconds }, update })
            }
            _ => {
                let (seconds, update) = self.medians(whole)?;
                Ok(Outcome { stage: TimedStage { layers: whole.layers, timed: vec![whole.layers], seconds }, update })
            }
        }
    }

    /// Refuses what needs more memory than is free.
    fn check(&self, trial: Trial) -> Result<()> {
        // Where the system does not say what is free, the allocator will.
        let Some(free) = device::free_bytes(self.device) else { return Ok(()) };
        let bytes = trial.memory(self.job, self.candidate)?.total() as u64;
        match bytes > free {
            true => Err(Error::Trial { layers: trial.layers, bytes, free }),
            false => Ok(()),
        }
    }

    /// Builds a trial and repeats it.
    fn medians(&self, trial: Trial) -> Result<(StageCosts, Update)> {
        let mut shard = Shard::build(self, trial)?;
        shard.warm_up()?;
        let (begun, mut passes, mut updates) = (Instant::now(), Vec::new(), Vec::new());
        while passes.is_empty() || (passes.len() < REPETITIONS && begun.elapsed() < PATIENCE) {
            passes.push(shard.pass()?);
            updates.push(shard.update()?);
        }
        let of = |part: fn(&StageCosts) -> f64| median(passes.iter().map(part).collect());
        let costs = StageCosts {
            forward: of(|costs| costs.forward),
            backward_input: of(|costs| costs.backward_input),
            backward_weight: of(|costs| costs.backward_weight),
        };
        Ok((costs, Update { elements: shard.owned_elements(), seconds: median(updates) }))
    }
}

/// Returns the middle one of some numbers, of an even number of them the mean of the two in the middle.
///
/// # Panics
/// If there are none.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() % 2 {
        0 => (numbers[middle - 1] + numbers[middle]) / 2.0,
        _ => numbers[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use mp_plan::{RecomputeName, ScheduleName, Zero};

    fn config(sets: &[&str]) -> Config {
        let sets = ["model.hidden=16", "model.layers=6", "model.heads=4", "train.seq=16", "train.global_batch=8"]
            .iter()
            .chain(sets)
            .map(|set| set.to_string())
            .collect::<Vec<_>>();
        Config::load(None, None, &sets).unwrap()
    }

    fn timed(sets: &[&str], candidate: Candidate) -> Timed {
        let config = config(sets);
        let job = Layout::job(&config, 64).unwrap();
        let timed = time(&config, &job, &candidate, Device::Cpu).unwrap();
        let stages = candidate.stages(&job).unwrap();
        assert_eq!(timed.stages.iter().map(|stage| stage.layers).collect::<Vec<_>>(), stages.split());
        for stage in &timed.stages {
            assert!(stage.seconds.forward > 0.0 && stage.seconds.backward_input > 0.0, "{stage:?}");
            assert_eq!(stage.seconds.backward_weight > 0.0, candidate.schedule.splits_backward(), "{stage:?}");
            assert_eq!(stage.timed, [stage.layers]);
        }
        assert!(timed.update_seconds > 0.0);
        timed
    }

    #[test]
    fn every_form_of_a_layout_is_built_and_run() {
        let one = Candidate { micro_batch: 2, ..Candidate::default() };
        let piped = Candidate { pp: 3, schedule: ScheduleName::ZbH1, ..one };
        timed(&[], one);
        timed(&["model.architecture=gpt2", "model.tie_embeddings=true", "model.dropout=0.1"], piped);
        timed(&["model.architecture=bert", "model.token_types=2", "model.next_sentence=true"], piped);
        timed(&["data.attend_across=false"], one);
        timed(&["train.precision=bf16"], Candidate { tp: 2, sequence_parallel: true, ..piped });
        timed(&["model.kv_heads=2"], Candidate { tp: 4, dp: 2, zero: Zero::Optimizer, ..one });
        timed(&[], Candidate { dp: 2, cp: 2, zero: Zero::Parameters, micro_batch: 1, ..one });
        timed(&["parallel.context=all-to-all"], Candidate { cp: 2, ..one });
        let again = Candidate { recompute: RecomputeName::Full, recompute_every: 2, ..one };
        timed(&["optimizer.name=sgd"], Candidate { pp: 2, chunks: 3, schedule: ScheduleName::Interleaved, ..again });
    }

    #[test]
    fn stages_that_are_alike_are_timed_once() {
        let six = timed(&[], Candidate { pp: 6, micro_batch: 1, ..Candidate::default() });
        assert!(six.stages[1..5].windows(2).all(|pair| pair[0] == pair[1]), "{six:?}");
    }

    #[test]
    fn what_has_no_room_is_refused_with_its_bytes() {
        let config = config(&["model.hidden=1000000"]);
        let job = Layout::job(&config, 64).unwrap();
        let error = time(&config, &job, &Candidate::default(), Device::Cpu).unwrap_err();
        // Two layers of 12 · hidden² elements and more, of 16 bytes each.
        assert!(matches!(error, Error::Trial { layers: 2, bytes, .. } if bytes > 380_000_000_000_000), "{error}");
        assert!(error.is_input());
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 8.0]), 3.0);
    }
}
