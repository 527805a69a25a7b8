//! Machines that were measured: what more work takes, what better points do, and searches among them.

use std::cmp::Ordering;

use mp_plan::cluster::measured::{ByPrecision, CollectivePoints, Messages, Points, Product};
use mp_plan::search::order;
use mp_plan::{
    cost, search, Architecture, Cluster, Collective, ContextForm, CostModel, Estimate, Estimator, Executor, Group, Job,
    Measured, ModelConfig, Precision, Space,
};
use proptest::prelude::*;

const KINDS: [Collective; 4] =
    [Collective::AllReduce, Collective::AllGather, Collective::ReduceScatter, Collective::AllToAll];

fn job(layers: usize, global_batch: usize) -> Job {
    let model = ModelConfig { hidden: 64, layers, heads: 4, kv_heads: 2, ..ModelConfig::default() };
    Job {
        architecture: Architecture::resolve(&model, 256, 64).unwrap(),
        seq: 64,
        global_batch,
        precision: Precision::Fp32,
        moments: 2,
        bucket_elements: 1 << 14,
        context: ContextForm::Ring,
        within_documents: false,
        split: Vec::new(),
        executor: Executor::ENGINE,
    }
}

/// Sizes with values that noise has disordered.
fn any_points(values: std::ops::Range<f64>) -> impl Strategy<Value = Vec<[f64; 2]>> {
    prop::collection::vec(values, 1..5)
        .prop_map(|values| values.into_iter().zip(0..).map(|(value, step)| [64.0 * 32f64.powi(step), value]).collect())
}

fn any_products() -> impl Strategy<Value = Vec<Product>> {
    let lengths = [16, 64, 256];
    prop::collection::vec(1e8..1e11_f64, 27).prop_map(move |rates| {
        let shapes = lengths
            .into_iter()
            .flat_map(move |m| lengths.into_iter().flat_map(move |n| lengths.into_iter().map(move |k| (m, n, k))));
        shapes.zip(rates).map(|((m, n, k), rate)| Product(m, n, k, rate)).collect()
    })
}

/// A node of four ranks, of which groups of two and four were measured.
fn any_machine() -> impl Strategy<Value = Cluster> {
    let groups = prop::collection::vec(any_points(1e-6..1e-2), 8);
    let pairs = (any_points(1e8..1e11), any_points(1e9..1e11), any_points(1e-6..1e-2));
    (any_products(), pairs, groups, 2_000_000..200_000_000_usize).prop_map(
        |(products, (attention, memory, messages), groups, bytes)| {
            let kinds = KINDS.into_iter().flat_map(|what| [(what, 2), (what, 4)]);
            let collectives = kinds.zip(groups).map(|((what, ranks), points)| CollectivePoints {
                what,
                ranks,
                neighbours: ranks,
                points,
            });
            let mut cluster = Cluster::preset("cpu").unwrap();
            cluster.node.devices = 4;
            cluster.node.memory_bytes = 4 * bytes;
            cluster.measured = Some(Points {
                products: ByPrecision { fp32: products, ..ByPrecision::default() },
                attention: ByPrecision { fp32: attention, ..ByPrecision::default() },
                memory,
                collectives: collectives.collect(),
                messages: Messages { inside: messages, outside: Vec::new() },
            });
            cluster
        },
    )
}

/// What is made better, by its key.
type Change<'a> = (&'a str, &'a dyn Fn(&mut Cluster));

