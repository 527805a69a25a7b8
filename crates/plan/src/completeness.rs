//! A static check that step lists are one training step: everything once, nothing else, and each thing after what it
//! needs.
//!
//! Lists may order as they please what does not depend on each other: a receive may stand anywhere before its use, a
//! send anywhere between the computation and [`Step::Reduce`], and computations of different stages of a rank may
//! change places. What is fixed, so that two lists that pass train the same numbers bit for bit:
//!
//! - each stage does each micro-batch's forward once, and its backward once, or its input and then its weight gradient;
//! - forwards, input gradients and weight gradients of a stage each ascend by micro-batch, since losses and gradients
//!   are added up in that order;
//! - a computation comes after the receive of its input, or after the neighbour's computation where its own rank holds
//!   the neighbour; a send after the computation;
//! - a channel's k-th message is of the same micro-batch for sender and receiver;
//! - the tied table's gradients are summed once, after the last weight gradient of the stages that hold it;
//! - [`Step::Reduce`] comes after all that, [`Step::Update`] last, both once.
//!
//! Whether the lists run to their end is the matter of [`crate::deadlock`].

use std::collections::HashMap;

use crate::{
    schedule::wiring::{closing, incoming, outgoing},
    Stages, Step,
};

/// Why step lists are no training step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Incomplete {
    /// Lists for another number of ranks.
    #[error("{lists} step lists for {pp} pipeline ranks")]
    Lists {
        /// The number of lists.
        lists: usize,
        /// The pipeline degree.
        pp: usize,
    },

    /// A step that must be there.
    #[error("rank {rank} lacks a step: {text}")]
    Missing {
        /// The rank.
        rank: usize,
        /// The step.
        step: Step,
        /// The step in words.
        text: String,
    },

    /// A step that is there twice.
    #[error("rank {rank} repeats step {first} at step {index}: {text}")]
    Repeated {
        /// The rank.
        rank: usize,
        /// Where the step is first.
        first: usize,
        /// Where it is again.
        index: usize,
        /// The step in words.
        text: String,
    },

    /// A step that is no part of the work.
    #[error("rank {rank} has no use for step {index}: {text}")]
    Unexpected {
        /// The rank.
        rank: usize,
        /// Its place in the list.
        index: usize,
        /// The step in words.
        text: String,
    },

    /// A step before another that it depends on.
    #[error("rank {rank} does step {index} ({text}) before step {needs} ({needs_text}), which it depends on")]
    Order {
        /// The rank.
        rank: usize,
        /// The step that comes too early.
        index: usize,
        /// The step in words.
        text: String,
        /// The step that should come first.
        needs: usize,
        /// That step in words.
        needs_text: String,
    },

    /// A message taken for another.
    #[error(
        "message {nth} from rank {from} to rank {to} on channel {channel} is sent for micro-batch {sent} and received \
         for micro-batch {received}"
    )]
    Identity {
        /// The sending rank.
        from: usize,
        /// The receiving rank.
        to: usize,
        /// The channel.
        channel: usize,
        /// The message's number on the channel.
        nth: usize,
        /// The sender's micro-batch.
        sent: usize,
        /// The receiver's micro-batch.
        received: usize,
    },
}

/// Checks that lists are one training step on `micro_batches`, with a table that is both embedding and head if `tied`.
///
/// # Errors
/// [`Incomplete`], which names the first step that is wrong.
///
/// # Examples
///
/// ```
/// use mp_plan::{completeness, Folding, Schedule, ScheduleName, Stages};
///
/// let stages = Stages::with_layers(2, 1, Folding::Loop, &[3, 2])?;
/// let mut schedule = Schedule::new(ScheduleName::Gpipe, stages, 2, false)?;
/// schedule.ranks[0].pop();
/// let error = completeness::check(&schedule.ranks, &schedule.stages, 2, false).unwrap_err();
/// assert_eq!(error.to_string(), "rank 0 lacks a step: update");
/// # Ok::<(), mp_plan::Error>(())
/// ```
pub fn check(lists: &[Vec<Step>], stages: &Stages, micro_batches: usize, tied: bool) -> Result<(), Incomplete> {
    if lists.len() != stages.pp() {
        return Err(Incomplete::Lists { lists: lists.len(), pp: stages.pp() });
    }
    for (rank, list) in lists.iter().enumerate() {
        let list = List::read(rank, list, stages)?;
        list.check_parts(micro_batches, tied)?;
        list.check_order(micro_batches)?;
    }
    check_identity(lists)
}

