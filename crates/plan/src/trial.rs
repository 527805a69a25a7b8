//! What is built to be timed: one rank's shard of a virtual stage on its own, or of as many of its layers as there is room
//! and time for, and the arithmetic that leads from those to the whole stage.
//!
//! All layers of a model are alike, so that a stage takes `a + n·b` with its `n` layers: two numbers of layers give both.
//! Of layers of which every `k`-th is computed again, multiples of `k` are alike.

use serde::{Deserialize, Serialize};

use crate::{
    memory::MemoryModel, Architecture, Candidate, Folding, Job, RankMemory, RecomputeName, Result, Schedule,
    ScheduleName, StageCosts, Stages,
};

/// The fewest layers that a slope is read from, in groups of those that are alike.
const LEAST_GROUPS: usize = 2;

/// Consecutive layers of a model, with the entrance where nothing is before them and the exit where nothing is behind.
///
/// Stages that make the same trial take the same time.
///
/// # Examples
///
/// ```
/// use mp_plan::{published, Sizes, Trial};
///
/// let row = published::rows()[6];
/// let (job, layout) = (row.job()?, row.candidate());
/// let stages = layout.stages(&job)?;
/// // The second stage of as many layers is like the third, not like the first.
/// let trial = |stage: usize| Trial::of(&layout, &stages, stage);
/// assert_eq!(trial(1), trial(2));
/// assert_ne!(trial(0), trial(1));
/// // Where there is room for five layers of many, the time of all is read from five and from two.
/// let long = Trial { layers: 40, ..trial(1) };
/// assert_eq!(long.sizes(|layers| layers <= 5), Some(Sizes::Slope { small: 2, large: 5 }));
/// # Ok::<(), mp_plan::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Trial {
    /// Layers in front, which are not built: none before the first stage, else as few as leave what is computed again as it
    /// is.
    pub lead: usize,
    /// The layers.
    pub layers: usize,
    /// Whether layers follow.
    pub followed: bool,
    /// Layers that are alike come in groups of so many.
    pub group: usize,
}

/// How many layers are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// All of the stage.
    Whole,
    /// Two numbers of them, from which the time of all is read.
    Slope {
        /// The smaller number.
        small: usize,
        /// The larger one.
        large: usize,
    },
}

/// What a virtual stage was seen to take, and what was run to see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimedStage {
    /// The stage's layers.
    pub layers: usize,
    /// The numbers of layers that were run: all, or two that the time of all is read from.
    pub timed: Vec<usize>,
    /// One micro-batch through all of them.
    pub seconds: StageCosts,
}

impl Trial {
    /// Takes a whole virtual stage of a layout.
    ///
    /// # Panics
    /// If there is no such stage.
    pub fn of(candidate: &Candidate, stages: &Stages, stage: usize) -> Self {
        let group = match candidate.recompute {
            RecomputeName::Full => candidate.recompute_every.max(1),
            RecomputeName::None | RecomputeName::Selective => 1,
        };
        let layers = stages.layers(stage);
        // The layer that this begins with has the same place in its group.
        let lead = layers.start.checked_sub(1).map_or(0, |before| before % group + 1);
        Self { lead, layers: layers.len(), followed: !stages.is_last(stage), group }
    }

    /// Returns a model that these are layers of, and no more layers than that takes.
    pub fn architecture(&self, architecture: &Architecture) -> Architecture {
        let layers = self.lead + self.layers + usize::from(self.followed);
        Architecture { layers, ..architecture.clone() }
    }

    /// Cuts that model in what is before, the layers themselves, and what is behind; the layers lie on
    /// [`rank`](Self::rank).
    ///
    /// # Errors
    /// As [`Stages::with_layers`].
    pub fn stages(&self) -> Result<Stages> {
        let split: Vec<usize> =
            [self.lead, self.layers, usize::from(self.followed)].into_iter().filter(|&layers| layers > 0).collect();
        Stages::with_layers(split.len(), 1, Folding::Loop, &split)
    }

    /// Returns the pipeline rank that the layers lie on.
    pub fn rank(&self) -> usize {
        usize::from(self.lead > 0)
    }

    /// Writes down what is to be run with one micro-batch: backwards divided as a layout's schedule divides them.
    ///
    /// # Errors
    /// As [`Schedule::new`].
    pub fn schedule(&self, job: &Job, candidate: &Candidate) -> Result<Schedule> {
        Schedule::new(name(candidate), self.stages()?, 1, job.architecture.tie_embeddings)
    }

    /// Counts what one rank keeps that runs one micro-batch through the layers and updates them.
    ///
    /// # Errors
    /// As [`stages`](Self::stages).
    pub fn memory(&self, job: &Job, candidate: &Candidate) -> Result<RankMemory> {
        let stages = self.stages()?;
        let candidate = Candidate { pp: stages.pp(), chunks: 1, schedule: name(candidate), ..*candidate };
        let global_batch = candidate.dp * candidate.micro_batch;
        let architecture = self.architecture(&job.architecture);
        let job = Job { architecture, global_batch, split: Vec::new(), ..job.clone() };
        let orders = Schedule::orders(candidate.schedule, &stages, 1)?;
        Ok(MemoryModel::new(&job).ranks(&candidate, &stages, &orders)?[self.rank()])
    }

    /// Chooses how many layers are built: all where there is `room` for them, else the most that there is room for and
    /// about half of those, in whole groups; none where there is no room for two groups.
    ///
    /// Where there is room for some layers there must be for fewer.
    pub fn sizes(&self, room: impl Fn(usize) -> bool) -> Option<Sizes> {
        if room(self.layers) {
            return Some(Sizes::Whole);
        }
        let (mut fits, mut fails) = (LEAST_GROUPS, self.layers.div_ceil(self.group));
        if fits >= fails || !room(fits * self.group) {
            return None;
        }
        while fails - fits > 1 {
            let middle = fits + (fails - fits) / 2;
            match room(middle * self.group) {
                true => fits = middle,
                false => fails = middle,
            }
        }
        Some(Sizes::Slope { small: fits / 2 * self.group, large: fits * self.group })
    }
}

/// Names the schedule of one stage: what matters of it is whether it divides backwards.
fn name(candidate: &Candidate) -> ScheduleName {
    match candidate.schedule.splits_backward() {
        true => ScheduleName::ZbH1,
        false => ScheduleName::OneFOneB,
    }
}

impl StageCosts {
    /// Reads what a stage of `layers` takes from what two numbers of its layers take, on a straight line through both.
    /// Where more layers seem to take less, which measuring can bring about, none of them takes anything.
    ///
    /// # Examples
    ///
    /// ```
    /// use mp_plan::StageCosts;
    ///
    /// let costs = |forward: f64| StageCosts { forward, backward_input: 2.0, backward_weight: 3.0 };
    /// // One second at the ends, half a second for each layer.
    /// assert_eq!(StageCosts::of_layers((2, costs(2.0)), (4, costs(3.0)), 10), costs(6.0));
    /// ```
    ///
    /// # Panics
    /// Unless the second number is above the first.
    pub fn of_layers(small: (usize, Self), large: (usize, Self), layers: usize) -> Self {
        assert!(small.0 < large.0, "{} and {} layers make no line", small.0, large.0);
        let beyond = (layers as f64 - large.0 as f64) / (large.0 - small.0) as f64;
        let line = |small: f64, large: f64| large + (large - small).max(0.0) * beyond;
        let (one, other) = (small.1, large.1);
        Self {
            forward: line(one.forward, other.forward),
            backward_input: line(one.backward_input, other.backward_input),
            backward_weight: line(one.backward_weight, other.backward_weight),
        }
    }
}
