//! Pages of pictures: well-formed, complete, to scale, of bounded size; and the timelines behind them.

use mp_plan::{
    published, search, ActivityKind, Analytic, Architecture, ArchitectureName, Candidate, Cluster, ContextForm,
    Estimator, Executor, Found, Job, LoraConfig, MemoryModel, ModelConfig, Page, ParallelConfig, Partition, Plan,
    Precision, RankMemory, Schedule, ScheduleName, Space, StepTimeline, Storage, Switch, Zero,
};
use roxmltree::{Document, Node, ParsingOptions};

fn job(layers: usize, global_batch: usize) -> Job {
    let model = ModelConfig { hidden: 64, layers, heads: 4, kv_heads: 2, ffn: 160, ..ModelConfig::default() };
    Job {
        architecture: Architecture::resolve(&model, 257, 128).unwrap(),
        seq: 128,
        global_batch,
        precision: Precision::Bf16,
        moments: 2,
        bucket_elements: 1 << 12,
        context: ContextForm::Ring,
        within_documents: false,
        split: Vec::new(),
        executor: Executor::ENGINE,
    }
}

/// A device with a memory of some MiB, so that a limit is in sight.
fn cluster(name: &str, mib: usize) -> Cluster {
    let mut cluster = Cluster::preset("h100").unwrap();
    cluster.device.name = name.to_owned();
    cluster.device.memory_bytes = mib << 20;
    cluster
}

fn found(job: &Job, cluster: &Cluster, ranks: usize, asked: &ParallelConfig) -> Found {
    let space = Space::of(job, ranks).fixed(asked);
    search(job, cluster, &Analytic::new(cluster), &space, ranks, 3).unwrap()
}

fn page(job: &Job, cluster: &Cluster, found: &Found) -> String {
    Page::of_found(job, cluster, &Analytic::new(cluster), found).unwrap().html()
}

fn piped(pp: usize, tp: usize, schedule: ScheduleName) -> ParallelConfig {
    ParallelConfig { pp, tp, micro_batch: 1, schedule: Switch::Set(schedule), ..ParallelConfig::default() }
}

fn parse(html: &str) -> Document<'_> {
    Document::parse_with_options(html, ParsingOptions { allow_dtd: true, ..ParsingOptions::default() }).unwrap()
}

/// Lists the shapes whose title begins so, as class and place.
fn titled<'a>(document: &'a Document<'a>, begins: &str) -> Vec<(&'a str, [f64; 4])> {
    let shapes = document.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "rect")));
    let of = |node: Node<'a, '_>| {
        let title = node.children().find(|child| child.tag_name().name() == "title")?.text()?;
        let number = |name: &str| node.attribute(name).unwrap().parse::<f64>().unwrap();
        let place = ["x", "y", "width", "height"].map(number);
        title.starts_with(begins).then(|| (node.attribute("class").unwrap(), place))
    };
    shapes.filter_map(of).collect()
}

#[test]
fn a_timeline_is_what_the_estimate_says() {
    for row in published::rows() {
        let (job, cluster) = (row.job().unwrap(), row.cluster().unwrap());
        let costs = Analytic::new(&cluster);
        let mut estimator = Estimator::new(&job, &cluster, &costs);
        let time = estimator.estimate(&row.candidate()).unwrap().time.unwrap();
        let timeline = estimator.step_timeline(&row.candidate()).unwrap().unwrap();
        assert_eq!(timeline.seconds, time.seconds);
        let (mut busy, mut computed) = (0.0, 0.0_f64);
        for (rank, spent) in timeline.ranks.iter().enumerate() {
            assert_eq!((spent[0].start, spent[spent.len() - 1].end), (0.0, timeline.seconds));
            for pair in spent.windows(2) {
                assert_eq!(pair[0].end, pair[1].start);
            }
            busy += timeline.spent(rank)[..4].iter().sum::<f64>();
            let last = spent.iter().rfind(|activity| activity.computes.is_some()).unwrap();
            computed = computed.max(last.end);
        }
        // Sums of some thousand terms, each rounded.
        let bubble = 1.0 - busy / (computed * timeline.ranks.len() as f64);
        assert!((bubble - time.bubble).abs() < 1e-9, "{bubble} {}", time.bubble);
    }
}

