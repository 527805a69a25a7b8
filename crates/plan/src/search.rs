//! The best layouts of a job on a machine, found without looking at all of them.
//!
//! Shapes (degrees, micro-batch, sequence parallelism) are taken in the order of a bound from below: what an average pipeline
//! rank computes. Once as many layouts as were asked for are known, shapes whose bound is no better are left out, and with
//! the first of them all that follow; inside a shape, layouts are left out by the bound of their busiest rank and by a bound
//! of their memory. What is left is estimated in full. So the result is that of estimating everything, and tests see to it.
//!
//! Where the device's peak is unknown, or nothing fits, layouts are ordered by the memory of their fullest rank, and the bounds
//! are those of memory: an average rank's states, then what the first rank surely keeps.
//!
//! Layouts are ordered by time, then by the memory of their fullest rank, then by their degrees: two searches find the same.

use std::cmp::Ordering;
use std::collections::{hash_map::Entry, HashMap};

use crate::{
    cost::layer::Parts,
    memory::Kept,
    space::{Cut, Shape},
    Candidate, Cluster, CostModel, Estimate, Estimator, Job, RecomputeName, Result, Schedule, ScheduleName, Space,
    Stages, Step,
};

/// What a search has found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The best layouts that fit, best first.
    pub layouts: Vec<Estimate>,
    /// Layouts that would be faster than the best of those, and do not fit, best first; where nothing fits, those that lack
    /// least.
    pub misses: Vec<Estimate>,
    /// How many layouts there are.
    pub considered: usize,
    /// How many of them were estimated in full.
    pub estimated: usize,
}

/// Rounding of sums in another order, and no more: a bound counts as exceeded beyond it.
const ROUNDING: f64 = 1e-9;
/// The most layouts without room that are shown.
const MISSES: usize = 3;

/// What each rank computes, in order.
type Orders = Vec<Vec<Step>>;

/// What decides the times of a shape's parts: what is computed again, and whether products for weights are put off.
type Form = (RecomputeName, bool);

fn form(candidate: &Candidate) -> Form {
    (candidate.recompute, candidate.schedule.splits_backward())
}

/// A search under way.
struct Search<'a> {
    job: &'a Job,
    space: &'a Space,
    limit: usize,
    estimator: Estimator<'a>,
    /// Stages that were cut before.
    stages: HashMap<Cut, Stages>,
    each: Each,
    goal: Goal,
    most: usize,
    /// Elements of the whole model.
    elements: usize,
    best: Vec<Estimate>,
    estimated: usize,
}

/// Of what the best are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Each {
    /// The best layout of each set of degrees.
    Degrees,
    /// Every layout.
    Layout,
}

/// What makes a layout better than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// Less time.
    Time,
    /// A fullest rank that keeps less.
    Memory,
}

impl Goal {
    /// Returns what is to be small: seconds or bytes.
    fn of(self, estimate: &Estimate) -> f64 {
        match (self, estimate.time) {
            (Self::Time, Some(time)) => time.seconds,
            _ => estimate.largest().total() as f64,
        }
    }

    /// Orders two estimates: the better one is less.
    fn order(self, one: &Estimate, other: &Estimate) -> Ordering {
        self.of(one).total_cmp(&self.of(other)).then_with(|| order(one, other))
    }
}

/// Finds the `most` best layouts of a space: of each set of degrees the best, or where there is a single set, all of it.
///
/// # Errors
/// [`Error::NoLayout`](crate::Error::NoLayout) if the engine can run none, whatever its memory.
pub fn search(
    job: &Job,
    cluster: &Cluster,
    costs: &dyn CostModel,
    space: &Space,
    ranks: usize,
    most: usize,
) -> Result<Found> {
    let shapes = space.shapes(job, ranks);
    let considered = shapes.iter().map(|&shape| space.variants(job, shape).count()).sum();
    if considered == 0 {
        return Err(space.refusal(job, ranks));
    }
    let alone = shapes.iter().all(|shape| shape.degrees() == shapes[0].degrees());
    let each = if alone { Each::Layout } else { Each::Degrees };
    let elements = job.architecture.parameter_count();
    let run = |goal: Goal, limit: usize, most: usize| -> Result<(Vec<Estimate>, usize)> {
        let (estimator, stages) = (Estimator::new(job, cluster, costs), HashMap::new());
        let (best, estimated) = (Vec::new(), 0);
        let mut search = Search { job, space, limit, estimator, stages, each, goal, most, elements, best, estimated };
        search.run(&shapes)?;
        Ok((search.best, search.estimated))
    };
    let goal = if costs.peak(job.precision).is_some() { Goal::Time } else { Goal::Memory };
    let (layouts, estimated) = run(goal, cluster.rank_memory(), most.max(1))?;
    let (misses, more) = match (layouts.first(), goal) {
        (Some(best), Goal::Time) => {
            let (mut free, more) = run(goal, usize::MAX, MISSES)?;
            free.retain(|estimate| !estimate.fits() && order(estimate, best) == Ordering::Less);
            (free, more)
        }
        // What does not fit keeps more, and is no better.
        (Some(_), Goal::Memory) => (Vec::new(), 0),
        (None, _) => {
            let (nearest, more) = run(Goal::Memory, usize::MAX, MISSES)?;
            let mut estimator = Estimator::new(job, cluster, costs);
            let timed = nearest.iter().map(|estimate| estimator.estimate(&estimate.candidate));
            (timed.collect::<Result<_>>()?, more)
        }
    };
    Ok(Found { layouts, misses, considered, estimated: estimated + more })
}

