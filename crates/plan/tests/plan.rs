//! The written plan: its bytes, its JSON and its table.

use mp_plan::{
    Architecture, Candidate, ContextForm, Degrees, Executor, Folding, Job, MemoryModel, Mesh, ModelConfig, Partition,
    Plan, PlannedWork, Precision, RankBytes, RankMemory, RecomputeName, Schedule, ScheduleName, Stages, Storage,
    Traffic, Zero,
};

fn plan(tp: usize, dp: usize, storage: Storage) -> Plan {
    let config = ModelConfig { hidden: 16, layers: 1, heads: 8, kv_heads: 2, ffn: 32, ..ModelConfig::default() };
    let architecture = Architecture::resolve(&config, 10, 16).unwrap();
    let mesh = Mesh::new(Degrees { dp, tp, ..Degrees::default() }).unwrap();
    Plan::new(&Partition::new(&architecture, &mesh).unwrap(), storage)
}

fn fp32() -> Storage {
    Storage { precision: Precision::Fp32, moments: 2 }
}

#[test]
fn bytes_follow_precision_and_optimizer() {
    let bytes = |precision, moments| Storage { precision, moments }.bytes(10);
    let expected = |parameters, gradients, master, moments| RankBytes { parameters, gradients, master, moments };
    assert_eq!(bytes(Precision::Fp32, 2), expected(40, 40, 0, 80));
    assert_eq!(bytes(Precision::Bf16, 2), expected(20, 40, 40, 80));
    assert_eq!(bytes(Precision::Fp64, 1), expected(80, 80, 0, 80));
    // The well-known 18 bytes an element of mixed precision with 32-bit gradients.
    assert_eq!(bytes(Precision::Bf16, 2).total(), 180);
}

#[test]
fn rank_bytes_are_the_sum_over_parameters() {
    for precision in [Precision::Fp32, Precision::Bf16, Precision::Fp64] {
        let plan = plan(4, 2, Storage { precision, moments: 2 });
        let sum: usize = plan.parameters.iter().map(|parameter| parameter.bytes).sum();
        assert_eq!(sum, plan.rank_bytes.parameters);
        assert_eq!(sum, plan.rank_elements * precision.parameter_bytes());
    }
}

