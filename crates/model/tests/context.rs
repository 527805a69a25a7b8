//! The context axis: whole models cut along the sequence against one rank, forward and gradients, in both forms; and what
//! each form sends.

mod common;

use std::sync::Arc;

use common::cut::{self, ids, Layout, ALONE, SEQ, WIDTH};
use mp_comm::ledger::{Ledger, Log};
use mp_comm::{threads, BufferMut, Call, ReduceOp};
use mp_model::context::{Context, Form};
use mp_model::gradient::Completion;
use mp_model::pass::{DropoutKey, Positions};
use mp_model::recompute::Recompute;
use mp_model::regions::{Between, TensorGroup};
use mp_model::{build, collective, shard, Error, Options, Parameters, Pass};
use mp_plan::{Architecture, ArchitectureName};
use mp_runtime::{autograd, Device, Kind, Precision, Tensor};
use rstest::rstest;

const LAYERS: usize = 2;

/// Loss and gradients are of order 1 and below, from sums of a few thousand terms in 52 bits.
const TOLERANCE: f64 = 1e-10;

fn architecture(name: ArchitectureName, dropout: f64) -> Architecture {
    cut::architecture(name, LAYERS, dropout)
}

/// Segments that cross the pieces of every cut and differ from sequence to sequence; at the end of each there is padding.
fn segments(batch: i64) -> Tensor {
    let segment = |sample: i64, position: i64| match position {
        position if position + sample >= SEQ - 2 => -1,
        position => (position + 2 * sample) / 5,
    };
    let all: Vec<i64> = (0..batch).flat_map(|sample| (0..SEQ).map(move |position| segment(sample, position))).collect();
    Tensor::from_slice(&all).view([batch, SEQ])
}

/// Loss, logits and every parameter's gradient, each whole.
type Trace = (f64, Tensor, Vec<Tensor>);

/// Runs one pass forward and backward under a layout.
fn trace(architecture: &Architecture, layout: Layout, batch: i64, precision: Precision) -> Vec<Trace> {
    trace_within(architecture, layout, &Work { batch, segmented: false, recompute: Recompute::None }, precision)
}

/// What a pass works on, and how.
struct Work {
    batch: i64,
    segmented: bool,
    recompute: Recompute,
}

fn trace_within(architecture: &Architecture, layout: Layout, work: &Work, precision: Precision) -> Vec<Trace> {
    let &Work { batch, segmented, recompute } = work;
    let partition = common::partition(architecture, layout.tp);
    threads::run(layout.tp * layout.cp, |world| -> mp_model::Result<Trace> {
        let (tp, context) = layout.groups(&*world)?;
        let group = TensorGroup { comm: tp, between: layout.between };
        let parameters = Parameters::new(&partition, group.comm.rank().0, 7, precision, Device::Cpu)?;
        let completion = Completion::new(&parameters, &group)?;
        let options = Options { context: context.clone(), recompute };
        let stage = build(parameters, group.clone(), &common::layers(architecture), &options)?;

        let (tokens, targets) = (ids(batch, "tokens"), ids(batch, "targets"));
        // What is not counted lies on one rank of the context axis.
        let _ = targets.narrow(1, 0, 3).fill_(-1);
        let counted = (batch * (SEQ - 3)) as f64;
        let own = context.own(&tokens)?;
        let positions = context.positions(SEQ as usize)?;
        let dropout = Some(DropoutKey { seed: 3, step: 5 });
        let segments = segmented.then(|| segments(batch));
        let pass = Pass { positions, segments: segments.as_ref(), first_sample: 2, dropout, ..Pass::evaluation(&own) };
        let loss = stage.loss_sum(&pass, &context.own(&targets)?)? / counted;
        autograd::backward(&[&loss], &[None], false)?;
        completion.run(stage.parameters())?;

        let mut gradients = stage.parameters().gradients().all().shallow_clone();
        collective::all_reduce(&*context.comm, &mut gradients, ReduceOp::Sum)?;
        let mut sum = [loss.double_value(&[])];
        context.comm.all_reduce(BufferMut::new(&mut sum), ReduceOp::Sum)?;
        let whole = (0..partition.parameters.len())
            .map(|index| shard::gather(stage.parameters(), index, stage.parameters().gradients(), &*group.comm))
            .map(|gradient| Ok(gradient?.copy()))
            .collect::<mp_model::Result<_>>()?;
        Ok((sum[0], natural(&stage.logits(&pass)?, &context)?, whole))
    })
}

/// Joins the ranks' parts of `[b, s / cp, …]` in the order of the sequence.
fn natural(part: &Tensor, context: &Context) -> mp_model::Result<Tensor> {
    let all = collective::all_gather(&*context.comm, part, 1)?;
    let mut order = Vec::new();
    for rank in 0..context.comm.size() {
        let held = mp_model::context::positions(SEQ as usize, context.comm.size(), rank)?;
        order.extend(held.iter().map(|position| position as i64));
    }
    Ok(all.index_select(1, &Tensor::from_slice(&order).argsort(0, false)))
}

