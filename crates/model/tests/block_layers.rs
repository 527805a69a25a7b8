//! The layers of a block against their unsharded twins: embedding, norms, attention and perceptron, forward and every
//! gradient, with and without sequence shards.
//!
//! A twin is libtorch's own arithmetic over full weights; rotation alone is the kernel's, which the runtime tests.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use common::{difference, partition, random, shard_between};
use mp_comm::{threads, Communicator};
use mp_model::context::Context;
use mp_model::gradient::Completion;
use mp_model::layers::attention::{Heads, SelfAttention, Sight};
use mp_model::layers::dropout::Dropout;
use mp_model::layers::embedding::{LearnedPositions, VocabParallelEmbedding};
use mp_model::layers::linear::{ColumnParallel, RowParallel};
use mp_model::layers::mlp::{Activation, Mlp};
use mp_model::layers::norm::Norm;
use mp_model::pass::Positions;
use mp_model::recompute::Recompute;
use mp_model::regions::{Between, TensorGroup};
use mp_model::weight::Weight;
use mp_model::{shard, Parameters, Pass, Result};
use mp_plan::{Architecture, ArchitectureName, ModelConfig};
use mp_runtime::kernels::rotary::{frequencies, rotate, Angles};
use mp_runtime::{autograd, Device, Kind, Precision, Tensor};
use rstest::rstest;

const B: i64 = 2;
const S: i64 = 8;
const D: i64 = 16;
const EPSILON: f64 = 1e-5;

/// What layouts may differ by: the measure of fp64 everywhere. Sums here are of some hundred products of order 1 to 10,
/// so that a right layer stays a thousandfold below.
const TOLERANCE: f64 = 1e-10;

fn close(what: &str, got: &Tensor, expected: &Tensor) {
    let worst = difference(got, expected);
    assert!(worst < TOLERANCE, "{what} differs by {worst:e}");
}

fn architecture(name: ArchitectureName, kv_heads: usize) -> Architecture {
    let sizes =
        ModelConfig { hidden: D as usize, layers: 1, heads: 4, kv_heads, ffn: 24, vocab: 37, ..Default::default() };
    let config = ModelConfig { architecture: name, max_seq: S as usize, norm_eps: EPSILON, ..sizes };
    Architecture::resolve(&config, 0, S as usize).unwrap()
}

/// Full weights as leaves of a twin's graph; those that it uses are the ones whose gradients are compared.
struct Full<'a> {
    architecture: &'a Architecture,
    used: RefCell<BTreeMap<String, Tensor>>,
}

impl Full<'_> {
    fn weight(&self, name: &str) -> Tensor {
        let specs = self.architecture.parameters();
        let spec = specs.iter().find(|spec| spec.name == name).unwrap_or_else(|| panic!("{name}"));
        let shape: Vec<i64> = spec.shape.iter().map(|&n| n as i64).collect();
        let leaf = || random(&shape, name).set_requires_grad(true);
        self.used.borrow_mut().entry(name.into()).or_insert_with(leaf).shallow_clone()
    }

    /// `x · Wᵀ + b`, with the bias that the family has.
    fn linear(&self, x: &Tensor, at: &str) -> Tensor {
        let bias = self.architecture.bias.then(|| self.weight(&format!("{at}.bias")));
        x.linear(&self.weight(&format!("{at}.weight")), bias.as_ref())
    }
}

/// One rank with its shards of the same weights.
struct Rank {
    parameters: Parameters,
    group: TensorGroup,
}

impl Rank {
    fn new(architecture: &Architecture, comm: Arc<dyn Communicator>, between: Between) -> Result<Self> {
        let partition = partition(architecture, comm.size());
        let parameters = Parameters::new(&partition, comm.rank().0, 1, Precision::Fp64, Device::Cpu)?;
        for (index, parameter) in partition.parameters.iter().enumerate() {
            let shape: Vec<i64> = parameter.spec.shape.iter().map(|&n| n as i64).collect();
            shard::load(&parameters, index, &random(&shape, &parameter.spec.name))?;
        }
        Ok(Self { parameters, group: TensorGroup { comm, between } })
    }

    fn weight(&self, name: &str) -> Result<Weight> {
        self.parameters.weight(name)
    }

    fn bias(&self, at: &str) -> Result<Option<Weight>> {
        let has = self.parameters.partition().architecture.bias;
        has.then(|| self.weight(&format!("{at}.bias"))).transpose()
    }

