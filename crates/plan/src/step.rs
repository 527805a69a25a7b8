//! What a training step of a layout takes and needs: the parts of [`crate::cost`] put together as the executor runs them.
//!
//! Virtual stages take the time of their layers and ends; the schedule's lists say when each rank computes what, and a
//! message reaches the next stage its transfer later. Reductions over the data ranks travel behind the last micro-batch's
//! backward, bucket by bucket, and what does not fit behind it is waited for. Then the norm is agreed, and each rank updates
//! what it owns.
//!
//! # Utilisation
//! Model FLOPs are [`Architecture::flops_per_token`](crate::Architecture::flops_per_token): six for each element of a matrix and token, the head
//! included, and attention's full square, masked or not. Hardware FLOPs add the forward of all that is computed again. Each
//! is divided by time, ranks and the device's peak; where that is unknown there is neither.

mod activities;
mod bound;
mod replay;
mod timeline;
mod waits;

pub(crate) use bound::Loads;

pub use activities::{Activity, ActivityKind, StepTimeline};
pub use replay::{Replayed, Spent};

use serde::{Deserialize, Serialize};

use crate::{
    cost::{
        layer::{Parts, Passes},
        CostModel, Terms,
    },
    memory::{repeated, Elements, MemoryModel, RankMemory},
    step::timeline::Timeline,
    Candidate, Cluster, Costs, Job, RankBytes, RecomputeName, Result, Schedule, StageCosts, Stages, Step,
};

/// What a layout takes and needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// The layout.
    pub candidate: Candidate,
    /// What each rank of the pipeline keeps.
    pub memory: Vec<RankMemory>,
    /// The bytes that each may fill.
    pub limit: usize,
    /// The step; `None` where the device's rate is unknown.
    pub time: Option<StepTime>,
}

/// The time of a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepTime {
    /// All of it.
    ///
    /// # Units
    /// Seconds.
    pub seconds: f64,
    /// What the busiest rank of the pipeline spends it on.
    pub terms: Terms,
    /// The idle share of the pipeline: of the time from the first forward to the last backward of any rank, the part in which a rank
    /// is not at work on its stages, on average over the ranks. What follows, sums of gradients and the update, does not count.
    /// Beside the time at work, as `(pp − 1) / m` of 1F1B is, it is `bubble / (1 − bubble)`.
    pub bubble: f64,
    /// Model FLOPs by second and device.
    pub model_flops: f64,
    /// Model FLOPs and those computed again, by second and device.
    pub hardware_flops: f64,
    /// Model FLOPs over the device's peak.
    pub mfu: f64,
    /// Tokens by second and device.
    pub tokens: f64,
}

impl Estimate {
    /// Returns what the fullest rank keeps.
    ///
    /// # Panics
    /// Never for an estimate that was made here: a pipeline has a rank.
    pub fn largest(&self) -> &RankMemory {
        self.memory.iter().max_by_key(|memory| memory.total()).expect("a pipeline has a rank")
    }

    /// Says whether every rank has room.
    pub fn fits(&self) -> bool {
        self.largest().total() <= self.limit
    }
}

/// Puts numbers to layouts of one job on one machine.
pub struct Estimator<'a> {
    job: &'a Job,
    cluster: &'a Cluster,
    costs: &'a dyn CostModel,
    memory: MemoryModel<'a>,
}

/// What the stages of a layout take.
struct StageTimes {
    /// Forward and both halves of backward, by virtual stage.
    passes: Vec<Passes>,
    /// What of a message between stages moves while ranks compute.
    transfer: f64,
}

impl<'a> Estimator<'a> {
    /// Takes a job, a machine, and what work takes on it.
    pub fn new(job: &'a Job, cluster: &'a Cluster, costs: &'a dyn CostModel) -> Self {
        Self { job, cluster, costs, memory: MemoryModel::new(job) }
    }

