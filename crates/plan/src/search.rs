//! The best layouts of a job on a machine, found without looking at all of them.
//!
//! Shapes (degrees, micro-batch, sequence parallelism) are taken in the order of a bound from below: what an average pipeline
//! rank computes. Once as many layouts as were asked for are known, shapes whose bound is no better are left out, and with
//! the first of them all that follow; so are those of which an average rank has no room for one micro-batch. Inside a shape,
//! layouts are left out by the bound of their busiest rank and by a bound of their memory. What is left is estimated in full.
//! So the result is that of estimating everything, and tests see to it.
//!
//! Where the device's peak is unknown, or nothing fits, layouts are ordered by the memory of their fullest rank, and the bounds
//! are those of memory: an average rank's states, then what the first rank surely keeps.
//!
//! Layouts are ordered by time, then by the memory of their fullest rank, then by their degrees: two searches find the same.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::rc::Rc;

use crate::{
    cost::layer::Parts,
    memory::{repeated, Kept},
    space::{Cut, Shape, Variants},
    step::Loads,
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

/// The most steps of orders that are kept for further shapes: tens of megabytes.
const KEPT_STEPS: usize = 1 << 21;

/// What each rank computes, in order.
type Orders = Vec<Vec<Step>>;

/// What decides the times of a shape's parts: what is computed again, and whether products for weights are put off.
type Form = (RecomputeName, bool);

fn form(candidate: &Candidate) -> Form {
    (candidate.recompute, candidate.schedule.splits_backward())
}

/// Which layers are computed again as a whole: every how many-th, where any is.
type Again = Option<usize>;

/// What is known of the layouts of one shape.
#[derive(Default)]
struct Known {
    parts: HashMap<Form, Parts>,
    kept: HashMap<RecomputeName, Kept>,
}

/// What layouts of several shapes share.
#[derive(Default)]
struct Cache {
    stages: HashMap<Cut, Rc<Stages>>,
    /// What is to be computed in them with every how many-th layer again.
    loads: HashMap<(Cut, Again), Rc<Loads>>,
    /// Orders of work by stages and micro-batches, and how many steps they have.
    orders: HashMap<(Cut, usize), Rc<Orders>>,
    steps: usize,
}

impl Known {
    fn parts(&mut self, estimator: &Estimator<'_>, candidate: &Candidate) -> &Parts {
        self.parts.entry(form(candidate)).or_insert_with(|| estimator.parts(candidate))
    }
}

/// A search under way.
struct Search<'a> {
    job: &'a Job,
    space: &'a Space,
    limit: usize,
    estimator: Estimator<'a>,
    cache: Cache,
    each: Each,
    goal: Goal,
    most: usize,
    /// What is farther off counts for nothing.
    ceiling: f64,
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
/// As [`Job::check`]; [`Error::NoLayout`](crate::Error::NoLayout) if the engine can run none, whatever its memory.
pub fn search(
    job: &Job,
    cluster: &Cluster,
    costs: &dyn CostModel,
    space: &Space,
    ranks: usize,
    most: usize,
) -> Result<Found> {
    job.check()?;
    let shapes = space.shapes(job, ranks);
    let considered = count(space, job, &shapes);
    if considered == 0 {
        return Err(space.refusal(job, ranks));
    }
    let alone = shapes.iter().all(|shape| shape.degrees() == shapes[0].degrees());
    let each = if alone { Each::Layout } else { Each::Degrees };
    let elements = job.architecture.parameter_count();
    let run = |goal: Goal, limit: usize, most: usize, ceiling: f64| -> Result<(Vec<Estimate>, usize)> {
        let estimator = Estimator::new(job, cluster, costs);
        let (cache, best, estimated) = (Cache::default(), Vec::new(), 0);
        let mut search =
            Search { job, space, limit, estimator, cache, each, goal, most, ceiling, elements, best, estimated };
        search.run(&shapes)?;
        Ok((search.best, search.estimated))
    };
    let goal = if costs.peak(job.precision).is_some() { Goal::Time } else { Goal::Memory };
    let (layouts, estimated) = run(goal, cluster.rank_memory(), most.max(1), f64::INFINITY)?;
    let (misses, more) = match (layouts.first(), goal) {
        (Some(best), Goal::Time) => {
            let (mut free, more) = run(goal, usize::MAX, MISSES, goal.of(best))?;
            free.retain(|estimate| !estimate.fits() && order(estimate, best) == Ordering::Less);
            (free, more)
        }
        // What does not fit keeps more, and is no better.
        (Some(_), Goal::Memory) => (Vec::new(), 0),
        (None, _) => {
            let (nearest, more) = run(Goal::Memory, usize::MAX, MISSES, f64::INFINITY)?;
            let mut estimator = Estimator::new(job, cluster, costs);
            let timed = nearest.iter().map(|estimate| estimator.estimate(&estimate.candidate));
            (timed.collect::<Result<_>>()?, more)
        }
    };
    Ok(Found { layouts, misses, considered, estimated: estimated + more })
}

/// Counts the layouts of all shapes. Which forms and ZeRO stages can be hangs on no micro-batch, and shapes that differ in
/// nothing else stand together.
fn count(space: &Space, job: &Job, shapes: &[Shape]) -> usize {
    let of_any = |shape: &Shape| Shape { micro_batch: 0, ..*shape };
    let alike = shapes.chunk_by(|one, other| of_any(one) == of_any(other));
    let of_those = |alike: &[Shape]| {
        let variants = space.variants(job, alike[0]);
        let orders: usize = alike.iter().map(|&shape| space.orders(job, shape).len()).sum();
        orders * variants.forms.len() * variants.stored.len()
    };
    alike.map(of_those).sum()
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
            if self.trails(bound, &shape.candidate()) {
                continue;
            }
            let variants = self.space.variants(self.job, shape);
            if !self.too_large(shape, &variants) {
                self.shape(shape, &variants)?;
            }
        }
        Ok(())
    }

    /// Says whether nothing so far off can be among the best any more. Where the best of each degrees counts, one that does better
    /// than its own degrees' best also does better than the last of those listed.
    fn exceeds(&self, bound: f64) -> bool {
        let worst = self.best.get(self.most - 1).map_or(f64::INFINITY, |estimate| self.goal.of(estimate));
        beyond(bound, worst.min(self.ceiling))
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
            let variants = self.space.variants(self.job, shape);
            return self.least_stored(shape, &variants).map_or(f64::INFINITY, |bytes| bytes as f64);
        }
        self.average(&candidate, &self.estimator.parts(&candidate))
    }

    /// Times what an average rank computes.
    fn average(&self, candidate: &Candidate, parts: &Parts) -> f64 {
        let layers = self.job.architecture.layers;
        let again = repeated(candidate, &(0..layers)) as f64 * parts.again.total();
        let all = layers as f64 * parts.layer.total() + again + parts.entrance.total() + parts.exit.total();
        all * candidate.micro_batches(self.job) as f64 / candidate.pp as f64
    }

    /// Says whether no layout of a shape can fit: an average rank's share of the matrices is too large, with what it keeps when
    /// it turns to the first backward, of one micro-batch at least.
    fn too_large(&self, shape: Shape, variants: &Variants) -> bool {
        let Some(stored) = self.least_stored(shape, variants) else { return true };
        if stored > self.limit || self.limit == usize::MAX {
            return stored > self.limit;
        }
        let alive = |&(recompute, recompute_every): &(RecomputeName, usize)| {
            let candidate = Candidate { recompute, recompute_every, ..shape.candidate() };
            let kept = Kept::of(self.job, &candidate);
            let last = kept.workspace(&candidate, true);
            let beside = if shape.pp == 1 { last } else { last.min(kept.workspace(&candidate, false)) };
            kept.layers(&candidate, &(0..self.job.architecture.layers)) / shape.pp + beside
        };
        variants.forms.iter().all(|form| stored.saturating_add(alive(form)) > self.limit)
    }

    /// Counts the bytes of an average rank's share of the matrices, where most of it is shared out.
    fn least_stored(&self, shape: Shape, variants: &Variants) -> Option<usize> {
        let candidate = shape.candidate();
        let elements = self.elements / (shape.tp * shape.pp);
        let least = |zero: &crate::Zero| self.job.storage().bytes(elements).shared(*zero, candidate.data()).total();
        variants.stored.iter().map(least).min()
    }

    /// Looks at the layouts of a shape, the most promising first.
    fn shape(&mut self, shape: Shape, variants: &Variants) -> Result<()> {
        let mut known = Known::default();
        let mut bounded = Vec::new();
        for &(recompute, recompute_every) in &variants.forms {
            let form = Candidate { recompute, recompute_every, ..shape.candidate() };
            let mut slow = HashMap::new();
            for &(schedule, chunks) in &variants.orders {
                let plain = Candidate { schedule, chunks, ..form };
                let splits = schedule.splits_backward();
                // First what any order with this backward takes on average, then what this one takes; what is stored
                // changes neither.
                let slow = slow.entry(splits).or_insert_with(|| self.beaten(self.least(&plain, &mut known), &plain));
                if *slow {
                    continue;
                }
                let seconds = self.bound(&plain, &mut known)?;
                if self.beaten(seconds, &plain) {
                    continue;
                }
                for &zero in &variants.stored {
                    let candidate = Candidate { zero, ..plain };
                    let bytes = self.surely_kept(&candidate, &mut known)?;
                    let bound = if self.goal == Goal::Time { seconds } else { bytes as f64 };
                    if bytes <= self.limit && !self.beaten(bound, &candidate) {
                        bounded.push((bound, candidate));
                    }
                }
            }
        }
        bounded.sort_by(|one, other| one.0.total_cmp(&other.0));
        for (bound, candidate) in bounded {
            if self.beaten(bound, &candidate) {
                break;
            }
            let bound = match self.goal {
                Goal::Time => {
                    let (stages, loads) = (self.stages(&candidate)?, self.loads(&candidate)?);
                    self.estimator.close_bound(&candidate, &stages, &loads, &known.parts[&form(&candidate)])?
                }
                Goal::Memory => bound,
            };
            if !self.beaten(bound, &candidate) {
                self.look(&candidate)?;
            }
        }
        Ok(())
    }

    /// Bounds a layout's step from below, in whatever order it works and whatever it stores; 0, where time is not what counts.
    fn least(&self, candidate: &Candidate, known: &mut Known) -> f64 {
        match self.goal {
            Goal::Memory => 0.0,
            Goal::Time => self.average(candidate, known.parts(&self.estimator, candidate)),
        }
    }

    /// The same in its own order.
    fn bound(&mut self, candidate: &Candidate, known: &mut Known) -> Result<f64> {
        if self.goal == Goal::Memory {
            return Ok(0.0);
        }
        let loads = self.loads(candidate)?;
        Ok(self.estimator.bound(candidate, &loads, known.parts(&self.estimator, candidate)))
    }

    /// Says whether no layout of these degrees that is so far off can be among the best.
    fn beaten(&self, bound: f64, candidate: &Candidate) -> bool {
        self.exceeds(bound) || self.trails(bound, candidate)
    }

    fn stages(&mut self, candidate: &Candidate) -> Result<Rc<Stages>> {
        if let Some(known) = self.cache.stages.get(&candidate.cut()) {
            return Ok(Rc::clone(known));
        }
        let stages = Rc::new(candidate.stages(self.job)?);
        self.cache.stages.insert(candidate.cut(), Rc::clone(&stages));
        Ok(stages)
    }

    fn loads(&mut self, candidate: &Candidate) -> Result<Rc<Loads>> {
        let again = (candidate.recompute == RecomputeName::Full).then_some(candidate.recompute_every);
        if let Some(known) = self.cache.loads.get(&(candidate.cut(), again)) {
            return Ok(Rc::clone(known));
        }
        let stages = self.stages(candidate)?;
        let loads = Rc::new(Loads::of(candidate, &stages));
        self.cache.loads.insert((candidate.cut(), again), Rc::clone(&loads));
        Ok(loads)
    }

    /// Counts the bytes of what the first rank stores, of the micro-batches that surely are alive, those that it takes in
    /// before the first gradient comes back, and of what it needs beside them.
    fn surely_kept(&mut self, candidate: &Candidate, known: &mut Known) -> Result<usize> {
        if self.goal == Goal::Time && self.limit == usize::MAX {
            // There is room for anything.
            return Ok(0);
        }
        let stages = self.stages(candidate)?;
        let (stored, _) = self.estimator.stored(candidate, &stages, 0)?;
        let kept = known.kept.entry(candidate.recompute).or_insert_with(|| Kept::of(self.job, candidate));
        let (pp, micro_batches) = (candidate.pp, candidate.micro_batches(self.job));
        let last = stages.rank_of(stages.count() - 1) == 0;
        let beside = kept.batch(micro_batches) + kept.workspace(candidate, last);
        let alive = |chunk: usize| match (candidate.schedule, chunk) {
            (ScheduleName::Gpipe, _) => micro_batches,
            (ScheduleName::OneFOneB | ScheduleName::ZbH1, _) => micro_batches.min(pp),
            // A group of each chunk, and of the next one all but its last.
            (ScheduleName::Interleaved, 0) => micro_batches.min(2 * pp - 1),
            (ScheduleName::Interleaved, _) => micro_batches.min(pp),
            (ScheduleName::ZbV, 0) => micro_batches.min(2 * pp - 1),
            (ScheduleName::ZbV, _) => 0,
        };
        let stage = |chunk: usize| alive(chunk) * kept.stage(candidate, &stages, stages.stage_of(0, chunk));
        let live: usize = (0..stages.chunks()).map(stage).sum();
        Ok(stored.total().saturating_add(live).saturating_add(beside))
    }

    /// Returns the order of a layout's work, which others share.
    fn order(&mut self, candidate: &Candidate, stages: &Stages) -> Result<Rc<Orders>> {
        let micro_batches = candidate.micro_batches(self.job);
        if let Some(known) = self.cache.orders.get(&(candidate.cut(), micro_batches)) {
            return Ok(Rc::clone(known));
        }
        if self.cache.steps > KEPT_STEPS {
            self.cache.orders.clear();
            self.cache.steps = 0;
        }
        let order = Rc::new(Schedule::orders(candidate.schedule, stages, micro_batches)?);
        self.cache.steps += order.iter().map(Vec::len).sum::<usize>();
        self.cache.orders.insert((candidate.cut(), micro_batches), Rc::clone(&order));
        Ok(order)
    }

    /// Estimates a layout in full, and keeps it if it is among the best.
    fn look(&mut self, candidate: &Candidate) -> Result<()> {
        let stages = &*self.stages(candidate)?;
        let order = &*self.order(candidate, stages)?;
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