/// A rank's list, with the place of each step.
struct List<'a> {
    rank: usize,
    steps: &'a [Step],
    stages: &'a Stages,
    places: HashMap<Step, usize>,
}

impl<'a> List<'a> {
    fn read(rank: usize, steps: &'a [Step], stages: &'a Stages) -> Result<Self, Incomplete> {
        let mut places = HashMap::with_capacity(steps.len());
        for (index, &step) in steps.iter().enumerate() {
            if let Some(first) = places.insert(step, index) {
                return Err(Incomplete::Repeated { rank, first, index, text: step.describe(rank, stages) });
            }
        }
        Ok(Self { rank, steps, stages, places })
    }

    /// Compares with the steps that the rank must do: none may be missing, none in excess.
    fn check_parts(&self, micro_batches: usize, tied: bool) -> Result<(), Incomplete> {
        let &Self { rank, stages, .. } = self;
        let computations = (0..stages.chunks())
            .flat_map(|chunk| (0..micro_batches).flat_map(move |micro_batch| self.computations(chunk, micro_batch)));
        let around = |step| [incoming(stages, rank, step), Some(step), outgoing(stages, rank, step)];
        let all = computations.flat_map(around).flatten().chain(closing(stages, rank, tied));
        let mut wanted = vec![false; self.steps.len()];
        for step in all {
            let Some(&index) = self.places.get(&step) else {
                return Err(Incomplete::Missing { rank, step, text: step.describe(rank, stages) });
            };
            wanted[index] = true;
        }
        match wanted.iter().position(|&wanted| !wanted) {
            None => Ok(()),
            Some(index) => Err(Incomplete::Unexpected { rank, index, text: self.text(index) }),
        }
    }

    /// Lists what one of the rank's stages does with a micro-batch: with a split backward if there is any part of one.
    fn computations(&self, chunk: usize, micro_batch: usize) -> Vec<Step> {
        let forward = Step::Forward { chunk, micro_batch };
        let parts = [Step::BackwardInput { chunk, micro_batch }, Step::BackwardWeight { chunk, micro_batch }];
        if parts.iter().any(|part| self.places.contains_key(part)) {
            vec![forward, parts[0], parts[1]]
        } else {
            vec![forward, Step::Backward { chunk, micro_batch }]
        }
    }

    fn check_order(&self, micro_batches: usize) -> Result<(), Incomplete> {
        let &Self { rank, stages, .. } = self;
        for chunk in 0..stages.chunks() {
            for micro_batch in 0..micro_batches {
                for step in self.computations(chunk, micro_batch) {
                    for needed in self.needs(step, chunk, micro_batch) {
                        self.check_after(step, needed)?;
                    }
                    if let Some(send) = outgoing(stages, rank, step) {
                        self.check_after(send, step)?;
                    }
                }
            }
        }
        self.check_closing(micro_batches)
    }

