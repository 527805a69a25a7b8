//! What the planner has chosen of a configuration, and what is open again on other ranks.

use serde::{Deserialize, Serialize};

use crate::{ParallelConfig, Switch};

/// The keys of `[parallel]` that the planner chooses where they are left open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParallelKey {
    /// `parallel.tp`.
    Tp,
    /// `parallel.pp`.
    Pp,
    /// `parallel.dp`.
    Dp,
    /// `parallel.cp`.
    Cp,
    /// `parallel.sequence_parallel`.
    SequenceParallel,
    /// `parallel.micro_batch`.
    MicroBatch,
    /// `parallel.recompute`.
    Recompute,
    /// `parallel.recompute_every`.
    RecomputeEvery,
    /// `parallel.zero`.
    Zero,
    /// `parallel.chunks`.
    Chunks,
    /// `parallel.schedule`.
    Schedule,
}

impl ParallelKey {
    /// All keys, in the order of the configuration.
    pub const ALL: [Self; 11] = [
        Self::Tp,
        Self::Pp,
        Self::Dp,
        Self::Cp,
        Self::SequenceParallel,
        Self::MicroBatch,
        Self::Recompute,
        Self::RecomputeEvery,
        Self::Zero,
        Self::Chunks,
        Self::Schedule,
    ];

    /// Returns the key's name in `[parallel]`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tp => "tp",
            Self::Pp => "pp",
            Self::Dp => "dp",
            Self::Cp => "cp",
            Self::SequenceParallel => "sequence_parallel",
            Self::MicroBatch => "micro_batch",
            Self::Recompute => "recompute",
            Self::RecomputeEvery => "recompute_every",
            Self::Zero => "zero",
            Self::Chunks => "chunks",
            Self::Schedule => "schedule",
        }
    }

    /// Says whether a configuration leaves the key open.
    pub fn is_open(self, config: &ParallelConfig) -> bool {
        match self {
            Self::Tp => config.tp == 0,
            Self::Pp => config.pp == 0,
            Self::Dp => config.dp == 0,
            Self::Cp => config.cp == 0,
            Self::SequenceParallel => config.sequence_parallel == Switch::Auto,
            Self::MicroBatch => config.micro_batch == 0,
            Self::Recompute => config.recompute == Switch::Auto,
            Self::RecomputeEvery => config.recompute_every == 0,
            Self::Zero => config.zero == Switch::Auto,
            Self::Chunks => config.chunks == 0,
            Self::Schedule => config.schedule == Switch::Auto,
        }
    }

    fn open(self, config: &mut ParallelConfig) {
        match self {
            Self::Tp => config.tp = 0,
            Self::Pp => config.pp = 0,
            Self::Dp => config.dp = 0,
            Self::Cp => config.cp = 0,
            Self::SequenceParallel => config.sequence_parallel = Switch::Auto,
            Self::MicroBatch => config.micro_batch = 0,
            Self::Recompute => config.recompute = Switch::Auto,
            Self::RecomputeEvery => config.recompute_every = 0,
            Self::Zero => config.zero = Switch::Auto,
            Self::Chunks => config.chunks = 0,
            Self::Schedule => config.schedule = Switch::Auto,
        }
    }
}

impl ParallelConfig {
    /// Opens again what the planner has chosen, and asks it.
    ///
    /// # Examples
    ///
    /// ```
    /// use mp_plan::{ParallelConfig, ParallelKey};
    ///
    /// let chosen = vec![ParallelKey::Dp];
    /// let config = ParallelConfig { tp: 2, dp: 4, chosen, ..ParallelConfig::default() };
    /// assert_eq!(config.for_ranks(8), config);
    /// let open = config.for_ranks(16);
    /// assert_eq!((open.tp, open.dp, open.asks), (2, 0, true));
    /// ```
    #[must_use]
    pub fn reopened(&self) -> Self {
        let mut open = Self { asks: true, chosen: Vec::new(), ..self.clone() };
        self.chosen.iter().for_each(|key| key.open(&mut open));
        open
    }

    /// Takes over what the planner has chosen for `run`, where it is asked the same here: what is open here was chosen there,
    /// and all else is as it is there. What carries tensors is no part of the question.
    ///
    /// # Examples
    ///
    /// ```
    /// use mp_plan::{ParallelConfig, ParallelKey};
    ///
    /// let run = ParallelConfig { tp: 2, dp: 4, chosen: vec![ParallelKey::Dp], ..ParallelConfig::default() };
    /// let again = ParallelConfig { tp: 2, asks: true, ..ParallelConfig::default() };
    /// assert_eq!(again.answered_by(&run), Some(run.clone()));
    /// let other = ParallelConfig { tp: 4, asks: true, ..ParallelConfig::default() };
    /// assert_eq!(other.answered_by(&run), None);
    /// ```
    pub fn answered_by(&self, run: &Self) -> Option<Self> {
        let (cluster, transport) = (self.cluster.clone(), self.transport);
        let same = *self == Self { cluster: cluster.clone(), transport, ..run.reopened() };
        (same && !run.chosen.is_empty()).then(|| Self { cluster, transport, ..run.clone() })
    }

    /// Returns what stands on so many ranks: where the planner chose for another number, its choices are [open
    /// again](Self::reopened).
    #[must_use]
    pub fn for_ranks(&self, ranks: usize) -> Self {
        let degrees = [self.tp, self.pp, self.dp, self.cp];
        let made = degrees.into_iter().map(|degree| degree.max(1)).fold(1, usize::saturating_mul);
        match !self.chosen.is_empty() && made != ranks {
            true => self.reopened(),
            false => self.clone(),
        }
    }

    /// Writes down that of `asked`, whose open keys `self` completes, the planner has chosen those.
    #[must_use]
    pub fn chosen_for(self, asked: &Self) -> Self {
        let chosen = |key: &ParallelKey| key.is_open(asked) && !key.is_open(&self);
        Self {
            chosen: ParallelKey::ALL.into_iter().filter(chosen).collect(),
            asks: false,
            cluster: asked.cluster.clone(),
            ..self
        }
    }
}