#[test]
fn plans_survive_json() {
    let plan = plan(4, 2, Storage { precision: Precision::Bf16, moments: 1 });
    let json = serde_json::to_string_pretty(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
}

#[test]
fn json_shows_each_rank_its_range() {
    let json = serde_json::to_value(plan(4, 2, fp32())).unwrap();
    assert_eq!(json["mesh"], serde_json::json!({"pp": 1, "dp": 2, "cp": 1, "tp": 4, "ep": 1}));
    assert_eq!(json["storage"], serde_json::json!({"precision": "fp32", "moments": 2}));
    let embedding = serde_json::json!({
        "name": "embedding.weight", "shape": [10, 16], "dim": 0, "ranges": [[0, 3], [3, 6], [6, 9], [9, 10]],
        "local_shape": [3, 16], "replicas": 1, "bytes": 192,
    });
    assert_eq!(json["parameters"][0], embedding);
    let norm = serde_json::json!({
        "name": "layers.0.attention_norm.weight", "shape": [16], "dim": null, "ranges": [],
        "local_shape": [16], "replicas": 4, "bytes": 64,
    });
    assert_eq!(json["parameters"][1], norm);
}

#[test]
fn tables_show_every_range_of_few_ranks_and_the_sums() {
    let expected = "\
name                              shape  dim  range of each tensor rank    bytes/rank
embedding.weight                  10×16    0  0–2 3–5 6–8 9                       192
layers.0.attention_norm.weight       16    -  whole                                64
layers.0.attention.query.weight   16×16    0  0–3 4–7 8–11 12–15                  256
layers.0.attention.key.weight      4×16    0  0–1 0–1 2–3 2–3 (each on 2)         128
layers.0.attention.value.weight    4×16    0  0–1 0–1 2–3 2–3 (each on 2)         128
layers.0.attention.output.weight  16×16    1  0–3 4–7 8–11 12–15                  256
layers.0.mlp_norm.weight             16    -  whole                                64
layers.0.mlp.gate.weight          32×16    0  0–7 8–15 16–23 24–31                512
layers.0.mlp.up.weight            32×16    0  0–7 8–15 16–23 24–31                512
layers.0.mlp.down.weight          16×32    1  0–7 8–15 16–23 24–31                512
final_norm.weight                    16    -  whole                                64
head.weight                       10×16    0  0–2 3–5 6–8 9                       192

mesh            pp 1 × dp 2 × cp 1 × tp 4 on 8 ranks
vocabulary      10 padded to 12
elements        2,544, 720 on each rank
bytes per rank  11,520 (parameters 2,880, gradients 2,880, moments 5,760)
";
    assert_eq!(plan(4, 2, fp32()).table(), expected);
}

#[test]
fn tables_are_aligned() {
    let table = plan(8, 1, fp32()).table();
    let lines: Vec<usize> =
        table.lines().take_while(|line| !line.is_empty()).map(|line| line.chars().count()).collect();
    assert!(lines.len() > 10 && lines.iter().all(|length| *length == lines[0]), "{table}");
}

#[test]
fn tables_leave_out_the_middle_of_many_ranks() {
    let table = plan(8, 1, fp32()).table();
    assert!(table.contains("0–3 4–7 … 28–31"), "{table}");
    assert!(table.contains("0–1 0–1 … 2–3 (each on 4)"), "{table}");
}

#[test]
fn stages_and_shares_are_written_down() {
    let config = ModelConfig { hidden: 16, layers: 5, heads: 8, kv_heads: 2, ffn: 32, ..ModelConfig::default() };
    let architecture = Architecture::resolve(&config, 10, 16).unwrap();
    let mesh = Mesh::new(Degrees { pp: 2, dp: 2, ..Degrees::default() }).unwrap();
    let partition = Partition::new(&architecture, &mesh).unwrap();
    let stages = Stages::with_layers(2, 1, Folding::Loop, &[3, 2]).unwrap();
    let schedule = Schedule::new(ScheduleName::ZbH1, stages, 4, false).unwrap();
    let plan = Plan::new(&partition, fp32()).cut(&partition, &schedule, Zero::Optimizer);
    let layers: Vec<_> = plan.stages.iter().map(|stages| stages.layers.clone()).collect();
    assert_eq!(layers, [vec![[0, 3]], vec![[3, 5]]]);
    assert_eq!(plan.stages.iter().map(|stages| stages.elements).sum::<usize>(), plan.elements);
    let largest = &plan.stages[0];
    assert_eq!((plan.rank_elements, plan.rank_bytes), (largest.elements, largest.bytes));
    assert_eq!(largest.bytes.moments, 4 * largest.elements, "two moments of four bytes, shared by two");
    assert_eq!(largest.bytes.gradients, 4 * largest.elements);
    let table = plan.table();
    assert!(table.contains("pp rank 1       layers 3–4: "), "{table}");
    assert!(
        table.contains("shared out      by the data ranks, ZeRO stage 1: each keeps 1/2 of optimizer state\n"),
        "{table}"
    );
    // A layer: two matrices of 16·16 and two of 4·16 in the attention, three of 16·32, two norms: 2,208. Each end has a table of
    // 160, the last a norm too.
    assert!(table.contains("elements        11,376, 4,592 to 6,784 on a rank\n"), "{table}");
    assert!(table.contains("schedule        zb-h1"), "{table}");
    assert_eq!(serde_json::from_str::<Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(), plan);
}

#[test]
fn the_work_of_a_step_is_said_in_words() {
    let plan = plan(4, 2, fp32());
    let sent = Traffic { tp: 1_234_567, data: 90, ..Traffic::default() };
    let work = PlannedWork {
        micro_batch: 1,
        micro_batches: 8,
        schedule: ScheduleName::OneFOneB,
        chunks: 1,
        sequence_parallel: true,
        context: ContextForm::Ring,
        recompute: RecomputeName::Full,
        recompute_every: 2,
        traffic: vec![sent],
    };
    let table = plan.clone().running(work.clone()).table();
    let words = "work of a step  8 micro-batches of 1 sequence, activations cut along the sequence, one layer in 2 computed again\n";
    assert!(table.contains(words), "{table}");
    assert!(table.contains("sent in a step  tp 1,234,567 bytes, data 90 bytes by a rank\n"), "{table}");
    let alone = PlannedWork { traffic: vec![Traffic::default()], ..work.clone() };
    assert!(plan.clone().running(alone).table().contains("sent in a step  nothing: there is one rank\n"));
    let two = PlannedWork { traffic: vec![sent, Traffic { pp: 7, ..sent }], ..work };
    assert!(plan.running(two).table().contains(" data 90 bytes, pp 7 bytes by a rank at most\n"));
}

/// The plan of 10⁹ parameters over ten tensor ranks in each of ten stages.
fn hundred() -> (Plan, Vec<RankMemory>) {
    let config = ModelConfig { hidden: 2000, layers: 20, heads: 20, kv_heads: 10, ffn: 6330, ..ModelConfig::default() };
    let architecture = Architecture::resolve(&config, 257, 1024).unwrap();
    let candidate = Candidate { tp: 10, pp: 10, ..Candidate::default() };
    let job = Job {
        architecture: architecture.clone(),
        seq: 1024,
        global_batch: 40,
        precision: Precision::Bf16,
        moments: 2,
        bucket_elements: 1 << 22,
        context: ContextForm::Ring,
        within_documents: false,
        split: Vec::new(),
        executor: Executor::ENGINE,
    };
    let partition = Partition::new(&architecture, &candidate.mesh().unwrap()).unwrap();
    let schedule = Schedule::new(ScheduleName::OneFOneB, candidate.stages(&job).unwrap(), 40, false).unwrap();
    let memory = MemoryModel::new(&job).ranks(&candidate, &schedule.stages, &schedule.ranks).unwrap();
    let plan = Plan::new(&partition, job.storage()).cut(&partition, &schedule, Zero::Replicated);
    (plan.keeping(memory.clone()), memory)
}

#[test]
fn a_hundred_parts_have_a_table_each_way() {
    let (plan, memory) = hundred();
    assert!((0.99e9..1.01e9).contains(&(plan.elements as f64)));
    let table = plan.table();
    let lines = |head: &str| -> Vec<Vec<&str>> {
        let table = table.split_once(head).unwrap().1.lines().skip(2);
        table.take_while(|line| !line.is_empty()).map(|line| line.split_whitespace().collect()).collect()
    };
    let tensor = lines("each tensor rank's rows or columns");
    // Keys and values have ten heads of 100, queries twenty.
    assert_eq!(tensor.len(), 10);
    assert_eq!(tensor[3], ["3", "78–103", "600–799", "300–399", "600–799", "1899–2531", "1899–2531"]);
    let pipeline = lines("each rank of the pipeline, in MiB:");
    assert_eq!(pipeline.len(), 10);
    assert_eq!(pipeline[7][..3], ["7", "70–79", "14–15"]);
    for (row, memory) in pipeline.iter().zip(&memory) {
        let total: f64 = row.last().unwrap().parse().unwrap();
        assert!((total - memory.total() as f64 / f64::from(1 << 20)).abs() < 0.0051, "{row:?}");
    }
    assert!(table.contains("\nlayers.*.mlp.down.weight ") && !table.contains("layers.0."), "{table}");
    assert!(!table.contains("pp rank 1 "), "the table has them: {table}");
    assert_eq!(serde_json::from_str::<Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(), plan);
}

#[test]
fn what_is_kept_has_the_padding_of_buckets() {
    let (plan, memory) = hundred();
    let stored = |memory: &RankMemory| memory.parameters + memory.gradients + memory.master + memory.moments;
    assert_eq!(plan.rank_bytes.total(), memory.iter().map(stored).max().unwrap());
    for (stages, memory) in plan.stages.iter().zip(&memory) {
        assert_eq!(stages.bytes.total(), stored(memory));
        assert!(stages.bytes.total() >= 18 * stages.elements);
    }
}

#[test]
fn layers_that_differ_are_told_apart() {
    let mut plan = hundred().0;
    let odd = plan.parameters.iter_mut().find(|parameter| parameter.name == "layers.3.mlp.down.weight").unwrap();
    odd.ranges[0] = [0, 7];
    let table = plan.table();
    assert_eq!(table.matches("layers.*.mlp.down.weight").count(), 2, "{table}");
}