#[test]
fn every_computation_of_every_schedule_is_there() {
    for schedule in ScheduleName::ALL {
        let chunks = schedule.default_chunks();
        let job = job(2 * chunks, 4);
        let candidate = Candidate { pp: 2, schedule, chunks, ..Candidate::default() };
        let cluster = cluster("x", 80 << 10);
        let timeline =
            Estimator::new(&job, &cluster, &Analytic::new(&cluster)).step_timeline(&candidate).unwrap().unwrap();
        for spent in &timeline.ranks {
            let count = |kind| spent.iter().filter(|activity| activity.kind == kind).count();
            let [forward, whole, input, weight] = [
                ActivityKind::Forward,
                ActivityKind::Backward,
                ActivityKind::BackwardInput,
                ActivityKind::BackwardWeight,
            ]
            .map(count);
            assert_eq!((forward, whole + input, input), (4 * chunks, 4 * chunks, weight), "{schedule}");
            assert_eq!(input > 0, schedule.splits_backward(), "{schedule}");
            assert_eq!(count(ActivityKind::Update), 1);
        }
    }
}

#[test]
fn without_a_machine_times_are_flops() {
    let job = job(4, 8);
    let candidate = Candidate { pp: 4, ..Candidate::default() };
    let schedule = Schedule::new(ScheduleName::OneFOneB, candidate.stages(&job).unwrap(), 8, false).unwrap();
    let timeline = StepTimeline::by_flops(&schedule, &job.architecture, job.seq, &candidate);
    // A layer is one forward and two of backward; beside it the last rank has the head, which decides the pace.
    let flops = |layers: usize| Architecture { layers, ..job.architecture.clone() }.flops_per_token(job.seq);
    let head = flops(1) / (flops(2) - flops(1)) - 1.0;
    let last = timeline.spent(3);
    assert!((last[0] - 8.0 * (1.0 + head)).abs() < 1e-9 && (last[1] - 16.0 * (1.0 + head)).abs() < 1e-9, "{last:?}");
    assert!((timeline.seconds - (3.0 * 3.0 + 8.0 * 3.0 * (1.0 + head))).abs() < 1e-9, "{}", timeline.seconds);
}

#[test]
fn a_page_is_well_formed_and_has_every_rank_and_component() {
    let job = job(8, 16);
    for (ranks, asked) in [
        (1, ParallelConfig::default()),
        (4, piped(2, 2, ScheduleName::ZbH1)),
        (16, piped(4, 2, ScheduleName::Interleaved)),
        (8, piped(4, 1, ScheduleName::ZbV)),
    ] {
        let cluster = cluster("x", 40);
        let found = found(&job, &cluster, ranks, &asked);
        let html = page(&job, &cluster, &found);
        let document = parse(&html);
        let best = &found.layouts[0];
        for rank in 0..best.candidate.pp {
            assert!(!titled(&document, &format!("pp {rank}, forward of micro-batch 0")).is_empty());
            assert!(!titled(&document, &format!("pp {rank}, update")).is_empty());
            assert!(!titled(&document, &format!("pp {rank}, stage")).is_empty());
        }
        for (part, name) in best.largest().parts().into_iter().zip(RankMemory::NAMES) {
            assert_eq!(part > 0, html.contains(&format!(": {name} ")), "{name}");
        }
        for one in Partition::new(&job.architecture, &best.candidate.mesh().unwrap()).unwrap().parameters {
            let name = one.spec.name.trim_start_matches("layers.0.").to_owned();
            assert!(one.spec.layer > Some(0) || html.contains(&format!(">{name}<")), "{name}");
        }
        let ids: Vec<&str> = document.descendants().filter_map(|node| node.attribute("id")).collect();
        let mut distinct = ids.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(ids.len(), distinct.len(), "{ids:?}");
    }
}

/// Titles are found by them. With a table at each end, both heads and all adapters bert has more matrices than any other model.
#[test]
fn every_name_of_a_page_is_given_once() {
    let model = ModelConfig {
        architecture: ArchitectureName::Bert,
        hidden: 64,
        tie_embeddings: Some(false),
        next_sentence: true,
        ..ModelConfig::default()
    };
    let job = Job { architecture: Architecture::resolve(&model, 257, 128).unwrap(), ..job(4, 8) };
    let targets = ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down"];
    let lora = LoraConfig { rank: 2, targets: targets.map(String::from).to_vec(), ..LoraConfig::default() };
    let candidate = Candidate { tp: 2, ..Candidate::default() };
    let schedule = Schedule::new(ScheduleName::OneFOneB, candidate.stages(&job).unwrap(), 2, false).unwrap();
    let partition = Partition::new(&job.architecture, &candidate.mesh().unwrap()).unwrap().adapted(&lora).unwrap();
    let storage = Storage { precision: Precision::Bf16, moments: 2 };
    let plan = Plan::new(&partition, storage).cut(&partition, &schedule, Zero::Replicated);
    let html = Page::of_layout(plan, &schedule, job.seq).html();
    let document = parse(&html);
    let mut names: Vec<&str> = document.descendants().filter_map(|node| node.attribute("id")).collect();
    assert!(names.contains(&"a24"), "{names:?}");
    names.sort_unstable();
    let given = names.len();
    names.dedup();
    assert_eq!(names.len(), given);
}

