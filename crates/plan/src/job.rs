//! What is to be trained, and one way of laying it out: what [`crate::memory`] and [`crate::cost`] put numbers to.

use serde::{Deserialize, Serialize};

use crate::{
    check_all_to_all, check_effect, check_sequence, check_zero,
    degrees::{check_tensor, refuse_uncut},
    schedule::check_passes,
    stages::check_stages,
    Architecture, Axis, ContextForm, Degrees, Error, Mesh, ParallelConfig, Precision, RecomputeName, Result,
    ScheduleName, Sequences, Stages, Storage, Switch, Zero,
};

/// The most sequences of a step: so many still have numbers of 31 bits.
const MOST_SEQUENCES: f64 = i32::MAX as f64;
/// The most bytes that are counted: a quarter of what counts hold, for sums of several.
const MOST_BYTES: f64 = (1_u64 << 62) as f64;

/// A model and how it is trained, whatever the layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The model.
    pub architecture: Architecture,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Sequences of a step.
    pub global_batch: usize,
    /// The numbers that it computes with.
    pub precision: Precision,
    /// Moments that the optimizer keeps of each element: 2 for AdamW.
    pub moments: usize,
    /// Elements of gradients that are reduced together.
    pub bucket_elements: usize,
    /// How attention reaches the positions of other context ranks.
    pub context: ContextForm,
    /// Whether attention stays within each of the documents that lie in one sequence.
    pub within_documents: bool,
    /// Layers of each virtual stage, where they are dealt out by hand; empty: by cost.
    #[serde(default)]
    pub split: Vec<usize>,
    /// The program that runs it.
    pub executor: Executor,
}

/// How a program runs a layout: what it sends, and what it computes behind what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Executor {
    /// Whether of an activation that every tensor rank holds each sends its part to the next stage, where it is gathered:
    /// Narayanan et al. 2021, arXiv:2104.04473, §4.1. Else each sends all of it.
    pub scatters: bool,
    /// Whether messages between stages travel while ranks compute, as far as the machine moves them by itself
    /// ([`Efficiency::overlap`](crate::cluster::Efficiency::overlap)). Else both sides wait for each.
    pub hides_messages: bool,
    /// Whether the collective of an input's gradient travels behind the product for the weight's.
    pub hides_tensor: bool,
    /// Whether gradients are reduced behind the backward.
    pub hides_data: bool,
}

impl Executor {
    /// This workspace's engine.
    pub const ENGINE: Self = Self { scatters: false, hides_messages: true, hides_tensor: true, hides_data: true };
    /// What Narayanan et al. 2021 ran.
    pub const MEGATRON_2021: Self =
        Self { scatters: true, hides_messages: false, hides_tensor: false, hides_data: false };
    /// What Korthikanti et al. 2022 ran.
    pub const MEGATRON_2022: Self = Self { hides_tensor: true, ..Self::MEGATRON_2021 };
}

/// One way of laying a job out over ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Candidate {
    /// Tensor degree.
    pub tp: usize,
    /// Pipeline degree.
    pub pp: usize,
    /// Data degree.
    pub dp: usize,
    /// Context degree.
    pub cp: usize,
    /// Expert degree.
    pub ep: usize,
    /// Virtual stages of each pipeline rank.
    pub chunks: usize,
    /// The order of forwards and backwards.
    pub schedule: ScheduleName,
    /// Sequences of a micro-batch.
    pub micro_batch: usize,
    /// What the data ranks share out.
    pub zero: Zero,
    /// What the backward computes again.
    pub recompute: RecomputeName,
    /// With full recompute: every how many-th layer; else 0.
    pub recompute_every: usize,
    /// Whether activations between tensor-parallel regions are cut along the sequence.
    pub sequence_parallel: bool,
}

impl Default for Candidate {
    /// Returns the layout of one rank.
    fn default() -> Self {
        Self {
            tp: 1,
            pp: 1,
            dp: 1,
            cp: 1,
            ep: 1,
            chunks: 1,
            schedule: ScheduleName::OneFOneB,
            micro_batch: 1,
            zero: Zero::Replicated,
            recompute: RecomputeName::None,
            recompute_every: 0,
            sequence_parallel: false,
        }
    }
}

