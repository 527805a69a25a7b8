//! Schedules as data: for each rank of a pipeline the list of steps that it runs, one after the other, to train on the
//! micro-batches of one update.
//!
//! # What an executor promises
//!
//! - Steps of a list run in order.
//! - [`Step::Send`] starts and never blocks. A rank waits for all the sends it has started when it comes to
//!   [`Step::Reduce`], and at the end of its list; a send is over when its message is taken.
//! - [`Step::Receive`] blocks until its message is there. Messages between two ranks on one [channel](Step::channel)
//!   are taken in the order sent, so an executor may start receiving as early as it likes.
//! - Neighbouring stages on one rank hand over in place: no step says so.
//! - [`Step::SumTied`] is a collective of two ranks. [`Step::Reduce`] and [`Step::Update`] may communicate along other
//!   axes, but concern no other rank of the pipeline.
//!
//! # What a schedule promises
//!
//! - [`deadlock`] and [`completeness`] have nothing to say about it.
//! - A forward's output is sent right after it, and the gradient of a stage's input right after the backward that found
//!   it; a message is received right before it is used.
//! - Every stage does its forwards, its input gradients and its weight gradients each in ascending order of
//!   micro-batches. So all schedules add up a gradient in the same order, GPipe's backward too, which is none the worse
//!   for it.
//!
//! Live activations ([`Schedule::peak_live`]) and the idle share ([`simulate`](crate::simulate())) at equal costs of
//! `p` ranks, `m ≥ p` micro-batches and `v` chunks, where `F = B = W` counts for the last two:
//!
//! | schedule | chunks | live chunk-activations of rank `r` | bubble |
//! |---|---|---|---|
//! | [`Gpipe`](ScheduleName::Gpipe) | 1 | `m` | `(p−1)/(m+p−1)` |
//! | [`OneFOneB`](ScheduleName::OneFOneB) | 1 | `p−r` | `(p−1)/(m+p−1)` |
//! | [`Interleaved`](ScheduleName::Interleaved) | `v ≥ 2` | `min(vp+p−1−2r, vm)` | `(p−1)/(vm+p−1)` |
//! | [`ZbH1`](ScheduleName::ZbH1) | 1 | at most `p` | `(p−1)/(3m+p−1)` |
//! | [`ZbV`](ScheduleName::ZbV) | 2 | at most `2p` | `(p−1)/(6m+p−1)` |
//!
//! A chunk's activations are those of `layers / (p·v)` layers: `2p` of ZB-V are as large as `p` of 1F1B.

mod gpipe;
mod interleaved;
mod name;
mod one_f_one_b;
mod step;
pub(crate) mod wiring;
mod zero_bubble;

use serde::{Deserialize, Serialize};

pub use name::ScheduleName;
pub use step::{Payload, Step};

use crate::{completeness, deadlock, Architecture, Error, ParallelConfig, Result, Stages};

/// The most passes of micro-batches through virtual stages in an update: lists of all ranks then have up to two million
/// steps, of some ten megabytes.
const MOST_PASSES: usize = 1 << 18;

/// Refuses an update whose lists would be too long.
///
/// # Errors
/// [`Error::TooManyPasses`].
pub(crate) fn check_passes(stages: usize, micro_batches: usize) -> Result<()> {
    match stages.checked_mul(micro_batches) {
        Some(passes) if passes <= MOST_PASSES => Ok(()),
        _ => Err(Error::TooManyPasses { stages, micro_batches, limit: MOST_PASSES }),
    }
}

/// The steps of every rank of a pipeline for one update.
///
/// # Examples
///
/// ```
/// use mp_plan::{Folding, Payload, Schedule, ScheduleName, Stages, Step};
///
/// let stages = Stages::with_layers(2, 1, Folding::Loop, &[3, 2])?;
/// let schedule = Schedule::new(ScheduleName::OneFOneB, stages, 4, false)?;
/// schedule.check()?;
/// assert_eq!(
///     schedule.ranks[1][..4],
///     [
///         Step::Receive { payload: Payload::Activation, stage: 0, micro_batch: 0, from: 0 },
///         Step::Forward { chunk: 0, micro_batch: 0 },
///         Step::Backward { chunk: 0, micro_batch: 0 },
///         Step::Send { payload: Payload::Gradient, stage: 1, micro_batch: 0, to: 0 },
///     ]
/// );
/// assert_eq!((schedule.peak_live(0), schedule.peak_live(1)), (2, 1));
/// # Ok::<(), mp_plan::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Its name.
    pub name: ScheduleName,
    /// What it runs.
    pub stages: Stages,
    /// The micro-batches of an update.
    pub micro_batches: usize,
    /// Whether embedding and head are one table that is trained.
    pub tied: bool,
    /// The steps by pipeline rank. Lists that were read or changed are to be [checked](Self::check).
    pub ranks: Vec<Vec<Step>>,
}

