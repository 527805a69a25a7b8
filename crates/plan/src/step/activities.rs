//! A step as the ranks of a pipeline spend it: the executor's lists with the times of an estimate, from the first forward to
//! the last update, without gaps.

use serde::{Deserialize, Serialize};

use crate::{
    cost::Terms,
    simulate,
    step::{Estimator, StageTimes},
    Architecture, Candidate, Costs, RecomputeName, Result, Schedule, StageCosts, Stages, Step, Timeline,
};

/// A step in time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepTimeline {
    /// The stages that its ranks hold.
    pub stages: Stages,
    /// What each rank of the pipeline does, in order and without gaps, from 0 to `seconds`.
    pub ranks: Vec<Vec<Activity>>,
    /// How long all of it takes.
    ///
    /// # Units
    /// Seconds; of [`by_flops`](StepTimeline::by_flops) forwards of a layer.
    pub seconds: f64,
}

/// What a rank does for some time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// What it does.
    pub kind: ActivityKind,
    /// Of a computation: the number of the stage on this rank, and the micro-batch.
    pub computes: Option<(usize, usize)>,
    /// When it starts, in the timeline's unit.
    pub start: f64,
    /// When it is over.
    pub end: f64,
}

/// What a rank can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivityKind {
    /// Forward.
    Forward,
    /// Backward, with the gradients of input and weights.
    Backward,
    /// The input's gradient.
    BackwardInput,
    /// The weights' gradients.
    BackwardWeight,
    /// Waiting for other ranks of the pipeline.
    Wait,
    /// Waiting for sums over other ranks: of gradients over data and tensor ranks, of the table at both ends, of the norm.
    Reduce,
    /// The optimizer's update.
    Update,
}

impl ActivityKind {
    /// All of them, in the order of a step.
    pub const ALL: [Self; 7] = [
        Self::Forward,
        Self::Backward,
        Self::BackwardInput,
        Self::BackwardWeight,
        Self::Wait,
        Self::Reduce,
        Self::Update,
    ];

    /// Returns the name that people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::BackwardInput => "backward, input",
            Self::BackwardWeight => "backward, weights",
            Self::Wait => "waiting",
            Self::Reduce => "reduction",
            Self::Update => "update",
        }
    }
}

/// What follows the last computation of a step.
pub(super) struct Closing {
    ranks: Vec<Ends>,
    /// When the last rank has computed all, and when the last one has its sums over the data ranks.
    pub computed: f64,
    reduced: f64,
    /// The sum over the two ranks of the table at both ends.
    table: f64,
    /// What the slowest rank takes to sum up with tensor ranks.
    completed: f64,
    agreed: Terms,
    updated: f64,
}

/// What follows the last computation of one rank.
struct Ends {
    /// When it has computed all.
    computed: f64,
    /// What it waits for its gradients' sums over the data ranks.
    reduced: f64,
    /// Whether it holds the table at both ends, beside another that does.
    table: bool,
    completed: Terms,
    updated: f64,
}

impl Closing {
    /// When all gradients are complete.
    fn completed(&self) -> f64 {
        self.reduced + self.table + self.completed
    }

    /// When all ranks agree.
    fn agreed(&self) -> f64 {
        self.completed() + self.agreed.total()
    }

    /// When the step is over.
    pub fn seconds(&self) -> f64 {
        self.agreed() + self.updated
    }

    /// Returns what a rank spends on all that follows its last computation. A rank that has its sums before others do waits for
    /// them, as for any stage.
    pub fn terms(&self, rank: usize) -> Terms {
        let Ends { computed, reduced, table, completed, .. } = &self.ranks[rank];
        let table = if *table { self.table } else { 0.0 };
        let sums = Terms { data: reduced + table, optimizer: self.updated, ..Terms::default() };
        let own = sums + self.agreed + *completed;
        let waits = (self.reduced - (computed + reduced)) + (self.table - table) + (self.completed - completed.total());
        Terms { bubble: own.bubble + waits, ..own }
    }
}