impl Job {
    /// Returns what is kept of each element.
    pub fn storage(&self) -> Storage {
        Storage { precision: self.precision, moments: self.moments }
    }

    /// Checks that such a training can be counted.
    ///
    /// # Errors
    /// As [`Architecture::check`]; [`Error::Zero`] and [`Error::SequenceTooLong`] for sequences that cannot be,
    /// [`Error::TooLarge`] for too many, or for activations of a step that no count of bytes holds.
    ///
    /// # Examples
    ///
    /// ```
    /// use mp_plan::{published, Job};
    ///
    /// let job = published::rows()[0].job()?;
    /// assert_eq!(job.check(), Ok(()));
    /// let error = Job { global_batch: 9_000_000_000, ..job }.check().unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "train.global_batch: 9e9 is more than the 2.147483647e9 that can be planned; lower it"
    /// );
    /// # Ok::<(), mp_plan::Error>(())
    /// ```
    pub fn check(&self) -> Result<()> {
        self.architecture.check()?;
        for (what, size) in [("train.seq", self.seq), ("train.global_batch", self.global_batch)] {
            if size == 0 {
                return Err(Error::Zero { what });
            }
        }
        if self.seq > self.architecture.max_seq {
            return Err(Error::SequenceTooLong { seq: self.seq, max_seq: self.architecture.max_seq });
        }
        let most = [
            ("train.global_batch", self.global_batch as f64, MOST_SEQUENCES),
            ("bytes of a step's activations (train.global_batch, train.seq, model)", self.most_bytes(), MOST_BYTES),
        ];
        match most.into_iter().find(|(_, value, limit)| value > limit) {
            Some((what, value, limit)) => Err(Error::TooLarge { what, value, limit }),
            None => Ok(()),
        }
    }

    /// Bounds from above what all layers keep of a whole step and what is alive beside that, in floating point, so that it
    /// cannot overflow.
    fn most_bytes(&self) -> f64 {
        let architecture = &self.architecture;
        let [layers, hidden, heads, head_dim, ffn, vocab, max_seq] = [
            architecture.layers,
            architecture.hidden,
            architecture.heads,
            architecture.head_dim,
            architecture.ffn,
            architecture.vocab,
            architecture.max_seq,
        ]
        .map(|size| size as f64);
        let (widths, scores) = (hidden + heads * head_dim, heads * self.seq as f64);
        let kept = 8.0 * widths + 5.0 * ffn + if self.stores_attention() { 4.0 * scores } else { 0.0 };
        let beside = 40.0 * widths + 16.0 * ffn + 8.0 * scores + 8.0 * vocab;
        let numbers = self.step_tokens() * (layers * kept + beside) + max_seq * head_dim;
        // The widest are of 64 bits.
        8.0 * numbers
    }

    /// Counts the tokens of a step.
    pub fn step_tokens(&self) -> f64 {
        self.global_batch as f64 * self.seq as f64
    }

    /// Says whether attention keeps all its weights, as it does where some of them are dropped: the fused kernel knows no
    /// dropout.
    pub fn stores_attention(&self) -> bool {
        self.architecture.dropout > 0.0
    }
}

impl Candidate {
    /// Counts the ranks.
    pub fn ranks(&self) -> usize {
        self.tp * self.pp * self.dp * self.cp
    }

    /// Returns the degree of the plane over which gradients are reduced.
    pub fn data(&self) -> usize {
        self.dp * self.cp
    }

    /// Counts the micro-batches of a step.
    pub fn micro_batches(&self, job: &Job) -> usize {
        job.global_batch / (self.dp * self.micro_batch)
    }

    /// Counts the tokens of a micro-batch that a rank computes on.
    pub fn tokens(&self, job: &Job) -> usize {
        self.micro_batch * job.seq / self.cp
    }

    /// Returns how many parts activations between tensor-parallel regions are cut in.
    pub fn sequence_parts(&self) -> usize {
        if self.sequence_parallel {
            self.tp
        } else {
            1
        }
    }