fn assert_same(architecture: &Architecture, layout: Layout, batch: i64, expected: &Trace) {
    same(architecture, layout, &trace(architecture, layout, batch, Precision::Fp64), expected);
}

fn same(architecture: &Architecture, layout: Layout, ranks: &[Trace], expected: &Trace) {
    for (rank, (loss, logits, gradients)) in ranks.iter().enumerate() {
        let case = format!("{layout:?}, dropout {}, rank {rank}", architecture.dropout);
        assert!((loss - expected.0).abs() < TOLERANCE, "{case}: loss {loss} against {}", expected.0);
        let worst = common::difference(logits, &expected.1);
        assert!(worst < TOLERANCE, "{case}: logits differ by {worst:e}");
        let partition = common::partition(architecture, 1);
        for (parameter, (got, wanted)) in partition.parameters.iter().zip(gradients.iter().zip(&expected.2)) {
            let worst = common::difference(got, wanted);
            assert!(worst < TOLERANCE, "{case}: {} differs by {worst:e}", parameter.spec.name);
        }
    }
}

#[rstest]
fn a_cut_sequence_gives_what_one_rank_gives(
    #[values(ArchitectureName::Gpt2, ArchitectureName::Llama, ArchitectureName::Bert)] name: ArchitectureName,
    #[values(Form::Ring, Form::AllToAll)] form: Form,
    #[values(0.0, 0.2)] dropout: f64,
) {
    let architecture = architecture(name, dropout);
    for batch in [1, 3] {
        let expected = &trace(&architecture, ALONE, batch, Precision::Fp64)[0];
        let layout = |tp, cp, between| Layout { tp, cp, between, form };
        for cp in [1, 2, 4] {
            assert_same(&architecture, layout(1, cp, Between::Replicated), batch, expected);
        }
        for between in [Between::Replicated, Between::SequenceSharded] {
            assert_same(&architecture, layout(2, 2, between), batch, expected);
        }
    }
}

/// A window of five positions is shorter than the pieces of two context ranks, and longer than those of four: some blocks
/// are seen by no query, others by some only.
#[rstest]
fn windows_and_segments_hide_the_same_under_any_cut(
    #[values((5, false), (0, true), (5, true))] (window, segmented): (usize, bool),
    #[values(0.0, 0.2)] dropout: f64,
) {
    let mut architecture = architecture(ArchitectureName::Llama, dropout);
    let blind = trace(&architecture, ALONE, 3, Precision::Fp64).swap_remove(0);
    architecture.window = Some(window).filter(|&window| window > 0);
    let work = |recompute| Work { batch: 3, segmented, recompute };
    let run = |layout, recompute| trace_within(&architecture, layout, &work(recompute), Precision::Fp64);
    let expected = &run(ALONE, Recompute::None)[0];
    assert!((expected.0 - blind.0).abs() > 1e-6, "nothing was hidden");
    let layout = |tp, cp, form| Layout { tp, cp, form, ..ALONE };
    same(&architecture, ALONE, &run(ALONE, Recompute::Selective), expected);
    same(&architecture, ALONE, &run(ALONE, Recompute::Full { every: 1 }), expected);
    for form in [Form::Ring, Form::AllToAll] {
        for (tp, cp) in [(2, 1), (1, 2), (1, 4), (2, 2)] {
            same(&architecture, layout(tp, cp, form), &run(layout(tp, cp, form), Recompute::None), expected);
        }
    }
    same(&architecture, layout(4, 1, Form::Ring), &run(layout(4, 1, Form::Ring), Recompute::None), expected);
    let again = run(layout(1, 2, Form::Ring), Recompute::Full { every: 1 });
    same(&architecture, layout(1, 2, Form::Ring), &again, expected);
}

/// Blocks are merged, and their gradients summed, in single precision: what is left is the rounding of each block's result,
/// as that of one rank's.
#[rstest]
fn in_bfloat16_a_cut_sequence_is_as_near_to_double_precision_as_a_whole_one(
    #[values(Form::Ring, Form::AllToAll)] form: Form,
    #[values(0.0, 0.2)] dropout: f64,
) {
    let architecture = architecture(ArchitectureName::Llama, dropout);
    let gradients = |layout, precision| {
        let (_, _, gradients) = trace(&architecture, layout, 3, precision).swap_remove(0);
        let flat: Vec<Tensor> = gradients.iter().map(|gradient| gradient.to_kind(Kind::Double).view([-1])).collect();
        Tensor::cat(&flat, 0)
    };
    let exact = gradients(ALONE, Precision::Fp64);
    let distance = |layout| (gradients(layout, Precision::Bf16) - &exact).norm().double_value(&[]);
    let (whole, cut) = (distance(ALONE), distance(Layout { cp: 4, form, ..ALONE }));
    // Found: within 2 %; merged in bfloat16 the ring is 7 % farther away.
    assert!(cut < 1.05 * whole, "{cut:e} against {whole:e}");
}