    /// Which of a parameter's rows this rank holds.
    fn rows(&self, name: &str) -> Result<Range<usize>> {
        let parameter = &self.parameters.partition().parameters[self.parameters.index(name)?];
        Ok(parameter.range(self.parameters.tp_rank()).map_or(0..parameter.spec.shape[0], |(_, rows)| rows))
    }

    fn columns(&self, at: &str, parts: &[&str]) -> Result<ColumnParallel> {
        let names = |last: &str| parts.iter().map(|part| format!("{at}.{part}.{last}")).collect::<Vec<_>>();
        let has = self.parameters.partition().architecture.bias;
        let bias = has.then(|| self.parameters.stacked(&names("bias"))).transpose()?;
        Ok(ColumnParallel::new(self.parameters.stacked(&names("weight"))?, bias, &self.group))
    }

    fn narrow(&self, at: &str) -> Result<RowParallel> {
        Ok(RowParallel::new(self.weight(&format!("{at}.weight"))?, self.bias(at)?, &self.group))
    }
}

/// Runs a layer on `tp` ranks and its twin beside it, and compares outputs, the input's gradient (where `x` has one) and
/// the gradients of all weights that the twin used, completed as training completes them.
fn compare(
    architecture: &Architecture,
    (tp, between): (usize, Between),
    twin: impl Fn(&Full<'_>, &Tensor) -> Tensor + Sync,
    layer: impl Fn(&Rank, &Tensor) -> Result<Tensor> + Sync,
) {
    threads::run(tp, |comm| -> Result<()> {
        let (x, dy) = (random(&[B, S, D], "x").set_requires_grad(true), random(&[B, S, D], "dy"));
        let full = Full { architecture, used: RefCell::default() };
        let y = twin(&full, &x);
        autograd::backward(&[&y], &[Some(&dy)], false)?;

        let rank = Rank::new(architecture, comm, between)?;
        let input = shard_between(&rank.group, &x.detach()).set_requires_grad(true);
        let output = layer(&rank, &input)?;
        close("output", &output.detach(), &shard_between(&rank.group, &y.detach()));
        autograd::backward(&[&output], &[Some(&shard_between(&rank.group, &dy))], false)?;
        if x.grad().defined() {
            close("input's gradient", &input.grad(), &shard_between(&rank.group, &x.grad()));
        }
        Completion::new(&rank.parameters, &rank.group)?.run(&rank.parameters)?;
        let used = full.used.into_inner();
        assert!(!used.is_empty());
        for (name, leaf) in &used {
            let index = rank.parameters.index(name)?;
            let gradient = shard::gather(&rank.parameters, index, rank.parameters.gradients(), &*rank.group.comm)?;
            close(&format!("gradient of {name}"), &gradient, &leaf.grad());
        }
        Ok(())
    });
}

/// Token ids that reach both ends of the vocabulary.
fn tokens() -> Tensor {
    let ids = (random(&[B, S], "tokens").abs() * 1000.0).to_kind(Kind::Int64).remainder(37);
    let _ = ids.narrow(1, 0, 1).fill_(0);
    let _ = ids.narrow(1, 1, 2).fill_(36);
    ids
}

#[rstest]
fn embedding_and_positions_are_their_twins(
    #[values(1, 2, 4)] tp: usize,
    #[values(Between::Replicated, Between::SequenceSharded)] between: Between,
) {
    let architecture = architecture(ArchitectureName::Gpt2, 0);
    compare(
        &architecture,
        (tp, between),
        |full, _| {
            let rows = Tensor::embedding(&full.weight("embedding.weight"), &tokens(), -1, false, false);
            rows + full.weight("positions.weight").narrow(0, 0, S)
        },
        |rank, _| {
            let name = "embedding.weight";
            let ids = rank.rows(name)?;
            let embedding = VocabParallelEmbedding::new(rank.weight(name)?, ids, 37, &rank.group);
            let positions = LearnedPositions::new(rank.weight("positions.weight")?, &rank.group);
            positions.forward(&embedding.forward(&tokens())?, &Positions::whole(S as usize), None)
        },
    );
}

/// Rows that begin anew in the midst of a sequence, as segments of their own have them.
#[rstest]
fn positions_that_begin_anew_are_their_twins(
    #[values(1, 2, 4)] tp: usize,
    #[values(Between::Replicated, Between::SequenceSharded)] between: Between,
) {
    let architecture = architecture(ArchitectureName::Gpt2, 0);
    let places = || tokens().remainder(S);
    compare(
        &architecture,
        (tp, between),
        |full, x| x + Tensor::embedding(&full.weight("positions.weight"), &places(), -1, false, false),
        |rank, x| {
            let positions = LearnedPositions::new(rank.weight("positions.weight")?, &rank.group);
            positions.forward(x, &Positions::whole(S as usize), Some(&places()))
        },
    );
}

#[rstest]
fn layer_norm_is_its_twin(
    #[values(1, 2, 4)] tp: usize,
    #[values(Between::Replicated, Between::SequenceSharded)] between: Between,
) {
    let (architecture, at) = (architecture(ArchitectureName::Gpt2, 0), "layers.0.mlp_norm");
    compare(
        &architecture,
        (tp, between),
        |full, x| {
            let centred = x - x.mean_dim(-1, true, None);
            let variance = centred.square().mean_dim(-1, true, None);
            centred / (variance + EPSILON).sqrt() * full.weight(&format!("{at}.weight"))
                + full.weight(&format!("{at}.bias"))
        },
        |rank, x| {
            let (weight, bias) = (rank.weight(&format!("{at}.weight"))?, rank.bias(at)?);
            Norm::Layer { weight, bias, epsilon: EPSILON }.forward(x)
        },
    );
}

#[rstest]
fn root_mean_square_norm_is_its_twin(
    #[values(1, 2, 4)] tp: usize,
    #[values(Between::Replicated, Between::SequenceSharded)] between: Between,
) {
    let (architecture, name) = (architecture(ArchitectureName::Llama, 0), "layers.0.mlp_norm.weight");
    compare(
        &architecture,
        (tp, between),
        |full, x| x / (x.square().mean_dim(-1, true, None) + EPSILON).sqrt() * full.weight(name),
        |rank, x| Norm::RootMeanSquare { weight: rank.weight(name)?, epsilon: EPSILON }.forward(x),
    );
}

#[rstest]
#[case::gelu(ArchitectureName::Gpt2)]
#[case::swiglu(ArchitectureName::Llama)]
fn perceptron_is_its_twin(
    #[case] family: ArchitectureName,
    #[values(1, 2, 4)] tp: usize,
    #[values(Between::Replicated, Between::SequenceSharded)] between: Between,
) {
    let at = "layers.0.mlp";
    let gated = family == ArchitectureName::Llama;
    compare(
        &architecture(family, 0),
        (tp, between),
        |full, x| {
            let up = full.linear(x, &format!("{at}.up"));
            let active = match gated {
                true => {
                    let gate = full.linear(x, &format!("{at}.gate"));
                    &gate * gate.sigmoid() * up
                }
                false => {
                    let cubic: Tensor = &up + up.pow_tensor_scalar(3) * 0.044715;
                    &up * 0.5 * ((cubic * (2.0 / std::f64::consts::PI).sqrt()).tanh() + 1.0)
                }
            };
            full.linear(&active, &format!("{at}.down"))
        },
        |rank, x| {
            let (parts, activation): (&[&str], _) = match gated {
                true => (&["gate", "up"], Activation::SwiGlu),
                false => (&["up"], Activation::Gelu),
            };
            let (widen, narrow) = (rank.columns(at, parts)?, rank.narrow(&format!("{at}.down"))?);
            Mlp { widen, narrow, activation }.forward(x, &Pass::evaluation(&tokens()))
        },
    );
}

/// The rotary table, in the family that has one.
fn angles(architecture: &Architecture) -> Option<Angles> {
    let made = || Angles::new(S as usize, &frequencies(4, 10_000.0), Kind::Double, Device::Cpu).unwrap();
    (architecture.name == ArchitectureName::Llama).then(made)
}

/// Attention head by head over full weights.
fn attention_twin(full: &Full<'_>, x: &Tensor, at: &str, hidden: &Tensor) -> Tensor {
    let architecture = full.architecture;
    let (heads, kv_heads, k) = (4, architecture.kv_heads as i64, architecture.head_dim as i64);
    let project = |part: &str, heads: i64| {
        let rows_bshk = full.linear(x, &format!("{at}.{part}")).view([B, S, heads, k]);
        match angles(architecture).filter(|_| part != "value") {
            Some(angles) => rotate(&rows_bshk, &angles).unwrap(),
            None => rows_bshk,
        }
    };
    let (q, keys, values) = (project("query", heads), project("key", kv_heads), project("value", kv_heads));
    let attended: Vec<Tensor> = (0..heads)
        .map(|head| {
            let shared = head * kv_heads / heads;
            let scores = q.select(2, head).matmul(&keys.select(2, shared).transpose(1, 2)) / (k as f64).sqrt();
            scores.masked_fill(hidden, f64::NEG_INFINITY).softmax(-1, None).matmul(&values.select(2, shared))
        })
        .collect();
    full.linear(&Tensor::cat(&attended, -1), &format!("{at}.output"))
}

/// Which keys, in columns, a query does not see under a causal mask.
fn later() -> Tensor {
    Tensor::ones([S, S], (Kind::Bool, Device::Cpu)).triu(1)
}

fn attention(rank: &Rank, at: &str, sight: Sight) -> Result<SelfAttention> {
    let architecture = &rank.parameters.partition().architecture;
    let width = architecture.head_dim;
    let query = rank.rows(&format!("{at}.query.weight"))?;
    Ok(SelfAttention {
        layer: 0,
        project: rank.columns(at, &["query", "key", "value"])?,
        output: rank.narrow(&format!("{at}.output"))?,
        heads: Heads {
            all: 4,
            query: query.start / width..query.end / width,
            key_value: rank.rows(&format!("{at}.key.weight"))?.len() / width,
            width,
        },
        angles: angles(architecture),
        sight,
        dropout: Dropout::new(0.0, "weights".into()),
        context: Context::alone(),
        recompute: Recompute::None,
    })
}

/// With one or two key/value heads, four ranks share them: their gradients are summed over the sharers.
#[rstest]
#[case::plain(ArchitectureName::Gpt2, 4)]
#[case::rotary(ArchitectureName::Llama, 4)]
#[case::grouped(ArchitectureName::Llama, 2)]
#[case::one_for_all(ArchitectureName::Llama, 1)]
fn attention_is_its_twin(
    #[case] family: ArchitectureName,
    #[case] kv_heads: usize,
    #[values(1, 2, 4)] tp: usize,
    #[values(Between::Replicated, Between::SequenceSharded)] between: Between,
) {
    let at = "layers.0.attention";
    compare(
        &architecture(family, kv_heads),
        (tp, between),
        |full, x| attention_twin(full, x, at, &later()),
        |rank, x| {
            let sight = Sight { causal: true, window: None };
            attention(rank, at, sight)?.forward(x, &Pass::evaluation(&tokens()))
        },
    );
}

/// Segments of two sequences: the first ends in padding.
const SEGMENTS: [i64; (B * S) as usize] = [0, 0, 0, 1, 1, 1, -1, -1, 0, 1, 1, 1, 1, 2, 2, 2];

#[rstest]
fn attention_sees_what_causality_window_and_segments_leave(
    #[values(1, 2, 4)] tp: usize,
    #[values(false, true)] causal: bool,
    #[values(None, Some(3))] window: Option<usize>,
    #[values(false, true)] segmented: bool,
) {
    let at = "layers.0.attention";
    let hidden: Vec<bool> = (0..B * S * S)
        .map(|pair| {
            let (sample, query, key) = (pair / (S * S), pair / S % S, pair % S);
            let segment = |position: i64| SEGMENTS[(sample * S + position) as usize];
            let beyond = window.is_some_and(|window| (query - key).unsigned_abs() as usize >= window);
            (causal && key > query) || beyond || (segmented && segment(query) != segment(key))
        })
        .collect();
    compare(
        &architecture(ArchitectureName::Llama, 2),
        (tp, Between::Replicated),
        |full, x| attention_twin(full, x, at, &Tensor::from_slice(&hidden).view([B, S, S])),
        |rank, x| {
            let (tokens, segments) = (tokens(), segmented.then(|| Tensor::from_slice(&SEGMENTS).view([B, S])));
            let pass = Pass { segments: segments.as_ref(), ..Pass::evaluation(&tokens) };
            attention(rank, at, Sight { causal, window })?.forward(x, &pass)
        },
    );
}