    /// Returns the degrees.
    pub fn degrees(&self) -> Degrees {
        Degrees { pp: self.pp, dp: self.dp, cp: self.cp, tp: self.tp, ep: self.ep }
    }

    /// Returns the ranks by axis.
    ///
    /// # Errors
    /// As [`Mesh::new`].
    pub fn mesh(&self) -> Result<Mesh> {
        Mesh::new(self.degrees())
    }

    /// Cuts the layers, as the job deals them out.
    ///
    /// # Errors
    /// As [`Stages::new`].
    pub fn stages(&self, job: &Job) -> Result<Stages> {
        let fixed = (!job.split.is_empty()).then_some(job.split.as_slice());
        Stages::new(&job.architecture, job.seq, self.pp, self.chunks, self.schedule.folding(), fixed)
    }

    /// Refuses what the engine refuses, with the engine's own checks.
    ///
    /// # Errors
    /// Those of [`Job::check`], [`Mesh::new`], [`check_tensor`], [`check_sequence`], [`check_all_to_all`], [`check_zero`],
    /// [`Stages::new`] and [`Schedule::new`](crate::Schedule::new); [`Error::Batch`] for micro-batches that do not come out
    /// even.
    pub fn check(&self, job: &Job) -> Result<()> {
        job.check()?;
        let mesh = self.mesh()?;
        refuse_uncut(&mesh.degrees())?;
        check_tensor(&job.architecture, self.tp)?;
        check_sequence(job.seq, self.cp, self.sequence_parts())?;
        if self.cp > 1 && job.context == ContextForm::AllToAll {
            check_all_to_all(job.architecture.heads, job.architecture.kv_heads, self.tp, self.cp)?;
        }
        let whole = self.dp.checked_mul(self.micro_batch).filter(|&piece| piece > 0);
        if !whole.is_some_and(|piece| job.global_batch > 0 && job.global_batch.is_multiple_of(piece)) {
            let (dp, micro_batch) = (self.dp, self.micro_batch);
            return Err(Error::Batch { global_batch: job.global_batch, dp, micro_batch });
        }
        check_zero(self.zero, &mesh)?;
        self.schedule.check_chunks(self.chunks)?;
        self.schedule.check_micro_batches(self.micro_batches(job), self.pp)?;
        let stages = check_stages(job.architecture.layers, self.pp, self.chunks)?;
        check_passes(stages, self.micro_batches(job))?;
        if !job.split.is_empty() {
            self.stages(job)?;
        }
        crate::recompute(&self.parallel(job)).map(drop)
    }

    /// Refuses options that would change nothing, as training does.
    ///
    /// # Errors
    /// As [`check_effect`].
    pub fn check_effect(&self, job: &Job) -> Result<()> {
        self.check_effect_in(job, &ParallelConfig::default())
    }

    /// The same of the layout as it stands in a configuration that fixes some options.
    pub(crate) fn check_effect_in(&self, job: &Job, asked: &ParallelConfig) -> Result<()> {
        let sequences = Sequences { seq: job.seq, within_documents: job.within_documents };
        check_effect(&self.complete(job, asked), &self.mesh()?, &job.architecture, sequences)
    }

    /// Completes a configuration: what it leaves to choose is as this layout has it.
    pub fn complete(&self, job: &Job, asked: &ParallelConfig) -> ParallelConfig {
        let own = self.parallel(job);
        let set = |asked: usize, own: usize| if asked > 0 { asked } else { own };
        ParallelConfig {
            sequence_parallel: asked.sequence_parallel.or(own.sequence_parallel),
            recompute: asked.recompute.or(own.recompute),
            recompute_every: set(asked.recompute_every, own.recompute_every),
            zero: asked.zero.or(own.zero),
            bucket_bytes: asked.bucket_bytes,
            chunks: set(asked.chunks, own.chunks),
            schedule: asked.schedule.or(own.schedule),
            transport: asked.transport,
            ..own
        }
    }

