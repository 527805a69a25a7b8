//! The static checks against a reference interpreter: on schedules as written, and on schedules with steps dropped,
//! swapped and repeated.
//!
//! What the checks promise, and what is tested here:
//!
//! - `deadlock` refuses lists if and only if the interpreter hangs, and the ranks it names are where they hang;
//! - of the single mutations that do not hang, `completeness` accepts exactly those whose outcome is that of the
//!   schedule: every stage's losses and gradients the same, added up in the same order, everything done before each
//!   closing step. A swap of steps that do not depend on each other is such a mutation, and no other is;
//! - of several mutations at once, those that change the outcome are refused.

mod interpreter;

use interpreter::run;
use mp_plan::{
    completeness, deadlock, Error, Folding, Incomplete, Payload, Schedule, ScheduleName, Stages, Step, Stuck,
};
use proptest::prelude::*;

fn schedule(name: ScheduleName, pp: usize, chunks: usize, micro_batches: usize, tied: bool) -> Schedule {
    let stages = Stages::with_layers(pp, chunks, name.folding(), &vec![1; pp * chunks]).unwrap();
    Schedule::new(name, stages, micro_batches, tied).unwrap()
}

/// All schedules of up to `most` ranks and micro-batches.
fn schedules(most: usize) -> impl Strategy<Value = Schedule> {
    let names = proptest::sample::select(ScheduleName::ALL.to_vec());
    (names, 1..=most, 2..=3_usize, 1..=most, any::<bool>()).prop_map(|(name, pp, chunks, micro_batches, tied)| {
        match name {
            ScheduleName::Interleaved => schedule(name, pp, chunks, micro_batches.next_multiple_of(pp), tied),
            _ => schedule(name, pp, name.default_chunks(), micro_batches, tied),
        }
    })
}

#[derive(Debug, Clone, Copy)]
enum Mutation {
    Drop(usize),
    Swap(usize, usize),
    /// A copy of the first step goes before the second, or to the end.
    Repeat(usize, usize),
}

fn mutate(list: &mut Vec<Step>, mutation: Mutation) {
    match mutation {
        Mutation::Drop(index) => drop(list.remove(index)),
        Mutation::Swap(one, other) => list.swap(one, other),
        Mutation::Repeat(index, at) => list.insert(at, list[index]),
    }
}

/// A rank, a kind of mutation and two places, whatever the length of the list.
fn mutations() -> impl Strategy<Value = (proptest::sample::Index, u8, [proptest::sample::Index; 2])> {
    (any::<proptest::sample::Index>(), 0..4_u8, [any::<proptest::sample::Index>(), any::<proptest::sample::Index>()])
}

/// Compares `deadlock` with the interpreter, and returns the outcome of lists that do not hang.
fn check_hang(lists: &[Vec<Step>], stages: &Stages) -> Option<Vec<interpreter::Outcome>> {
    let run = run(lists, stages);
    match deadlock::check(lists, stages) {
        Ok(()) => assert!(!run.hangs(), "not flagged: {:?}", run.stuck),
        Err(stuck) => {
            assert!(run.hangs(), "flagged, and runs: {stuck}");
            for (k, link) in stuck.links.iter().enumerate() {
                assert_eq!(run.stuck[link.waits.rank], Some(link.waits.index), "{stuck}");
                let next = &stuck.links[(k + 1) % stuck.links.len()];
                assert!(!stuck.circle || link.awaits.rank == next.waits.rank, "{stuck}");
                assert!(!stuck.circle || link.awaits.index >= next.waits.index, "{stuck}");
            }
        }
    }
    (!run.hangs()).then_some(run.outcome)
}

/// What became of a mutation.
#[derive(Debug, PartialEq)]
enum Fate {
    Hangs,
    Changes,
    Nothing,
}

/// Checks one mutation of a schedule against the interpreter.
fn check_single(schedule: &Schedule, outcome: &[interpreter::Outcome], rank: usize, mutation: Mutation) -> Fate {
    let Schedule { stages, micro_batches, tied, .. } = schedule;
    let mut lists = schedule.ranks.clone();
    mutate(&mut lists[rank], mutation);
    let Some(changed) = check_hang(&lists, stages) else { return Fate::Hangs };
    let complete = completeness::check(&lists, stages, *micro_batches, *tied);
    assert_eq!(complete.is_ok(), changed == outcome, "{} rank {rank} {mutation:?}: {complete:?}", schedule.name);
    if complete.is_ok() {
        Fate::Nothing
    } else {
        Fate::Changes
    }
}