#[test]
fn areas_are_to_scale() {
    let job = job(8, 16);
    let cluster = cluster("x", 40);
    let found = found(&job, &cluster, 16, &piped(4, 2, ScheduleName::Interleaved));
    let html = page(&job, &cluster, &found);
    let document = parse(&html);
    let best = &found.layouts[0];
    // Memory: as many units a byte everywhere, one bar behind the other; coordinates have two digits.
    let bars: Vec<[f64; 4]> = titled(&document, "pp rank ").into_iter().map(|(_, place)| place).collect();
    let end = bars.iter().map(|[x, _, width, _]| x + width).fold(0.0, f64::max);
    let mut drawn = bars.iter();
    let mut before = None;
    for memory in best.memory.iter().filter(|memory| before.replace(**memory) != Some(**memory)) {
        let mut x = 62.0;
        for part in memory.parts().into_iter().filter(|&part| part > 0) {
            let width = part as f64 / best.largest().total() as f64 * (end - 62.0);
            let bar = drawn.next().unwrap();
            assert!((bar[0] - x).abs() < 0.02 && (bar[2] - width).abs() < 0.02, "{bar:?} {x} {width}");
            x += width;
        }
    }
    assert_eq!(drawn.next(), None);
    // Time: a block is as wide as it is long.
    let timeline =
        Estimator::new(&job, &cluster, &Analytic::new(&cluster)).step_timeline(&best.candidate).unwrap().unwrap();
    for (rank, spent) in timeline.ranks.iter().enumerate() {
        let blocks = titled(&document, &format!("pp {rank}, "));
        // The stages of the layers' strip have titles too.
        let blocks: Vec<[f64; 4]> =
            blocks.into_iter().filter(|(class, _)| *class != "own").map(|(_, place)| place).collect();
        assert_eq!(blocks.len(), spent.len());
        for (block, activity) in blocks.iter().zip(spent) {
            let [x, width] = [activity.start, activity.end - activity.start].map(|t| t / timeline.seconds * 854.0);
            assert!((block[0] - 96.0 - x).abs() < 0.01 && (block[2] - width).abs() < 0.01, "{block:?} {activity:?}");
        }
    }
    // Matrices: the slices of a matrix cover it, each with its share.
    let first = titled(&document, "tensor rank 0: rows 0 to 129");
    let second = titled(&document, "tensor rank 1: rows 129 to 257");
    assert!((first[0].1[3] / second[0].1[3] - 129.0 / 128.0).abs() < 1e-3, "{first:?} {second:?}");
}

#[test]
fn colours_are_defined_in_light_and_dark() {
    let job = job(2, 4);
    let cluster = cluster("x", 80);
    let html = page(&job, &cluster, &found(&job, &cluster, 1, &ParallelConfig::default()));
    let (light, dark) = html.split_once("@media (prefers-color-scheme: dark)").unwrap();
    let dark = dark.split_once("}\n}").unwrap().0;
    let used: Vec<&str> = html.split("var(").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(used.len() > 20);
    for name in used {
        let definition = format!("{name}: #");
        assert!(light.contains(&definition) && dark.contains(&definition), "{name}");
    }
}

#[test]
fn names_are_words_whatever_they_say() {
    let name = "<script>alert('x')</script> & \"more\"";
    let job = job(2, 4);
    let cluster = cluster(name, 80);
    let html = page(&job, &cluster, &found(&job, &cluster, 1, &ParallelConfig::default()));
    let document = parse(&html);
    assert!(document.descendants().all(|node| node.tag_name().name() != "script"));
    let title = document.descendants().find(|node| node.tag_name().name() == "h1").unwrap();
    assert!(title.text().unwrap().ends_with(name));
}

