//! One rank's shards of consecutive layers: what a training rank allocates and runs of them, with groups of absent peers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mp_comm::absent::Absent;
use mp_comm::{Communicator, Rank};
use mp_data::Batch;
use mp_model::context::{Context, Form};
use mp_model::parameter::Sharing;
use mp_model::pass::DropoutKey;
use mp_model::recompute::Recompute;
use mp_model::regions::{Between, TensorGroup};
use mp_model::{build, Goal, Model, Options, Parameters, Pass};
use mp_plan::{
    Candidate, ContextForm, Degrees, Job, Mesh, Partition, RecomputeName, Schedule, StageCosts, Step, Trial,
};
use mp_runtime::flat::Flat;
use mp_runtime::kernels::norm::sum_of_squares;

use super::Bench;
use crate::assembled::Assembled;
use crate::finished::finished;
use crate::groups::Groups;
use crate::optimizer::{optimizer, Optimizer};
use crate::pipeline::{Flight, MicroBatch};
use crate::reduce::clip;
use crate::times::Waits;
use crate::Result;

/// The bound of the matrices' elements. Which they are does not matter, but that they are no zeros and no giants.
const BOUND: f64 = 0.02;

/// One rank's shards, with what runs and updates them.
pub(super) struct Shard {
    model: Model,
    optimizer: Box<dyn Optimizer>,
    groups: Groups,
    context: Context,
    between: Between,
    schedule: Schedule,
    batch: Batch,
    seed: u64,
    lr: f64,
    clip_norm: f64,
    /// Updates made.
    updates: u64,
}

impl Shard {
    /// Allocates the shards and fills them.
    pub(super) fn build(bench: &Bench<'_>, trial: Trial) -> Result<Self> {
        let Bench { config, job, candidate, device } = *bench;
        let schedule = trial.schedule(job, candidate)?;
        let (stages, rank) = (&schedule.stages, trial.rank());
        let mesh = Mesh::new(Degrees { pp: stages.pp(), ..candidate.degrees() })?;
        let partition = Partition::new(&trial.architecture(&job.architecture), &mesh)?.of_rank(stages, rank);
        let groups = groups(candidate, &schedule, rank);
        let bucket_bytes = job.bucket_elements * job.precision.state_bytes();
        let sharing = Sharing { data: Arc::clone(&groups.data), zero: candidate.zero, bucket_bytes };
        let precision = config.train.precision.backend();
        let parameters = Parameters::zeros(&Arc::new(partition), 0, sharing, precision, device)?;
        fill(&parameters, config.train.seed)?;
        let optimizer = optimizer(&config.optimizer, &parameters)?;
        let form = match job.context {
            ContextForm::Ring => Form::Ring,
            ContextForm::AllToAll => Form::AllToAll,
        };
        let context = Context { comm: Arc::clone(&groups.cp), form };
        let between = if candidate.sequence_parallel { Between::SequenceSharded } else { Between::Replicated };
        let options = Options { context: context.clone(), recompute: recompute(candidate) };
        let group = TensorGroup { comm: Arc::clone(&groups.tp), between };
        let model = build(parameters, group, &stages.rank_layers(rank), &options)?;
        Ok(Self {
            model,
            optimizer,
            groups,
            context,
            between,
            schedule,
            batch: batch(job, candidate.micro_batch),
            seed: config.train.seed,
            lr: config.optimizer.lr,
            clip_norm: config.train.clip_norm,
            updates: 0,
        })
    }

    /// Counts the elements that an update changes.
    pub(super) fn owned_elements(&self) -> usize {
        self.model.parameters().owned().iter().map(|range| range.len()).sum()
    }

    /// Runs everything once, so that memory is there and code is loaded; returns how long it took.
    pub(super) fn warm_up(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.pass()?;
        self.update()?;
        Ok(begun.elapsed())
    }

