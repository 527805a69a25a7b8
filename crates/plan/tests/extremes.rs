//! Sizes that nobody has: whatever stands in a configuration or a cluster's file, a plan or one message is the answer.

use mp_plan::{
    search, Analytic, Architecture, ArchitectureName, Cluster, ContextForm, Error, Executor, Found, Job, ModelConfig,
    ParallelConfig, Precision, Result, Schedule, Space,
};
use proptest::prelude::*;

/// What is planned, as it was typed.
#[derive(Debug, Clone)]
struct Typed {
    model: ModelConfig,
    tokenizer_vocab: usize,
    seq: usize,
    global_batch: usize,
    moments: usize,
    bucket_elements: usize,
    parallel: ParallelConfig,
    cluster: Cluster,
    ranks: usize,
}

fn small() -> Typed {
    Typed {
        model: ModelConfig { hidden: 64, layers: 3, heads: 8, dropout: 0.1, ..ModelConfig::default() },
        tokenizer_vocab: 100,
        seq: 64,
        global_batch: 12,
        moments: 2,
        bucket_elements: 1 << 16,
        parallel: ParallelConfig::default(),
        cluster: Cluster::preset("a100-80").unwrap(),
        ranks: 4,
    }
}

/// Plans as `mp-cli plan` does.
fn plan(typed: &Typed) -> Result<Found> {
    let job = Job {
        architecture: Architecture::resolve(&typed.model, typed.tokenizer_vocab, typed.seq)?,
        seq: typed.seq,
        global_batch: typed.global_batch,
        precision: Precision::Bf16,
        moments: typed.moments,
        bucket_elements: typed.bucket_elements,
        context: ContextForm::Ring,
        within_documents: false,
        split: Vec::new(),
        executor: Executor::ENGINE,
    };
    let cluster = typed.cluster.clone().with_ranks(typed.ranks);
    cluster.check()?;
    let space = Space::of(&job, typed.ranks).fixed(&typed.parallel);
    let found = search(&job, &cluster, &Analytic::new(&cluster), &space, typed.ranks, 2)?;
    // Sums of what ranks keep hold in their integers.
    found.table(&job, &cluster, typed.ranks);
    Ok(found)
}