/// Runs a pass over whole sequences' shape on every rank of a context group that records what it sends.
fn sent(form: Form, cp: usize) -> Vec<(Call, u64)> {
    let architecture = architecture(ArchitectureName::Llama, 0.0);
    let partition = common::partition(&architecture, 1);
    let logs = threads::run(cp, |comm| -> mp_model::Result<Vec<(Call, u64)>> {
        let log = Arc::new(Log::new());
        let context = Context { comm: Arc::new(Ledger::new(comm, Arc::clone(&log))), form };
        let group = TensorGroup { comm: Context::alone().comm, between: Between::Replicated };
        let parameters = Parameters::new(&partition, 0, 7, Precision::Fp64, Device::Cpu)?;
        let stage = build(
            parameters,
            group,
            &common::layers(&architecture),
            &Options { context: context.clone(), ..Options::default() },
        )?;
        let (tokens, targets) = (context.own(&ids(1, "tokens"))?, context.own(&ids(1, "targets"))?);
        let pass = Pass { positions: context.positions(SEQ as usize)?, ..Pass::evaluation(&tokens) };
        let loss = stage.loss_sum(&pass, &targets)?;
        autograd::backward(&[&loss], &[None], false)?;
        let receives = [Call::StartReceive, Call::Receive];
        Ok(log
            .take()
            .iter()
            .filter(|entry| !receives.contains(&entry.call))
            .map(|entry| (entry.call, entry.bytes))
            .collect())
    });
    assert!(logs.iter().all(|log| *log == logs[0]), "{logs:?}");
    logs.into_iter().next().unwrap()
}

#[rstest]
fn a_ring_sends_keys_and_values_once_around_and_gradients_behind_them(#[values(1, 2, 4)] cp: usize) {
    let sent = sent(Form::Ring, cp);
    // Two kv heads, keys and values, 8 bytes: the same for keys and values as for their gradients, in fp64.
    let bytes = (2 * SEQ as usize / cp * 2 * WIDTH * 8) as u64;
    assert_eq!(sent, vec![(Call::StartSendReceive, bytes); 3 * (cp - 1) * LAYERS]);
}

#[rstest]
fn an_exchange_sends_queries_keys_and_values_there_and_the_result_back(#[values(1, 2, 4)] cp: usize) {
    let sent = sent(Form::AllToAll, cp);
    let head = SEQ as usize / cp * WIDTH * 8;
    // Two kv heads over four ranks: each is held twice.
    let fused = ((4 + 2 * cp.max(2)) * head) as u64;
    let result = (4 * head) as u64;
    let expected = if cp == 1 {
        vec![]
    } else {
        [[fused, result]; LAYERS]
            .iter()
            .chain(&[[result, fused]; LAYERS])
            .flatten()
            .map(|&bytes| (Call::AllToAll, bytes))
            .collect()
    };
    assert_eq!(sent, expected);
}

#[test]
fn a_pass_over_other_positions_is_refused() {
    let architecture = architecture(ArchitectureName::Gpt2, 0.0);
    let partition = common::partition(&architecture, 1);
    threads::run(2, |comm| -> mp_model::Result<()> {
        let context = Context { comm, form: Form::Ring };
        let group = TensorGroup { comm: Context::alone().comm, between: Between::Replicated };
        let parameters = Parameters::new(&partition, 0, 7, Precision::Fp64, Device::Cpu)?;
        let stage =
            build(parameters, group, &common::layers(&architecture), &Options { context, ..Options::default() })?;
        let tokens = ids(1, "tokens");
        assert!(matches!(stage.logits(&Pass::evaluation(&tokens)), Err(Error::Positions { .. })));
        let odd = tokens.narrow(1, 0, 6);
        let pass = Pass { positions: Positions::whole(6), ..Pass::evaluation(&odd) };
        assert!(matches!(stage.logits(&pass), Err(Error::Plan(mp_plan::Error::ContextSequence { multiple: 4, .. }))));
        Ok(())
    });
}

#[test]
fn heads_that_cannot_be_exchanged_are_refused_when_the_model_is_made() {
    let architecture = architecture(ArchitectureName::Llama, 0.0);
    let partition = common::partition(&architecture, 1);
    threads::run(3, |comm| -> mp_model::Result<()> {
        let group = TensorGroup { comm: Context::alone().comm, between: Between::Replicated };
        let parameters = Parameters::new(&partition, 0, 7, Precision::Fp64, Device::Cpu)?;
        let context = Context { comm, form: Form::AllToAll };
        let refused =
            build(parameters, group, &common::layers(&architecture), &Options { context, ..Options::default() }).err();
        assert!(matches!(refused, Some(Error::Plan(mp_plan::Error::Heads { cp: 3, legal, .. })) if legal == [1, 2, 4]));
        Ok(())
    });
}