/// All mutations of a list: every step dropped, every pair swapped, every step repeated everywhere.
fn all_mutations(length: usize) -> Vec<Mutation> {
    let drops = (0..length).map(Mutation::Drop);
    let swaps = (0..length).flat_map(|one| (one + 1..length).map(move |other| Mutation::Swap(one, other)));
    let repeats = (0..length).flat_map(|index| (0..=length).map(move |at| Mutation::Repeat(index, at)));
    drops.chain(swaps).chain(repeats).collect()
}

#[test]
fn every_mutation_of_small_schedules_is_judged_as_it_runs() {
    for name in ScheduleName::ALL {
        for (pp, micro_batches) in [(1, 2), (2, 2), (3, 3)] {
            let schedule = schedule(name, pp, name.default_chunks(), micro_batches, true);
            let outcome = run(&schedule.ranks, &schedule.stages).outcome;
            let mut fates = [0; 3];
            for (rank, list) in schedule.ranks.iter().enumerate() {
                for mutation in all_mutations(list.len()) {
                    let fate = check_single(&schedule, &outcome, rank, mutation);
                    fates[fate as usize] += 1;
                    let drops_or_repeats = !matches!(mutation, Mutation::Swap(..));
                    assert!(!drops_or_repeats || fate_is_seen(&schedule, rank, mutation), "{name} {mutation:?}");
                }
            }
            // One rank alone has nobody to wait for.
            assert_eq!(fates[0] > 0, pp > 1, "{name}: {fates:?}");
            assert!(fates[1] > 0, "{name}: {fates:?}");
        }
    }
}

/// Returns whether either check refuses: dropped and repeated steps never commute.
fn fate_is_seen(schedule: &Schedule, rank: usize, mutation: Mutation) -> bool {
    let mut changed = schedule.clone();
    mutate(&mut changed.ranks[rank], mutation);
    changed.check().is_err()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn schedules_run_and_are_complete(schedule in schedules(9)) {
        prop_assert_eq!(schedule.check(), Ok(()));
        prop_assert!(check_hang(&schedule.ranks, &schedule.stages).is_some());
    }

    #[test]
    fn single_mutations_are_judged_as_they_run(schedule in schedules(5), (rank, kind, [one, other]) in mutations()) {
        let outcome = run(&schedule.ranks, &schedule.stages).outcome;
        let rank = rank.index(schedule.ranks.len());
        let mutation = pick(&schedule.ranks[rank], kind, one, other);
        check_single(&schedule, &outcome, rank, mutation);
    }

    #[test]
    fn several_mutations_are_judged_as_they_run(
        schedule in schedules(4),
        several in proptest::collection::vec(mutations(), 2..4),
    ) {
        let outcome = run(&schedule.ranks, &schedule.stages).outcome;
        let mut lists = schedule.ranks.clone();
        for (rank, kind, [one, other]) in several {
            let list = &mut lists[rank.index(schedule.ranks.len())];
            let mutation = pick(list, kind, one, other);
            mutate(list, mutation);
        }
        if let Some(changed) = check_hang(&lists, &schedule.stages) {
            let complete = completeness::check(&lists, &schedule.stages, schedule.micro_batches, schedule.tied);
            prop_assert!(changed == outcome || complete.is_err());
        }
    }

    #[test]
    fn all_schedules_of_the_same_stages_compute_the_same(pp in 1..6_usize, micro_batches in 1..8_usize) {
        let [gpipe, one_f_one_b, h1] = [ScheduleName::Gpipe, ScheduleName::OneFOneB, ScheduleName::ZbH1]
            .map(|name| schedule(name, pp, 1, micro_batches, true))
            .map(|schedule| run(&schedule.ranks, &schedule.stages).outcome);
        prop_assert_eq!(&gpipe, &one_f_one_b);
        prop_assert_eq!(&gpipe, &h1);
    }
}

fn pick(list: &[Step], kind: u8, one: proptest::sample::Index, other: proptest::sample::Index) -> Mutation {
    let length = list.len();
    match kind {
        0 => Mutation::Drop(one.index(length)),
        1 => Mutation::Repeat(one.index(length), other.index(length + 1)),
        2 => Mutation::Swap(one.index(length), other.index(length)),
        // Neighbours most often commute.
        _ => Mutation::Swap(one.index(length - 1), one.index(length - 1) + 1),
    }
}

/// Two ranks that each receive before they send.
fn polite() -> Schedule {
    let mut schedule = schedule(ScheduleName::OneFOneB, 2, 1, 2, true);
    // Rank 0 wants the gradient of micro-batch 0 before it has sent its output.
    let list = &mut schedule.ranks[0];
    let receive = list.iter().position(|step| matches!(step, Step::Receive { .. })).unwrap();
    list.swap(1, receive);
    schedule
}