impl Estimator<'_> {
    /// Lays the step of a layout out in time, as the executor runs it; `None` where the device's rate is unknown. It takes what
    /// [`estimate`](Self::estimate) says.
    ///
    /// What travels behind computations is not to be seen. What ZeRO 2 and 3 wait for in each pass is drawn where the estimate
    /// adds it: at the end.
    ///
    /// # Errors
    /// As [`Candidate::check`].
    ///
    /// # Examples
    ///
    /// ```
    /// use mp_plan::{published, Analytic, Estimator};
    ///
    /// let row = published::rows()[0];
    /// let (job, cluster) = (row.job()?, row.cluster()?);
    /// let costs = Analytic::new(&cluster);
    /// let mut estimator = Estimator::new(&job, &cluster, &costs);
    /// let timeline = estimator.step_timeline(&row.candidate())?.unwrap();
    /// assert_eq!(Some(timeline.seconds), estimator.estimate(&row.candidate())?.time.map(|time| time.seconds));
    /// # Ok::<(), mp_plan::Error>(())
    /// ```
    pub fn step_timeline(&mut self, candidate: &Candidate) -> Result<Option<StepTimeline>> {
        candidate.check(self.job)?;
        if self.costs.peak(self.job.precision).is_none() {
            return Ok(None);
        }
        let stages = candidate.stages(self.job)?;
        let tied = self.job.architecture.tie_embeddings;
        let schedule = Schedule::new(candidate.schedule, stages, candidate.micro_batches(self.job), tied)?;
        let times = self.stage_times(candidate, &schedule.stages, &self.parts(candidate));
        let messages = |rank: usize, step: Step| times.messages(&schedule.stages, rank, step);
        let computed = computed(&schedule, &simulate(&schedule, &times.costs()), messages);
        let ends: Vec<f64> = computed.iter().map(|spent| spent.last().map_or(0.0, |last| last.end)).collect();
        let closing = self.closing(candidate, &schedule.stages, &times, &ends, None)?;
        let ranks = computed.into_iter().enumerate().map(|(rank, spent)| closing.close(rank, spent));
        Ok(Some(StepTimeline { ranks: ranks.collect(), seconds: closing.seconds(), stages: schedule.stages }))
    }

    /// Times what follows when ranks have computed all at `ends`; an update takes `update` where that is known better than from its
    /// bytes.
    pub(super) fn closing(
        &mut self,
        candidate: &Candidate,
        stages: &Stages,
        times: &StageTimes,
        ends: &[f64],
        update: Option<f64>,
    ) -> Result<Closing> {
        let micro_batches = candidate.micro_batches(self.job);
        let computed = ends.iter().copied().fold(0.0, f64::max);
        let tied = stages.tied_ranks().filter(|_| self.job.architecture.tie_embeddings);
        let mut ranks = Vec::with_capacity(ends.len());
        for (rank, &computed) in ends.iter().enumerate() {
            let work = times.of_rank(stages, rank);
            // Reductions travel behind what is computed, not behind messages that the rank waits for.
            let (all, last) = (work.work(), work.input.work() + work.weight.work());
            let (_, elements) = self.memory.stored(candidate, stages, rank)?;
            ranks.push(Ends {
                computed,
                reduced: self.reduction(candidate, &elements, last, all, micro_batches),
                table: tied.is_some_and(|(first, last)| rank == first || rank == last),
                completed: self.completion(candidate, &elements),
                updated: update.unwrap_or_else(|| self.update(candidate, &elements)),
            });
        }
        let most = |of: &dyn Fn(&Ends) -> f64| ranks.iter().map(of).fold(0.0, f64::max);
        Ok(Closing {
            computed,
            reduced: most(&|rank| rank.computed + rank.reduced),
            table: self.ends_of_table(candidate, stages),
            completed: most(&|rank| rank.completed.total()),
            agreed: self.agreement(candidate),
            updated: most(&|rank| rank.updated),
            ranks,
        })
    }
}

impl Closing {
    /// Goes on from the last computation of a rank to the end of the step.
    fn close(&self, rank: usize, mut spent: Vec<Activity>) -> Vec<Activity> {
        let end = spent.last().map_or(0.0, |last| last.end);
        let own = &self.ranks[rank];
        let summed = self.reduced + self.table;
        let follows = [
            (ActivityKind::Reduce, end + own.reduced),
            (ActivityKind::Wait, self.reduced),
            (if own.table { ActivityKind::Reduce } else { ActivityKind::Wait }, summed),
            (ActivityKind::Reduce, summed + own.completed.total()),
            (ActivityKind::Wait, self.completed()),
            (ActivityKind::Reduce, self.agreed()),
            (ActivityKind::Update, self.agreed() + own.updated),
            (ActivityKind::Wait, self.seconds()),
        ];
        for (kind, end) in follows {
            push(&mut spent, kind, None, end);
        }
        spent
    }
}

