//! What a schedule takes, from what its stages take: a timeline of every rank, and how much of it is idle.
//!
//! Ranks run their lists as [`crate::schedule`] says. A computation takes its stage's time; a message is there a fixed
//! time after its send starts, however many are under way; everything else takes no time but that of waiting.

use serde::{Deserialize, Serialize};

use crate::{
    waits::{Place, Waits},
    Schedule, Step,
};

/// What one virtual stage takes for one micro-batch.
///
/// # Units
/// Seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageCosts {
    /// The forward.
    pub forward: f64,
    /// The input's gradient.
    pub backward_input: f64,
    /// The weights' gradients. An undivided backward takes the sum of both.
    pub backward_weight: f64,
}

/// What the work of a pipeline takes.
///
/// # Units
/// Seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Computations, by virtual stage.
    pub stages: Vec<StageCosts>,
    /// A message, from the start of its send until it can be taken.
    pub transfer: f64,
}

impl Costs {
    /// Lets `count` stages cost the same, and messages nothing.
    pub fn equal(count: usize, stage: StageCosts) -> Self {
        Self { stages: vec![stage; count], transfer: 0.0 }
    }
}

/// One step on a rank's timeline. Steps that wait last as long as the wait.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// The step's index in the rank's list.
    pub index: usize,
    /// The step.
    pub step: Step,
    /// When it starts.
    ///
    /// # Units
    /// Seconds.
    pub start: f64,
    /// When it is over.
    ///
    /// # Units
    /// Seconds.
    pub end: f64,
}

/// A schedule in time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// The steps of each rank, in order and without gaps.
    pub ranks: Vec<Vec<Span>>,
    /// How long all of it takes.
    ///
    /// # Units
    /// Seconds.
    pub seconds: f64,
    /// The share of `seconds` in which a rank does not compute, on average over the ranks; 0 if nothing takes time.
    pub bubble: f64,
}

/// Runs a schedule on paper.
///
/// # Panics
/// If the lists do not run to their end ([`Schedule::check`]), or `costs` are for fewer stages.
///
/// # Examples
///
/// ```
/// use mp_plan::{simulate, Costs, Folding, Schedule, ScheduleName, StageCosts, Stages};
///
/// let stages = Stages::with_layers(4, 1, Folding::Loop, &[1; 4])?;
/// let costs = Costs::equal(4, StageCosts { forward: 1.0, backward_input: 1.0, backward_weight: 1.0 });
/// let timeline = simulate(&Schedule::new(ScheduleName::OneFOneB, stages, 8, false)?, &costs);
/// assert_eq!(timeline.seconds, 3.0 * (8.0 + 3.0));
/// assert!((timeline.bubble - 3.0 / 11.0).abs() < 1e-15);
/// # Ok::<(), mp_plan::Error>(())
/// ```
pub fn simulate(schedule: &Schedule, costs: &Costs) -> Timeline {
    let lists = &schedule.ranks;
    let waits = Waits::new(lists, &schedule.stages);
    let completion = waits.order();
    let mut ranks: Vec<Vec<Span>> = lists.iter().map(|list| Vec::with_capacity(list.len())).collect();
    let mut busy = 0.0;
    for (rank, index) in completion.order {
        let Some(&step) = lists[rank].get(index) else { continue };
        let start = ranks[rank].last().map_or(0.0, |span| span.end);
        let duration = duration(schedule, costs, rank, step);
        let ready = ready(&waits, &ranks, costs, (rank, index));
        ranks[rank].push(Span { index, step, start, end: start.max(ready) + duration });
        busy += duration;
    }
    for (rank, list) in lists.iter().enumerate() {
        assert!(completion.next[rank] > list.len(), "rank {rank} is stuck at step {}", completion.next[rank]);
    }
    let seconds = ranks.iter().filter_map(|spans| spans.last()).fold(0.0, |latest: f64, span| latest.max(span.end));
    let all = seconds * ranks.len() as f64;
    let bubble = if all > 0.0 { 1.0 - busy / all } else { 0.0 };
    Timeline { ranks, seconds, bubble }
}

/// Returns how long a rank computes at a step.
fn duration(schedule: &Schedule, costs: &Costs, rank: usize, step: Step) -> f64 {
    let Some((chunk, _)) = step.computes() else { return 0.0 };
    let StageCosts { forward, backward_input, backward_weight } = costs.stages[schedule.stages.stage_of(rank, chunk)];
    match step {
        Step::Forward { .. } => forward,
        Step::BackwardInput { .. } => backward_input,
        Step::BackwardWeight { .. } => backward_weight,
        _ => backward_input + backward_weight,
    }
}

/// Returns when all that a step waits for on other ranks is there.
fn ready(waits: &Waits, ranks: &[Vec<Span>], costs: &Costs, place: Place) -> f64 {
    let transfer = match waits.partner(place) {
        // A receive waits for the message, not for its send alone.
        Some((rank, index)) if ranks[rank].get(index).is_some_and(|span| is_send(&span.step)) => costs.transfer,
        _ => 0.0,
    };
    let over = |(rank, index): Place| ranks[rank][index].end + transfer;
    waits.needs(place).iter().filter_map(|need| need.completion()).map(over).fold(0.0, f64::max)
}

fn is_send(step: &Step) -> bool {
    matches!(step, Step::Send { .. })
}
