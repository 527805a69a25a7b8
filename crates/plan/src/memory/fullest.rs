//! How full a rank is while it runs its list: of every computation the most that is alive, beside what is stored.

use super::kept::Kept;
use super::lent::Lent;
use crate::{Candidate, RecomputeName, Stages, Step};

/// What a rank has at its fullest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fullest {
    pub(super) activations: usize,
    pub(super) workspace: usize,
    pub(super) buffers: usize,
}

/// The most in a backward, and what of it is lent by others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Walked {
    bytes: usize,
    lent: usize,
}

/// What one virtual stage keeps of a micro-batch, and takes beside.
#[derive(Debug, Clone, Copy, Default)]
struct Chunk {
    kept: usize,
    put_off: usize,
    /// The most in its forward and backward beyond what was kept before and after the former.
    forward: usize,
    backward: Walked,
    backward_input: usize,
    /// The most in its last backward, and what is lent while the last products that were put off are made.
    last_backward: Walked,
    last_products: usize,
    /// Whether activations come in and go out by messages, or are handed over on this rank.
    receives: bool,
    sends: bool,
}

/// What there is while one layer's backward runs.
#[derive(Debug, Clone, Copy)]
struct Standing {
    /// The layer among those of its rank, from 1.
    place: usize,
    /// What the layers below it keep, and the stage's entrance.
    below: usize,
    /// The most that its own backward has.
    beside: usize,
    /// Gradients that others hold.
    held: usize,
}

/// How many computations of a kind are still to come: forwards, backwards, and products for weights that were put off.
type Left = [usize; 3];

impl Fullest {
    fn total(&self) -> usize {
        self.activations + self.workspace + self.buffers
    }

    /// Returns what is more: this, or so many bytes of buffers when all passes are over.
    pub(super) fn or_ends(self, buffers: usize) -> Self {
        match buffers > self.total() {
            true => Self { buffers, ..Self::default() },
            false => self,
        }
    }
}

impl Kept {
    /// Lists what there is while each layer of a stage runs its backward, the first one first; and what all of them keep.
    fn standing(&self, candidate: &Candidate, stages: &Stages, stage: usize) -> (Vec<Standing>, usize) {
        let layers = stages.layers(stage);
        let (first, last) = (stages.is_first(stage), stages.is_last(stage));
        let earlier = stages.rank_layers(stages.rank_of(stage)).into_iter().take(stages.chunk_of(stage));
        let before: usize = earlier.map(|layers| layers.len()).sum();
        let every =
            if candidate.recompute == RecomputeName::Full { candidate.recompute_every.max(1) } else { usize::MAX };
        let mut below = if first { self.entrance } else { 0 };
        let mut standing = Vec::with_capacity(layers.len());
        for layer in layers.clone() {
            let again = every < usize::MAX && layer.is_multiple_of(every);
            // The gradient that came as a message is held to the end of the walk.
            let message = !last && layer + 1 == layers.end;
            let beside = match (again, message) {
                (true, _) => self.again,
                (false, message) => self.layer + self.plain[usize::from(message)],
            };
            let held = if last || message { 0 } else { self.input };
            standing.push(Standing { place: 1 + before + layer - layers.start, below, beside, held });
            below += if again { self.input } else { self.layer };
        }
        (standing, below)
    }

    /// Counts the most in a stage's backward.
    fn backward(&self, candidate: &Candidate, stages: &Stages, stage: usize, lent: &Lent) -> Walked {
        let (standing, all) = self.standing(candidate, stages, stage);
        let (first, last) = (stages.is_first(stage), stages.is_last(stage));
        let end = if last { 0 } else { self.input };
        let mut most = Walked::default();
        let mut meet = |bytes: usize, lent: usize| most = most.max(Walked { bytes: bytes + lent, lent });
        // As a part ends, its first norm has its input, and the gradients of both its sides.
        let norm = 3 * self.input;
        for Standing { place, below, beside, held } in standing {
            let [begins, ends] = lent.at(place);
            meet(below + beside + held + end, begins);
            meet(below + norm + held + end, ends);
        }
        if last {
            let [begins, ends] = lent.at(1 + rank_layers(stages, stage));
            meet(all + self.exit + self.head, begins);
            meet(all + norm, ends);
        }
        if first {
            meet(self.entrance + 2 * self.input + end, lent.at(0)[1]);
        }
        most
    }

    /// Counts the most in a stage's backward that puts products off; `all` of them are kept in the end.
    fn backward_input(&self, candidate: &Candidate, stages: &Stages, stage: usize, all: usize) -> usize {
        let (standing, below) = self.standing(candidate, stages, stage);
        let end = if stages.is_last(stage) { 0 } else { self.input };
        let mut waiting = all;
        let mut most = if stages.is_last(stage) { below + self.exit + self.head } else { 0 };
        for Standing { below, held, .. } in standing {
            waiting -= self.deferred;
            most = most.max(below + self.layer + self.put_off[0] + held + end + waiting);
        }
        most
    }