impl StepTimeline {
    /// Lays a schedule out in time where no machine is known: computations take their FLOPs, counted in forwards of a layer,
    /// and nothing else takes time.
    pub fn by_flops(schedule: &Schedule, architecture: &Architecture, seq: usize, candidate: &Candidate) -> Self {
        let timeline = simulate(schedule, &flops(schedule, architecture, seq, candidate));
        let mut ranks = computed(schedule, &timeline, |_, _| 0.0);
        for spent in &mut ranks {
            push(spent, ActivityKind::Wait, None, timeline.seconds);
        }
        Self { stages: schedule.stages.clone(), ranks, seconds: timeline.seconds }
    }

    /// Adds up what a rank spends on each kind of activity, in the order of [`ActivityKind::ALL`].
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn spent(&self, rank: usize) -> [f64; 7] {
        let mut sums = [0.0; 7];
        for activity in &self.ranks[rank] {
            sums[activity.kind as usize] += activity.end - activity.start;
        }
        sums
    }
}

/// Counts what virtual stages compute, in forwards of a layer: a backward is two, what is computed again one more, and the head
/// counts as what it is of a layer.
fn flops(schedule: &Schedule, architecture: &Architecture, seq: usize, candidate: &Candidate) -> Costs {
    let head = architecture.head_flops() / architecture.layer_flops(seq);
    let stages = &schedule.stages;
    let stage = |stage: usize| {
        let layers = stages.layers(stage);
        let forward = layers.len() as f64 + if stages.is_last(stage) { head } else { 0.0 };
        let again = match candidate.recompute {
            RecomputeName::Full => super::repeated(candidate, &layers) as f64,
            RecomputeName::None | RecomputeName::Selective => 0.0,
        };
        StageCosts { forward, backward_input: forward + again, backward_weight: forward }
    };
    Costs { stages: (0..stages.count()).map(stage).collect(), transfer: 0.0 }
}

/// Takes what ranks compute, and what they wait for between, up to each rank's last computation. A rank waits for `messages`
/// at the beginning of a computation's time.
fn computed(schedule: &Schedule, timeline: &Timeline, messages: impl Fn(usize, Step) -> f64) -> Vec<Vec<Activity>> {
    let rank = |(rank, spans): (usize, &Vec<crate::Span>)| {
        let list = &schedule.ranks[rank];
        let last = list.iter().rposition(|step| step.computes().is_some()).map_or(0, |last| last + 1);
        let mut spent = Vec::new();
        for span in &spans[..last] {
            let waits = messages(rank, span.step);
            if waits > 0.0 {
                let start = spent.last().map_or(0.0, |last: &Activity| last.end);
                push(&mut spent, ActivityKind::Wait, None, start + waits);
            }
            push(&mut spent, kind(span.step), span.step.computes(), span.end);
        }
        spent
    };
    timeline.ranks.iter().enumerate().map(rank).collect()
}

fn kind(step: Step) -> ActivityKind {
    match step {
        Step::Forward { .. } => ActivityKind::Forward,
        Step::Backward { .. } => ActivityKind::Backward,
        Step::BackwardInput { .. } => ActivityKind::BackwardInput,
        Step::BackwardWeight { .. } => ActivityKind::BackwardWeight,
        Step::Send { .. } | Step::Receive { .. } | Step::SumTied | Step::Reduce | Step::Update => ActivityKind::Wait,
    }
}

/// Adds what lasts until `end`, unless that is over already.
fn push(spent: &mut Vec<Activity>, kind: ActivityKind, computes: Option<(usize, usize)>, end: f64) {
    let start = spent.last().map_or(0.0, |last| last.end);
    match spent.last_mut() {
        _ if end <= start => {}
        // One wait behind another is one.
        Some(last) if last.kind == kind && computes.is_none() => last.end = end,
        _ => spent.push(Activity { kind, computes, start, end }),
    }
}