    /// Estimates a layout.
    ///
    /// # Errors
    /// As [`Candidate::check`].
    pub fn estimate(&mut self, candidate: &Candidate) -> Result<Estimate> {
        candidate.check(self.job)?;
        let stages = candidate.stages(self.job)?;
        let orders = Schedule::orders(candidate.schedule, &stages, candidate.micro_batches(self.job))?;
        let estimate = self.estimate_within(usize::MAX, candidate, &stages, &orders)?;
        Ok(estimate.expect("memory has no limit"))
    }

    /// Estimates a layout whose stages are cut and whose order is known, unless its fullest rank exceeds `limit`.
    pub(crate) fn estimate_within(
        &mut self,
        limit: usize,
        candidate: &Candidate,
        stages: &Stages,
        orders: &[Vec<Step>],
    ) -> Result<Option<Estimate>> {
        let Some(estimate) = self.memory_within(limit, candidate, stages, orders)? else { return Ok(None) };
        let time = match self.costs.peak(self.job.precision) {
            None => None,
            Some(peak) => Some(self.time(candidate, stages, orders, peak)?),
        };
        Ok(Some(Estimate { time, ..estimate }))
    }

    /// The same without its time.
    pub(crate) fn memory_within(
        &mut self,
        limit: usize,
        candidate: &Candidate,
        stages: &Stages,
        orders: &[Vec<Step>],
    ) -> Result<Option<Estimate>> {
        let Some(memory) = self.memory.ranks_within(limit, candidate, stages, orders)? else { return Ok(None) };
        Ok(Some(Estimate { candidate: *candidate, memory, limit: self.cluster.rank_memory(), time: None }))
    }

    /// Estimates what each rank of the pipeline spends a layout's step on, under a schedule that it may not have been cut for;
    /// `None` where the device's rate is unknown. The parts of each rank sum to the step.
    ///
    /// # Errors
    /// As [`Candidate::check`].
    pub fn rank_terms(&mut self, candidate: &Candidate, schedule: &Schedule) -> Result<Option<Vec<Terms>>> {
        candidate.check(self.job)?;
        if self.costs.peak(self.job.precision).is_none() {
            return Ok(None);
        }
        let computations = |list: &Vec<Step>| list.iter().copied().filter(|step| step.computes().is_some()).collect();
        let orders: Vec<Vec<Step>> = schedule.ranks.iter().map(computations).collect();
        Ok(Some(self.timeline(candidate, &schedule.stages, &orders)?.ranks))
    }

    fn time(&mut self, candidate: &Candidate, stages: &Stages, orders: &[Vec<Step>], peak: f64) -> Result<StepTime> {
        let timeline = self.timeline(candidate, stages, orders)?;
        Ok(self.step_time(candidate, stages, &timeline, peak))
    }

    fn step_time(&self, candidate: &Candidate, stages: &Stages, timeline: &Timeline, peak: f64) -> StepTime {
        let &Timeline { seconds, busiest, bubble, .. } = timeline;
        let per_device = self.tokens(candidate, seconds);
        let model = self.job.architecture.flops_per_token(self.job.seq);
        let again = self.repeated_flops(candidate, stages);
        StepTime {
            seconds,
            terms: timeline.ranks[busiest],
            bubble,
            model_flops: per_device * model,
            hardware_flops: per_device * (model + again),
            mfu: per_device * model / peak,
            tokens: per_device,
        }
    }

    /// Returns the tokens by second and device of a step that takes so long.
    fn tokens(&self, candidate: &Candidate, seconds: f64) -> f64 {
        self.job.step_tokens() / (seconds * candidate.ranks() as f64)
    }

    /// Counts the FLOPs by token that are done again.
    fn repeated_flops(&self, candidate: &Candidate, stages: &Stages) -> f64 {
        let architecture = &self.job.architecture;
        // A third of a layer's is its forward.
        let layer = architecture.layer_flops(self.job.seq) / 3.0;
        match candidate.recompute {
            RecomputeName::None => 0.0,
            RecomputeName::Selective => {
                let width = architecture.layers as f64 * (architecture.heads * architecture.head_dim) as f64;
                4.0 * width * architecture.keys(self.job.seq) as f64
            }
            RecomputeName::Full => layer * repeated(candidate, &(0..stages.total())) as f64,
        }
    }

