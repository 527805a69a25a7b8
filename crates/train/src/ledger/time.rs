//! What every rank was to spend a step on, beside what it did.

use mp_comm::{Buffer, BufferMut, Communicator};
use mp_plan::{cost, Axis, Cluster, Estimator, Terms};
use serde::{Deserialize, Serialize};

use super::{TOLERANCE, WEIGHT};
use crate::layout::Layout;
use crate::times::{History, Summary, Times};
use crate::{Config, Result};

/// What all planned parts of a step together are called in a warning.
const ALL: &str = "all that is planned";

/// Seconds that the steps of a run take, at the least, where the machine is measured behind the last of them for want of another
/// one: that takes two seconds, a fiftieth of these.
pub(crate) const WORTH_MEASURING: f64 = 100.0;

/// The time of a step on every rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Time {
    /// On which machine it was predicted; none where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Why nothing is predicted, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many steps were measured: the latest of the program that wrote this.
    pub steps: usize,
    /// How many at its beginning were left out.
    pub left_out: usize,
    /// By rank of the world.
    pub ranks: Vec<RankTime>,
}

/// What one rank spends a step on: the mean of the steps between the quartiles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankTime {
    /// Which rank of the world.
    pub rank: usize,
    /// By the names of [`Times`].
    pub parts: Vec<TimePart>,
    /// All of it: the sum of the parts.
    pub total: Seconds,
}

/// One part of a rank's step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimePart {
    /// Its name.
    pub name: String,
    /// How long it is.
    #[serde(flatten)]
    pub seconds: Seconds,
}

/// What was predicted, and what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// The plan's number; `None` for what cannot be planned.
    pub predicted_seconds: Option<f64>,
    /// The run's number.
    pub measured_seconds: f64,
    /// By which share of what was measured the prediction is above it, or below, then negative.
    pub error: Option<f64>,
}

/// The prediction of time that was off most.
#[derive(Debug, Clone, PartialEq)]
pub struct TimeDeviation {
    /// Of which rank.
    pub rank: usize,
    /// The part, or what all planned parts together are called.
    pub part: String,
    /// Its time.
    pub seconds: Seconds,
    /// The rank's whole step.
    pub step: Seconds,
}

impl Seconds {
    /// Sets two numbers beside each other.
    pub fn new(predicted_seconds: Option<f64>, measured_seconds: f64) -> Self {
        let share = |predicted: f64| match measured_seconds > 0.0 {
            true => Some(predicted / measured_seconds - 1.0),
            false => (predicted == 0.0).then_some(0.0),
        };
        Self { predicted_seconds, measured_seconds, error: predicted_seconds.and_then(share) }
    }

    /// Returns by how many seconds the prediction is off, where there is one.
    fn off(&self) -> Option<f64> {
        self.predicted_seconds.map(|predicted| (predicted - self.measured_seconds).abs())
    }
}

impl Time {
    /// Returns the part, of whichever rank, whose prediction is off by the most seconds, where that is more than a tenth of
    /// what was measured and more than a hundredth of the rank's step; where no part is, the same of all planned parts
    /// together, for what is off a little everywhere adds up.
    pub fn deviation(&self) -> Option<TimeDeviation> {
        let parts =
            |rank: &RankTime| rank.parts.iter().map(|part| (part.name.clone(), part.seconds)).collect::<Vec<_>>();
        self.worst(parts).or_else(|| self.worst(|rank| vec![(ALL.to_owned(), rank.all_planned())]))
    }

    /// Finds among those times of the ranks that are off the one that is off by the most seconds.
    fn worst(&self, of: impl Fn(&RankTime) -> Vec<(String, Seconds)>) -> Option<TimeDeviation> {
        let all =
            self.ranks.iter().flat_map(|rank| of(rank).into_iter().map(move |(part, seconds)| (rank, part, seconds)));
        let off = all.filter_map(|(rank, part, seconds)| {
            let (off, whole) = (seconds.off()?, rank.total.measured_seconds);
            let told = off > TOLERANCE * seconds.measured_seconds && off > WEIGHT * whole;
            told.then_some((off, TimeDeviation { rank: rank.rank, part, seconds, step: rank.total }))
        });
        off.max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, deviation)| deviation)
    }
}