/// Two nodes of four, or one of eight, of which some groups, messages and operations were measured and others were not.
fn any_part_of_a_machine() -> impl Strategy<Value = Cluster> {
    (any_machine(), prop::collection::vec(any::<bool>(), 13), 0.0..=1.0_f64).prop_map(
        |(mut cluster, measured, overlap)| {
            (cluster.node.count, cluster.node.devices) = if measured[0] { (2, 4) } else { (1, 8) };
            cluster.efficiency.overlap = overlap;
            let points = cluster.measured.as_mut().unwrap();
            let mut kept = measured[1..].iter();
            points.collectives.retain(|_| *kept.next().unwrap());
            // Pairs over nodes beside pairs inside.
            points
                .collectives
                .iter_mut()
                .filter(|group| group.ranks == 2 && measured[9])
                .for_each(|group| group.neighbours = 1);
            if measured[10] {
                points.messages.inside.clear();
            }
            if measured[11] {
                points.memory.clear();
            }
            if measured[12] {
                points.products.fp32.clear();
                points.attention.fp32.clear();
            }
            cluster
        },
    )
}

fn best(job: &Job, cluster: &Cluster, ranks: usize) -> f64 {
    let found = search(job, cluster, &*cost::of(cluster), &Space::of(job, ranks), ranks, 1).unwrap();
    found.layouts.first().map_or(f64::INFINITY, |layout| layout.time.unwrap().seconds)
}