impl Schedule {
    /// Writes a schedule down.
    ///
    /// # Errors
    /// [`Error::Zero`] without micro-batches; [`Error::Folding`], [`Error::Chunks`] and [`Error::MicroBatches`] if the
    /// schedule cannot run such stages or so many micro-batches, [`Error::TooManyPasses`] if its lists would be too long.
    pub fn new(name: ScheduleName, stages: Stages, micro_batches: usize, tied: bool) -> Result<Self> {
        let orders = Self::orders(name, &stages, micro_batches)?;
        let ranks = orders.iter().enumerate().map(|(rank, order)| wiring::list(&stages, rank, order, tied)).collect();
        Ok(Self { name, stages, micro_batches, tied, ranks })
    }

    /// Lists what each rank computes, in order, without the messages between.
    pub(crate) fn orders(name: ScheduleName, stages: &Stages, micro_batches: usize) -> Result<Vec<Vec<Step>>> {
        name.check_chunks(stages.chunks())?;
        if name.folding() != stages.folding() {
            return Err(Error::Folding { schedule: name, folding: stages.folding() });
        }
        name.check_micro_batches(micro_batches, stages.pp())?;
        check_passes(stages.count(), micro_batches)?;
        Ok(match name {
            ScheduleName::Gpipe => gpipe::orders(stages, micro_batches),
            ScheduleName::OneFOneB => one_f_one_b::orders(stages, micro_batches),
            ScheduleName::Interleaved => interleaved::orders(stages, micro_batches),
            ScheduleName::ZbH1 => zero_bubble::h1(stages, micro_batches),
            ScheduleName::ZbV => zero_bubble::v(stages, micro_batches),
        })
    }

    /// Cuts a model in `pp` stages as a configuration asks and writes its schedule down, choosing where it leaves a
    /// choice: 1F1B, the schedule's own number of chunks, layers by their cost in sequences of `seq`. Of a `frozen` model no
    /// gradients are summed.
    ///
    /// # Errors
    /// As [`Stages::new`] and [`new`](Self::new).
    pub fn resolve(
        config: &ParallelConfig,
        architecture: &Architecture,
        seq: usize,
        pp: usize,
        micro_batches: usize,
        frozen: bool,
    ) -> Result<Self> {
        let name = config.schedule.unwrap_or(ScheduleName::OneFOneB);
        let chunks = if config.chunks == 0 { name.default_chunks() } else { config.chunks };
        // Before the stages, so that the schedule is named and not the folding.
        name.check_chunks(chunks)?;
        let fixed = (!config.split.is_empty()).then_some(config.split.as_slice());
        let stages = Stages::new(architecture, seq, pp, chunks, name.folding(), fixed)?;
        Self::new(name, stages, micro_batches, architecture.tie_embeddings && !frozen)
    }

    /// Proves that every list runs to its end and that together they are one training step.
    ///
    /// # Errors
    /// [`Error::Stuck`] or [`Error::Incomplete`].
    pub fn check(&self) -> Result<()> {
        deadlock::check(&self.ranks, &self.stages)?;
        completeness::check(&self.ranks, &self.stages, self.micro_batches, self.tied)?;
        Ok(())
    }

    /// Counts the most activations that a rank keeps at a time: chunks of micro-batches whose forward is done, and
    /// whose backward, or the last part of it, is not.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn peak_live(&self, rank: usize) -> usize {
        let (mut live, mut peak) = (0_usize, 0);
        for step in &self.ranks[rank] {
            match step {
                Step::Forward { .. } => live += 1,
                // A changed list may have lost its forwards.
                Step::Backward { .. } | Step::BackwardWeight { .. } => live = live.saturating_sub(1),
                _ => {}
            }
            peak = peak.max(live);
        }
        peak
    }
}
