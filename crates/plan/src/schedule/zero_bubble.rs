//! The zero-bubble schedules, found by running the pipeline on paper.
//!
//! Backward is split: the input's gradient, which the stage before waits for, and the weights' gradients, which nobody
//! waits for and which fill the time that a rank would otherwise wait. Which fills what is not written down but played
//! out: every computation takes one beat, a message none, and on each beat every rank does the first of its wishes that
//! it can: whose input has arrived on an earlier beat and, for a forward, whose activations it may keep. The two
//! schedules are two lists of wishes with two limits. The play is deterministic, and what it leaves is the order alone,
//! so unequal costs stretch it but change nothing in it.
//!
//! In beats, as tests confirm, ZB-H1 takes `max(3m + p − 1, 2m + 2p − 1)`, and ZB-V takes
//! `max(6m + p − 1, 4m + 3p − 1, 2m + 4p − 1)`. For `m ≥ p` the first of these counts, and no order could be faster: the
//! last rank starts on beat `p − 1` at the earliest, and then is busy to the end. With fewer micro-batches the way
//! through all stages and back counts: a lone micro-batch passes ZB-V's `2p` stages twice before the last weight
//! gradient.

use super::Step;
use crate::Stages;

/// What can be wished for: of which kind, on which chunk.
type Wish = (Kind, usize);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Forward,
    Input,
    Weight,
}
use Kind::{Forward, Input, Weight};

/// ZB-H1: rank `r` has no more than `p − r` micro-batches under way to their input gradient, as in 1F1B; weight
/// gradients may make it keep `p`, which is what rank 0 keeps in 1F1B.
pub(super) fn h1(stages: &Stages, micro_batches: usize) -> Vec<Vec<Step>> {
    let pp = stages.pp();
    Play::new(stages, micro_batches).run(
        |_| &[(Forward, 0), (Input, 0), (Weight, 0)],
        |rank, _, done| done.live() < pp && done.forwards[0] - done.inputs[0] < pp - rank,
    )
}

/// ZB-V: a rank keeps up to `2p` chunks, one of which is reserved for the upper half of the V, lest the lower take all
/// and nothing could go on.
///
/// As long as micro-batches enter, weight gradients come before the upper input gradients, since what they free lets the
/// next micro-batch in; then the way back has priority. Of all orders of these wishes that were tried, this one takes the
/// time above everywhere; others take a beat more for some `p` and `m`.
pub(super) fn v(stages: &Stages, micro_batches: usize) -> Vec<Vec<Step>> {
    let pp = stages.pp();
    Play::new(stages, micro_batches).run(
        |done| match done.forwards[0] < micro_batches {
            true => &[(Forward, 1), (Forward, 0), (Input, 0), (Weight, 1), (Weight, 0), (Input, 1)],
            false => &[(Forward, 1), (Input, 1), (Input, 0), (Weight, 1), (Weight, 0)],
        },
        |_, chunk, done| done.live() < 2 * pp - usize::from(chunk == 0),
    )
}

/// How many micro-batches of each chunk a rank has done.
#[derive(Clone, Default)]
struct Done {
    forwards: [usize; 2],
    inputs: [usize; 2],
    weights: [usize; 2],
}

impl Done {
    fn count(&self, (kind, chunk): Wish) -> usize {
        match kind {
            Forward => self.forwards[chunk],
            Input => self.inputs[chunk],
            Weight => self.weights[chunk],
        }
    }

    fn add(&mut self, (kind, chunk): Wish) {
        match kind {
            Forward => self.forwards[chunk] += 1,
            Input => self.inputs[chunk] += 1,
            Weight => self.weights[chunk] += 1,
        }
    }

    /// Counts the activations that a rank keeps.
    fn live(&self) -> usize {
        self.forwards.iter().sum::<usize>() - self.weights.iter().sum::<usize>()
    }
}

/// The pipeline on paper, at the start of a beat.
struct Play<'a> {
    stages: &'a Stages,
    micro_batches: usize,
    ranks: Vec<Done>,
    orders: Vec<Vec<Step>>,
}

impl<'a> Play<'a> {
    fn new(stages: &'a Stages, micro_batches: usize) -> Self {
        let pp = stages.pp();
        Self { stages, micro_batches, ranks: vec![Done::default(); pp], orders: vec![Vec::new(); pp] }
    }

    /// Plays until everything is done.
    fn run(
        mut self,
        wishes: impl Fn(&Done) -> &'static [Wish],
        may_keep: impl Fn(usize, usize, &Done) -> bool,
    ) -> Vec<Vec<Step>> {
        let mut left = 3 * self.stages.count() * self.micro_batches;
        while left > 0 {
            let granted = |rank: usize| {
                let done = &self.ranks[rank];
                wishes(done)
                    .iter()
                    .copied()
                    .find(|&wish| self.is_ready(rank, wish) && (wish.0 != Forward || may_keep(rank, wish.1, done)))
            };
            // All choose by what was done before this beat.
            let beat: Vec<Option<Wish>> = (0..self.stages.pp()).map(granted).collect();
            let busy = beat.iter().flatten().count();
            assert!(busy > 0, "{} ranks, {} micro-batches: none can go on", self.stages.pp(), self.micro_batches);
            left -= busy;
            for (rank, wish) in beat.into_iter().enumerate() {
                self.record(rank, wish);
            }
        }
        self.orders
    }

    /// Returns whether a rank's next computation of a kind exists and has its input.
    fn is_ready(&self, rank: usize, (kind, chunk): Wish) -> bool {
        let own = &self.ranks[rank];
        let next = own.count((kind, chunk));
        let stage = self.stages.stage_of(rank, chunk);
        // A neighbour's count is its number of micro-batches passed on.
        let passed = |kind, stage| {
            let (rank, chunk) = (self.stages.rank_of(stage), self.stages.chunk_of(stage));
            self.ranks[rank].count((kind, chunk)) > next
        };
        next < self.micro_batches
            && match kind {
                Forward => self.stages.is_first(stage) || passed(Forward, stage - 1),
                Input => own.forwards[chunk] > next && (self.stages.is_last(stage) || passed(Input, stage + 1)),
                Weight => own.inputs[chunk] > next,
            }
    }

    fn record(&mut self, rank: usize, wish: Option<Wish>) {
        let Some((kind, chunk)) = wish else { return };
        let micro_batch = self.ranks[rank].count((kind, chunk));
        self.ranks[rank].add((kind, chunk));
        self.orders[rank].push(match kind {
            Forward => Step::Forward { chunk, micro_batch },
            Input => Step::BackwardInput { chunk, micro_batch },
            Weight => Step::BackwardWeight { chunk, micro_batch },
        });
    }
}
