//! Bounds of a step's time from below, for what a search need not estimate in full.

use crate::{
    cost::layer::{Parts, Passes},
    memory::repeated,
    step::Estimator,
    Candidate, Result, Stages,
};

/// What surely holds of a rank of the pipeline.
struct Earliest {
    /// When it is done at the earliest: the first forward has come down to it, and it has computed all.
    end: f64,
    /// How long after that the first rank is done: an undivided backward of the rank's last gradient goes all the way back.
    back: f64,
    /// What it computes for a micro-batch.
    work: f64,
    /// Of that, backward.
    last: f64,
}

impl Estimator<'_> {
    /// Bounds a layout's step from below, cheaply: what its busiest rank computes, and the way there and back.
    pub(crate) fn bound(&self, candidate: &Candidate, loads: &Loads, parts: &Parts) -> f64 {
        self.earliest(candidate, loads, parts).map(|rank| rank.end + rank.back).fold(0.0, f64::max)
    }

    /// Bounds it better: with what ranks then wait for and update.
    pub(crate) fn close_bound(
        &mut self,
        candidate: &Candidate,
        stages: &Stages,
        loads: &Loads,
        parts: &Parts,
    ) -> Result<f64> {
        let earliest: Vec<Earliest> = self.earliest(candidate, loads, parts).collect();
        let home = earliest.iter().map(|rank| rank.end + rank.back).fold(0.0, f64::max);
        let (mut reduced, mut completed, mut updated) = (home, 0.0_f64, 0.0_f64);
        for (rank, known) in earliest.into_iter().enumerate() {
            let (_, elements) = self.memory.stored(candidate, stages, rank)?;
            let end = if rank == 0 { home } else { known.end };
            let micro_batches = candidate.micro_batches(self.job);
            reduced = reduced.max(end + self.reduction(candidate, &elements, known.last, known.work, micro_batches));
            completed = completed.max(self.completion(candidate, &elements).total());
            updated = updated.max(self.update(candidate, &elements));
        }
        let agreed = self.ends_of_table(candidate, stages) + completed + self.agreement(candidate).total();
        Ok(reduced + agreed + updated)
    }

    fn earliest<'a>(
        &self,
        candidate: &Candidate,
        loads: &'a Loads,
        parts: &Parts,
    ) -> impl Iterator<Item = Earliest> + use<'a> {
        let (transfer, waits) = self.messages(candidate, loads.ranks.len());
        let micro_batches = candidate.micro_batches(self.job) as f64;
        let returns = if candidate.schedule.splits_backward() { 0.0 } else { 1.0 };
        let times = Halves::of(parts, waits, self.job.executor.hides_messages);
        let (mut way, mut back) = (0.0, 0.0);
        let rank = move |load: &[Load; 2]| {
            let [(forward, backward), (first, first_back)] = [times.time(&load[0]), times.time(&load[1])];
            let [waits, first_waits] = [times.waits(&load[0]), times.waits(&load[1])];
            let work = forward + backward;
            let all = work + waits[0] + waits[1];
            let known = Earliest { end: micro_batches * all + way, back: returns * back, work, last: backward };
            way += first + first_waits[0] + transfer;
            back += first_back + first_waits[1] + transfer;
            known
        };
        loads.ranks.iter().map(rank)
    }
}

/// What the ranks of a pipeline compute of one micro-batch, whatever that takes.
#[derive(Debug)]
pub(crate) struct Loads {
    /// Of each rank all, and its first stage.
    ranks: Vec<[Load; 2]>,
}

/// How often the parts of a model are computed.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    stages: usize,
    /// Of these, stages that receive messages from another rank, forward and backward.
    receive: [usize; 2],
    layers: usize,
    again: usize,
    entrances: usize,
    exits: usize,
}

impl Loads {
    /// Counts for the stages of a layout.
    pub(crate) fn of(candidate: &Candidate, stages: &Stages) -> Self {
        let rank = |rank: usize| {
            let mut all = Load::default();
            (0..stages.chunks()).for_each(|chunk| all.add(candidate, stages, stages.stage_of(rank, chunk)));
            let mut first = Load::default();
            first.add(candidate, stages, stages.stage_of(rank, 0));
            [all, first]
        };
        Self { ranks: (0..stages.pp()).map(rank).collect() }
    }
}

impl Load {
    fn add(&mut self, candidate: &Candidate, stages: &Stages, stage: usize) {
        let layers = stages.layers(stage);
        self.stages += 1;
        let [forward, backward] = stages.receives(stage).map(usize::from);
        self.receive = [self.receive[0] + forward, self.receive[1] + backward];
        self.layers += layers.len();
        self.again += repeated(candidate, &layers);
        self.entrances += usize::from(stages.is_first(stage));
        self.exits += usize::from(stages.is_last(stage));
    }
}

/// What the parts of a model take, forward and backward, and what a message takes of a rank's own time.
struct Halves {
    waits: f64,
    hides: bool,
    layer: (f64, f64),
    again: f64,
    entrance: (f64, f64),
    exit: (f64, f64),
}

impl Halves {
    fn of(parts: &Parts, waits: f64, hides: bool) -> Self {
        let halves = |passes: &Passes| (passes.forward.total(), passes.input.total() + passes.weight.total());
        let (layer, entrance, exit) = (halves(&parts.layer), halves(&parts.entrance), halves(&parts.exit));
        Self { waits, hides, layer, again: parts.again.total(), entrance, exit }
    }

    /// Times what is waited for, forward and backward.
    fn waits(&self, load: &Load) -> [f64; 2] {
        let messages = if self.hides { load.receive } else { [load.stages; 2] };
        messages.map(|count| count as f64 * self.waits)
    }

    /// Times what is computed, forward and backward.
    fn time(&self, load: &Load) -> (f64, f64) {
        let Load { layers, again, entrances, exits, .. } = *load;
        let half = |part: fn(&(f64, f64)) -> f64| {
            layers as f64 * part(&self.layer)
                + entrances as f64 * part(&self.entrance)
                + exits as f64 * part(&self.exit)
        };
        (half(|both| both.0), half(|both| both.1) + again as f64 * self.again)
    }
}
