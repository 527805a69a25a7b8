//! Searches against estimating everything, and what must hold of whatever they find.

use std::cmp::Ordering;

use mp_plan::search::order;
use mp_plan::{
    check_all_to_all, check_effect, check_zero, search, Analytic, Architecture, ArchitectureName, Candidate, Cluster,
    ContextForm, Degrees, Error, Estimate, Estimator, Executor, Job, Mesh, ModelConfig, ParallelConfig, Partition,
    Precision, Ranking, RecomputeName, Schedule, ScheduleName, Sequences, Space, Stages, Switch, Zero,
};
use proptest::prelude::*;

/// A small model on a small machine with slow links, so that choices matter.
fn job(layers: usize, kv_heads: usize, dropout: f64, global_batch: usize) -> Job {
    let model = ModelConfig { hidden: 512, layers, heads: 8, kv_heads, ffn: 2048, dropout, ..ModelConfig::default() };
    Job {
        architecture: Architecture::resolve(&model, 4096, 512).unwrap(),
        seq: 512,
        global_batch,
        precision: Precision::Bf16,
        moments: 2,
        bucket_elements: 1 << 18,
        context: ContextForm::Ring,
        within_documents: false,
        split: Vec::new(),
        executor: Executor::ENGINE,
    }
}

fn cluster(devices: usize, memory_bytes: usize, bandwidth: f64) -> Cluster {
    let mut cluster = Cluster::preset("h100").unwrap();
    cluster.node.devices = devices;
    cluster.device.memory_bytes = memory_bytes;
    cluster.node.bandwidth *= bandwidth;
    cluster.network.bandwidth *= bandwidth;
    cluster
}

/// Lists every layout that training takes: each number of each option is put to the engine's checks, and nothing is asked of
/// the search. It says itself that with full recompute layers rarer than every eighth are left out.
fn accepted(job: &Job, ranks: usize) -> Vec<Candidate> {
    let layers = job.architecture.layers;
    let mut all = vec![Candidate::default()];
    let mut each = |axis: &dyn Fn(&Candidate) -> Vec<Candidate>| all = all.iter().flat_map(axis).collect();
    let degree = |set: fn(&mut Candidate, usize)| {
        move |plain: &Candidate| -> Vec<Candidate> {
            let with = |degree: usize| {
                let mut made = *plain;
                set(&mut made, degree);
                made
            };
            (1..=ranks).map(with).filter(|made| made.ranks() <= ranks).collect()
        }
    };
    each(&degree(|made, degree| made.tp = degree));
    each(&degree(|made, degree| made.pp = degree));
    each(&degree(|made, degree| made.cp = degree));
    each(&degree(|made, degree| made.dp = degree));
    each(&|plain| if plain.ranks() == ranks { vec![*plain] } else { Vec::new() });
    each(&|plain| (1..=job.global_batch).map(|micro_batch| Candidate { micro_batch, ..*plain }).collect());
    // What cannot run with any order does not run with the plainest either.
    each(&|plain| if plain.check(job).is_ok() { vec![*plain] } else { Vec::new() });
    each(&|plain| [false, true].map(|cut| Candidate { sequence_parallel: cut, ..*plain }).into());
    each(&|plain| Zero::ALL.map(|zero| Candidate { zero, ..*plain }).into());
    each(&|plain| ScheduleName::ALL.map(|schedule| Candidate { schedule, ..*plain }).into());
    each(&|plain| (1..=layers).map(|chunks| Candidate { chunks, ..*plain }).collect());
    each(&|plain| if stands(job, plain, ranks) { vec![*plain] } else { Vec::new() });
    each(&|plain| {
        let some = [RecomputeName::None, RecomputeName::Selective].map(|name| (name, 0)).into_iter();
        let forms = some.chain((1..=layers.min(8)).map(|every| (RecomputeName::Full, every)));
        forms.map(|(recompute, recompute_every)| Candidate { recompute, recompute_every, ..*plain }).collect()
    });
    all.retain(|candidate| stands(job, candidate, ranks));
    all
}

/// Says whether training takes a layout, and as it is: an option that the configuration cannot carry would be lost.
fn stands(job: &Job, candidate: &Candidate, ranks: usize) -> bool {
    let ordered = candidate.pp > 1 || (candidate.schedule, candidate.chunks) == (ScheduleName::OneFOneB, 1);
    let cut = candidate.tp > 1 || !candidate.sequence_parallel;
    ordered && cut && candidate.check(job).is_ok() && trains(job, &candidate.parallel(job), ranks).is_ok()
}