/// Of two times that are the same in exact arithmetic the one may be larger by rounding of logarithms.
const ROUNDING: f64 = 1.0 + 1e-9;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn more_work_never_takes_less(
        cluster in any_machine(), shape in prop::array::uniform3(1..600_usize), dim in 0..3_usize, more in 1..600_usize,
        bytes in (0.0..18.0_f64).prop_map(f64::exp), factor in 1.0..50.0_f64,
    ) {
        cluster.check().unwrap();
        let costs = cost::of(&cluster);
        let product = |count: usize, shape| costs.product(count, shape, Precision::Fp32);
        let mut larger = shape;
        larger[dim] += more;
        prop_assert!(product(1, shape) <= product(1, larger) * ROUNDING);
        // Strictly: one more always adds at least its work at the best rate, which is no rounding of what there is.
        prop_assert!(product(1, shape) < product(2, shape) && product(2, shape) < product(3, shape));
        let attention = |flop: f64| costs.attention(flop, Precision::Fp32).unwrap();
        prop_assert!(attention(bytes) <= attention(bytes * factor) * ROUNDING);
        for starts in [0, 1, 5] {
            prop_assert!(costs.memory(bytes, starts) <= costs.memory(bytes * factor, starts) * ROUNDING);
        }
        prop_assert!(costs.message(bytes, true) <= costs.message(bytes * factor, true) * ROUNDING);
        for what in KINDS {
            for (size, neighbours) in [(1, 1), (2, 2), (3, 3), (4, 4), (4, 2), (8, 4)] {
                let collective = |bytes: f64| costs.collective(what, bytes, Group { size, neighbours });
                prop_assert!(collective(bytes) <= collective(bytes * factor) * ROUNDING);
            }
        }
    }

    #[test]
    fn nothing_is_faster_than_the_fastest_product(cluster in any_machine(), shape in prop::array::uniform3(16..600_usize)) {
        let fastest = cluster.measured.as_ref().unwrap().products.fp32.iter().map(|product| product.3).fold(0.0, f64::max);
        let flop = 2.0 * shape.iter().map(|&length| length as f64).product::<f64>();
        let seconds = Measured::new(&cluster).product(1, shape, Precision::Fp32);
        prop_assert!(flop / seconds <= fastest * ROUNDING);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn better_points_never_make_the_best_slower(
        cluster in any_machine(), ranks in prop::sample::select(vec![1, 2, 4]), more in 1.0..4.0_f64, which in 0..30_usize,
    ) {
        let job = job(3, 8);
        let plain = best(&job, &cluster, ranks) * ROUNDING;
        let better = |change: &dyn Fn(&mut Cluster, &mut Points)| {
            let mut cluster = cluster.clone();
            let mut points = cluster.measured.take().unwrap();
            change(&mut cluster, &mut points);
            best(&job, &Cluster { measured: Some(points), ..cluster }, ranks)
        };
        prop_assert!(better(&|cluster, _| cluster.node.memory_bytes = (cluster.node.memory_bytes as f64 * more) as usize) <= plain);
        prop_assert!(better(&|cluster, _| cluster.efficiency.launch /= more) <= plain);
        prop_assert!(better(&|_, points| points.memory.iter_mut().for_each(|point| point[1] *= more)) <= plain);
        prop_assert!(better(&|_, points| points.attention.fp32[0][1] *= more) <= plain);
        // One point alone.
        prop_assert!(better(&|_, points| points.products.fp32[which % 27].3 *= more) <= plain);
        prop_assert!(better(&|_, points| points.collectives[which % 8].points[0][1] /= more) <= plain);
        prop_assert!(better(&|_, points| points.messages.inside[0][1] /= more) <= plain);
    }

    #[test]
    fn better_rates_make_no_layout_slower_whatever_was_measured(
        cluster in any_part_of_a_machine(), more in 1.0..1e3_f64, from in 0..7_usize,
    ) {
        let job = job(4, 8);
        let ranks = cluster.ranks();
        let candidates: Vec<_> = Space::of(&job, ranks).candidates(&job, ranks).skip(from).step_by(7).collect();
        let steps = |cluster: &Cluster| -> Vec<f64> {
            let costs = cost::of(cluster);
            let mut estimator = Estimator::new(&job, cluster, &*costs);
            candidates.iter().map(|candidate| estimator.estimate(candidate).unwrap().time.unwrap().seconds).collect()
        };
        let plain = (steps(&cluster), best(&job, &cluster, ranks));
        let changes: [Change<'_>; 10] = [
            ("node.bandwidth", &|cluster| cluster.node.bandwidth *= more),
            ("node.latency", &|cluster| cluster.node.latency /= more),
            ("network.bandwidth", &|cluster| cluster.network.bandwidth *= more),
            ("network.latency", &|cluster| cluster.network.latency /= more),
            ("device.memory_bandwidth", &|cluster| cluster.device.memory_bandwidth *= more),
            ("efficiency.memory", &|cluster| cluster.efficiency.memory = cluster.efficiency.memory.max(1.0 - 1.0 / more)),
            ("efficiency.node", &|cluster| cluster.efficiency.node = cluster.efficiency.node.max(1.0 - 1.0 / more)),
            ("efficiency.overlap", &|cluster| cluster.efficiency.overlap = cluster.efficiency.overlap.max(1.0 - 1.0 / more)),
            ("efficiency.launch", &|cluster| cluster.efficiency.launch /= more),
            ("all links", &|cluster| {
                cluster.node.bandwidth *= more;
                cluster.network.bandwidth *= more;
            }),
        ];
        for (key, change) in changes {
            let mut better = cluster.clone();
            change(&mut better);
            for ((seconds, plain), candidate) in steps(&better).into_iter().zip(&plain.0).zip(&candidates) {
                prop_assert!(seconds <= plain * ROUNDING, "{} × {}: {} for {}, {:?}", key, more, seconds, plain, candidate);
            }
            prop_assert!(best(&job, &better, ranks) <= plain.1 * ROUNDING, "{} × {}", key, more);
        }
    }

    #[test]
    fn a_search_finds_what_estimating_everything_finds(
        cluster in any_machine(), ranks in prop::sample::select(vec![2, 4]), layers in 1..5_usize,
    ) {
        let job = job(layers, 8);
        let (costs, space) = (cost::of(&cluster), Space::of(&job, ranks));
        let found = search(&job, &cluster, &*costs, &space, ranks, 1).unwrap();
        let mut estimator = Estimator::new(&job, &cluster, &*costs);
        let all = space.candidates(&job, ranks).map(|candidate| estimator.estimate(&candidate).unwrap());
        let least = all.filter(Estimate::fits).min_by(order);
        prop_assert_eq!(found.layouts.first().map(|layout| layout.candidate), least.as_ref().map(|layout| layout.candidate));
        if let (Some(one), Some(other)) = (found.layouts.first(), &least) {
            prop_assert_eq!(order(one, other), Ordering::Equal);
        }
    }

    #[test]
    fn a_measured_machine_survives_being_written(cluster in any_machine()) {
        let text = toml::to_string(&cluster).unwrap();
        prop_assert_eq!(toml::from_str::<Cluster>(&text).unwrap(), cluster.clone());
        prop_assert_eq!(serde_json::from_str::<Cluster>(&serde_json::to_string(&cluster).unwrap()).unwrap(), cluster);
    }
}

