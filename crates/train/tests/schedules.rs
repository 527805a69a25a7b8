//! Step lists executed on rank-threads, whole and mutilated: what hangs is what the static proof says hangs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use mp_comm::{threads, Communicator, OwnedBuffer, Rank, Request, Tag};
use mp_plan::{deadlock, Schedule, ScheduleName, Stages, Step};
use proptest::prelude::*;

/// Tags of the answers that make a send a rendezvous, and of the two ends' sum.
const TAKEN: u16 = 1 << 15;
const SUM: u16 = 1 << 14;

/// One rank on its way through its list.
struct Walker<'a> {
    comm: Arc<dyn Communicator>,
    stages: &'a Stages,
    steps: &'a [Step],
    next: usize,
    /// Answers to sends that have not come yet.
    answers: Vec<Request>,
    /// What the step at hand waits for.
    waits: Option<Request>,
}

fn token() -> OwnedBuffer {
    OwnedBuffer::from(vec![0u8])
}

impl Walker<'_> {
    /// Goes on until it must wait or the list ends; counts the steps.
    fn advance(&mut self) -> usize {
        let before = self.next;
        while self.next <= self.steps.len() && self.step() {
            self.next += 1;
        }
        self.next - before
    }

    fn done(&self) -> bool {
        self.next > self.steps.len()
    }

    /// Does the step at hand, or says that it must wait. Behind the last step lies the wait for all answers.
    fn step(&mut self) -> bool {
        let step = self.steps.get(self.next).copied().unwrap_or(Step::Reduce);
        match step {
            Step::Send { to, .. } => {
                let channel = step.channel().unwrap() as u16;
                drop(self.comm.start_send(token(), Rank(to), Tag(channel)).unwrap());
                self.answers.push(self.comm.start_receive(token(), Rank(to), Tag(channel | TAKEN)).unwrap());
                true
            }
            Step::Receive { from, .. } => {
                let channel = step.channel().unwrap() as u16;
                self.waited(from, Tag(channel)) && {
                    drop(self.comm.start_send(token(), Rank(from), Tag(channel | TAKEN)).unwrap());
                    true
                }
            }
            Step::SumTied => self.sum(),
            Step::Reduce => {
                self.answers.retain_mut(|answer| !answer.is_complete().unwrap());
                self.answers.is_empty()
            }
            _ => true,
        }
    }

    fn sum(&mut self) -> bool {
        let own = self.comm.rank().0;
        let Some((first, last)) = self.stages.tied_ranks() else { return true };
        let other = match own {
            _ if own == first => last,
            _ if own == last => first,
            _ => return true,
        };
        if self.waits.is_none() {
            drop(self.comm.start_send(token(), Rank(other), Tag(SUM)).unwrap());
        }
        self.waited(other, Tag(SUM))
    }

    fn waited(&mut self, from: usize, tag: Tag) -> bool {
        let comm = &self.comm;
        let request = self.waits.get_or_insert_with(|| comm.start_receive(token(), Rank(from), tag).unwrap());
        let complete = request.is_complete().unwrap();
        if complete {
            self.waits = None;
        }
        complete
    }
}

/// Executes the lists; says whether they come to their ends.
///
/// All ranks go as far as they can, then meet. What was sent before a meeting has arrived after it, so a round in which
/// no rank moves is a hang, and no clock is needed to tell.
fn runs(stages: &Stages, lists: &[Vec<Step>]) -> bool {
    let ranks = lists.len();
    let (barrier, moved, done) = (Barrier::new(ranks), AtomicUsize::new(0), AtomicUsize::new(0));
    let ends = threads::try_run(ranks, |comm| {
        let rank = comm.rank().0;
        let mut walker = Walker { comm, stages, steps: &lists[rank], next: 0, answers: Vec::new(), waits: None };
        loop {
            moved.fetch_add(walker.advance(), Ordering::SeqCst);
            barrier.wait();
            done.fetch_add(usize::from(walker.done()), Ordering::SeqCst);
            let any = moved.load(Ordering::SeqCst) > 0;
            barrier.wait();
            let all = done.load(Ordering::SeqCst) == ranks;
            barrier.wait();
            moved.store(0, Ordering::SeqCst);
            done.store(0, Ordering::SeqCst);
            barrier.wait();
            if all || !any {
                return Ok::<_, ()>(all);
            }
        }
    });
    ends.into_iter().all(|end| end.unwrap())
}

/// One change of one rank's list.
#[derive(Debug, Clone, Copy)]
enum Change {
    Drop(usize),
    Swap(usize, usize),
    Repeat(usize, usize),
}

fn changed(mut lists: Vec<Vec<Step>>, rank: usize, change: Change) -> Vec<Vec<Step>> {
    let list = &mut lists[rank];
    let length = list.len();
    let at = |index: usize| index % length;
    match change {
        Change::Drop(index) => drop(list.remove(at(index))),
        Change::Swap(a, b) => list.swap(at(a), at(b)),
        Change::Repeat(from, to) => list.insert(at(to), list[at(from)]),
    }
    lists
}

fn change() -> impl Strategy<Value = Change> {
    let index = 0usize..10_000;
    prop_oneof![
        index.clone().prop_map(Change::Drop),
        (index.clone(), index.clone()).prop_map(|(a, b)| Change::Swap(a, b)),
        (index.clone(), index).prop_map(|(a, b)| Change::Repeat(a, b)),
    ]
}

fn schedule(name: ScheduleName, pp: usize, micro_batches: usize, tied: bool) -> Schedule {
    let micro_batches = if name == ScheduleName::Interleaved { micro_batches * pp } else { micro_batches };
    let chunks = name.default_chunks();
    let stages = Stages::with_layers(pp, chunks, name.folding(), &vec![1; pp * chunks]).unwrap();
    Schedule::new(name, stages, micro_batches, tied).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_hangs_on_threads_is_what_the_proof_flags(
        name in prop::sample::select(ScheduleName::ALL.to_vec()),
        pp in 1usize..5, micro_batches in 1usize..5, tied: bool, rank in 0usize..4, change in change(),
    ) {
        let schedule = schedule(name, pp, micro_batches, tied);
        prop_assert!(runs(&schedule.stages, &schedule.ranks));
        prop_assert!(schedule.check().is_ok());
        let lists = changed(schedule.ranks.clone(), rank % pp, change);
        let proof = deadlock::check(&lists, &schedule.stages);
        let ran = runs(&schedule.stages, &lists);
        prop_assert_eq!(ran, proof.is_ok(), "{:?} on rank {}: {:?}", change, rank % pp, proof);
    }
}