/// Says whether a bound is beyond a value, rounding left aside.
fn beyond(bound: f64, value: f64) -> bool {
    bound * (1.0 - ROUNDING) > value
}

/// Orders two estimates: the better one is less.
pub fn order(one: &Estimate, other: &Estimate) -> Ordering {
    let seconds = |estimate: &Estimate| estimate.time.map_or(0.0, |time| time.seconds);
    let key = |estimate: &Estimate| {
        let Candidate { pp, cp, tp, chunks, micro_batch, .. } = estimate.candidate;
        let Candidate { zero, recompute, recompute_every, sequence_parallel, schedule, .. } = estimate.candidate;
        let place = ScheduleName::ALL.iter().position(|&name| name == schedule);
        let form = (recompute as u8, recompute_every);
        (pp, cp, tp, place, chunks, u8::from(zero), form, sequence_parallel, micro_batch)
    };
    seconds(one)
        .total_cmp(&seconds(other))
        .then_with(|| one.largest().total().cmp(&other.largest().total()))
        .then_with(|| key(one).cmp(&key(other)))
}

impl Search<'_> {
    fn run(&mut self, shapes: &[Shape]) -> Result<()> {
        let bounded = |&shape: &Shape| (self.shape_bound(shape), shape);
        let mut bounded: Vec<(f64, Shape)> = shapes.iter().map(bounded).collect();
        bounded.sort_by(|one, other| one.0.total_cmp(&other.0));
        for (bound, shape) in bounded {
            if self.exceeds(bound) {
                break;
            }
            if self.trails(bound, &shape.candidate()) || self.too_large(shape) {
                continue;
            }
            self.shape(shape)?;
        }
        Ok(())
    }

    /// Says whether nothing so far off can be among the best any more. Where the best of each degrees counts, one that does better
    /// than its own degrees' best also does better than the last of those listed.
    fn exceeds(&self, bound: f64) -> bool {
        let worst = self.best.get(self.most - 1);
        worst.is_some_and(|estimate| beyond(bound, self.goal.of(estimate)))
    }

    /// Says whether layouts of the same degrees are known that are better than anything so far off.
    fn trails(&self, bound: f64, candidate: &Candidate) -> bool {
        let alike = self.place(candidate);
        alike.is_some_and(|place| beyond(bound, self.goal.of(&self.best[place])))
    }

    /// Finds the listed layout that another of these degrees would replace.
    fn place(&self, candidate: &Candidate) -> Option<usize> {
        let alike = |known: &Estimate| known.candidate.degrees() == candidate.degrees();
        self.best.iter().position(alike).filter(|_| self.each == Each::Degrees)
    }

    /// Bounds all layouts of a shape from below: what an average rank computes where nothing is computed again, or the states
    /// that it keeps.
    fn shape_bound(&self, shape: Shape) -> f64 {
        let candidate = shape.candidate();
        if self.goal == Goal::Memory {
            return self.least_stored(shape).map_or(f64::INFINITY, |bytes| bytes as f64);
        }
        let parts = self.estimator.parts(&candidate);
        let all =
            self.job.architecture.layers as f64 * parts.layer.total() + parts.entrance.total() + parts.exit.total();
        all * candidate.micro_batches(self.job) as f64 / shape.pp as f64
    }

    /// Says whether no layout of a shape can fit: an average rank's share of the matrices alone is too large.
    fn too_large(&self, shape: Shape) -> bool {
        self.least_stored(shape).is_none_or(|least| least > self.limit)
    }

    /// Counts the bytes of an average rank's share of the matrices, where most of it is shared out.
    fn least_stored(&self, shape: Shape) -> Option<usize> {
        let candidate = shape.candidate();
        let elements = self.elements / (shape.tp * shape.pp);
        let least = |zero: crate::Zero| self.job.storage().bytes(elements).shared(zero, candidate.data()).total();
        self.space.stored(shape).into_iter().map(least).min()
    }

    /// Looks at the layouts of a shape, the most promising first.
    fn shape(&mut self, shape: Shape) -> Result<()> {
        let mut forms: HashMap<Form, Parts> = HashMap::new();
        let mut orders = HashMap::new();
        let mut bounded = Vec::new();
        for candidate in self.space.variants(self.job, shape) {
            let stages = self.stages(&candidate)?;
            let bound = match self.goal {
                Goal::Time => {
                    let parts = forms.entry(form(&candidate)).or_insert_with(|| self.estimator.parts(&candidate));
                    self.estimator.bound(&candidate, &stages, parts)
                }
                Goal::Memory => self.surely_kept(&candidate, &stages)? as f64,
            };
            if !self.beaten(bound, &candidate) {
                bounded.push((bound, candidate));
            }
        }
        bounded.sort_by(|one, other| one.0.total_cmp(&other.0));
        for (bound, candidate) in bounded {
            if self.beaten(bound, &candidate) {
                break;
            }
            let stages = self.stages(&candidate)?;
            if self.surely_kept(&candidate, &stages)? > self.limit {
                continue;
            }
            let bound = match self.goal {
                Goal::Time => self.estimator.close_bound(&candidate, &stages, &forms[&form(&candidate)])?,
                Goal::Memory => bound,
            };
            if !self.beaten(bound, &candidate) {
                self.look(&candidate, &stages, &mut orders)?;
            }
        }
        Ok(())
    }

    /// Says whether no layout of these degrees that is so far off can be among the best.
    fn beaten(&self, bound: f64, candidate: &Candidate) -> bool {
        self.exceeds(bound) || self.trails(bound, candidate)
    }

    fn stages(&mut self, candidate: &Candidate) -> Result<Stages> {
        if let Some(known) = self.stages.get(&candidate.cut()) {
            return Ok(known.clone());
        }
        let stages = candidate.stages(self.job)?;
        self.stages.insert(candidate.cut(), stages.clone());
        Ok(stages)
    }

    /// Counts the bytes of what the first rank stores, of the micro-batches that surely are alive, those that it takes in
    /// before the first gradient comes back, and of what it needs beside them.
    fn surely_kept(&mut self, candidate: &Candidate, stages: &Stages) -> Result<usize> {
        let (stored, _) = self.estimator.stored(candidate, stages, 0)?;
        let kept = Kept::of(self.job, candidate);
        let (pp, micro_batches) = (candidate.pp, candidate.micro_batches(self.job));
        let beside = kept.batch(micro_batches) + kept.workspace();
        let alive = |chunk: usize| match (candidate.schedule, chunk) {
            (ScheduleName::Gpipe, _) => micro_batches,
            (ScheduleName::OneFOneB | ScheduleName::ZbH1, _) => micro_batches.min(pp),
            // A group of each chunk: the warm-up is longer.
            (ScheduleName::Interleaved, _) => micro_batches.min(pp),
            (ScheduleName::ZbV, 0) => micro_batches.min(2 * pp - 1),
            (ScheduleName::ZbV, _) => 0,
        };
        let stage = |chunk: usize| alive(chunk) * kept.stage(candidate, stages, stages.stage_of(0, chunk));
        let live: usize = (0..stages.chunks()).map(stage).sum();
        Ok(stored.total().saturating_add(live).saturating_add(beside))
    }

    /// Estimates a layout in full, and keeps it if it is among the best. Layouts of a shape share orders of work.
    fn look(&mut self, candidate: &Candidate, stages: &Stages, orders: &mut HashMap<Cut, Orders>) -> Result<()> {
        let order = match orders.entry(candidate.cut()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let micro_batches = candidate.micro_batches(self.job);
                place.insert(Schedule::orders(candidate.schedule, stages, micro_batches)?)
            }
        };
        self.estimated += 1;
        let estimate = match self.goal {
            Goal::Time => self.estimator.estimate_within(self.limit, candidate, stages, order)?,
            Goal::Memory => self.estimator.memory_within(self.limit, candidate, stages, order)?,
        };
        if let Some(estimate) = estimate {
            self.keep(candidate, estimate);
        }
        Ok(())
    }

    fn keep(&mut self, candidate: &Candidate, estimate: Estimate) {
        if let Some(place) = self.place(candidate) {
            if self.goal.order(&self.best[place], &estimate) == Ordering::Less {
                return;
            }
            self.best.remove(place);
        }
        let place = self.best.partition_point(|known| self.goal.order(known, &estimate) == Ordering::Less);
        self.best.insert(place, estimate);
        self.best.truncate(self.most);
    }
}
