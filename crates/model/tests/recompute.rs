//! What is computed again in the backward: the same gradients to the last bit, less kept, failures reported.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use common::cut::{self, ids, Layout, ALONE, SEQ};
use mp_comm::ledger::{Ledger, Log};
use mp_comm::{threads, Call};
use mp_model::context::{Context, Form};
use mp_model::gradient::Completion;
use mp_model::parameter::Sharing;
use mp_model::pass::DropoutKey;
use mp_model::recompute::{recomputed, Recompute};
use mp_model::regions::{Between, TensorGroup};
use mp_model::{build, Error, Options, Parameters, Pass};
use mp_plan::{Architecture, ArchitectureName, Zero};
use mp_runtime::{autograd, Device, Precision, Tensor};
use rstest::rstest;

const LAYERS: usize = 3;

fn architecture(name: ArchitectureName, dropout: f64) -> Architecture {
    cut::architecture(name, LAYERS, dropout)
}

/// What one rank sees of two accumulated passes: losses, its gradients, and its calls on the tensor group.
type Trace = (Vec<f64>, Tensor, Vec<Call>);

fn trace(architecture: &Architecture, layout: Layout, recompute: Recompute, precision: Precision) -> Vec<Trace> {
    let partition = common::partition(architecture, layout.tp);
    threads::run(layout.tp * layout.cp, |world| -> mp_model::Result<Trace> {
        let (tp, context) = layout.groups(&*world)?;
        let log = Arc::new(Log::new());
        let comm = Arc::new(Ledger::new(tp, Arc::clone(&log)));
        let group = TensorGroup { comm, between: layout.between };
        let parameters = Parameters::new(&partition, group.comm.rank().0, 7, precision, Device::Cpu)?;
        let completion = Completion::new(&parameters, &group)?;
        let options = Options { context: context.clone(), recompute };
        let stage = build(parameters, group, &common::layers(architecture), &options)?;
        log.take();
        let mut losses = Vec::new();
        for micro_batch in 0..2 {
            let tokens = context.own(&ids(2, &format!("tokens {micro_batch}")))?;
            let targets = context.own(&ids(2, &format!("targets {micro_batch}")))?;
            let dropout = Some(DropoutKey { seed: 3, step: 5 });
            let positions = context.positions(SEQ as usize)?;
            let pass = Pass { positions, first_sample: 2 * micro_batch, dropout, ..Pass::evaluation(&tokens) };
            let loss = stage.loss_sum(&pass, &targets)?;
            autograd::backward(&[&loss], &[None], false)?;
            losses.push(loss.double_value(&[]));
        }
        let calls = log.take().iter().map(|entry| entry.call).collect();
        completion.run(stage.parameters())?;
        Ok((losses, stage.parameters().gradients().all().copy(), calls))
    })
}

#[rstest]
fn gradients_are_the_same_to_the_last_bit(
    #[values(ArchitectureName::Gpt2, ArchitectureName::Llama)] name: ArchitectureName,
    #[values(0.0, 0.2)] dropout: f64,
    #[values(Precision::Fp32, Precision::Bf16)] precision: Precision,
) {
    let architecture = architecture(name, dropout);
    let tensor = |between| Layout { tp: 2, between, ..ALONE };
    let context = |form| Layout { cp: 2, form, ..ALONE };
    let layouts = [
        ALONE,
        tensor(Between::Replicated),
        tensor(Between::SequenceSharded),
        context(Form::Ring),
        context(Form::AllToAll),
    ];
    for layout in layouts {
        let kept = trace(&architecture, layout, Recompute::None, precision);
        for recompute in [Recompute::Selective, Recompute::Full { every: 1 }, Recompute::Full { every: 2 }] {
            let again = trace(&architecture, layout, recompute, precision);
            for (rank, (got, expected)) in again.iter().zip(&kept).enumerate() {
                assert_eq!(got.0, expected.0, "{layout:?}, {recompute:?}, rank {rank}: losses");
                assert!(got.1.equal(&expected.1), "{layout:?}, {recompute:?}, rank {rank}: gradients differ");
            }
        }
    }
}