    /// Lists the steps of this rank that a computation must come after.
    fn needs(&self, step: Step, chunk: usize, micro_batch: usize) -> Vec<Step> {
        let &Self { rank, stages, .. } = self;
        let stage = stages.stage_of(rank, chunk);
        let local = |stage: usize| (stages.rank_of(stage) == rank).then(|| stages.chunk_of(stage));
        let mut needs: Vec<Step> = incoming(stages, rank, step).into_iter().collect();
        match step {
            Step::Forward { .. } => {
                let before = stage.checked_sub(1).and_then(local);
                needs.extend(before.map(|chunk| Step::Forward { chunk, micro_batch }));
                needs.extend(micro_batch.checked_sub(1).map(|micro_batch| Step::Forward { chunk, micro_batch }));
            }
            Step::Backward { .. } | Step::BackwardInput { .. } => {
                needs.push(Step::Forward { chunk, micro_batch });
                let after = if stages.is_last(stage) { None } else { local(stage + 1) };
                needs.extend(after.map(|chunk| self.input_gradient(chunk, micro_batch)));
                needs.extend(micro_batch.checked_sub(1).map(|before| self.input_gradient(chunk, before)));
                if matches!(step, Step::Backward { .. }) {
                    needs.extend(micro_batch.checked_sub(1).map(|before| self.weight_gradient(chunk, before)));
                }
            }
            _ => {
                needs.push(Step::BackwardInput { chunk, micro_batch });
                needs.extend(micro_batch.checked_sub(1).map(|before| self.weight_gradient(chunk, before)));
            }
        }
        needs
    }

    /// Returns the step that finds the gradient of a stage's input.
    fn input_gradient(&self, chunk: usize, micro_batch: usize) -> Step {
        self.whole_or(Step::BackwardInput { chunk, micro_batch }, chunk, micro_batch)
    }

    /// Returns the step that finds the gradients of a stage's weights.
    fn weight_gradient(&self, chunk: usize, micro_batch: usize) -> Step {
        self.whole_or(Step::BackwardWeight { chunk, micro_batch }, chunk, micro_batch)
    }

    fn whole_or(&self, part: Step, chunk: usize, micro_batch: usize) -> Step {
        let whole = Step::Backward { chunk, micro_batch };
        if self.places.contains_key(&whole) {
            whole
        } else {
            part
        }
    }

    fn check_closing(&self, micro_batches: usize) -> Result<(), Incomplete> {
        let &Self { rank, stages, .. } = self;
        if self.places.contains_key(&Step::SumTied) {
            for chunk in 0..stages.chunks() {
                let stage = stages.stage_of(rank, chunk);
                if stages.is_first(stage) || stages.is_last(stage) {
                    // They ascend, so the last one is the last.
                    self.check_after(Step::SumTied, self.weight_gradient(chunk, micro_batches - 1))?;
                }
            }
        }
        for &step in self.steps.iter().filter(|step| !matches!(step, Step::Reduce | Step::Update)) {
            self.check_after(Step::Reduce, step)?;
        }
        self.check_after(Step::Update, Step::Reduce)
    }

    fn check_after(&self, step: Step, needed: Step) -> Result<(), Incomplete> {
        let (index, needs) = (self.places[&step], self.places[&needed]);
        if needs < index {
            return Ok(());
        }
        let (text, needs_text) = (self.text(index), self.text(needs));
        Err(Incomplete::Order { rank: self.rank, index, text, needs, needs_text })
    }

    fn text(&self, index: usize) -> String {
        self.steps[index].describe(self.rank, self.stages)
    }
}

/// Checks that messages are received for the micro-batches for which they were sent.
fn check_identity(lists: &[Vec<Step>]) -> Result<(), Incomplete> {
    let mut sent: HashMap<(usize, usize, usize), Vec<usize>> = HashMap::new();
    for (from, list) in lists.iter().enumerate() {
        for step in list {
            if let (&Step::Send { micro_batch, to, .. }, Some(channel)) = (step, step.channel()) {
                sent.entry((from, to, channel)).or_default().push(micro_batch);
            }
        }
    }
    let mut taken: HashMap<(usize, usize, usize), usize> = HashMap::new();
    for (to, list) in lists.iter().enumerate() {
        for step in list {
            let (&Step::Receive { micro_batch: received, from, .. }, Some(channel)) = (step, step.channel()) else {
                continue;
            };
            let count = taken.entry((from, to, channel)).or_default();
            let nth = std::mem::replace(count, *count + 1);
            // Both sides have all messages, or a step would have been missing.
            let sent = sent[&(from, to, channel)][nth];
            if sent != received {
                return Err(Incomplete::Identity { from, to, channel, nth, sent, received });
            }
        }
    }
    Ok(())
}
