//! Steps replayed from stages whose times are given: against the schedule alone, and against numbers worked out by hand.

use mp_plan::{
    simulate, Analytic, Architecture, Candidate, Cluster, Collective, ContextForm, CostModel, Error, Estimator,
    Executor, Group, Job, ModelConfig, Precision, RecomputeName, Schedule, ScheduleName, Sizes, Space, Spent,
    StageCosts, Trial, Zero,
};
use proptest::prelude::*;

fn job(layers: usize, global_batch: usize) -> Job {
    let model = ModelConfig {
        hidden: 64,
        layers,
        heads: 4,
        kv_heads: 4,
        ffn: 256,
        tie_embeddings: false.into(),
        ..ModelConfig::default()
    };
    Job {
        architecture: Architecture::resolve(&model, 512, 128).unwrap(),
        seq: 128,
        global_batch,
        precision: Precision::Fp32,
        moments: 2,
        bucket_elements: 1 << 30,
        context: ContextForm::Ring,
        within_documents: false,
        split: Vec::new(),
        executor: Executor::ENGINE,
    }
}

/// A machine of round numbers: a product takes a second, a collective five, a message half of one, all else nothing. Such a share
/// of what is sent moves by itself.
struct Round(f64);

impl CostModel for Round {
    fn peak(&self, _: Precision) -> Option<f64> {
        Some(1.0)
    }
    fn product(&self, _: usize, _: [usize; 3], _: Precision) -> f64 {
        1.0
    }
    fn attention(&self, _: f64, _: Precision) -> Option<f64> {
        Some(0.0)
    }
    fn memory(&self, _: f64, _: usize) -> f64 {
        0.0
    }
    fn collective(&self, _: Collective, _: f64, group: Group) -> f64 {
        if group.size > 1 {
            5.0
        } else {
            0.0
        }
    }
    fn message(&self, _: f64, _: bool) -> f64 {
        0.5
    }
    fn overlap(&self) -> f64 {
        self.0
    }
}

fn costs(forward: f64, backward_input: f64, backward_weight: f64) -> StageCosts {
    StageCosts { forward, backward_input, backward_weight }
}

#[test]
fn one_rank_takes_what_its_schedule_takes_and_its_update() {
    let (job, cluster) = (job(4, 24), Cluster::preset("cpu").unwrap());
    let analytic = Analytic::new(&cluster);
    let mut estimator = Estimator::new(&job, &cluster, &analytic);
    for micro_batch in [1, 3, 24] {
        let candidate = Candidate { micro_batch, ..Candidate::default() };
        let stage = costs(0.75, 1.25, 0.5);
        let replayed = estimator.replay(&candidate, &[stage], 0.125).unwrap();
        let stages = candidate.stages(&job).unwrap();
        let schedule = Schedule::new(candidate.schedule, stages, candidate.micro_batches(&job), false).unwrap();
        let timeline = simulate(&schedule, &mp_plan::Costs { stages: vec![stage], transfer: 0.0 });
        assert_eq!(replayed.seconds, timeline.seconds + 0.125);
        let parts = Spent { computation: timeline.seconds, optimizer: 0.125, ..Spent::default() };
        assert_eq!((replayed.parts, replayed.bubble), (parts, 0.0));
        assert_eq!(replayed.tokens, job.step_tokens() / replayed.seconds);
        assert_eq!(replayed.model_flops, replayed.tokens * job.architecture.flops_per_token(job.seq));
    }
}

/// | rank | |
/// |---|---|
/// | 0 | F 0–1, F 1–2, waits for 7.5 + 0.5, B 8–10, waits for 13.5 + 0.5, B 14–16 |
/// | 1 | waits for 1 + 0.5, F 1.5–3.5, B 3.5–7.5, F 7.5–9.5, B 9.5–13.5 |
#[test]
fn two_stages_are_as_worked_out_by_hand() {
    let (job, cluster) = (job(4, 2), Cluster::preset("cpu").unwrap());
    let mut estimator = Estimator::new(&job, &cluster, &Round(1.0));
    let candidate = Candidate { pp: 2, ..Candidate::default() };
    let replayed = estimator.replay(&candidate, &[costs(1.0, 1.5, 0.5), costs(2.0, 3.0, 1.0)], 1.0).unwrap();
    // Of norm and loss the stages know parts, and then all ranks agree.
    let parts = Spent { computation: 12.0, bubble: 4.0 + 10.0, data: 5.0, optimizer: 1.0, ..Spent::default() };
    assert_eq!((replayed.seconds, replayed.parts), (16.0 + 15.0 + 1.0, parts));
    assert_eq!(replayed.bubble, 1.0 - (6.0 + 12.0) / 32.0);
}