#[rstest]
#[case(Recompute::None, 0)]
#[case(Recompute::Full { every: 1 }, 3)]
#[case(Recompute::Full { every: 2 }, 2)]
#[case(Recompute::Full { every: 3 }, 1)]
fn a_layer_computed_again_sums_over_its_group_again(#[case] recompute: Recompute, #[case] layers: usize) {
    let layout = Layout { tp: 2, ..ALONE };
    let sums = |recompute| {
        let ranks = trace(&architecture(ArchitectureName::Gpt2, 0.1), layout, recompute, Precision::Fp32);
        ranks[0].2.iter().filter(|&&call| call == Call::AllReduce).count()
    };
    // Two micro-batches, two row-parallel products a layer.
    assert_eq!(sums(recompute) - sums(Recompute::None), 2 * 2 * layers);
}

/// A step of two data ranks that share everything out: rank 0's gradients, and the calls on the data group.
fn shared_out(recompute: Recompute, deferred: bool) -> (Tensor, Vec<Call>) {
    let architecture = architecture(ArchitectureName::Llama, 0.1);
    let partition = common::partition(&architecture, 1);
    let ranks = threads::run(2, |comm| -> mp_model::Result<_> {
        let log = Arc::new(Log::new());
        let data = Arc::new(Ledger::new(comm, Arc::clone(&log)));
        let sharing = Sharing { data, zero: Zero::Parameters, bucket_bytes: 4096 };
        let parameters = Parameters::shared(&partition, 0, sharing, 7, Precision::Fp32, Device::Cpu)?;
        let group = TensorGroup { comm: Context::alone().comm, between: Between::Replicated };
        let options = Options { recompute, ..Options::default() };
        let model = build(parameters, group, &common::layers(&architecture), &options)?;
        let (tokens, targets) = (ids(2, "tokens"), ids(2, "targets"));
        let pass = Pass { dropout: Some(DropoutKey { seed: 3, step: 5 }), ..Pass::evaluation(&tokens) };
        model.parameters().begin_step(1)?;
        let loss = model.loss_sum(&pass, &targets)?;
        if deferred {
            model.parameters().defer_products();
        }
        autograd::backward(&[&loss], &[None], false)?;
        if deferred {
            model.parameters().take_deferred().run()?;
        }
        model.parameters().finish_reduction()?;
        Ok((model.parameters().gradients().all().copy(), log.take().iter().map(|entry| entry.call).collect()))
    });
    ranks.into_iter().next().unwrap()
}

#[rstest]
fn parameters_gathered_for_a_backward_serve_the_second_forward_too(
    #[values(Recompute::Selective, Recompute::Full { every: 1 }, Recompute::Full { every: 2 })] recompute: Recompute,
    #[values(false, true)] deferred: bool,
) {
    let (kept, again) = (shared_out(Recompute::None, deferred), shared_out(recompute, deferred));
    assert!(again.0.equal(&kept.0), "gradients differ");
    assert_eq!(again.1, kept.1);
    assert!(kept.1.contains(&Call::StartAllGather) && kept.1.contains(&Call::StartReduceScatter), "{:?}", kept.1);
}

