//! Schedules: bubbles and live activations against closed forms, the order of micro-batches, and what is refused.

use mp_plan::{
    simulate, Architecture, Costs, Folding, ModelConfig, ParallelConfig, Payload, Schedule, ScheduleName, StageCosts,
    Stages, Step, Switch, Timeline,
};
use proptest::prelude::*;

fn schedule(name: ScheduleName, pp: usize, chunks: usize, micro_batches: usize) -> Schedule {
    let stages = Stages::with_layers(pp, chunks, name.folding(), &vec![1; pp * chunks]).unwrap();
    Schedule::new(name, stages, micro_batches, false).unwrap()
}

/// Runs with equal stages; whole numbers, so that times are exact.
fn timed(schedule: &Schedule, [forward, backward_input, backward_weight]: [u32; 3]) -> Timeline {
    let [forward, backward_input, backward_weight] = [forward, backward_input, backward_weight].map(f64::from);
    simulate(schedule, &Costs::equal(schedule.stages.count(), StageCosts { forward, backward_input, backward_weight }))
}

/// Checks the time of the whole and, from the work that is in it, the bubble.
fn assert_times(schedule: &Schedule, costs: [u32; 3], seconds: usize) -> Result<(), TestCaseError> {
    let timeline = timed(schedule, costs);
    prop_assert_eq!(timeline.seconds, seconds as f64, "{} {:?}", schedule.name, schedule.stages);
    let work = schedule.stages.chunks() * schedule.micro_batches * costs.iter().sum::<u32>() as usize;
    let bubble = (seconds - work) as f64 / seconds as f64;
    // Two roundings of numbers below 1.
    prop_assert!((timeline.bubble - bubble).abs() <= 2.0 * f64::EPSILON);
    Ok(())
}

fn costs() -> impl Strategy<Value = [u32; 3]> {
    [1..9_u32, 1..9_u32, 1..9_u32]
}