    fn stage_times(&self, candidate: &Candidate, stages: &Stages, parts: &Parts) -> StageTimes {
        let stage = |stage: usize| parts.stage(candidate, stages, stage);
        self.between(candidate, stages, (0..stages.count()).map(stage).collect())
    }

    /// Adds the messages between stages to what these take.
    fn between(&self, candidate: &Candidate, stages: &Stages, mut passes: Vec<Passes>) -> StageTimes {
        let (transfer, waits) = self.messages(candidate, stages.pp());
        let hides = self.job.executor.hides_messages;
        for (stage, passes) in passes.iter_mut().enumerate() {
            // What does not move behind computations takes the own time of the rank that receives; where the executor hides
            // nothing, that of both sides.
            let [forward, backward] = stages.receives(stage);
            passes.forward.bubble += if !hides || forward { waits } else { 0.0 };
            passes.input.bubble += if !hides || backward { waits } else { 0.0 };
        }
        StageTimes { passes, transfer }
    }

    /// Returns what of a message between stages moves while ranks compute, and what does not.
    fn messages(&self, candidate: &Candidate, pp: usize) -> (f64, f64) {
        let transfer = if pp > 1 { self.transfer(candidate) } else { 0.0 };
        let hidden = if self.job.executor.hides_messages { self.costs.overlap() * transfer } else { 0.0 };
        (hidden, transfer - hidden)
    }

    /// Counts what a rank of the pipeline stores between steps.
    pub(crate) fn stored(
        &mut self,
        candidate: &Candidate,
        stages: &Stages,
        rank: usize,
    ) -> Result<(RankBytes, Elements)> {
        self.memory.stored(candidate, stages, rank)
    }

    /// Puts times to the parts of a model.
    pub(crate) fn parts(&self, candidate: &Candidate) -> Parts {
        Parts::of(self.job, candidate, self.costs, self.cluster.node.devices)
    }
}

impl Parts {
    /// Adds up what a virtual stage takes.
    fn stage(&self, candidate: &Candidate, stages: &Stages, stage: usize) -> Passes {
        let layers = stages.layers(stage);
        let count = layers.len() as f64;
        let mut passes = self.layer.times(count);
        passes.input += self.again * repeated(candidate, &layers) as f64;
        if stages.is_first(stage) {
            passes.add(&self.entrance);
        }
        if stages.is_last(stage) {
            passes.add(&self.exit);
        }
        passes
    }
}

impl Passes {
    fn times(&self, count: f64) -> Self {
        Self { forward: self.forward * count, input: self.input * count, weight: self.weight * count }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.forward += other.forward;
        self.input += other.input;
        self.weight += other.weight;
    }

    /// Adds everything up.
    ///
    /// # Units
    /// Seconds.
    pub fn total(&self) -> f64 {
        self.forward.total() + self.input.total() + self.weight.total()
    }

    /// Adds up all but waiting for other stages.
    fn work(&self) -> f64 {
        self.forward.work() + self.input.work() + self.weight.work()
    }
}

impl StageTimes {
    /// Adds up what a rank takes for one micro-batch.
    fn of_rank(&self, stages: &Stages, rank: usize) -> Passes {
        let mut work = Passes::default();
        for chunk in 0..stages.chunks() {
            work.add(&self.passes[stages.stage_of(rank, chunk)]);
        }
        work
    }

    /// Returns what of its messages a rank waits for in a computation's own time.
    fn messages(&self, stages: &Stages, rank: usize, step: Step) -> f64 {
        let Some((chunk, _)) = step.computes() else { return 0.0 };
        let passes = &self.passes[stages.stage_of(rank, chunk)];
        match step {
            Step::Forward { .. } => passes.forward.bubble,
            Step::BackwardWeight { .. } => passes.weight.bubble,
            _ => passes.input.bubble + passes.weight.bubble,
        }
    }

    fn costs(&self) -> Costs {
        let stage = |passes: &Passes| StageCosts {
            forward: passes.forward.total(),
            backward_input: passes.input.total(),
            backward_weight: passes.weight.total(),
        };
        Costs { stages: self.passes.iter().map(stage).collect(), transfer: self.transfer }
    }
}