/// Where half of a message moves by itself, and where nothing does:
///
/// | rank | half | nothing |
/// |---|---|---|
/// | 0 | F 0–1, 1–2, B 7.75–10, 14–16.25 | F 0–1, 1–2, B 7.5–10, 14–16.5 |
/// | 1 | F 1.25–3.5, B –7.5, F –9.75, B –13.75 | F 1–3.5, B –7.5, F –10, B –14 |
#[test]
fn what_does_not_move_by_itself_takes_the_time_of_the_rank_that_receives() {
    let (job, cluster) = (job(4, 2), Cluster::preset("cpu").unwrap());
    let candidate = Candidate { pp: 2, ..Candidate::default() };
    for (overlap, computed) in [(1.0, 16.0), (0.5, 16.25), (0.0, 16.5)] {
        let costs_of_work = Round(overlap);
        let mut estimator = Estimator::new(&job, &cluster, &costs_of_work);
        let stages = [costs(1.0, 1.5, 0.5), costs(2.0, 3.0, 1.0)];
        let replayed = estimator.replay(&candidate, &stages, 1.0).unwrap();
        let bubble = computed - 12.0 + 10.0;
        let parts = Spent { computation: 12.0, bubble, data: 5.0, optimizer: 1.0, ..Spent::default() };
        assert_eq!((replayed.seconds, replayed.parts), (computed + 15.0 + 1.0, parts));
        // A rank that waits for a message does not compute.
        assert_eq!(replayed.bubble, 1.0 - (6.0 + 12.0) / (2.0 * computed));
    }
}

/// One layer has four products, the head one: 15 seconds with both gradients. Measured are 30, so a product takes two. Of a
/// sum's five seconds behind a product three are waited for, backward in front of query, MLP and head; in front of nothing
/// all five: forward behind embedding, attention, MLP and twice in the loss. The norm is one sum of tensor ranks, and one of all
/// ranks agrees.
#[test]
fn two_tensor_ranks_are_as_worked_out_by_hand() {
    let (job, cluster) = (job(1, 1), Cluster::preset("cpu").unwrap());
    let mut estimator = Estimator::new(&job, &cluster, &Round(1.0));
    let candidate = Candidate { tp: 2, ..Candidate::default() };
    let replayed = estimator.replay(&candidate, &[costs(10.0, 12.0, 8.0)], 1.0).unwrap();
    let tensor = 5.0 * 5.0 + 3.0 * 3.0;
    let parts = Spent { computation: 30.0, tensor, data: 10.0, optimizer: 1.0, ..Spent::default() };
    assert_eq!((replayed.seconds, replayed.parts), (30.0 + tensor + 10.0 + 1.0, parts));

    // A layer that is computed again sums its two outputs again: 19 seconds are predicted now.
    let again = Candidate { recompute: RecomputeName::Full, recompute_every: 1, ..candidate };
    let replayed = estimator.replay(&again, &[costs(10.0, 20.0, 8.0)], 1.0).unwrap();
    assert_eq!((replayed.parts.computation, replayed.parts.tensor), (38.0, tensor + 2.0 * 5.0));
}

/// Without a peak nothing is predicted, and products still hide what is as long as they are.
#[test]
fn no_peak_is_needed() {
    let (job, mut cluster) = (job(4, 8), Cluster::preset("cpu").unwrap().with_ranks(4));
    let candidate = Candidate { tp: 2, pp: 2, ..Candidate::default() };
    let stages = [costs(1e-3, 1e-3, 1e-3); 2];
    let replay = |cluster: &Cluster| {
        let analytic = Analytic::new(cluster);
        let mut estimator = Estimator::new(&job, cluster, &analytic);
        assert_eq!(estimator.estimate(&candidate).unwrap().time.is_some(), cluster.device.peak.fp32.is_some());
        estimator.replay(&candidate, &stages, 1e-3).unwrap()
    };
    let known = replay(&cluster);
    cluster.device.peak.fp32 = None;
    let unknown = replay(&cluster);
    assert!(unknown.seconds.is_finite() && unknown.parts.tensor > 0.0);
    assert_eq!(unknown.parts.computation, known.parts.computation);
    // What hides differs by how much of a stage is products.
    assert!((unknown.seconds / known.seconds - 1.0).abs() < 0.2, "{unknown:?} {known:?}");
}

#[test]
fn what_is_no_measurement_is_refused() {
    let (job, cluster) = (job(4, 8), Cluster::preset("cpu").unwrap());
    let mut estimator = Estimator::new(&job, &cluster, &Round(1.0));
    let (candidate, stage) = (Candidate { pp: 2, ..Candidate::default() }, costs(1.0, 1.0, 1.0));
    let mut refused = |stages: &[StageCosts], update: f64| estimator.replay(&candidate, stages, update).unwrap_err();
    assert_eq!(refused(&[stage], 1.0), Error::MeasuredStages { given: 1, stages: 2 });
    assert_eq!(refused(&[stage, costs(1.0, -1.0, 1.0)], 1.0), Error::MeasuredTime { seconds: -1.0 });
    assert!(matches!(refused(&[stage; 2], f64::NAN), Error::MeasuredTime { seconds } if seconds.is_nan()));
}