/// Estimates every layout, best first; of each set of degrees the best.
fn exhaustive(job: &Job, cluster: &Cluster, all: &[Candidate]) -> Vec<Estimate> {
    exhaustive_within(cluster.rank_memory(), job, cluster, all, order)
}

fn exhaustive_within(
    limit: usize,
    job: &Job,
    cluster: &Cluster,
    all: &[Candidate],
    order: fn(&Estimate, &Estimate) -> Ordering,
) -> Vec<Estimate> {
    let costs = Analytic::new(cluster);
    let mut estimator = Estimator::new(job, cluster, &costs);
    let mut all: Vec<Estimate> = all.iter().map(|candidate| estimator.estimate(candidate).unwrap()).collect();
    all.retain(|estimate| estimate.largest().total() <= limit);
    all.sort_by(order);
    let mut degrees: Vec<Degrees> = Vec::new();
    all.retain(|estimate| {
        let own = estimate.candidate.degrees();
        let fresh = !degrees.contains(&own);
        degrees.extend(fresh.then_some(own));
        fresh
    });
    all
}

fn seconds(estimate: &Estimate) -> f64 {
    estimate.time.unwrap().seconds
}

fn any_job() -> impl Strategy<Value = Job> {
    let sizes = (
        1..7_usize,
        prop::sample::select(vec![2, 8]),
        prop::sample::select(vec![0.0, 0.1]),
        prop::sample::select(vec![6, 8, 9, 12, 16]),
    );
    let families = [ArchitectureName::Llama, ArchitectureName::Gpt2, ArchitectureName::Bert];
    let forms = (
        prop::sample::select(families.to_vec()),
        prop::sample::select(vec![ContextForm::Ring, ContextForm::AllToAll]),
        prop::sample::select(vec![Precision::Bf16, Precision::Fp32]),
        any::<bool>(),
    );
    (sizes, forms).prop_map(|((layers, kv_heads, dropout, batch), (family, context, precision, apart))| {
        let plain = job(layers, kv_heads, dropout, batch);
        // One table at both ends, where a family has it so.
        let tied = family != ArchitectureName::Llama;
        let heads = if family == ArchitectureName::Llama { kv_heads } else { 8 };
        let model = ModelConfig {
            architecture: family,
            hidden: 512,
            layers,
            heads: 8,
            kv_heads: heads,
            ffn: 2048,
            dropout,
            tie_embeddings: Some(tied),
            ..ModelConfig::default()
        };
        let architecture = Architecture::resolve(&model, 4096, 512).unwrap();
        Job { architecture, context, precision, within_documents: apart, ..plain }
    })
}

/// The job as so many ranks can run it: with one rank, no way between context ranks has an effect.
fn on(ranks: usize, job: Job) -> Job {
    let context = if ranks == 1 { ContextForm::Ring } else { job.context };
    Job { context, ..job }
}