    /// Runs one micro-batch, as the engine does.
    pub(super) fn pass(&mut self) -> Result<StageCosts> {
        let parameters = self.model.parameters();
        let steps = &self.schedule.ranks[self.groups.pp.rank().0];
        let assembled = Assembled {
            groups: &self.groups,
            model: &self.model,
            stages: &self.schedule.stages,
            context: &self.context,
            between: self.between,
        };
        parameters.begin_step(1)?;
        let own = assembled.own(&self.batch)?;
        let share = 1.0 / self.batch.targets.len() as f64;
        let dropout = Some(DropoutKey { seed: self.seed, step: self.updates + 1 });
        let micro_batch = MicroBatch {
            pass: Pass { dropout, ..own.pass() },
            goal: Goal { targets: &own.targets, share, sentences: own.labels.as_ref().map(|labels| (labels, 1.0)) },
            shape: assembled.activation_shape(self.batch.batch, own.positions.count()),
        };
        let mut flight = Flight::new(assembled.line(), &self.model, vec![micro_batch], steps)?;
        let mut costs = StageCosts { forward: 0.0, backward_input: 0.0, backward_weight: 0.0 };
        for &step in steps {
            match (step, &self.groups.ends) {
                (Step::SumTied, Some(ends)) => parameters.sum_tied(&**ends)?,
                (Step::SumTied | Step::Reduce | Step::Update, _) => {}
                (pass, _) => {
                    let begun = Instant::now();
                    flight.run(pass)?;
                    finished(parameters.device())?;
                    let seconds = begun.elapsed().as_secs_f64();
                    match pass {
                        _ if pass.computes().is_none() => {}
                        Step::Forward { .. } => costs.forward += seconds,
                        Step::BackwardWeight { .. } => costs.backward_weight += seconds,
                        _ => costs.backward_input += seconds,
                    }
                }
            }
        }
        flight.land()?;
        parameters.finish_reduction()?;
        Ok(costs)
    }

    /// Measures, clips and applies the gradients, and clears them; returns the seconds that this took.
    pub(super) fn update(&mut self) -> Result<f64> {
        let begun = Instant::now();
        let parameters = self.model.parameters();
        self.updates += 1;
        let mut squares = 0.0;
        for range in parameters.owned() {
            squares += sum_of_squares(&parameters.gradients().range(range)?)?;
        }
        // As in most steps of a run's beginning, whatever the norm of these gradients.
        clip(parameters, squares.sqrt().max(2.0 * self.clip_norm), self.clip_norm)?;
        self.optimizer.update(parameters, self.updates, self.lr)?;
        // What other ranks own comes from them.
        if parameters.masters().all().kind() != parameters.compute_kind() {
            for range in parameters.owned() {
                let mut values = parameters.values().range(range.clone())?;
                values.f_copy_(&parameters.masters().range(range)?).map_err(mp_runtime::Error::from)?;
            }
        }
        parameters.begin_step(1)?;
        finished(parameters.device())?;
        Ok(begun.elapsed().as_secs_f64())
    }
}

/// Makes the groups of one rank, tensor rank 0, whose shards are never padded.
fn groups(candidate: &Candidate, schedule: &Schedule, rank: usize) -> Groups {
    let absent = |name: &str, rank: usize, size: usize| -> Arc<dyn Communicator> {
        Arc::new(Absent::new(name, Rank(rank), size))
    };
    let stages = &schedule.stages;
    let ends = stages.tied_ranks().filter(|&(first, last)| rank == first || rank == last);
    Groups {
        world: absent("world", 0, candidate.ranks()),
        tp: absent("tp", 0, candidate.tp),
        dp: absent("dp", 0, candidate.dp),
        cp: absent("cp", 0, candidate.cp),
        data: absent("data", 0, candidate.data()),
        pp: absent("pp", rank, stages.pp()),
        ends: ends.map(|(first, _)| absent("ends", usize::from(rank != first), 2)),
        waits: Waits::default(),
    }
}

/// Fills matrices with small numbers and vectors with what they begin with: drawing each by its place would take longer than
/// all trials.
fn fill(parameters: &Parameters, seed: u64) -> Result<()> {
    let uniform = |flat: &Flat| -> Result<()> {
        let mut all = flat.all().shallow_clone();
        let _ = all.f_uniform_(-BOUND, BOUND).map_err(mp_runtime::Error::from)?;
        Ok(())
    };
    uniform(parameters.values())?;
    uniform(parameters.masters())?;
    Ok(parameters.draw(seed, |spec| !spec.decays)?)
}

/// Makes sequences of tokens from all over the vocabulary.
fn batch(job: &Job, sequences: usize) -> Batch {
    let (count, vocab) = (sequences * job.seq, job.architecture.vocab);
    let tokens = |offset: usize| (0..count).map(|place| ((place * 7919 + offset) % vocab) as i64).collect();
    Batch {
        tokens: tokens(0),
        targets: tokens(1),
        segments: job.within_documents.then(|| vec![0; count]),
        positions: None,
        token_types: None,
        labels: job.architecture.next_sentence.then(|| vec![0; sequences]),
        numbers: (0..sequences as u64).collect(),
        batch: sequences,
        seq: job.seq,
    }
}

fn recompute(candidate: &Candidate) -> Recompute {
    match candidate.recompute {
        RecomputeName::None => Recompute::None,
        RecomputeName::Selective => Recompute::Selective,
        RecomputeName::Full => Recompute::Full { every: candidate.recompute_every.max(1) },
    }
}
