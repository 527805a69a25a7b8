//! The products that are timed are those whose FLOPs count as the model's, of every family and none besides.

use mp_plan::{
    cost::layer::Parts, Architecture, ArchitectureName, Candidate, Collective, ContextForm, CostModel, Executor, Group,
    Job, ModelConfig, Precision,
};

/// A machine on which a product takes as many seconds as it has FLOPs, and nothing else takes time. Attention is not fused, so
/// that its products are seen.
struct Counting;

impl CostModel for Counting {
    fn peak(&self, _: Precision) -> Option<f64> {
        Some(1.0)
    }
    fn product(&self, count: usize, shape: [usize; 3], _: Precision) -> f64 {
        2.0 * (count * shape.iter().product::<usize>()) as f64
    }
    fn attention(&self, _: f64, _: Precision) -> Option<f64> {
        None
    }
    fn memory(&self, _: f64, _: usize) -> f64 {
        0.0
    }
    fn collective(&self, _: Collective, _: f64, _: Group) -> f64 {
        0.0
    }
    fn message(&self, _: f64, _: bool) -> f64 {
        0.0
    }
}

fn job(name: ArchitectureName, next_sentence: bool) -> Job {
    let model = ModelConfig {
        architecture: name,
        hidden: 24,
        layers: 3,
        heads: 4,
        kv_heads: if name == ArchitectureName::Llama { 2 } else { 0 },
        head_dim: 10,
        ffn: 68,
        next_sentence,
        ..ModelConfig::default()
    };
    Job {
        architecture: Architecture::resolve(&model, 52, 16).unwrap(),
        seq: 16,
        global_batch: 4,
        precision: Precision::Fp32,
        moments: 2,
        bucket_elements: 1 << 20,
        context: ContextForm::Ring,
        within_documents: false,
        split: Vec::new(),
        executor: Executor::ENGINE,
    }
}

/// Counts the FLOPs of the products of a micro-batch on one tensor rank: those with weights, and those of attention.
fn counted(job: &Job, candidate: &Candidate) -> [f64; 2] {
    let Parts { layer, entrance, exit, .. } = Parts::of(job, candidate, &Counting, 8);
    let layers = job.architecture.layers as f64;
    let all = [(layer, layers), (entrance, 1.0), (exit, 1.0)];
    let sum = all.map(|(passes, times)| (passes.forward + passes.input + passes.weight) * times);
    [sum.iter().map(|terms| terms.products).sum(), sum.iter().map(|terms| terms.attention).sum()]
}

const FAMILIES: [ArchitectureName; 3] = [ArchitectureName::Llama, ArchitectureName::Gpt2, ArchitectureName::Bert];

#[test]
fn products_are_the_models_flops() {
    for name in FAMILIES {
        let job = job(name, false);
        let candidate = Candidate { micro_batch: 2, ..Candidate::default() };
        let [products, attention] = counted(&job, &candidate);
        let tokens = 2.0 * 16.0;
        // Two forward, four backward, for each layer, head and pair of positions.
        assert_eq!(attention, tokens * 12.0 * (3 * 4 * 10 * 16) as f64, "{name:?}");
        assert_eq!(products + attention, tokens * job.architecture.flops_per_token(16), "{name:?}");
    }
}

/// Every matrix that multiplies does so three times a token, be it by its rows or by what is looked up in it.
#[test]
fn every_matrix_that_multiplies_is_timed() {
    for name in FAMILIES {
        let job = job(name, name == ArchitectureName::Bert);
        let looked_up = ["positions.weight", "token_types.weight"];
        // Tied or not, the head multiplies by as many rows as are embedded.
        let head = |name: &str| job.architecture.tie_embeddings || name != "embedding.weight";
        let matrices = job.architecture.parameters().into_iter().filter(|parameter| {
            parameter.shape.len() == 2 && !looked_up.contains(&parameter.name.as_str()) && head(&parameter.name)
        });
        let once = |name: &str| name.starts_with("pooler.") || name.starts_with("next_sentence.");
        let vectors = |name: &str| if once(name) { 2.0 } else { 32.0 };
        let flops: f64 = matrices.map(|matrix| 6.0 * matrix.elements() as f64 * vectors(&matrix.name)).sum();
        let candidate = Candidate { micro_batch: 2, ..Candidate::default() };
        assert_eq!(counted(&job, &candidate)[0], flops, "{name:?}");
    }
}

/// Tensor ranks share all products but that of bert's head, which each does of the positions that it has.
#[test]
fn tensor_ranks_share_what_is_cut() {
    for name in FAMILIES {
        let job = job(name, false);
        for sequence_parallel in [false, true] {
            let of = |tp: usize| {
                let sequence_parallel = sequence_parallel && tp > 1;
                let candidate = Candidate { tp, micro_batch: 2, sequence_parallel, ..Candidate::default() };
                counted(&job, &candidate)[0] * tp as f64
            };
            let whole = name == ArchitectureName::Bert && !sequence_parallel;
            let again = if whole { 6.0 * 32.0 * (24 * 24) as f64 } else { 0.0 };
            assert_eq!(of(2), of(1) + again, "{name:?} {sequence_parallel}");
        }
    }
}