    /// `lent`: in any backward, and in the last one.
    fn chunk(&self, candidate: &Candidate, stages: &Stages, stage: usize, lent: [&Lent; 2]) -> Chunk {
        let rank = stages.rank_of(stage);
        let (first, last) = (stages.is_first(stage), stages.is_last(stage));
        let put_off = stages.layers(stage).len() * self.deferred + if last { self.put_off[1] } else { 0 };
        let kept = self.stage(candidate, stages, stage);
        let [backward, last_backward] = lent.map(|lent| self.backward(candidate, stages, stage, lent));
        Chunk {
            kept,
            put_off,
            forward: kept + if last { self.loss_forward } else { 0 },
            backward,
            backward_input: self.backward_input(candidate, stages, stage, put_off),
            last_backward,
            last_products: lent[1].most(),
            receives: !first && stages.rank_of(stage - 1) != rank,
            sends: !last && stages.rank_of(stage + 1) != rank,
        }
    }

    /// Counts the most that a rank has at a time when it computes in this order, beside what it stores. `lent`: what it has of
    /// others in any backward, and in the last one of each virtual stage.
    pub(super) fn fullest(
        &self,
        candidate: &Candidate,
        stages: &Stages,
        rank: usize,
        order: &[Step],
        lent: [&Lent; 2],
    ) -> Fullest {
        let chunk = |chunk: usize| self.chunk(candidate, stages, stages.stage_of(rank, chunk), lent);
        let chunks: Vec<Chunk> = (0..stages.chunks()).map(chunk).collect();
        let mut left: Vec<Left> = vec![[0; 3]; chunks.len()];
        for (chunk, kind) in order.iter().filter_map(kinds) {
            left[chunk][kind] += 1;
        }
        let mut places: usize = chunks.iter().zip(&left).map(|(chunk, left)| places(chunk, left)).sum();
        let (mut live, mut sent, mut fullest) = (0usize, 0usize, Fullest::default());
        for step in order {
            let Some((index, kind)) = kinds(step) else { continue };
            let (chunk, before) = (chunks[index], left[index]);
            left[index][kind] -= 1;
            places -= self::places(&chunk, &before) - self::places(&chunk, &left[index]);
            let buffers = (places + sent) * self.input;
            let now = self.during(&chunk, step, left[index], live);
            let now = Fullest { buffers: now.buffers + buffers, ..now };
            if now.total() > fullest.total() {
                fullest = now;
            }
            match step {
                Step::Forward { .. } => live += chunk.kept,
                Step::BackwardInput { .. } => live = live + chunk.put_off - chunk.kept,
                Step::BackwardWeight { .. } => live -= chunk.put_off,
                _ => live -= chunk.kept,
            }
            // What was sent last is let go at the next send; an activation is alive until its backward anyway.
            sent = match step {
                Step::Backward { .. } | Step::BackwardInput { .. } if chunk.receives => 1,
                Step::Forward { .. } if chunk.sends => 0,
                _ => sent,
            };
        }
        fullest
    }

    /// Counts the most during one computation with `live` bytes of activations before it, messages left out.
    fn during(&self, chunk: &Chunk, step: &Step, left: Left, live: usize) -> Fullest {
        let beside = |most: usize| most.saturating_sub(chunk.kept);
        let (activations, workspace, buffers) = match step {
            Step::Forward { .. } => (live + chunk.kept, beside(chunk.forward), 0),
            Step::Backward { .. } => {
                let Walked { bytes, lent } = if left[1] == 0 { chunk.last_backward } else { chunk.backward };
                // As a part ends, what it kept is gone.
                let own = bytes - lent;
                (live - chunk.kept.saturating_sub(own), beside(own), lent)
            }
            Step::BackwardInput { .. } => (live, beside(chunk.backward_input.max(chunk.put_off + self.input)), 0),
            _ if left[2] == 0 => (live, 0, chunk.last_products),
            _ => (live, 0, 0),
        };
        Fullest { activations, workspace, buffers }
    }
}

/// Counts a stage's places that are ready for messages: one on each way that some are still to come on.
fn places(chunk: &Chunk, left: &Left) -> usize {
    usize::from(chunk.receives && left[0] > 0) + usize::from(chunk.sends && left[1] > 0)
}

fn rank_layers(stages: &Stages, stage: usize) -> usize {
    stages.rank_layers(stages.rank_of(stage)).iter().map(|layers| layers.len()).sum()
}

/// Says which virtual stage computes, and what: a forward (0), a backward (1), or products for weights (2).
fn kinds(step: &Step) -> Option<(usize, usize)> {
    match *step {
        Step::Forward { chunk, .. } => Some((chunk, 0)),
        Step::Backward { chunk, .. } | Step::BackwardInput { chunk, .. } => Some((chunk, 1)),
        Step::BackwardWeight { chunk, .. } => Some((chunk, 2)),
        _ => None,
    }
}