/// Devices of a node, ranks, memory.
fn any_machine() -> impl Strategy<Value = (usize, usize, usize)> {
    (prop::sample::select(vec![2, 4]), prop::sample::select(vec![1, 2, 4, 8]), 200_000_000..3_000_000_000_usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_search_finds_what_estimating_everything_finds(
        job in any_job(), (devices, ranks, memory) in any_machine(), most in 1..6_usize,
        overlap in prop::sample::select(vec![0.0, 0.5, 1.0]),
    ) {
        let job = on(ranks, job);
        let mut cluster = cluster(devices, memory, 1.0).with_ranks(ranks);
        cluster.efficiency.overlap = overlap;
        let space = Space::of(&job, ranks);
        let found = search(&job, &cluster, &Analytic::new(&cluster), &space, ranks, most).unwrap();
        let accepted = accepted(&job, ranks);
        prop_assert_eq!(found.considered, accepted.len());
        let all = exhaustive(&job, &cluster, &accepted);
        // With a single set of degrees the search lists all its layouts.
        let most = if ranks == 1 { 1 } else { most };
        prop_assert_eq!(&found.layouts[..most.min(found.layouts.len())], &all[..most.min(all.len())]);

        // What would be faster with more room: of the three fastest, whatever they keep, those ahead of the best that fits.
        let roomy = exhaustive_within(usize::MAX, &job, &cluster, &accepted, order);
        let ahead = |estimate: &&Estimate| all.first().is_some_and(|best| order(estimate, best) == Ordering::Less);
        let misses: Vec<&Estimate> = roomy.iter().take(3).filter(ahead).collect();
        if ranks > 1 && !all.is_empty() {
            prop_assert_eq!(found.misses.iter().collect::<Vec<_>>(), misses);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_better_machine_never_makes_the_best_slower(
        job in any_job(), (devices, ranks, memory) in any_machine(), more in 1.0..4.0_f64,
    ) {
        let job = on(ranks, job);
        let best = |cluster: Cluster| {
            let cluster = cluster.with_ranks(ranks);
            let space = Space::of(&job, ranks);
            let found = search(&job, &cluster, &Analytic::new(&cluster), &space, ranks, 1).unwrap();
            found.layouts.first().map_or(f64::INFINITY, seconds)
        };
        let plain = best(cluster(devices, memory, 1.0));
        prop_assert!(best(cluster(devices, (memory as f64 * more) as usize, 1.0)) <= plain);
        prop_assert!(best(cluster(devices, memory, more)) <= plain);
        let faster = |change: &dyn Fn(&mut Cluster)| {
            let mut faster = cluster(devices, memory, 1.0);
            change(&mut faster);
            best(faster)
        };
        prop_assert!(faster(&|cluster| cluster.device.memory_bandwidth *= more) <= plain);
        let multiplied = faster(&|cluster| {
            let peak = &mut cluster.device.peak;
            (peak.bf16, peak.fp32) = (peak.bf16.map(|rate| rate * more), peak.fp32.map(|rate| rate * more));
        });
        prop_assert!(multiplied <= plain);
        prop_assert!(faster(&|cluster| cluster.node.latency /= more) <= plain);
        // Each link on its own, for either may be the narrow one.
        prop_assert!(faster(&|cluster| cluster.node.bandwidth *= more) <= plain);
        prop_assert!(faster(&|cluster| cluster.network.bandwidth *= more) <= plain);
        prop_assert!(faster(&|cluster| cluster.network.latency /= more) <= plain);
        prop_assert!(faster(&|cluster| cluster.efficiency.launch /= more) <= plain);
        prop_assert!(faster(&|cluster| cluster.efficiency.program /= more) >= plain);
        prop_assert!(faster(&|cluster| cluster.efficiency.reserve /= more) <= plain);
        // And one that moves less while it computes never makes it faster, but for the rounding of a message's two parts.
        prop_assert!(faster(&|cluster| cluster.efficiency.overlap = 1.0 / more - 0.25) >= plain * (1.0 - 1e-12));
    }

    #[test]
    fn whatever_is_proposed_runs_and_is_the_sum_of_its_parts(
        job in any_job(), (devices, ranks, memory) in any_machine(),
    ) {
        let job = on(ranks, job);
        let cluster = cluster(devices, memory, 1.0).with_ranks(ranks);
        let found =
            search(&job, &cluster, &Analytic::new(&cluster), &Space::of(&job, ranks), ranks, 8).unwrap();
        prop_assert!(found.layouts.windows(2).all(|pair| order(&pair[0], &pair[1]) == Ordering::Less));
        for estimate in found.layouts.iter().chain(&found.misses) {
            let candidate = estimate.candidate;
            prop_assert_eq!(candidate.check(&job), Ok(()));
            prop_assert_eq!(candidate.check_effect(&job), Ok(()));
            prop_assert_eq!(candidate.ranks(), ranks);
            // As training resolves the configuration.
            let parallel = candidate.parallel(&job);
            let mesh = mp_plan::Mesh::resolve(&parallel, ranks, &job.architecture).unwrap();
            prop_assert_eq!(mesh.degrees(), candidate.degrees());
            prop_assert!(Partition::new(&job.architecture, &mesh).is_ok());
            let schedule = Schedule::resolve(
                &parallel, &job.architecture, job.seq, candidate.pp, candidate.micro_batches(&job), false,
            ).unwrap();
            prop_assert_eq!(schedule.check(), Ok(()));
            prop_assert_eq!(&schedule.stages, &candidate.stages(&job).unwrap());

            let time = estimate.time.unwrap();
            let parts = time.terms.parts();
            // Sums of as many terms as there are passes, in another order.
            prop_assert!((parts.iter().sum::<f64>() - time.seconds).abs() <= 1e-9 * time.seconds);
            prop_assert!(parts.iter().all(|&part| part >= -1e-9 * time.seconds), "{:?}", time);
            prop_assert!((0.0..1.0).contains(&time.bubble), "{:?}", time);
            let costs = Analytic::new(&cluster);
            let ranks = Estimator::new(&job, &cluster, &costs).rank_terms(&candidate, &schedule).unwrap().unwrap();
            prop_assert_eq!(ranks.len(), candidate.pp);
            prop_assert!(ranks.contains(&time.terms));
            for rank in ranks {
                prop_assert!((rank.total() - time.seconds).abs() <= 1e-9 * time.seconds, "{:?}", rank);
            }
            for memory in &estimate.memory {
                prop_assert_eq!(memory.parts().iter().sum::<usize>(), memory.total());
            }
        }
        prop_assert!(found.layouts.iter().all(Estimate::fits));
        prop_assert!(!found.misses.iter().any(Estimate::fits));
    }
}

/// One option, or two that belong together, set by a user.
fn any_asked() -> impl Strategy<Value = ParallelConfig> {
    let set: [fn(&mut ParallelConfig); 18] = [
        |asked| asked.tp = 2,
        |asked| asked.pp = 2,
        |asked| asked.cp = 2,
        |asked| asked.dp = 2,
        |asked| asked.micro_batch = 2,
        |asked| asked.chunks = 1,
        |asked| asked.chunks = 2,
        |asked| asked.schedule = Switch::Set(ScheduleName::OneFOneB),
        |asked| asked.schedule = Switch::Set(ScheduleName::ZbH1),
        |asked| asked.schedule = Switch::Set(ScheduleName::Gpipe),
        |asked| asked.zero = Switch::Set(Zero::Replicated),
        |asked| asked.zero = Switch::Set(Zero::Optimizer),
        |asked| asked.zero = Switch::Set(Zero::Parameters),
        |asked| asked.recompute = Switch::Set(RecomputeName::None),
        |asked| asked.recompute = Switch::Set(RecomputeName::Selective),
        |asked| asked.recompute_every = 2,
        |asked| asked.context = ContextForm::AllToAll,
        |asked| asked.sequence_parallel = Switch::Set(true),
    ];
    prop::collection::vec(prop::sample::select(set.to_vec()), 1..3).prop_map(|set| {
        let mut asked = ParallelConfig::default();
        set.into_iter().for_each(|set| set(&mut asked));
        asked
    })
}

/// Checks a configuration as training does.
fn trains(job: &Job, parallel: &ParallelConfig, ranks: usize) -> mp_plan::Result<()> {
    let mesh = Mesh::resolve(parallel, ranks, &job.architecture)?;
    let Degrees { pp, dp, cp, tp, .. } = mesh.degrees();
    let sequences = Sequences { seq: job.seq, within_documents: job.within_documents };
    check_effect(parallel, &mesh, &job.architecture, sequences)?;
    check_zero(parallel.zero.unwrap_or(Zero::Replicated), &mesh)?;
    mp_plan::sequence_parallel(parallel.sequence_parallel, job.seq, cp, tp)?;
    if parallel.context == ContextForm::AllToAll {
        check_all_to_all(job.architecture.heads, job.architecture.kv_heads, tp, cp)?;
    }
    let micro_batches = job.global_batch / (dp * parallel.micro_batch);
    Schedule::resolve(parallel, &job.architecture, job.seq, pp, micro_batches, false).map(drop)
}

/// Says whether a layout, as it is reported, has what was asked for.
fn keeps(candidate: &Candidate, asked: &ParallelConfig) -> bool {
    let number = |asked: usize, own: usize| asked == 0 || asked == own;
    let every = candidate.recompute_every;
    number(asked.tp, candidate.tp)
        && number(asked.pp, candidate.pp)
        && number(asked.cp, candidate.cp)
        && number(asked.dp, candidate.dp)
        && number(asked.micro_batch, candidate.micro_batch)
        && number(asked.chunks, candidate.chunks)
        && number(asked.recompute_every, every)
        && asked.schedule.unwrap_or(candidate.schedule) == candidate.schedule
        && asked.zero.unwrap_or(candidate.zero) == candidate.zero
        && asked.recompute.unwrap_or(candidate.recompute) == candidate.recompute
        && asked.sequence_parallel.unwrap_or(candidate.sequence_parallel) == candidate.sequence_parallel
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_fixed_runs_and_stays_or_is_refused(
        job in any_job(), (devices, ranks, memory) in any_machine(), asked in any_asked(), stages in 0..5_usize,
    ) {
        // As many stages as there is a layer for, the first of which has all that are left; none: cut by cost.
        let layers = job.architecture.layers;
        let split: Vec<usize> = (0..stages.min(layers)).map(|stage| if stage == 0 { layers + 1 - stages.min(layers) } else { 1 }).collect();
        let job = Job { context: asked.context, split: split.clone(), ..job };
        let asked = ParallelConfig { split: split.clone(), ..asked };
        let cluster = cluster(devices, memory, 1.0).with_ranks(ranks);
        let space = Space::of(&job, ranks).fixed(&asked);
        match search(&job, &cluster, &Analytic::new(&cluster), &space, ranks, 8) {
            Ok(found) => {
                prop_assert!(found.considered > 0);
                if !split.is_empty() {
                    let listed: Vec<Candidate> = space.candidates(&job, ranks).collect();
                    let all = exhaustive(&job, &cluster, &listed);
                    prop_assert_eq!(found.layouts.first(), all.first());
                }
                for estimate in found.layouts.iter().chain(&found.misses) {
                    let candidate = estimate.candidate;
                    prop_assert!(keeps(&candidate, &asked), "{:?}", candidate);
                    let cut = candidate.stages(&job).unwrap();
                    let own: Vec<usize> = (0..cut.count()).map(|stage| cut.layers(stage).len()).collect();
                    prop_assert!(split.is_empty() || own == split, "{:?}", candidate);
                    prop_assert_eq!(trains(&job, &candidate.complete(&job, &asked), ranks), Ok(()));
                }
            }
            Err(error) => {
                prop_assert_eq!(space.candidates(&job, ranks).count(), 0);
                prop_assert!(matches!(error, Error::NoLayout { .. }), "{}", error);
            }
        }
    }
}

#[test]
fn what_the_engine_refuses_is_refused_in_its_words() {
    type Set = fn(&mut ParallelConfig);
    let cases: [(usize, Set, &str); 9] = [
        (8, |asked| (asked.pp, asked.zero) = (2, Switch::Set(Zero::Parameters)), "parallel.zero 3 with parallel.pp 2"),
        (
            1,
            |asked| asked.sequence_parallel = Switch::Set(true),
            "parallel.sequence_parallel true changes nothing: it cuts",
        ),
        (1, |asked| asked.zero = Switch::Set(Zero::Optimizer), "parallel.zero 1"),
        (
            1,
            |asked| asked.schedule = Switch::Set(ScheduleName::ZbH1),
            "parallel.schedule zb-h1 changes nothing: it orders",
        ),
        (1, |asked| asked.chunks = 2, "parallel.chunks 2 changes nothing: it counts"),
        (8, |asked| asked.split = vec![1, 2], "parallel.split [1, 2] sums to 3, and model.layers is 4"),
        (
            8,
            |asked| asked.split = vec![1, 1, 2],
            "parallel.split [1, 1, 2] names 3 stages, and parallel.pp 1 × 1 chunks are 1",
        ),
        (
            8,
            |asked| asked.recompute = Switch::Set(RecomputeName::Selective),
            "parallel.recompute selective changes nothing:",
        ),
        (
            8,
            |asked| asked.tp = 3,
            "pp any × dp any × cp any × tp 3 cannot make 8 ranks; pp 1 × dp 4 × cp 1 × tp 2 would",
        ),
    ];
    let job = job(4, 8, 0.0, 16);
    for (ranks, set, reason) in cases {
        let mut asked = ParallelConfig::default();
        set(&mut asked);
        let job = Job { split: asked.split.clone(), ..job.clone() };
        let cluster = cluster(4, 3_000_000_000, 1.0).with_ranks(ranks);
        let space = Space::of(&job, ranks).fixed(&asked);
        let error = search(&job, &cluster, &Analytic::new(&cluster), &space, ranks, 1).unwrap_err().to_string();
        let head = format!("no layout of {ranks} ranks can cut this model as asked; {reason}");
        assert!(error.starts_with(&head), "{error}");
    }
}

/// All numbers up to the root are tried, and no more.
#[test]
fn choices_for_a_trillion_ranks_are_listed_at_once() {
    let space = Space::of(&job(4, 8, 0.0, 16), 1_000_000_000_000);
    assert_eq!((space.pp, space.tp), (vec![1, 2, 4], vec![1, 2, 4, 8]));
}

#[test]
fn what_a_configuration_fixes_stays() {
    let job = job(4, 8, 0.0, 16);
    let config = ParallelConfig {
        tp: 2,
        pp: 2,
        sequence_parallel: Switch::Set(false),
        recompute: Switch::Set(RecomputeName::Full),
        ..ParallelConfig::default()
    };
    let cluster = cluster(4, 3_000_000_000, 1.0).with_ranks(8);
    let space = Space::of(&job, 8).fixed(&config);
    let found = search(&job, &cluster, &Analytic::new(&cluster), &space, 8, 20).unwrap();
    assert!(found.layouts.len() > 1);
    for layout in &found.layouts {
        let candidate = layout.candidate;
        assert_eq!((candidate.tp, candidate.pp, candidate.sequence_parallel), (2, 2, false));
        assert_eq!(
            (candidate.recompute, candidate.recompute_every),
            (RecomputeName::Full, 1),
            "each layer, as in training"
        );
    }
}

#[test]
fn what_no_rank_can_run_is_refused_with_the_reason() {
    let job = job(4, 8, 0.0, 16);
    let cluster = cluster(4, 3_000_000_000, 1.0).with_ranks(8);
    let space = Space::of(&job, 8).fixed(&ParallelConfig { tp: 3, ..ParallelConfig::default() });
    let error = search(&job, &cluster, &Analytic::new(&cluster), &space, 8, 1).unwrap_err();
    assert!(error.to_string().starts_with("no layout of 8 ranks can cut this model as asked; "), "{error}");
}

/// However many choices there are, one line names what was asked for and the nearest that would do, which does.
#[test]
fn degrees_that_do_not_make_the_ranks_are_told_in_short() {
    let refused = |ranks: usize, asked: &ParallelConfig| {
        let job = job(4, 8, 0.0, 16);
        let cluster = cluster(4, 3_000_000_000, 1.0).with_ranks(ranks);
        let space = Space::of(&job, ranks).fixed(asked);
        search(&job, &cluster, &Analytic::new(&cluster), &space, ranks, 1).unwrap_err().to_string()
    };
    let asks = |tp: usize, dp: usize| ParallelConfig { tp, dp, ..ParallelConfig::default() };
    for (ranks, asked, why) in [
        (64, asks(3, 0), "pp any × dp any × cp any × tp 3 cannot make 64 ranks; pp 1 × dp 16 × cp 1 × tp 4 would"),
        (8, asks(2, 3), "pp any × dp 3 × cp any × tp 2 cannot make 8 ranks; pp 1 × dp 4 × cp 1 × tp 2 would"),
        // Nothing comes in 127 parts.
        (
            127,
            asks(3, 0),
            "pp 1 × dp any × cp 1 × tp 3 cannot make 127 ranks, nor do other degrees with this model, train.seq and \
             train.global_batch; take another number of ranks",
        ),
    ] {
        assert_eq!(refused(ranks, &asked), format!("no layout of {ranks} ranks can cut this model as asked; {why}"));
    }
}

#[test]
fn what_does_not_fit_says_by_how_much() {
    let job = job(6, 8, 0.0, 16);
    let cluster = cluster(4, 100_000_000, 1.0).with_ranks(4);
    let found = search(&job, &cluster, &Analytic::new(&cluster), &Space::of(&job, 4), 4, 3).unwrap();
    assert!(!found.misses.is_empty());
    for miss in &found.misses {
        assert!(miss.largest().total() > cluster.rank_memory());
    }
}

#[test]
fn where_nothing_fits_the_nearest_are_shown() {
    let job = job(6, 8, 0.0, 16);
    let cluster = cluster(4, 1_000_000, 1.0).with_ranks(4);
    let found = search(&job, &cluster, &Analytic::new(&cluster), &Space::of(&job, 4), 4, 3).unwrap();
    assert!(found.layouts.is_empty() && !found.misses.is_empty());
    let lacks = |layout: &Estimate| layout.largest().total();
    let all = exhaustive_within(usize::MAX, &job, &cluster, &accepted(&job, 4), |one, other| {
        one.largest().total().cmp(&other.largest().total()).then_with(|| order(one, other))
    })
    .iter()
    .map(lacks)
    .collect::<Vec<_>>();
    let nearest: Vec<usize> = found.misses.iter().map(lacks).collect();
    assert_eq!(nearest, all[..3]);
    let text = found.table(&job, &cluster, 4);
    assert!(text.contains("no layout fits; those that lack least:") && text.contains(" too much)"), "{text}");
}

#[test]
fn a_ranking_has_every_key_and_survives_json() {
    let job = job(4, 2, 0.1, 16);
    let cluster = cluster(4, 600_000_000, 1.0).with_ranks(8);
    let found = search(&job, &cluster, &Analytic::new(&cluster), &Space::of(&job, 8), 8, 4).unwrap();
    let ranking = Ranking::new(&job, &cluster, &found);
    let json = serde_json::to_string(&ranking).unwrap();
    // Numbers are read to the nearest double, which is what was written.
    assert_eq!(serde_json::from_str::<Ranking>(&json).unwrap(), ranking);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let first = &value["layouts"][0];
    for key in [
        "tp",
        "pp",
        "dp",
        "cp",
        "ep",
        "chunks",
        "schedule",
        "micro_batch",
        "zero",
        "recompute",
        "sequence_parallel",
        "fits",
        "step_seconds",
        "tokens_per_second_per_device",
        "tflops_per_device",
        "hardware_tflops_per_device",
        "mfu",
        "bubble",
        "memory_bytes_per_rank",
        "memory",
        "terms",
    ] {
        assert!(!first[key].is_null(), "{key}: {first}");
    }
    let sum = |key: &str| first[key].as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum::<f64>();
    assert_eq!(Some(sum("memory")), first["memory_bytes_per_rank"].as_f64());
    assert!((sum("terms") / first["step_seconds"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{first}");
    let text = found.table(&job, &cluster, 8);
    for part in
        ["why each beats the next:", "the best in parts:", "of each rank of the pipeline:", "layouts considered"]
    {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn without_a_peak_there_is_memory_and_no_time() {
    let job = job(4, 8, 0.0, 16);
    let mut cluster = cluster(4, 3_000_000_000, 1.0).with_ranks(4);
    cluster.device.peak.bf16 = None;
    let found = search(&job, &cluster, &Analytic::new(&cluster), &Space::of(&job, 4), 4, 3).unwrap();
    assert!(found.layouts.iter().all(|layout| layout.time.is_none()));
    assert_eq!(found.layouts, exhaustive(&job, &cluster, &accepted(&job, 4))[..3]);
    assert_eq!(found.misses, []);
    let text = found.table(&job, &cluster, 4);
    assert!(text.contains("has no `device.peak.bf16`, the rate of products in `train.precision` = \"bf16\""), "{text}");
}

/// A trillion parameters on ten thousand devices.
fn large() -> (Job, Cluster) {
    let model = ModelConfig {
        architecture: ArchitectureName::Gpt2,
        hidden: 25_600,
        layers: 128,
        heads: 160,
        ..ModelConfig::default()
    };
    let architecture = Architecture::resolve(&model, 51_200, 2048).unwrap();
    assert!(architecture.parameter_count() > 1_000_000_000_000);
    let job = Job { architecture, seq: 2048, global_batch: 10_000, ..job(1, 8, 0.0, 8) };
    (job, Cluster::preset("h100").unwrap().with_ranks(10_000))
}

#[test]
fn ten_thousand_devices_and_a_trillion_parameters_are_few_estimates() {
    let (job, cluster) = large();
    let mut unknown = cluster.clone();
    unknown.device.peak.bf16 = None;
    let mut small = cluster.clone();
    small.device.memory_bytes = 1 << 30;
    for (cluster, fitting) in [(cluster, 5), (unknown, 5), (small, 0)] {
        let space = Space::of(&job, 10_000);
        let found = search(&job, &cluster, &Analytic::new(&cluster), &space, 10_000, 5).unwrap();
        assert_eq!(found.layouts.len(), fitting);
        // A twentieth, and those that fit badly are left before their time is asked for.
        assert!(20 * found.estimated < found.considered, "{} of {}", found.estimated, found.considered);
    }
}

/// Every layout's time falls with the memory's bandwidth, whatever hides behind what.
#[test]
fn no_layout_is_slower_on_faster_memory() {
    let job = job(4, 8, 0.0, 16);
    let plain = cluster(4, 3_000_000_000, 0.02).with_ranks(8);
    let mut faster = plain.clone();
    faster.device.memory_bandwidth *= 1.5;
    let (costs, faster_costs) = (Analytic::new(&plain), Analytic::new(&faster));
    let (mut one, mut other) = (Estimator::new(&job, &plain, &costs), Estimator::new(&job, &faster, &faster_costs));
    for candidate in Space::of(&job, 8).candidates(&job, 8) {
        let (before, after) =
            (seconds(&one.estimate(&candidate).unwrap()), seconds(&other.estimate(&candidate).unwrap()));
        assert!(after <= before * (1.0 + 1e-12), "{candidate:?}: {before} to {after}");
    }
}

/// The sum over tensor ranks travels behind the product for the weights, unless that is put off.
#[test]
fn nothing_hides_behind_products_that_are_put_off() {
    let job = job(4, 8, 0.0, 16);
    let cluster = cluster(4, 3_000_000_000, 1.0).with_ranks(4);
    let costs = Analytic::new(&cluster);
    let mut estimator = Estimator::new(&job, &cluster, &costs);
    let mut tensor = |schedule: ScheduleName, sequence_parallel: bool| {
        let plain = Candidate { tp: 2, pp: 2, micro_batch: 1, ..Candidate::default() };
        let estimate = estimator.estimate(&Candidate { schedule, sequence_parallel, ..plain }).unwrap();
        estimate.time.unwrap().terms.tensor
    };
    for cut in [false, true] {
        assert!(tensor(ScheduleName::ZbH1, cut) > tensor(ScheduleName::OneFOneB, cut), "sequence cut: {cut}");
    }
}

/// Every layout's time falls as more of what is sent moves while devices compute.
#[test]
fn no_layout_is_slower_where_more_moves_by_itself() {
    let job = job(4, 8, 0.0, 16);
    let space = Space::of(&job, 8);
    for bandwidth in [0.02, 0.2, 1.0] {
        let machine = |overlap: f64| {
            let mut machine = cluster(4, 3_000_000_000, bandwidth).with_ranks(8);
            machine.efficiency.overlap = overlap;
            machine
        };
        let times = |overlap: f64| -> Vec<f64> {
            let machine = machine(overlap);
            let costs = Analytic::new(&machine);
            let mut estimator = Estimator::new(&job, &machine, &costs);
            space.candidates(&job, 8).map(|candidate| seconds(&estimator.estimate(&candidate).unwrap())).collect()
        };
        let times = [0.0, 0.25, 0.5, 0.75, 1.0].map(times);
        for (place, candidate) in space.candidates(&job, 8).enumerate() {
            let own = times.each_ref().map(|times| times[place]);
            let falls = own.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-12));
            assert!(falls, "{candidate:?}: {own:?}");
        }
    }
}

/// Where the processor itself moves what is sent, nothing hides: an executor that hides all takes as long as one that hides
/// none, but that of a pipeline's message the receiver alone waits for all.
#[test]
fn nothing_hides_where_nothing_moves_by_itself() {
    let engine = job(4, 8, 0.0, 16);
    let waiting =
        Job { executor: Executor { hides_tensor: false, hides_data: false, ..engine.executor }, ..engine.clone() };
    let links = cluster(4, 3_000_000_000, 1.0).with_ranks(4);
    let mut host = links.clone();
    host.efficiency.overlap = 0.0;
    let time = |job: &Job, cluster: &Cluster, candidate: &Candidate| {
        let costs = Analytic::new(cluster);
        let estimate = Estimator::new(job, cluster, &costs).estimate(candidate).unwrap();
        estimate.time.unwrap()
    };
    let plain = Candidate { micro_batch: 1, ..Candidate::default() };
    for candidate in [
        Candidate { tp: 4, ..plain },
        Candidate { tp: 4, sequence_parallel: true, ..plain },
        Candidate { dp: 4, ..plain },
        Candidate { tp: 2, dp: 2, zero: Zero::Parameters, ..plain },
    ] {
        let host_time = time(&engine, &host, &candidate);
        assert_eq!(host_time, time(&waiting, &links, &candidate), "{candidate:?}");
        assert!(host_time.seconds > time(&engine, &links, &candidate).seconds, "{candidate:?}");
    }
    let piped = Candidate { pp: 4, ..plain };
    let [moved, waited, both] = [
        time(&engine, &links, &piped),
        time(&engine, &host, &piped),
        time(
            &Job { executor: Executor { hides_messages: false, ..engine.executor }, ..engine.clone() },
            &links,
            &piped,
        ),
    ];
    assert!(moved.seconds < waited.seconds && waited.seconds < both.seconds, "{moved:?} {waited:?} {both:?}");
    // Around a ring no executor waits on purpose; all of each message is waited for.
    let ring = Candidate { cp: 4, ..plain };
    let [moved, waited] = [&links, &host].map(|cluster| time(&engine, cluster, &ring).terms.context);
    assert!(waited > moved, "{moved} {waited}");
}

/// What a rank stores is what the engine's own arrangement of its parameters allocates.
#[test]
fn stored_bytes_are_those_of_the_arrangement() {
    let job = Job { global_batch: 64, ..job(6, 2, 0.0, 8) };
    let cluster = cluster(4, 3_000_000_000, 1.0).with_ranks(8);
    let costs = Analytic::new(&cluster);
    let mut estimator = Estimator::new(&job, &cluster, &costs);
    for candidate in Space::of(&job, 8).candidates(&job, 8) {
        let stages: Stages = candidate.stages(&job).unwrap();
        let partition = Partition::new(&job.architecture, &candidate.mesh().unwrap()).unwrap();
        let estimate = estimator.estimate(&candidate).unwrap();
        for (rank, memory) in estimate.memory.iter().enumerate() {
            let held = partition.of_rank(&stages, rank);
            let arrangement = mp_plan::Arrangement::new(
                &held.parameters,
                candidate.zero,
                candidate.dp * candidate.cp,
                job.bucket_elements,
            );
            let bytes = arrangement.bytes(&job.storage());
            assert_eq!(
                [memory.parameters, memory.gradients, memory.master, memory.moments],
                [bytes.parameters, bytes.gradients, bytes.master, bytes.moments],
                "{candidate:?} rank {rank}"
            );
        }
    }
}
