//! Models against golden values of their reference implementations, whole and cut.

mod common;

use mp_comm::{threads, Communicator};
use mp_model::regions::Between;
use mp_model::{shard, Goal, Pass};
use mp_plan::{Architecture, ModelConfig};
use mp_runtime::{autograd, bytes, Kind, Precision, Tensor};
use rstest::rstest;
use safetensors::{Dtype, SafeTensors};

struct Golden {
    architecture: Architecture,
    bytes: Vec<u8>,
    precision: Precision,
}

impl Golden {
    fn load(name: &str) -> Self {
        let path = format!("{}/tests/golden/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let config = &metadata.metadata().as_ref().unwrap()["config"];
        let config: ModelConfig = serde_json::from_str(config).unwrap();
        let precision = if name.ends_with("fp64") { Precision::Fp64 } else { Precision::Fp32 };
        Self { architecture: Architecture::resolve(&config, 0, config.max_seq).unwrap(), bytes, precision }
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.find(name).unwrap_or_else(|| panic!("{name}"))
    }

    fn find(&self, name: &str) -> Option<Tensor> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).ok()?;
        let kind = match view.dtype() {
            Dtype::F64 => Kind::Double,
            Dtype::F32 => Kind::Float,
            Dtype::I64 => Kind::Int64,
            other => panic!("{name}: {other:?}"),
        };
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        Some(bytes::tensor(view.data(), &shape, kind).unwrap())
    }
}

#[rstest]
fn models_equal_their_references(
    #[values(
        "gpt2",
        "gpt2_no_bias",
        "llama",
        "llama_grouped",
        "llama_head_dim",
        "llama_bias",
        "llama3",
        "qwen2",
        "mistral",
        "bert",
        "bert_masked"
    )]
    family: &str,
    #[values("fp32", "fp64")] precision: &str,
    #[values(1, 2, 4)] tp: usize,
    #[values(Between::Replicated, Between::SequenceSharded)] between: Between,
) {
    if (family, precision) == ("gpt2_no_bias", "fp32") {
        // transformers has no GPT-2 without biases.
        return;
    }
    let golden = Golden::load(&format!("{family}_{precision}"));
    // fp32: the reference itself is within 2e-6 of fp64. fp64: 52-bit sums of at most a few hundred terms of order 1.
    let tolerance = if golden.precision == Precision::Fp64 { 1e-10 } else { 1e-5 };
    let partition = common::partition(&golden.architecture, tp);
    let ranks = threads::run(tp, |comm| compare(&golden, &partition, comm, between, tolerance));
    assert_eq!(ranks.len(), tp);
}

fn compare(
    golden: &Golden,
    partition: &std::sync::Arc<mp_plan::Partition>,
    comm: std::sync::Arc<dyn Communicator>,
    between: Between,
    tolerance: f64,
) -> mp_model::Result<()> {
    let rank = common::rank(partition, comm, between, golden.precision)?;
    let parameters = rank.model.parameters();
    for (index, parameter) in partition.parameters.iter().enumerate() {
        shard::load(parameters, index, &golden.tensor(&parameter.spec.name))?;
    }

    let (tokens, targets) = (golden.tensor("tokens"), golden.tensor("targets"));
    let (segments, token_types) = (golden.find("segments"), golden.find("token_types"));
    let pass = Pass { segments: segments.as_ref(), token_types: token_types.as_ref(), ..Pass::evaluation(&tokens) };
    let close = |what: &str, got: &Tensor, expected: &Tensor| {
        let worst = common::difference(got, expected);
        assert!(worst <= tolerance, "{what} differs by {worst:e}");
    };
    let logits = rank.model.logits(&pass)?;
    let logits = match &segments {
        // Scores of padding are left out.
        Some(segments) => logits * segments.ge(0).unsqueeze(-1),
        None => logits,
    };
    close("logits", &logits, &golden.tensor("logits"));

    let labels = golden.find("labels");
    let counted = targets.ge(0).sum(Kind::Int64).int64_value(&[]);
    let goal = Goal {
        targets: &targets,
        share: 1.0 / counted as f64,
        sentences: labels.as_ref().map(|labels| (labels, 1.0 / labels.numel() as f64)),
    };
    let stage = &rank.model.chunks()[0];
    let loss = stage.loss(&stage.forward(&pass, None)?, &pass, &goal)?;
    close("loss", &loss.detach(), &golden.tensor("loss"));

    autograd::backward(&[&loss], &[None], false)?;
    rank.completion.run(parameters)?;
    for (index, parameter) in partition.parameters.iter().enumerate() {
        let gradient = shard::gather(parameters, index, parameters.gradients(), &*rank.group.comm)?;
        close(&parameter.spec.name, &gradient, &golden.tensor(&format!("grad.{}", parameter.spec.name)));
    }
    Ok(())
}
