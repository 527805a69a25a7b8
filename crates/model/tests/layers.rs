//! Sharded layers against their unsharded twins, forward and gradients, at one, two and four ranks; and what each sends.

mod common;

use std::sync::Arc;

use common::{difference, own_part, random, shard_between};
use mp_comm::ledger::{Ledger, Log};
use mp_comm::{threads, Call, Communicator};
use mp_model::layers::cross_entropy::vocab_parallel_cross_entropy;
use mp_model::layers::linear::{ColumnParallel, RowParallel};
use mp_model::regions::{Between, TensorGroup};
use mp_model::{collective, shard, Parameters};
use mp_plan::{Architecture, ArchitectureName, Degrees, Mesh, ModelConfig, Partition};
use mp_runtime::{autograd, Device, Kind, Precision, Tensor};
use rstest::rstest;

const B: i64 = 2;
const S: i64 = 8;
const D: i64 = 16;
const F: i64 = 24;

/// Sums of at most a few hundred products of order 1 in 52 bits, re-associated over four ranks.
const TOLERANCE: f64 = 1e-13;

fn close(what: &str, got: &Tensor, expected: &Tensor) {
    let worst = difference(got, expected);
    assert!(worst < TOLERANCE, "{what} differs by {worst:e}");
}

/// One rank with a GPT-2's shards of random full weights, and a ledger on its tensor group.
struct Rank {
    parameters: Parameters,
    group: TensorGroup,
    log: Arc<Log>,
}

impl Rank {
    fn new(comm: Arc<dyn Communicator>, between: Between) -> mp_model::Result<Self> {
        let config = ModelConfig {
            architecture: ArchitectureName::Gpt2,
            hidden: D as usize,
            layers: 1,
            heads: 4,
            ffn: F as usize,
            vocab: 37,
            max_seq: S as usize,
            ..ModelConfig::default()
        };
        let architecture = Architecture::resolve(&config, 0, S as usize)?;
        let mesh = Mesh::new(Degrees { tp: comm.size(), ..Degrees::default() })?;
        let partition = Arc::new(Partition::new(&architecture, &mesh)?);
        let parameters = Parameters::new(&partition, comm.rank().0, 1, Precision::Fp64, Device::Cpu)?;
        for (index, parameter) in partition.parameters.iter().enumerate() {
            let shape: Vec<i64> = parameter.spec.shape.iter().map(|&n| n as i64).collect();
            shard::load(&parameters, index, &random(&shape, &parameter.spec.name))?;
        }
        let log = Arc::new(Log::new());
        let comm: Arc<dyn Communicator> = Arc::new(Ledger::new(comm, Arc::clone(&log)));
        Ok(Self { parameters, group: TensorGroup { comm, between }, log })
    }

    /// Joins a parameter's gradient.
    fn gradient(&self, name: &str) -> mp_model::Result<Tensor> {
        let index = self.parameters.index(name)?;
        shard::gather(&self.parameters, index, self.parameters.gradients(), &*self.group.comm)
    }

    /// Asserts which calls were made since the last question, each with how often and how many bytes in all.
    fn assert_sent(&self, expected: &[(Call, usize, i64)]) {
        let mut sent: Vec<(Call, usize, i64)> = Vec::new();
        for entry in self.log.take() {
            match sent.iter_mut().find(|(call, ..)| *call == entry.call) {
                Some((_, count, bytes)) => {
                    *count += 1;
                    *bytes += entry.bytes as i64;
                }
                None => sent.push((entry.call, 1, entry.bytes as i64)),
            }
        }
        assert_eq!(sent.len(), expected.len(), "{sent:?}");
        for call in expected {
            assert!(sent.contains(call), "{call:?} among {sent:?}");
        }
    }
}

/// A linear layer on one rank by libtorch's own means: output, and gradients of input, weight and bias.
fn twin(x: &Tensor, name: &str, shape: &[i64], dy: &Tensor) -> [Tensor; 4] {
    let leaf = |tensor: Tensor| tensor.set_requires_grad(true);
    let x = leaf(x.copy());
    let weight = leaf(random(shape, &format!("{name}.weight")));
    let bias = leaf(random(&shape[..1], &format!("{name}.bias")));
    let y = x.linear(&weight, Some(&bias));
    autograd::backward(&[&y], &[Some(dy)], false).unwrap();
    [y.detach(), x.grad(), weight.grad(), bias.grad()]
}