/// Stages that make one trial are alike in all that takes time.
#[test]
fn a_trial_is_the_stage_that_it_stands_for() {
    let job = job(12, 16);
    for candidate in Space::of(&job, 8).candidates(&job, 8) {
        let stages = candidate.stages(&job).unwrap();
        let recomputed = |start: usize, count: usize| match candidate.recompute {
            RecomputeName::Full => {
                (start..start + count).filter(|layer| layer.is_multiple_of(candidate.recompute_every)).count()
            }
            _ => 0,
        };
        for stage in 0..stages.count() {
            let trial = Trial::of(&candidate, &stages, stage);
            let cut = trial.stages().unwrap();
            let end = trial.lead + stages.layers(stage).len();
            assert_eq!(cut.layers(trial.rank()), trial.lead..end);
            assert_eq!(trial.rank() == 0, stages.is_first(stage));
            assert_eq!(trial.rank() + 1 == cut.pp(), stages.is_last(stage));
            assert_eq!(cut.total(), trial.architecture(&job.architecture).layers);
            assert_eq!(
                recomputed(trial.lead, trial.layers),
                recomputed(stages.layers(stage).start, trial.layers),
                "{candidate:?} stage {stage}"
            );
            let schedule = trial.schedule(&job, &candidate).unwrap();
            assert_eq!(schedule.check(), Ok(()));
            assert_eq!(schedule.name.splits_backward(), candidate.schedule.splits_backward());
        }
    }
}

/// One stage on one rank keeps what the planner says it keeps.
#[test]
fn a_trial_keeps_what_a_rank_keeps() {
    let (job, cluster) = (job(6, 16), Cluster::preset("cpu").unwrap().with_ranks(4));
    let mut estimator = Estimator::new(&job, &cluster, &Round(1.0));
    for zero in [Zero::Replicated, Zero::Optimizer, Zero::Parameters] {
        let candidate = Candidate { tp: 2, dp: 2, zero, micro_batch: 8, ..Candidate::default() };
        let trial = Trial::of(&candidate, &candidate.stages(&job).unwrap(), 0);
        let whole = estimator.estimate(&candidate).unwrap();
        assert_eq!(trial.memory(&job, &candidate).unwrap(), whole.memory[0]);
    }
    // More layers keep more, and an entrance and an exit do.
    let piped = Candidate { pp: 2, schedule: ScheduleName::ZbH1, ..Candidate::default() };
    let stages = piped.stages(&job).unwrap();
    let total = |trial: Trial| trial.memory(&job, &piped).unwrap().total();
    let first = Trial::of(&piped, &stages, 0);
    assert!(total(Trial { layers: 1, ..first }) < total(Trial { layers: 2, ..first }));
    assert!(total(Trial { lead: 1, ..first }) < total(first));
    assert!(total(Trial { lead: 1, ..first }) < total(Trial { lead: 1, followed: false, ..first }));
}

proptest! {
    #[test]
    fn as_many_layers_are_built_as_there_is_room_for(layers in 1..200_usize, group in 1..9_usize, most in 0..250_usize) {
        let trial = Trial { lead: 0, layers, followed: true, group };
        let sizes = trial.sizes(|layers| layers <= most);
        if layers <= most {
            prop_assert_eq!(sizes, Some(Sizes::Whole));
        } else if most / group < 2 || layers <= 2 * group {
            prop_assert_eq!(sizes, None);
        } else {
            let large = most / group * group;
            prop_assert_eq!(sizes, Some(Sizes::Slope { small: most / group / 2 * group, large }));
        }
    }

    #[test]
    fn a_stage_is_read_from_a_straight_line(
        ends in 0..100_u32, layer in 0..100_u32, small in 1..10_usize, more in 1..10_usize, layers in 1..200_usize,
    ) {
        // Whole numbers, and more of them a power of two, so that nothing is rounded.
        let more = more.next_power_of_two();
        let of = |layers: usize| f64::from(ends) + f64::from(layer) * layers as f64;
        let stage = |layers: usize| costs(of(layers), 2.0 * of(layers), 4.0 * of(layers));
        let large = small + more;
        prop_assert_eq!(
            StageCosts::of_layers((small, stage(small)), (large, stage(large)), large + layers),
            stage(large + layers)
        );
    }
}

#[test]
fn layers_that_seem_to_take_less_than_nothing_take_nothing() {
    let noisy = StageCosts::of_layers((2, costs(2.0, 4.0, 1.0)), (4, costs(1.5, 5.0, 1.0)), 8);
    assert_eq!(noisy, costs(1.5, 7.0, 1.0));
}