#[test]
fn where_there_is_no_point_the_rates_answer() {
    let mut cluster = Cluster::preset("cpu").unwrap();
    cluster.measured = Some(Points::default());
    let (measured, plain) = (Measured::new(&cluster), mp_plan::Analytic::new(&cluster));
    let group = Group { size: 8, neighbours: 8 };
    assert_eq!(measured.product(2, [64, 32, 16], Precision::Fp32), plain.product(2, [64, 32, 16], Precision::Fp32));
    assert_eq!(measured.attention(1e9, Precision::Fp64), plain.attention(1e9, Precision::Fp64));
    assert_eq!(measured.memory(1e6, 3), plain.memory(1e6, 3));
    assert_eq!(measured.message(1e6, false), plain.message(1e6, false));
    for what in KINDS {
        assert_eq!(measured.collective(what, 1e6, group), plain.collective(what, 1e6, group));
    }
    assert_eq!(measured.peak(Precision::Bf16), None);
}

#[test]
fn many_small_products_take_as_often_what_one_works() {
    let point = |length: usize, seconds: f64| Product(length, length, length, 2.0 * (length as f64).powi(3) / seconds);
    let mut cluster = Cluster::preset("cpu").unwrap();
    (cluster.efficiency.launch, cluster.measured) = (0.0, Some(Points::default()));
    // A grid of one shape: all of its time is its start, and all of it at the best rate.
    cluster.measured.as_mut().unwrap().products.fp32 = vec![point(16, 2e-6)];
    let product = |count: usize| Measured::new(&cluster).product(count, [16; 3], Precision::Fp32);
    for count in [1, 2, 10_000] {
        assert!((product(count) / (count as f64 * 2e-6) - 1.0).abs() < 1e-9, "{count}: {}", product(count));
    }
}