/// A function whose backward holds a token until the graph lets go of it.
fn held(x: &Tensor, tokens: &Arc<AtomicUsize>) -> mp_model::Result<Tensor> {
    struct Token(Arc<AtomicUsize>);
    impl Drop for Token {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    tokens.fetch_add(1, Ordering::SeqCst);
    let (y, token) = (x.detach(), Token(Arc::clone(tokens)));
    autograd::attach(&[x], &[y.shallow_clone()], move |gradients| {
        let _held = &token;
        Ok(gradients)
    })?;
    Ok(y)
}

#[test]
fn nothing_inside_is_kept_between_forward_and_backward() {
    let tokens = Arc::new(AtomicUsize::new(0));
    let x = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
    let count = Arc::clone(&tokens);
    let deep = move |inputs: &[Tensor]| (0..5).try_fold(inputs[0].shallow_clone(), |x, _| held(&x, &count));
    let kept = deep(&[x.shallow_clone()]).unwrap();
    assert_eq!(tokens.load(Ordering::SeqCst), 5);
    drop(kept);
    let y = recomputed(&[&x], deep).unwrap();
    assert_eq!(tokens.load(Ordering::SeqCst), 0, "after the forward");
    autograd::backward(&[&y.sum(None)], &[None], false).unwrap();
    assert_eq!(tokens.load(Ordering::SeqCst), 0, "after the backward");
    assert_eq!(Vec::<f64>::try_from(x.grad()).unwrap(), [1.0, 1.0]);
}

#[test]
fn each_input_gets_its_gradient_and_an_unused_one_none() {
    let leaf = |value: f64| Tensor::from_slice(&[value]).set_requires_grad(true);
    let (a, b, unused) = (leaf(3.0), leaf(5.0), leaf(7.0));
    // Nested: an inner part is computed again within what is computed again.
    let y = recomputed(&[&a, &b, &unused], |inputs| {
        let square = recomputed(&[&inputs[0]], |inputs| Ok(inputs[0].f_square()?))?;
        Ok(square.f_mul(&inputs[1])?)
    })
    .unwrap();
    autograd::backward(&[&y], &[None], false).unwrap();
    assert_eq!((a.grad().double_value(&[0]), b.grad().double_value(&[0])), (30.0, 9.0));
    assert!(!unused.grad().defined());
}

#[rstest]
fn failures_of_the_second_run_come_back_from_the_backward(#[values(false, true)] panics: bool) {
    let x = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    let runs = AtomicUsize::new(0);
    let y = recomputed(&[&x], move |inputs| {
        if runs.fetch_add(1, Ordering::SeqCst) == 1 {
            assert!(!panics, "panicked at run {}", 2);
            return Err(Error::Unbuilt("run 2".into()));
        }
        Ok(inputs[0].f_square()?)
    })
    .unwrap();
    let error = autograd::backward(&[&y], &[None], false).unwrap_err();
    assert!(matches!(&error, mp_runtime::Error::Callback(words) if words.contains("run 2")), "{error}");
    // The thread records as before, and walks as before.
    let z = recomputed(&[&x], |inputs| Ok(inputs[0].f_square()?)).unwrap();
    autograd::backward(&[&z], &[None], false).unwrap();
    assert_eq!(x.grad().double_value(&[0]), 2.0);
}

#[test]
fn a_failure_deep_inside_the_second_walk_comes_back_too() {
    let x = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    let y = recomputed(&[&x], |inputs| {
        let y = inputs[0].detach();
        autograd::attach(&[&inputs[0]], &[y.shallow_clone()], |_| Err(Error::Unbuilt("a deep part".into()).into()))?;
        Ok(y)
    })
    .unwrap();
    let error = autograd::backward(&[&y], &[None], false).unwrap_err();
    assert!(matches!(&error, mp_runtime::Error::Callback(words) if words.contains("a deep part")), "{error}");
}

#[test]
fn every_zeroth_layer_is_refused() {
    let partition = common::partition(&architecture(ArchitectureName::Gpt2, 0.0), 1);
    let parameters = Parameters::new(&partition, 0, 7, Precision::Fp32, Device::Cpu).unwrap();
    let group = TensorGroup { comm: Context::alone().comm, between: Between::Replicated };
    let options = Options { recompute: Recompute::Full { every: 0 }, ..Options::default() };
    let layers = common::layers(&partition.architecture);
    assert!(matches!(build(parameters, group, &layers, &options), Err(Error::Unbuilt(_))));
}