impl RankTime {
    /// Sums up the parts that are planned, with what was measured of just these.
    fn all_planned(&self) -> Seconds {
        let planned = self.parts.iter().map(|part| part.seconds).filter(|seconds| seconds.predicted_seconds.is_some());
        let measured = planned.clone().map(|seconds| seconds.measured_seconds).sum();
        let predicted: Vec<f64> = planned.filter_map(|seconds| seconds.predicted_seconds).collect();
        Seconds::new((!predicted.is_empty()).then(|| predicted.iter().sum()), measured)
    }
}

/// Gathers what the ranks measured and sets it beside what the plan says of `machine`; `None` before the first step.
///
/// # Communication
/// One all-gather of seven numbers; collective over the world.
///
/// # Errors
/// [`Error::Comm`](crate::Error::Comm).
pub(crate) fn account_time(
    config: &Config,
    layout: &Layout,
    machine: Option<&Cluster>,
    world: &dyn Communicator,
    history: &History,
) -> Result<Option<Time>> {
    let Some(Summary { steps, left_out, times }) = history.summary() else { return Ok(None) };
    let mut all = vec![0.0; Times::NAMES.len() * world.size()];
    world.all_gather(Buffer::new(&times.parts()), BufferMut::new(&mut all))?;
    let planned = planned(config, layout, machine);
    let mesh = &layout.partition.mesh;
    let (measured, _) = all.as_chunks();
    let rank = |(rank, &measured): (usize, &[f64; 7])| {
        let planned = planned.as_ref().ok().map(|planned| &planned[mesh.coordinate(Axis::Pp, rank)]);
        compared(rank, planned, Times::of_parts(measured))
    };
    let ranks = measured.iter().enumerate().map(rank).collect();
    let (machine, reason) = match &planned {
        Ok(_) => (machine.map(|machine| machine.device.name.clone()), None),
        Err(reason) => (None, Some(reason.clone())),
    };
    Ok(Some(Time { machine, reason, steps, left_out, ranks }))
}

/// Plans each rank of the pipeline, or says why that cannot be.
fn planned(config: &Config, layout: &Layout, machine: Option<&Cluster>) -> std::result::Result<Vec<Terms>, String> {
    let machine = machine.ok_or_else(|| {
        format!("what the run is on is not known: `parallel.cluster` names no machine, and one is measured only behind steps of {WORTH_MEASURING} s in all")
    })?;
    let (job, candidate) = layout.planned(config).map_err(|error| error.to_string())?;
    let costs = cost::of(machine);
    let terms = Estimator::new(&job, machine, &*costs).rank_terms(&candidate, &layout.schedule);
    let unknown = || format!("the rate of {} in {} is not known", machine.device.name, config.train.precision.name());
    terms.map_err(|error| error.to_string())?.ok_or_else(unknown)
}

/// Brings a plan's terms into the order of [`Times`]; for what goes on before a step there is no plan.
fn by_part(terms: &Terms) -> [Option<f64>; 7] {
    let Terms { products, attention, elements, tensor, context, recompute, bubble, data, optimizer } = *terms;
    let computing = products + attention + elements + recompute;
    [Some(computing), Some(tensor), Some(context), Some(bubble), Some(data), Some(optimizer), None]
}