#[test]
fn a_page_has_a_bounded_size() {
    let job = job(200, 1024);
    let cluster = cluster("x", 80 << 10);
    let asked =
        ParallelConfig { dp: 4, cp: 1, zero: Switch::Set(Zero::Optimizer), ..piped(200, 2, ScheduleName::ZbH1) };
    let html = page(&job, &cluster, &found(&job, &cluster, 1600, &asked));
    parse(&html);
    assert!(html.len() < 1 << 20, "{}", html.len());
    // Columns fill their rows: one of all shares for each rank.
    assert!(html.contains("too many to draw") && html.contains("Ranks 48–151 of the pipeline are left out."));
    assert!(html.contains("pp 199: forward ") && html.contains("<td>1592–1599</td>"));
}

#[test]
fn columns_are_to_scale() {
    let job = job(2, 2048);
    let cluster = cluster("x", 80 << 10);
    let candidate = Candidate { pp: 2, ..Candidate::default() };
    let found = found(&job, &cluster, 2, &piped(2, 1, ScheduleName::OneFOneB));
    assert_eq!(found.layouts[0].candidate.pp, candidate.pp);
    let html = page(&job, &cluster, &found);
    let timeline = Estimator::new(&job, &cluster, &Analytic::new(&cluster))
        .step_timeline(&found.layouts[0].candidate)
        .unwrap()
        .unwrap();
    let spent = timeline.spent(1);
    let path = html.split("<path class=\"forward plain\" d=\"").nth(2).unwrap().split('"').next().unwrap();
    let area: f64 = path
        .split('z')
        .filter(|piece| !piece.is_empty())
        .map(|piece| {
            let numbers: Vec<f64> =
                piece.split(['M', ' ', 'h', 'v']).filter_map(|number| number.parse().ok()).collect();
            numbers[2] * numbers[3]
        })
        .sum();
    let expected = spent[0] / timeline.seconds * 854.0 * 26.0;
    // Coordinates have two digits: a column's width is off by 0.005 of more than 2 units, and its height of some eight.
    assert!((area / expected - 1.0).abs() < 3.2e-3, "{area} {expected}");
}

#[test]
fn what_does_not_fit_and_what_has_no_rate_is_said() {
    let job = job(4, 4);
    let none = cluster("x", 1);
    let html = page(&job, &none, &found(&job, &none, 2, &ParallelConfig::default()));
    assert!(html.contains("This layout does not fit") && html.contains("No layout fits; these lack least"));
    let mut unknown = cluster("x", 80);
    unknown.device.peak = mp_plan::cluster::Peak::default();
    let html = page(&job, &unknown, &found(&job, &unknown, 2, &piped(2, 1, ScheduleName::OneFOneB)));
    assert!(html.contains("The device&#39;s rate is unknown.") && html.contains("forwards of a layer"));
}

/// The smallest page: one layer on two tensor ranks, on no machine.
fn tiny() -> String {
    let model = ModelConfig { hidden: 16, layers: 2, heads: 2, ffn: 32, ..ModelConfig::default() };
    let job =
        Job { architecture: Architecture::resolve(&model, 10, 16).unwrap(), seq: 16, global_batch: 2, ..job(1, 2) };
    let candidate = Candidate { tp: 2, pp: 2, ..Candidate::default() };
    let stages = candidate.stages(&job).unwrap();
    let schedule = Schedule::new(ScheduleName::OneFOneB, stages, 2, false).unwrap();
    let partition = Partition::new(&job.architecture, &candidate.mesh().unwrap()).unwrap();
    let storage = Storage { precision: Precision::Bf16, moments: 2 };
    let memory = MemoryModel::new(&job).ranks(&candidate, &schedule.stages, &schedule.ranks).unwrap();
    let plan = Plan::new(&partition, storage).cut(&partition, &schedule, Zero::Replicated).keeping(memory);
    Page::of_layout(plan, &schedule, job.seq).html()
}

#[test]
fn a_small_page_is_as_it_was() {
    let (html, golden) = (tiny(), include_str!("picture/tiny.html"));
    if let Some((line, expected)) = html.lines().zip(golden.lines()).find(|(line, expected)| line != expected) {
        panic!("a line of the page is\n{line}\nand was\n{expected}\nif that is meant, tests/picture/tiny.html becomes\n{html}");
    }
    assert_eq!(html.len(), golden.len());
}