    /// Writes the layout as a run's configuration has it. What has no effect is left to its default.
    pub fn parallel(&self, job: &Job) -> ParallelConfig {
        let piped = self.pp > 1;
        ParallelConfig {
            tp: self.tp,
            pp: self.pp,
            dp: self.dp,
            cp: self.cp,
            sequence_parallel: if self.tp > 1 { Switch::Set(self.sequence_parallel) } else { Switch::Auto },
            micro_batch: self.micro_batch,
            recompute: match self.recompute {
                RecomputeName::None => Switch::Auto,
                chosen => Switch::Set(chosen),
            },
            recompute_every: if self.recompute_every > 1 { self.recompute_every } else { 0 },
            zero: if self.data() > 1 { Switch::Set(self.zero) } else { Switch::Auto },
            context: job.context,
            chunks: if piped && self.chunks > 1 { self.chunks } else { 0 },
            schedule: if piped { Switch::Set(self.schedule) } else { Switch::Auto },
            split: job.split.clone(),
            ..ParallelConfig::default()
        }
    }

    /// Returns the degree of an axis, and how many ranks of each of its groups surely share a node of `devices`: all, where
    /// no group can lie across a boundary; else the fewest that one leaves on a side of it.
    pub(crate) fn neighbours(&self, axis: Axis, devices: usize) -> (usize, usize) {
        let (stride, degree) = match axis {
            Axis::Tp => (1, self.tp),
            Axis::Cp | Axis::Ep => (self.tp, self.cp),
            // Gradients are reduced over the plane of both.
            Axis::Dp => (self.tp, self.dp * self.cp),
            Axis::Pp => (self.tp * self.cp * self.dp, self.pp),
        };
        let neighbours = match devices.is_multiple_of(stride) {
            _ if self.ranks() <= devices => degree,
            // Groups start at multiples of their extent, nodes at multiples of theirs.
            true => common_divisor(degree, devices / stride),
            false => 1,
        };
        (degree, neighbours)
    }
}

/// Returns the greatest number that divides both.
fn common_divisor(one: usize, other: usize) -> usize {
    match other {
        0 => one,
        _ => common_divisor(other, one % other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts, group by group and node by node, the fewest ranks of a group that share a node.
    fn counted(candidate: &Candidate, axis: Axis, devices: usize) -> usize {
        let (tp, cp, dp, pp) = (candidate.tp, candidate.cp, candidate.dp, candidate.pp);
        let (stride, degree) = match axis {
            Axis::Tp => (1, tp),
            Axis::Cp | Axis::Ep => (tp, cp),
            Axis::Dp => (tp, cp * dp),
            Axis::Pp => (tp * cp * dp, pp),
        };
        let starts = (0..candidate.ranks()).filter(|rank| rank / stride % degree == 0);
        let fewest = |start: usize| {
            let nodes: Vec<usize> = (0..degree).map(|place| (start + place * stride) / devices).collect();
            nodes.iter().map(|node| nodes.iter().filter(|other| *other == node).count()).min().unwrap()
        };
        starts.map(fewest).min().unwrap()
    }

    #[test]
    fn neighbours_are_the_fewest_of_any_group() {
        for (tp, cp, dp, pp) in [
            (3, 1, 8, 1),
            (1, 1, 12, 2),
            (2, 2, 3, 2),
            (4, 2, 2, 2),
            (8, 1, 3, 1),
            (1, 3, 1, 8),
            (16, 1, 2, 1),
            (6, 1, 1, 1),
        ] {
            let candidate = Candidate { tp, cp, dp, pp, ..Candidate::default() };
            for axis in [Axis::Tp, Axis::Cp, Axis::Dp, Axis::Pp] {
                let (degree, neighbours) = candidate.neighbours(axis, 8);
                let counted = counted(&candidate, axis, 8);
                // Never more than there are; and all only where no group is cut.
                assert!(neighbours <= counted, "{candidate:?} {axis:?}: {neighbours}, {counted}");
                assert_eq!(neighbours == degree, counted == degree, "{candidate:?} {axis:?}");
            }
        }
        let whole = Candidate { tp: 3, dp: 8, ..Candidate::default() };
        assert_eq!(whole.neighbours(Axis::Tp, 8), (3, 1), "6 and 7 are on one node, 8 is on the next");
        assert_eq!(Candidate { dp: 12, pp: 2, ..Candidate::default() }.neighbours(Axis::Dp, 8), (12, 4));
    }
}