/// A hop over the network counts as two, a byte as ten.
#[test]
fn a_group_that_was_not_measured_is_judged_by_the_most_similar_one() {
    let what = Collective::AllGather;
    let measured = |what, (ranks, neighbours), start: f64| {
        let points = vec![[1e2, start], [1e4, 10.0 * start], [1e8, 1e3 * start]];
        CollectivePoints { what, ranks, neighbours, points }
    };
    let mut cluster = Cluster::preset("h100").unwrap().with_ranks(32);
    let collectives = vec![
        measured(what, (2, 2), 3.0),
        measured(what, (8, 8), 2.0),
        measured(what, (2, 1), 5.0),
        measured(what, (16, 8), 7.0),
        measured(Collective::AllReduce, (8, 8), 2.0),
    ];
    cluster.measured = Some(Points { collectives, ..Points::default() });
    // Of a group the time of the most similar one's smallest size, and its hops and bytes beside that one's.
    let gather = |size, neighbours, start, hops, bytes| (what, Group { size, neighbours }, start, hops, bytes);
    for (what, group, start, hops, bytes) in [
        gather(8, 8, 2.0, 1.0, 1.0),
        gather(6, 6, 2.0, 5.0 / 7.0, (5.0 / 6.0) / (7.0 / 8.0)),
        gather(3, 3, 3.0, 2.0, (2.0 / 3.0) / (1.0 / 2.0)),
        gather(4, 1, 5.0, 3.0, (3.0 / 4.0) / (1.0 / 2.0)),
        // Seven hops and an eighth less of the bytes in the node; one hop and a sixteenth of them more, or three and 3/32.
        gather(32, 8, 7.0, (7.0 + 6.0) / (7.0 + 2.0), (7.0 / 8.0 + 10.0 * 3.0 / 32.0) / (7.0 / 8.0 + 10.0 / 16.0)),
        // As a tree where little is sent, there and back; as a ring where much is.
        (Collective::AllReduce, Group { size: 4, neighbours: 4 }, 2.0, 2.0 / 3.0, (3.0 / 4.0) / (7.0 / 8.0)),
    ] {
        for bandwidth in [1.0, 100.0] {
            let mut cluster = cluster.clone();
            cluster.node.bandwidth *= bandwidth;
            cluster.network.bandwidth *= bandwidth;
            let costs = Measured::new(&cluster);
            let near = |bytes: f64, seconds: f64| {
                let found = costs.collective(what, bytes, group);
                assert!(
                    (found / seconds - 1.0).abs() < 1e-9,
                    "{what:?} {group:?}, {bytes} bytes: {found} for {seconds}"
                );
            };
            near(1e2, start * hops);
            // A third of the way to the largest size.
            near(1e4, 10.0 * start * f64::powf(hops, 2.0 / 3.0) * f64::powf(bytes, 1.0 / 3.0));
            near(1e8, 1e3 * start * bytes);
            near(1e9, 1e4 * start * bytes);
        }
    }
    // Of another kind there is nothing to judge by.
    let (costs, plain) = (Measured::new(&cluster), mp_plan::Analytic::new(&cluster));
    let group = Group { size: 8, neighbours: 8 };
    assert_eq!(costs.collective(Collective::AllToAll, 1e6, group), plain.collective(Collective::AllToAll, 1e6, group));
}

/// Of one size it is not known what its time is spent on.
#[test]
fn of_a_single_point_the_larger_share_counts() {
    let mut cluster = Cluster::preset("h100").unwrap();
    let points = vec![[64.0, 1e-5]];
    let measured = CollectivePoints { what: Collective::AllGather, ranks: 4, neighbours: 4, points };
    cluster.measured = Some(Points { collectives: vec![measured], ..Points::default() });
    let gather =
        |size| Measured::new(&cluster).collective(Collective::AllGather, 64.0, Group { size, neighbours: size });
    assert!((gather(8) / 1e-5 - 7.0 / 3.0).abs() < 1e-9, "hops");
    assert!((gather(2) / 1e-5 - (1.0 / 2.0) / (3.0 / 4.0)).abs() < 1e-9, "bytes");
}

#[test]
fn points_that_cannot_be_are_refused_by_key() {
    type Change = fn(&mut Points);
    let changes: [(&str, Change); 5] = [
        ("measured.products.fp32 is 0, and must be a length", |points| {
            points.products.fp32 = vec![Product(1, 0, 1, 1e9)]
        }),
        ("measured.products.bf16 is 2, and shapes must make a grid", |points| {
            points.products.bf16 = vec![Product(1, 1, 1, 1e9), Product(2, 2, 2, 1e9)];
        }),
        ("measured.memory is -1, and must be", |points| points.memory = vec![[1.0, -1.0]]),
        ("measured.collectives.points is 0, and must be", |points| {
            let (what, points_of) = (Collective::AllReduce, vec![[1.0, 0.0]]);
            points.collectives = vec![CollectivePoints { what, ranks: 2, neighbours: 1, points: points_of }];
        }),
        ("measured.collectives.neighbours is 3, and must be", |points| {
            let what = Collective::AllReduce;
            points.collectives = vec![CollectivePoints { what, ranks: 2, neighbours: 3, points: Vec::new() }];
        }),
    ];
    for (message, change) in changes {
        let mut cluster = Cluster::preset("cpu").unwrap();
        change(cluster.measured.get_or_insert_default());
        let error = cluster.check().unwrap_err().to_string();
        assert!(error.starts_with(&format!("cluster: {message}")), "{error}");
    }
}