#[rstest]
fn column_parallel_is_its_twin(
    #[values(1, 2, 4)] tp: usize,
    #[values(Between::Replicated, Between::SequenceSharded)] between: Between,
) {
    let name = "layers.0.mlp.up";
    threads::run(tp, |comm| -> mp_model::Result<()> {
        let (x, dy) = (random(&[B, S, D], "x"), random(&[B, S, F], "dy"));
        let [y, dx, dw, db] = twin(&x, name, &[F, D], &dy);
        let rank = Rank::new(comm, between)?;
        let weight = rank.parameters.weight(&format!("{name}.weight"))?;
        let bias = rank.parameters.weight(&format!("{name}.bias"))?;
        let layer = ColumnParallel::new(weight, Some(bias), &rank.group);
        let input = shard_between(&rank.group, &x).set_requires_grad(true);
        let output = layer.forward(&input, None)?;
        let shard_bytes = 8 * input.numel() as i64;
        let full_bytes = 8 * B * S * D;
        match between {
            Between::Replicated => rank.assert_sent(&[]),
            Between::SequenceSharded => rank.assert_sent(&[(Call::StartAllGather, 1, shard_bytes)]),
        }
        close("output", &collective::all_gather(&*rank.group.comm, &output.detach(), 2)?, &y);
        let own_dy = own_part(&*rank.group.comm, &dy, 2).contiguous();
        rank.log.take();
        autograd::backward(&[&output], &[Some(&own_dy)], false)?;
        match between {
            Between::Replicated => rank.assert_sent(&[(Call::StartAllReduce, 1, full_bytes)]),
            Between::SequenceSharded => {
                rank.assert_sent(&[(Call::StartAllGather, 1, shard_bytes), (Call::StartReduceScatter, 1, full_bytes)])
            }
        }
        close("input's gradient", &input.grad(), &shard_between(&rank.group, &dx));
        close("weight's gradient", &rank.gradient(&format!("{name}.weight"))?, &dw);
        close("bias's gradient", &rank.gradient(&format!("{name}.bias"))?, &db);
        Ok(())
    });
}

#[rstest]
fn row_parallel_is_its_twin(
    #[values(1, 2, 4)] tp: usize,
    #[values(Between::Replicated, Between::SequenceSharded)] between: Between,
) {
    let name = "layers.0.mlp.down";
    threads::run(tp, |comm| -> mp_model::Result<()> {
        let (x, dy) = (random(&[B, S, F], "x"), random(&[B, S, D], "dy"));
        let [y, dx, dw, db] = twin(&x, name, &[D, F], &dy);
        let rank = Rank::new(comm, between)?;
        let weight = rank.parameters.weight(&format!("{name}.weight"))?;
        let bias = rank.parameters.weight(&format!("{name}.bias"))?;
        let layer = RowParallel::new(weight, Some(bias), &rank.group);
        let input = own_part(&*rank.group.comm, &x, 2).copy().set_requires_grad(true);
        let output = layer.forward(&input, None)?;
        let full_bytes = 8 * B * S * D;
        match between {
            Between::Replicated => rank.assert_sent(&[(Call::AllReduce, 1, full_bytes)]),
            Between::SequenceSharded => rank.assert_sent(&[(Call::ReduceScatter, 1, full_bytes)]),
        }
        close("output", &output.detach(), &shard_between(&rank.group, &y));
        let own_dy = shard_between(&rank.group, &dy);
        autograd::backward(&[&output], &[Some(&own_dy)], false)?;
        match between {
            Between::Replicated => rank.assert_sent(&[]),
            Between::SequenceSharded => rank.assert_sent(&[(Call::AllGather, 1, full_bytes / tp as i64)]),
        }
        let own_dx = own_part(&*rank.group.comm, &dx, 2);
        close("input's gradient", &input.grad(), &own_dx);
        close("weight's gradient", &rank.gradient(&format!("{name}.weight"))?, &dw);
        // Under sequence shards each rank summed its own positions: the sum over ranks is the gradient.
        let mut bias = rank.gradient(&format!("{name}.bias"))?.copy();
        if between == Between::SequenceSharded {
            collective::all_reduce(&*rank.group.comm, &mut bias, mp_comm::ReduceOp::Sum)?;
        }
        close("bias's gradient", &bias, &db);
        Ok(())
    });
}

#[rstest]
fn cross_entropy_is_its_twin(#[values(1, 2, 4)] tp: usize, #[values(5, 8, 13)] vocab: i64) {
    let local = (vocab as usize).div_ceil(tp);
    threads::run(tp, |comm| -> mp_model::Result<()> {
        let logits = random(&[B, S, vocab], "logits") * 3.0;
        let targets = (random(&[B, S], "targets").abs() * 100.0).to_kind(Kind::Int64).remainder(vocab);
        let _ = targets.narrow(1, 3, 1).fill_(-1);
        let whole = logits.copy().set_requires_grad(true);
        let expected = whole.view([-1, vocab]).log_softmax(-1, None).g_nll_loss::<Tensor>(
            &targets.view([-1]),
            None,
            mp_runtime::Reduction::Sum,
            -1,
        );
        autograd::backward(&[&expected], &[None], false).unwrap();
        let start = (comm.rank().0 * local).min(vocab as usize);
        let ids = start..(start + local).min(vocab as usize);
        // Padding holds what would win, were it looked at.
        let shard = Tensor::full([B, S, local as i64], 1e3, (Kind::Double, Device::Cpu));
        shard.narrow(2, 0, ids.len() as i64).copy_(&logits.narrow(2, start as i64, ids.len() as i64));
        let shard = shard.set_requires_grad(true);
        let loss = vocab_parallel_cross_entropy(&shard, ids.clone(), &targets, &*comm)?;
        // The sum of 14 losses of order 5.
        assert!((loss.double_value(&[]) - expected.double_value(&[])).abs() < 1e-12);
        autograd::backward(&[&loss], &[None], false)?;
        let gradient = shard.grad();
        let valid = ids.len() as i64;
        close("gradient", &gradient.narrow(2, 0, valid), &whole.grad().narrow(2, start as i64, valid));
        let padding = gradient.narrow(2, valid, local as i64 - valid);
        assert_eq!(padding.abs().sum(None).double_value(&[]), 0.0);
        Ok(())
    });
}