fn compared(rank: usize, planned: Option<&Terms>, measured: Times) -> RankTime {
    let predicted = planned.map_or([None; 7], by_part);
    let part = |((name, predicted), measured): ((&&str, Option<f64>), f64)| TimePart {
        name: (*name).into(),
        seconds: Seconds::new(predicted, measured),
    };
    let parts = Times::NAMES.iter().zip(predicted).zip(measured.parts()).map(part).collect();
    RankTime { rank, parts, total: Seconds::new(planned.map(Terms::total), measured.total()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(products: f64, tensor: f64) -> Terms {
        Terms { products, attention: 0.25, elements: 0.25, recompute: 0.5, tensor, ..Terms::default() }
    }

    #[test]
    fn what_computes_is_one_part_and_the_parts_are_the_whole() {
        let measured = Times { computing: 4.0, tensor: 1.0, rest: 1.0, ..Times::default() };
        let rank = compared(3, Some(&terms(2.0, 0.5)), measured);
        assert_eq!((rank.rank, rank.total), (3, Seconds::new(Some(3.5), 6.0)));
        let part = |index: usize| (rank.parts[index].name.as_str(), rank.parts[index].seconds);
        assert_eq!(part(0), ("computing", Seconds::new(Some(3.0), 4.0)));
        assert_eq!(part(0).1.error, Some(-0.25));
        assert_eq!(part(1), ("tensor collectives", Seconds::new(Some(0.5), 1.0)));
        // Nothing was to be waited for, and nothing was.
        assert_eq!(part(2).1.error, Some(0.0));
        assert_eq!(part(6), ("rest", Seconds::new(None, 1.0)));
        assert_eq!(compared(0, None, measured).total, Seconds::new(None, 6.0));
    }

    #[test]
    fn the_part_that_is_off_most_is_told_once() {
        let time = |ranks: &[(f64, f64)]| {
            let rank = |(rank, &(products, tensor)): (usize, &(f64, f64))| {
                compared(
                    rank,
                    Some(&terms(products, tensor)),
                    Times { computing: 10.0, tensor: 1.0, ..Times::default() },
                )
            };
            Time {
                machine: None,
                reason: None,
                steps: 5,
                left_out: 3,
                ranks: ranks.iter().enumerate().map(rank).collect(),
            }
        };
        // A tenth off is not above it.
        assert_eq!(time(&[(10.0, 1.0), (9.0, 0.9)]).deviation(), None);
        // Nor does it matter that a part is off by all of it, where that is less than a hundredth of the step.
        let mut little = time(&[(9.0, 1.0)]);
        little.ranks[0].parts[2].seconds = Seconds::new(Some(0.1), 0.0);
        assert_eq!(little.deviation(), None);
        let told = time(&[(9.0, 1.5), (12.0, 1.0), (7.5, 3.0)]).deviation().unwrap();
        assert_eq!((told.rank, told.part.as_str()), (1, "computing"));
        assert_eq!((told.seconds, told.step), (Seconds::new(Some(13.0), 10.0), Seconds::new(Some(14.0), 11.0)));
    }

    #[test]
    fn what_is_off_a_little_everywhere_is_told_of_the_whole() {
        // Each part is off by less than a tenth, or by less than a hundredth of the step; together they are not.
        let measured =
            |rest| Times { computing: 90.0, tensor: 1.0, context: 0.875, data: 0.875, rest, ..Times::default() };
        let time = |predicted: f64, rest| {
            let ranks = vec![compared(0, Some(&terms(predicted - 1.0, 0.25)), measured(rest))];
            Time { machine: None, reason: None, steps: 5, left_out: 3, ranks }
        };
        let told = time(82.0, 0.0).deviation().unwrap();
        assert_eq!((told.rank, told.part.as_str()), (0, "all that is planned"));
        assert_eq!((told.seconds, told.step), (Seconds::new(Some(82.25), 92.75), Seconds::new(Some(82.25), 92.75)));
        assert_eq!(time(84.0, 0.0).deviation(), None);
        // What nobody plans, as waiting for samples, is not held against the plan.
        assert_eq!(time(84.0, 90.0).deviation(), None);
    }
}