proptest! {
    #[test]
    fn gpipe_and_1f1b_idle_p_less_one_of_m_and_p_less_one(p in 1..9_usize, m in 1..20_usize, costs in costs()) {
        let whole = costs.iter().sum::<u32>() as usize;
        assert_times(&schedule(ScheduleName::Gpipe, p, 1, m), costs, (m + p - 1) * whole)?;
        assert_times(&schedule(ScheduleName::OneFOneB, p, 1, m), costs, (m + p - 1) * whole)?;
    }

    #[test]
    fn interleaving_divides_the_bubble_by_the_chunks(
        p in 1..7_usize, v in 2..5_usize, groups in 1..5_usize, costs in costs(),
    ) {
        let whole = costs.iter().sum::<u32>() as usize;
        let m = groups * p;
        assert_times(&schedule(ScheduleName::Interleaved, p, v, m), costs, (v * m + p - 1) * whole)?;
    }

    #[test]
    fn zb_h1_idles_a_third(p in 1..11_usize, m in 1..30_usize, unit in 1..9_u32) {
        // Fewer micro-batches than ranks leave the way through the pipeline and back to be waited for.
        let beats = (3 * m + p - 1).max(2 * m + 2 * p - 1);
        assert_times(&schedule(ScheduleName::ZbH1, p, 1, m), [unit; 3], beats * unit as usize)?;
    }

    #[test]
    fn zb_v_idles_a_sixth(p in 1..13_usize, m in 1..40_usize, unit in 1..9_u32) {
        let beats = (6 * m + p - 1).max(4 * m + 3 * p - 1).max(2 * m + 4 * p - 1);
        assert_times(&schedule(ScheduleName::ZbV, p, 2, m), [unit; 3], beats * unit as usize)?;
    }

    #[test]
    fn live_activations_are_those_of_the_papers(p in 1..9_usize, m in 1..20_usize, v in 2..5_usize) {
        for rank in 0..p {
            let live = |name, chunks, m| schedule(name, p, chunks, m).peak_live(rank);
            prop_assert_eq!(live(ScheduleName::Gpipe, 1, m), m);
            prop_assert_eq!(live(ScheduleName::OneFOneB, 1, m), m.min(p - rank));
            let multiple = m.next_multiple_of(p);
            let warm_up_and_one = (v - 1) * p + 2 * (p - 1 - rank) + 1;
            prop_assert_eq!(live(ScheduleName::Interleaved, v, multiple), warm_up_and_one.min(v * multiple));
            // The dearest rank of 1F1B keeps p.
            prop_assert!(live(ScheduleName::ZbH1, 1, m) <= m.min(p));
            // Chunks of half the layers, so as large as p of 1F1B.
            prop_assert!(live(ScheduleName::ZbV, 2, m) <= (2 * m).min(2 * p));
        }
    }

    #[test]
    fn zero_bubble_orders_use_their_memory_and_no_more(p in 1..9_usize, more in 0..20_usize) {
        let (h1, v) = (schedule(ScheduleName::ZbH1, p, 1, p + more), schedule(ScheduleName::ZbV, p, 2, p + more));
        prop_assert_eq!(h1.peak_live(0), p);
        prop_assert_eq!(v.peak_live(0), 2 * p);
    }

    #[test]
    fn stages_take_micro_batches_in_ascending_order(p in 1..6_usize, m in 1..10_usize) {
        for name in ScheduleName::ALL {
            let m = if name == ScheduleName::Interleaved { m.next_multiple_of(p) } else { m };
            let schedule = schedule(name, p, name.default_chunks(), m);
            let chunks = 0..name.default_chunks();
            for (list, chunk) in schedule.ranks.iter().flat_map(|list| chunks.clone().map(move |chunk| (list, chunk))) {
                let kinds: [fn(&Step) -> bool; 3] = [
                    |step| matches!(step, Step::Forward { .. }),
                    |step| matches!(step, Step::Backward { .. } | Step::BackwardInput { .. }),
                    |step| matches!(step, Step::Backward { .. } | Step::BackwardWeight { .. }),
                ];
                for is_kind in kinds {
                    let order: Vec<usize> = list
                        .iter()
                        .filter(|step| is_kind(step))
                        .filter_map(Step::computes)
                        .filter_map(|(of, micro_batch)| (of == chunk).then_some(micro_batch))
                        .collect();
                    prop_assert_eq!(order, (0..m).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn timelines_are_whole_and_busy_as_the_costs_say(
        p in 1..6_usize, m in 1..8_usize, costs in costs(), transfer in 0..5_u32,
    ) {
        for name in ScheduleName::ALL {
            let m = if name == ScheduleName::Interleaved { m.next_multiple_of(p) } else { m };
            let schedule = schedule(name, p, name.default_chunks(), m);
            let count = schedule.stages.count();
            let [forward, backward_input, backward_weight] = costs.map(f64::from);
            let mut costs = Costs::equal(count, StageCosts { forward, backward_input, backward_weight });
            costs.transfer = f64::from(transfer);
            let timeline = simulate(&schedule, &costs);
            let mut busy = 0.0;
            for (spans, list) in timeline.ranks.iter().zip(&schedule.ranks) {
                prop_assert_eq!(&spans.iter().map(|span| span.step).collect::<Vec<_>>(), list);
                prop_assert!(spans.windows(2).all(|two| two[0].end == two[1].start && two[0].index + 1 == two[1].index));
                let computing = spans.iter().filter(|span| span.step.computes().is_some());
                busy += computing.map(|span| span.end - span.start).sum::<f64>();
            }
            prop_assert_eq!(busy, (count * m) as f64 * (forward + backward_input + backward_weight));
            let idle = 1.0 - busy / (timeline.seconds * p as f64);
            // The same quotient, rounded in another order.
            prop_assert!((timeline.bubble - idle).abs() <= 2.0 * f64::EPSILON);
        }
    }
}

#[test]
fn a_message_takes_its_transfer() {
    // Two ranks, one micro-batch: forward, message, forward and backward, message, backward.
    let schedule = schedule(ScheduleName::OneFOneB, 2, 1, 1);
    let mut costs = Costs::equal(2, StageCosts { forward: 1.0, backward_input: 2.0, backward_weight: 4.0 });
    costs.transfer = 16.0;
    let timeline = simulate(&schedule, &costs);
    assert_eq!(timeline.seconds, 1.0 + 16.0 + 1.0 + 6.0 + 16.0 + 6.0);
    let receive = timeline.ranks[1][0];
    assert_eq!((receive.index, receive.start, receive.end), (0, 0.0, 17.0));
    // A slower stage delays those after it, and them alone.
    costs.stages[1].forward = 33.0;
    assert_eq!(simulate(&schedule, &costs).seconds, timeline.seconds + 32.0);
}

#[test]
fn interleaving_hides_messages_but_at_both_ends() {
    let beyond = |micro_batches: usize| {
        let schedule = schedule(ScheduleName::Interleaved, 4, 2, micro_batches);
        let stage = StageCosts { forward: 1.0, backward_input: 1.0, backward_weight: 1.0 };
        let free = Costs::equal(8, stage);
        let costs = Costs { transfer: 0.5, ..free.clone() };
        simulate(&schedule, &costs).seconds - simulate(&schedule, &free).seconds
    };
    // The way through eight stages and back is 14 messages.
    assert_eq!((beyond(8), beyond(32)), (7.0, 7.0));
}

#[test]
fn the_two_ranks_of_a_tied_table_sum_together() {
    let stages = Stages::with_layers(3, 1, Folding::Loop, &[1, 1, 1]).unwrap();
    let schedule = Schedule::new(ScheduleName::OneFOneB, stages, 2, true).unwrap();
    let sums: Vec<usize> =
        schedule.ranks.iter().map(|list| list.iter().filter(|step| **step == Step::SumTied).count()).collect();
    assert_eq!(sums, [1, 0, 1]);
    let timeline = timed(&schedule, [1, 1, 1]);
    let end = |rank: usize| timeline.ranks[rank].iter().find(|span| span.step == Step::SumTied).unwrap().end;
    assert_eq!((end(0), end(2)), (timeline.seconds, timeline.seconds));
    // One rank that holds both ends sums nothing.
    let stages = Stages::with_layers(3, 2, Folding::V, &[1; 6]).unwrap();
    let v = Schedule::new(ScheduleName::ZbV, stages, 2, true).unwrap();
    assert!(!v.ranks.iter().flatten().any(|step| *step == Step::SumTied));
}

#[test]
fn neighbours_on_one_rank_send_nothing() {
    let one = schedule(ScheduleName::Interleaved, 1, 3, 2);
    assert!(one.ranks[0].iter().all(|step| step.channel().is_none()));
    // The turn of a V: the last rank's two stages.
    let v = schedule(ScheduleName::ZbV, 3, 2, 4);
    let turn = |step: &&Step| matches!(step, Step::Send { payload: Payload::Activation, stage: 2, .. });
    assert_eq!(v.ranks[2].iter().filter(turn).count(), 0);
}

#[test]
fn channels_tell_stages_and_payloads_apart() {
    let send = |payload, stage| Step::Send { payload, stage, micro_batch: 3, to: 1 }.channel();
    let receive = Step::Receive { payload: Payload::Gradient, stage: 4, micro_batch: 0, from: 0 };
    assert_eq!((send(Payload::Activation, 4), send(Payload::Gradient, 4)), (Some(8), Some(9)));
    assert_eq!((receive.channel(), Step::Reduce.channel()), (Some(9), None));
}

#[test]
fn what_a_schedule_cannot_run_is_refused() {
    let refused = |name: ScheduleName, pp, chunks, folding, micro_batches| {
        let stages = Stages::with_layers(pp, chunks, folding, &vec![1; pp * chunks]).unwrap();
        Schedule::new(name, stages, micro_batches, false).unwrap_err().to_string()
    };
    assert_eq!(
        refused(ScheduleName::ZbH1, 2, 2, Folding::Loop, 4),
        "parallel.chunks 2 with schedule zb-h1: it runs one stage on each rank, so chunks can only be 1; interleaved and \
         zb-v run more"
    );
    assert_eq!(
        refused(ScheduleName::Interleaved, 2, 1, Folding::Loop, 4),
        "parallel.chunks 1 with schedule interleaved: it takes turns between the chunks of a rank, so chunks must be at \
         least 2; 1f1b runs one"
    );
    assert_eq!(
        refused(ScheduleName::ZbV, 2, 3, Folding::Loop, 4),
        "parallel.chunks 3 with schedule zb-v: its stages go down the ranks and up again, so chunks can only be 2"
    );
    assert_eq!(refused(ScheduleName::ZbV, 2, 2, Folding::Loop, 4), "schedule zb-v runs stages dealt as V, not as Loop");
    assert_eq!(
        refused(ScheduleName::Interleaved, 4, 2, Folding::Loop, 6),
        "schedule interleaved takes micro-batches in groups of parallel.pp 4, and 6 is no multiple; 4 or 8 would be: set train.global_batch and parallel.micro_batch so, or another schedule"
    );
    assert_eq!(
        refused(ScheduleName::Interleaved, 4, 2, Folding::Loop, 3),
        "schedule interleaved takes micro-batches in groups of parallel.pp 4, and 3 is no multiple; 4 would be: set train.global_batch and parallel.micro_batch so, or another schedule"
    );
    assert_eq!(
        refused(ScheduleName::Gpipe, 2, 1, Folding::Loop, 0),
        "micro-batches of an update is 0, and must be at least 1"
    );
}

#[test]
fn schedules_survive_json() {
    let schedule = schedule(ScheduleName::ZbV, 2, 2, 3);
    let json = serde_json::to_string(&schedule).unwrap();
    assert!(json.starts_with(r#"{"name":"zb-v","stages":{"pp":2,"#), "{json}");
    assert!(json.contains(r#"{"step":"backward_weight","chunk":1,"micro_batch":2}"#), "{json}");
    assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
    for name in ScheduleName::ALL {
        assert_eq!(serde_json::to_string(&name).unwrap(), format!("\"{name}\""));
    }
}

#[test]
fn configurations_choose_or_leave_the_choice() {
    let architecture = Architecture::resolve(&ModelConfig { layers: 8, ..ModelConfig::default() }, 257, 64).unwrap();
    let resolve = |parallel: &ParallelConfig| Schedule::resolve(parallel, &architecture, 64, 2, 4, false);
    let free = resolve(&ParallelConfig::default()).unwrap();
    assert_eq!((free.name, free.stages.split()), (ScheduleName::OneFOneB, vec![4, 4]));
    let v = ParallelConfig { schedule: Switch::Set(ScheduleName::ZbV), ..ParallelConfig::default() };
    assert_eq!(resolve(&v).unwrap().stages.split(), [2, 2, 2, 2]);
    let given = ParallelConfig { split: vec![1, 2, 3, 2], ..v.clone() };
    assert_eq!(resolve(&given).unwrap().stages.split(), [1, 2, 3, 2]);
    let three = resolve(&ParallelConfig { chunks: 3, ..v }).unwrap_err();
    assert!(three.to_string().starts_with("parallel.chunks 3 with schedule zb-v: "), "{three}");
}
