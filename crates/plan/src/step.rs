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

use serde::{Deserialize, Serialize};

use crate::{
    cost::{
        layer::{Parts, Passes},
        Collective, CostModel, Group, Terms,
    },
    memory::{repeated, Elements, MemoryModel, RankMemory},
    pace, Axis, Candidate, Cluster, Costs, Job, RankBytes, RecomputeName, Result, Schedule, StageCosts, Stages, Step,
    Zero,
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
    /// The idle share of the pipeline, on average over its ranks.
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
    /// A message between stages.
    transfer: f64,
}

/// What surely holds of a rank of the pipeline.
struct Earliest {
    /// When it is done at the earliest: the first forward has come down to it, and it has computed all.
    end: f64,
    /// How long after that the first rank is done: an undivided backward of the rank's last gradient goes all the way back.
    back: f64,
    /// What it takes for a micro-batch.
    work: f64,
    /// Of that, backward.
    last: f64,
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
        let memory = self.memory.ranks(candidate, stages, orders)?;
        if memory.iter().any(|rank| rank.total() > limit) {
            return Ok(None);
        }
        let time = match self.costs.peak(self.job.precision) {
            None => None,
            Some(peak) => Some(self.time(candidate, stages, orders, peak)?),
        };
        Ok(Some(Estimate { candidate: *candidate, memory, limit: self.cluster.rank_memory(), time }))
    }

    fn time(&mut self, candidate: &Candidate, stages: &Stages, orders: &[Vec<Step>], peak: f64) -> Result<StepTime> {
        let micro_batches = candidate.micro_batches(self.job);
        let parts = Parts::of(self.job, candidate, self.costs, self.cluster.node.devices);
        let times = self.stage_times(candidate, stages, &parts);
        let ends = pace::ends(stages, orders, micro_batches, &times.costs());
        let computed = ends.iter().copied().fold(0.0, f64::max);
        // What each rank does, and when it is done with its reductions.
        let (mut busy, mut reduced, mut updated, mut busiest) =
            (Vec::new(), computed, 0.0_f64, (0.0, Terms::default()));
        for (rank, &end) in ends.iter().enumerate() {
            let own = (0..stages.chunks()).map(|chunk| times.passes[stages.stage_of(rank, chunk)]);
            let (work, last) = own.fold((Terms::default(), 0.0), |(work, last), passes| {
                let backward = passes.input + passes.weight;
                (work + passes.forward + backward, last + backward.total())
            });
            let total = work.total() * micro_batches as f64;
            busy.push(total);
            if total > busiest.0 {
                busiest = (total, work * micro_batches as f64);
            }
            let (_, elements) = self.memory.stored(candidate, stages, rank)?;
            reduced = reduced.max(end + self.reduction(candidate, &elements, last, work.total(), micro_batches));
            updated = updated.max(self.update(candidate, &elements));
        }
        reduced += self.ends_of_table(candidate, stages);
        let seconds = reduced + self.norm(candidate) + updated;
        let mut terms = busiest.1;
        // Never below zero, as a sum of roundings may be.
        terms.bubble += (computed - busiest.0).max(0.0);
        terms.data += reduced - computed + self.norm(candidate);
        terms.optimizer += updated;
        Ok(self.step_time(candidate, stages, seconds, terms, idle(&busy, computed), peak))
    }

    fn step_time(
        &self,
        candidate: &Candidate,
        stages: &Stages,
        seconds: f64,
        terms: Terms,
        bubble: f64,
        peak: f64,
    ) -> StepTime {
        let per_device = self.job.step_tokens() / (seconds * candidate.ranks() as f64);
        let model = self.job.architecture.flops_per_token(self.job.seq);
        let again = self.repeated_flops(candidate, stages);
        StepTime {
            seconds,
            terms,
            bubble,
            model_flops: per_device * model,
            hardware_flops: per_device * (model + again),
            mfu: per_device * model / peak,
            tokens: per_device,
        }
    }

    /// Counts the FLOPs by token that are done again.
    fn repeated_flops(&self, candidate: &Candidate, stages: &Stages) -> f64 {
        let architecture = &self.job.architecture;
        let one = crate::Architecture { layers: 1, ..architecture.clone() };
        let two = crate::Architecture { layers: 2, ..architecture.clone() };
        // A third of a layer's is its forward.
        let layer = (two.flops_per_token(self.job.seq) - one.flops_per_token(self.job.seq)) / 3.0;
        match candidate.recompute {
            RecomputeName::None => 0.0,
            RecomputeName::Selective => {
                let keys = architecture.window.map_or(self.job.seq, |window| window.min(self.job.seq));
                4.0 * (architecture.layers * architecture.heads * architecture.head_dim * keys) as f64
            }
            RecomputeName::Full => layer * repeated(candidate, &(0..stages.total())) as f64,
        }
    }

    fn stage_times(&self, candidate: &Candidate, stages: &Stages, parts: &Parts) -> StageTimes {
        let transfer = if stages.pp() > 1 { self.transfer(candidate) } else { 0.0 };
        let waits = if self.job.executor.hides_messages { 0.0 } else { transfer };
        let stage = |stage: usize| {
            let mut passes = parts.stage(candidate, stages, stage);
            // Sending and receiving take the rank's own time.
            passes.forward.bubble += waits;
            passes.input.bubble += waits;
            passes
        };
        StageTimes { passes: (0..stages.count()).map(stage).collect(), transfer: transfer - waits }
    }

    /// Returns the time of a message between stages.
    fn transfer(&self, candidate: &Candidate) -> f64 {
        let devices = self.cluster.node.devices;
        let (degree, neighbours) = candidate.neighbours(Axis::Pp, devices);
        let inside = neighbours == degree;
        let whole = (candidate.tokens(self.job) * self.job.architecture.hidden) as f64
            * self.job.precision.parameter_bytes() as f64;
        if candidate.sequence_parallel {
            return self.costs.message(whole / candidate.tp as f64, inside);
        }
        if !self.job.executor.scatters {
            return self.costs.message(whole, inside);
        }
        let tensor = Group::of(candidate.neighbours(Axis::Tp, devices));
        self.costs.message(whole / candidate.tp as f64, inside)
            + self.costs.collective(Collective::AllGather, whole, tensor)
    }

    /// Returns what a rank waits for its gradients' sums over the data ranks, `last` seconds of backward in front of which
    /// hide what is ready: all but the last bucket.
    fn reduction(&self, candidate: &Candidate, elements: &Elements, last: f64, work: f64, micro_batches: usize) -> f64 {
        let group = Group::of(candidate.neighbours(Axis::Dp, self.cluster.node.devices));
        if group.size == 1 {
            return 0.0;
        }
        let buckets = elements.buckets.max(1) as f64;
        let collective = |what, bytes: f64| buckets * self.costs.collective(what, bytes / buckets, group);
        let gradients = (elements.all * self.job.precision.state_bytes()) as f64;
        let values = (elements.all * self.job.precision.parameter_bytes()) as f64;
        let hides = if self.job.executor.hides_data { 1.0 } else { 0.0 };
        let behind = |time: f64, window: f64| (time - hides * window * (1.0 - 1.0 / buckets)).max(time / buckets);
        match candidate.zero {
            Zero::Replicated => behind(collective(Collective::AllReduce, gradients), last),
            Zero::Optimizer => {
                behind(collective(Collective::ReduceScatter, gradients), last)
                    + collective(Collective::AllGather, values)
            }
            Zero::Gradients => {
                micro_batches as f64 * behind(collective(Collective::ReduceScatter, gradients), last)
                    + collective(Collective::AllGather, values)
            }
            Zero::Parameters => {
                let forward = work - last;
                let gathered = collective(Collective::AllGather, values);
                let scattered = collective(Collective::ReduceScatter, gradients);
                micro_batches as f64 * (behind(gathered, forward) + behind(gathered + scattered, last))
            }
        }
    }

    /// Returns the time of the sum over the two ranks of a table that is both embedding and head.
    fn ends_of_table(&self, candidate: &Candidate, stages: &Stages) -> f64 {
        let architecture = &self.job.architecture;
        if !architecture.tie_embeddings || stages.tied_ranks().is_none() {
            return 0.0;
        }
        let rows = architecture.vocab.div_ceil(candidate.tp);
        let bytes = (rows * architecture.hidden * self.job.precision.state_bytes()) as f64;
        let (degree, neighbours) = candidate.neighbours(Axis::Pp, self.cluster.node.devices);
        let group = Group { size: 2, neighbours: if neighbours == degree { 2 } else { 1 } };
        self.costs.collective(Collective::AllReduce, bytes, group)
    }

    /// Returns the time in which all ranks agree on the gradient's norm and on the loss.
    fn norm(&self, candidate: &Candidate) -> f64 {
        let devices = self.cluster.node.devices;
        let group = Group { size: candidate.ranks(), neighbours: devices.min(candidate.ranks()) };
        2.0 * self.costs.collective(Collective::AllReduce, 8.0, group)
    }

    /// Returns the time of clearing, measuring, clipping and applying a rank's gradients.
    fn update(&self, candidate: &Candidate, elements: &Elements) -> f64 {
        let Job { precision, moments, .. } = self.job;
        let (value, state) = (precision.parameter_bytes(), precision.state_bytes());
        let masters = if precision.has_master() { 2 * state + value } else { 2 * value };
        // Read for the norm, scaled, read for the update; what is updated is read and written.
        let own = elements.own * (4 * state + masters + 2 * moments * state);
        let cleared = if candidate.zero >= Zero::Gradients { elements.own } else { elements.all };
        self.costs.memory((own + cleared * state) as f64, 4)
    }

    /// Bounds a layout's step from below, cheaply: what its busiest rank computes, and the way there and back.
    pub(crate) fn bound(&self, candidate: &Candidate, stages: &Stages, parts: &Parts) -> f64 {
        let earliest = self.earliest(candidate, stages, parts);
        earliest.iter().map(|rank| rank.end + rank.back).fold(0.0, f64::max)
    }

    /// Bounds it better: with what ranks then wait for and update.
    pub(crate) fn close_bound(&mut self, candidate: &Candidate, stages: &Stages, parts: &Parts) -> Result<f64> {
        let earliest = self.earliest(candidate, stages, parts);
        let home = earliest.iter().map(|rank| rank.end + rank.back).fold(0.0, f64::max);
        let (mut reduced, mut updated) = (home, 0.0_f64);
        for (rank, known) in earliest.into_iter().enumerate() {
            let (_, elements) = self.memory.stored(candidate, stages, rank)?;
            let end = if rank == 0 { home } else { known.end };
            let micro_batches = candidate.micro_batches(self.job);
            reduced = reduced.max(end + self.reduction(candidate, &elements, known.last, known.work, micro_batches));
            updated = updated.max(self.update(candidate, &elements));
        }
        Ok(reduced + self.ends_of_table(candidate, stages) + self.norm(candidate) + updated)
    }

    fn earliest(&self, candidate: &Candidate, stages: &Stages, parts: &Parts) -> Vec<Earliest> {
        let times = self.stage_times(candidate, stages, parts);
        let micro_batches = candidate.micro_batches(self.job) as f64;
        let returns = if candidate.schedule.splits_backward() { 0.0 } else { 1.0 };
        let (mut way, mut back) = (0.0, 0.0);
        let rank = |rank: usize| {
            let own = (0..stages.chunks()).map(|chunk| times.passes[stages.stage_of(rank, chunk)]);
            let (work, last) = own.fold((0.0, 0.0), |(work, last), passes| {
                let backward = passes.input.total() + passes.weight.total();
                (work + passes.forward.total() + backward, last + backward)
            });
            let known = Earliest { end: micro_batches * work + way, back: returns * back, work, last };
            let first = times.passes[stages.stage_of(rank, 0)];
            way += first.forward.total() + times.transfer;
            back += first.input.total() + first.weight.total() + times.transfer;
            known
        };
        (0..stages.pp()).map(rank).collect()
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

    fn add(&mut self, other: &Self) {
        self.forward += other.forward;
        self.input += other.input;
        self.weight += other.weight;
    }

    /// Adds everything up.
    pub(crate) fn total(&self) -> f64 {
        self.forward.total() + self.input.total() + self.weight.total()
    }
}

impl StageTimes {
    fn costs(&self) -> Costs {
        let stage = |passes: &Passes| StageCosts {
            forward: passes.forward.total(),
            backward_input: passes.input.total(),
            backward_weight: passes.weight.total(),
        };
        Costs { stages: self.passes.iter().map(stage).collect(), transfer: self.transfer }
    }
}

/// Returns the share of `seconds` in which a rank does not compute, on average.
fn idle(busy: &[f64], seconds: f64) -> f64 {
    match seconds > 0.0 {
        true => (1.0 - busy.iter().sum::<f64>() / (seconds * busy.len() as f64)).max(0.0),
        false => 0.0,
    }
}