#[test]
fn a_circle_is_printed_with_ranks_steps_and_layers() {
    let Err(Error::Stuck(stuck)) = polite().check() else { panic!("no deadlock") };
    assert!(stuck.circle);
    assert_eq!(
        stuck.to_string(),
        "ranks wait for each other:\n  rank 0 at step 1 (receive of the input gradient of stage 1 (layers 1..2) for \
         micro-batch 0 from rank 1) waits for rank 1 at step 3 (send of the input gradient of stage 1 (layers 1..2) for \
         micro-batch 0 to rank 0)\n  rank 1 at step 0 (receive of the output of stage 0 (layers 0..1) for micro-batch 0 \
         from rank 0) waits for rank 0 at step 3 (send of the output of stage 0 (layers 0..1) for micro-batch 1 to rank 1)"
    );
}

#[test]
fn lone_ranks_are_printed_with_what_they_miss() {
    let whole = schedule(ScheduleName::OneFOneB, 2, 1, 1, true);
    let without = |rank: usize, unwanted: fn(&Step) -> bool| -> Stuck {
        let mut lists = whole.ranks.clone();
        lists[rank].retain(|step| !unwanted(step));
        let stuck = deadlock::check(&lists, &whole.stages).unwrap_err();
        assert!(!stuck.circle);
        stuck
    };
    assert_eq!(
        without(0, |step| matches!(step, Step::Send { .. })).to_string(),
        "rank 1 at step 0 (receive of the output of stage 0 (layers 0..1) for micro-batch 0 from rank 0) waits for what \
         rank 0 never sends"
    );
    assert_eq!(
        without(0, |step| matches!(step, Step::Receive { .. })).to_string(),
        "rank 1 at step 5 (reduce) waits for step 3 (send of the input gradient of stage 1 (layers 1..2) for micro-batch 0 \
         to rank 0), which rank 0 never takes"
    );
    assert_eq!(
        without(0, |step| *step == Step::SumTied).to_string(),
        "rank 1 at step 4 (sum of the tied table's gradient) waits for the other rank of the tied table, which never comes \
         to it"
    );
}

#[test]
fn an_endless_wait_needs_no_reduce() {
    let stages = Stages::with_layers(2, 1, Folding::Loop, &[1, 1]).unwrap();
    let send = Step::Send { payload: Payload::Activation, stage: 0, micro_batch: 0, to: 1 };
    let stuck = deadlock::check(&[vec![send], vec![]], &stages).unwrap_err();
    assert_eq!(
        stuck.to_string(),
        "rank 0 at step 1 (its end) waits for step 0 (send of the output of stage 0 (layers 0..1) for micro-batch 0 to \
         rank 1), which rank 1 never takes"
    );
}

#[test]
fn steps_that_do_not_exist_are_no_panic() {
    let stages = Stages::with_layers(2, 1, Folding::Loop, &[1, 1]).unwrap();
    let strange = [
        Step::Forward { chunk: 7, micro_batch: 0 },
        Step::Backward { chunk: 0, micro_batch: 9 },
        Step::Send { payload: Payload::Gradient, stage: 8, micro_batch: 0, to: 5 },
        Step::Receive { payload: Payload::Activation, stage: 8, micro_batch: 0, from: 5 },
    ];
    for step in strange {
        let mut schedule = schedule(ScheduleName::Gpipe, 2, 1, 1, false);
        schedule.ranks[0].insert(0, step);
        let error = completeness::check(&schedule.ranks, &stages, 1, false).unwrap_err();
        assert!(matches!(error, Incomplete::Unexpected { rank: 0, index: 0, .. }), "{error}");
        let hangs = matches!(step, Step::Send { .. } | Step::Receive { .. });
        assert_eq!(deadlock::check(&schedule.ranks, &stages).is_err(), hangs);
    }
    let error = completeness::check(&[], &stages, 1, false).unwrap_err();
    assert_eq!(error.to_string(), "0 step lists for 2 pipeline ranks");
}

#[test]
fn a_message_taken_for_another_is_named() {
    let mut schedule = schedule(ScheduleName::Gpipe, 2, 1, 2, false);
    // Both receives first, in the wrong order.
    let receive = |micro_batch| Step::Receive { payload: Payload::Activation, stage: 0, micro_batch, from: 0 };
    schedule.ranks[1].retain(|step| *step != receive(0) && *step != receive(1));
    schedule.ranks[1].splice(0..0, [receive(1), receive(0)]);
    assert_eq!(deadlock::check(&schedule.ranks, &schedule.stages), Ok(()));
    assert_eq!(
        schedule.check().unwrap_err().to_string(),
        "message 0 from rank 0 to rank 1 on channel 0 is sent for micro-batch 0 and received for micro-batch 1"
    );
}
