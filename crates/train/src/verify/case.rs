//! One layout to verify: its degrees and options.

use mp_model::regions::Between;
use mp_plan::{ContextForm, Degrees, ParallelConfig, RecomputeName, ScheduleName, Switch, Zero};

use crate::layout::Layout;
use crate::{Config, Result};

/// A layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Tensor degree.
    pub tp: usize,
    /// Pipeline degree.
    pub pp: usize,
    /// Data degree.
    pub dp: usize,
    /// Context degree.
    pub cp: usize,
    /// How attention reaches other context ranks' positions.
    pub context: ContextForm,
    /// The order of forwards and backwards.
    pub schedule: ScheduleName,
    /// Virtual stages of each pipeline rank; 0: the fewest that the schedule runs.
    pub chunks: usize,
    /// Whether the stages hold layers in the proportions of the configuration's `parallel.split`; otherwise by cost.
    pub split: bool,
    /// What the data ranks share out.
    pub zero: Zero,
    /// Whether activations between the tensor-parallel regions are cut along the sequence.
    pub sequence_parallel: bool,
    /// What the backward computes again.
    pub recompute: RecomputeName,
    /// With full recompute, every how many-th layer; otherwise 0.
    pub recompute_every: usize,
    /// Micro-batches of each data rank in a step.
    pub micro_batches: usize,
}

impl Default for Case {
    /// Returns one rank, without a choice.
    fn default() -> Self {
        Self {
            tp: 1,
            pp: 1,
            dp: 1,
            cp: 1,
            context: ContextForm::Ring,
            schedule: ScheduleName::OneFOneB,
            chunks: 0,
            split: false,
            zero: Zero::Replicated,
            sequence_parallel: false,
            recompute: RecomputeName::None,
            recompute_every: 0,
            micro_batches: 1,
        }
    }
}

impl Case {
    /// Returns how many ranks it takes.
    pub fn ranks(&self) -> usize {
        [self.tp, self.pp, self.dp, self.cp].into_iter().fold(1, usize::saturating_mul)
    }

    /// Returns how many virtual stages it cuts the model in.
    pub(super) fn stages(&self) -> usize {
        let chunks = if self.chunks == 0 { self.schedule.default_chunks() } else { self.chunks };
        self.pp.saturating_mul(chunks)
    }

    /// Returns the number of micro-batches where nobody says: enough that gradients are accumulated, and that a pipeline
    /// reaches its steady state.
    pub fn default_micro_batches(pp: usize) -> usize {
        2 * pp
    }

    /// Returns the layout that a configuration trains under on `ranks` ranks, with no more micro-batches than show what there
    /// is to be seen.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub(super) fn configured(config: &Config, vocab: usize, ranks: usize) -> Result<Self> {
        let layout = Layout::new(config, vocab, ranks)?;
        let Degrees { pp, dp, cp, tp, .. } = layout.partition.mesh.degrees();
        let (schedule, chunks) = (layout.schedule.name, layout.schedule.stages.chunks());
        let (recompute, recompute_every) = mp_plan::recompute(&config.parallel)?;
        Ok(Self {
            tp,
            pp,
            dp,
            cp,
            context: config.parallel.context,
            schedule,
            chunks: if chunks == schedule.default_chunks() { 0 } else { chunks },
            split: pp > 1 && !config.parallel.split.is_empty(),
            zero: layout.zero,
            sequence_parallel: layout.between == Between::SequenceSharded,
            recompute,
            recompute_every,
            // Where a schedule takes them in groups of stages, both are multiples.
            micro_batches: layout.batches.micro_batches().min(Self::default_micro_batches(pp)),
        })
    }

    /// Writes the layout as a configuration has it, for a global batch that its micro-batches divide; `split` gives the
    /// layers of each stage, where the layout is split as the configuration is.
    pub(super) fn parallel(&self, global_batch: usize, bucket_bytes: usize, split: &[usize]) -> ParallelConfig {
        ParallelConfig {
            tp: self.tp,
            pp: self.pp,
            dp: self.dp,
            cp: self.cp,
            sequence_parallel: Switch::Set(self.sequence_parallel),
            micro_batch: global_batch / (self.dp * self.micro_batches),
            zero: Switch::Set(self.zero),
            bucket_bytes,
            context: self.context,
            recompute: Switch::Set(self.recompute),
            recompute_every: self.recompute_every,
            schedule: Switch::Set(self.schedule),
            chunks: self.chunks,
            split: if self.split { split.to_vec() } else { Vec::new() },
            ..ParallelConfig::default()
        }
    }

    /// Returns what distinguishes the layout: its mesh, then one value for each option.
    pub(super) fn factors(&self) -> [String; 7] {
        [
            format!("tp{} pp{} dp{} cp{}", self.tp, self.pp, self.dp, self.cp),
            self.schedule.name().into(),
            format!("zero{}", self.zero),
            format!("sp {}", self.sequence_parallel),
            format!("{:?}", self.context),
            format!("{:?} {}", self.recompute, self.recompute_every),
            format!("accumulates {}", self.micro_batches > 1),
        ]
    }
}