/// A size by its name, and how it is typed.
type Set = (&'static str, fn(&mut Typed, usize));

/// Every integer of model, training, layout and machine.
const SETS: [Set; 24] = [
    ("hidden", |typed, size| typed.model.hidden = size),
    ("layers", |typed, size| typed.model.layers = size),
    ("heads", |typed, size| typed.model.heads = size),
    ("kv_heads", |typed, size| typed.model.kv_heads = size),
    ("ffn", |typed, size| typed.model.ffn = size),
    ("vocab", |typed, size| typed.model.vocab = size),
    ("max_seq", |typed, size| typed.model.max_seq = size),
    ("head_dim", |typed, size| typed.model.head_dim = size),
    ("window", |typed, size| typed.model.window = size),
    ("token_types", |typed, size| {
        (typed.model.architecture, typed.model.token_types) = (ArchitectureName::Bert, size);
    }),
    ("tokenizer_vocab", |typed, size| typed.tokenizer_vocab = size),
    ("seq", |typed, size| typed.seq = size),
    ("global_batch", |typed, size| typed.global_batch = size),
    ("bucket_elements", |typed, size| typed.bucket_elements = size),
    ("tp", |typed, size| typed.parallel.tp = size),
    ("pp", |typed, size| typed.parallel.pp = size),
    ("dp", |typed, size| typed.parallel.dp = size),
    ("cp", |typed, size| typed.parallel.cp = size),
    ("micro_batch", |typed, size| typed.parallel.micro_batch = size),
    ("chunks", |typed, size| typed.parallel.chunks = size),
    ("recompute_every", |typed, size| typed.parallel.recompute_every = size),
    ("node.devices", |typed, size| typed.cluster.node.devices = size),
    ("device.memory_bytes", |typed, size| typed.cluster.device.memory_bytes = size),
    ("ranks", |typed, size| typed.ranks = size),
];

/// Any size, and those on both sides of a power of two, round in decimals, or near the integers' end.
fn any_size() -> impl Strategy<Value = usize> {
    let around = (0..64_u32, 0..3_usize).prop_map(|(bits, more)| (1_usize << bits).wrapping_sub(1).wrapping_add(more));
    let round = (1..10_usize, 0..19_u32).prop_map(|(digit, zeros)| digit.saturating_mul(10_usize.pow(zeros)));
    prop_oneof![any::<usize>(), around, round, (0..3_usize).prop_map(|less| usize::MAX - less)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_size_is_planned_or_refused(
        sets in prop::collection::vec((prop::sample::select(SETS.to_vec()), any_size()), 1..4), peak in any::<bool>(),
    ) {
        let mut typed = small();
        if !peak {
            // Then layouts are ordered by memory.
            typed.cluster.device.peak.bf16 = None;
        }
        for ((_, set), size) in sets {
            set(&mut typed, size);
        }
        if let Err(error) = plan(&typed) {
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
        }
    }
}

#[test]
fn what_cannot_be_counted_is_refused_by_name() {
    let refused = |set: fn(&mut Typed)| {
        let mut typed = small();
        set(&mut typed);
        plan(&typed).unwrap_err().to_string()
    };
    let endless = refused(|typed| typed.global_batch = 9_000_000_000_000_000_000);
    assert_eq!(endless, "train.global_batch: 9e18 is more than the 2.147483647e9 that can be planned; lower it");
    // Weights of attention are kept, of each token as many as there are tokens.
    let wide = refused(|typed| typed.seq = 3_000_000_000);
    assert!(wide.starts_with("bytes of a step's activations (train.global_batch, train.seq, model): "), "{wide}");
    let long = refused(|typed| (typed.global_batch, typed.parallel.micro_batch) = (1_000_000_000, 1));
    let head = "no layout of 4 ranks can cut this model as asked; ";
    let passes = " virtual stages are more than the 262144 passes of a step that can be planned; \
                  raise parallel.micro_batch, or lower train.global_batch";
    assert!(long.starts_with(head) && long.ends_with(passes), "{long}");
}

/// Of a thousand million sequences micro-batches are so large that lists stay short, and the plan says what they lack.
#[test]
fn a_step_of_many_sequences_has_few_micro_batches() {
    let alone = Typed { ranks: 1, ..small() };
    let found = plan(&Typed { global_batch: 1_000_000_000, ..alone.clone() }).unwrap();
    let listed = || found.layouts.iter().chain(&found.misses).map(|layout| layout.candidate);
    assert!(listed().count() > 0);
    assert!(listed().all(|layout| 1_000_000_000 / layout.micro_batch <= 1 << 18));
    let largest = plan(&Typed { global_batch: i32::MAX as usize, ..alone.clone() }).unwrap();
    assert!(largest.considered > 0);
    let beyond = plan(&Typed { global_batch: i32::MAX as usize + 1, ..alone }).unwrap_err();
    assert!(matches!(beyond, Error::TooLarge { what: "train.global_batch", .. }), "{beyond}");
}

#[test]
fn lists_of_so_many_passes_are_written_and_no_longer_ones() {
    let architecture = Architecture::resolve(&ModelConfig { layers: 4, ..ModelConfig::default() }, 257, 64).unwrap();
    let write =
        |micro_batches| Schedule::resolve(&ParallelConfig::default(), &architecture, 64, 4, micro_batches, false);
    assert_eq!(write(1 << 16).unwrap().ranks[3].len(), 4 * (1 << 16) + 2);
    let error = write((1 << 16) + 1).unwrap_err();
    assert_eq!(error, Error::TooManyPasses { stages: 4, micro_batches: (1 << 16) + 1, limit: 1 << 18 });
}
