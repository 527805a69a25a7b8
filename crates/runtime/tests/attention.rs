//! Attention by blocks against the whole, and the fused kernel against its plain twin.

use mp_runtime::kernels::attention::{backward, forward, plain_backward, plain_forward, Attended, Dropped, Mask};
use mp_runtime::kernels::dropout::apply;
use mp_runtime::rng::Stream;
use mp_runtime::{autograd, Device, Kind, Tensor};

const B: i64 = 2;
const H: i64 = 3;
const S: i64 = 6;
const K: i64 = 8;

/// Sums of a few dozen products of order 1 in 52 bits.
const TOLERANCE: f64 = 1e-13;

fn random(shape: &[i64], name: &str) -> Tensor {
    let count = shape.iter().product::<i64>() as u64;
    Tensor::from_slice(&Stream::new(5, name, 0).normals(0..count)).view(shape)
}

fn close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size(), "{what}");
    let worst = (got - expected).abs().max().double_value(&[]);
    assert!(worst < tolerance, "{what} differs by {worst:e}");
}

/// Queries `S..2S` of a sequence of `2S`, with all keys and values.
fn sample() -> [Tensor; 4] {
    [
        random(&[B, H, S, K], "q"),
        random(&[B, H, 2 * S, K], "k"),
        random(&[B, H, 2 * S, K], "v"),
        random(&[B, H, S, K], "dy"),
    ]
}

/// Which keys the queries see: those up to their own.
fn causal() -> Tensor {
    Tensor::ones([1, 1, S, 2 * S], (Kind::Bool, Device::Cpu)).tril(S)
}

/// Of those, the last four in one sequence and the last eight in the other: some queries see none of the earlier block.
fn windows() -> Tensor {
    let near = |width: i64| Tensor::ones([1, 1, S, 2 * S], (Kind::Bool, Device::Cpu)).triu(S + 1 - width);
    Tensor::cat(&[near(4), near(8)], 0).logical_and(&causal())
}

/// The whole by libtorch's own means: result, and gradients of queries, keys and values.
fn whole(seen: &Tensor, kept: Option<&Tensor>, p: f64) -> [Tensor; 4] {
    let [q, k, v, dy] = sample();
    let [q, k, v] = [q, k, v].map(|x| x.set_requires_grad(true));
    let scores = q.matmul(&k.transpose(-2, -1)) / (K as f64).sqrt();
    let weights = scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY).softmax(-1, None);
    let weights = kept.map_or_else(|| weights.shallow_clone(), |mask| apply(&weights, mask, p).unwrap());
    let y = weights.matmul(&v);
    autograd::backward(&[&y], &[Some(&dy)], false).unwrap();
    [y.detach(), q.grad(), k.grad(), v.grad()]
}

/// The same from two blocks of keys: those before the queries, and the queries' own.
fn by_blocks([early, own]: [&Mask; 2], kept: Option<&Tensor>, p: f64) -> [Tensor; 4] {
    let [q, k, v, dy] = sample();
    let block = |x: &Tensor, index: i64| x.narrow(2, index * S, S);
    let dropped = |index: i64| kept.map(|mask| Dropped { mask: mask.narrow(3, index * S, S), probability: p });
    let found = |index: i64, mask: &Mask| {
        forward(&q, &block(&k, index), &block(&v, index), mask, dropped(index).as_ref()).unwrap()
    };
    let mut merged = found(1, own).to_wide().unwrap();
    merged.merge(&found(0, early)).unwrap();
    let gradients = |index: i64, mask: &Mask| {
        backward(&dy, [&q, &block(&k, index), &block(&v, index)], &merged, mask, dropped(index).as_ref()).unwrap()
    };
    let (early, own) = (gradients(0, early), gradients(1, own));
    [
        merged.y_bhsk.shallow_clone(),
        early.dq_bhsk + own.dq_bhsk,
        Tensor::cat(&[early.dk_bhtk, own.dk_bhtk], 2),
        Tensor::cat(&[early.dv_bhtk, own.dv_bhtk], 2),
    ]
}

#[test]
fn blocks_merge_to_the_whole() {
    let mask = random(&[B, H, S, 2 * S], "mask").gt(-0.5).to_kind(Kind::Double);
    let part = |index: i64| Mask::Seen(windows().narrow(3, index * S, S));
    let cases = [("causal", causal(), [Mask::Full, Mask::Causal]), ("windows", windows(), [part(0), part(1)])];
    for (case, seen, masks) in &cases {
        for kept in [None, Some(&mask)] {
            let names = ["result", "dq", "dk", "dv"];
            let got = by_blocks([&masks[0], &masks[1]], kept, 0.3);
            for ((name, got), expected) in names.iter().zip(got).zip(whole(seen, kept, 0.3)) {
                close(&format!("{name}, {case}, dropped: {}", kept.is_some()), &got, &expected, TOLERANCE);
            }
        }
    }
}

#[test]
fn a_query_that_sees_no_key_finds_nothing() {
    let [q, k, v, _] = sample();
    let (k, v) = (k.narrow(2, 0, S), v.narrow(2, 0, S));
    // In the first sequence the last three queries of six are beyond the window of four.
    let mask = Mask::Seen(windows().narrow(3, 0, S));
    for found in [forward(&q, &k, &v, &mask, None).unwrap(), plain_forward(&q, &k, &v, &mask, None).unwrap()] {
        let (blind, seeing) = (found.queries(3, 3).unwrap(), found.queries(0, 3).unwrap());
        assert_eq!(blind.y_bhsk.get(0).abs().max().double_value(&[]), 0.0);
        assert_eq!(blind.log_sum_bhs.get(0).max().double_value(&[]), f64::NEG_INFINITY);
        assert!(seeing.log_sum_bhs.isfinite().all().int64_value(&[]) == 1);
        assert!(found.y_bhsk.isfinite().all().int64_value(&[]) == 1);
    }
}

/// As a device is given it, which is not asked whether any does. The drop takes the host to the device's path.
#[test]
fn a_block_that_no_query_sees_adds_nothing() {
    let kept = random(&[B, H, S, 2 * S], "mask").gt(-0.5).to_kind(Kind::Double);
    let own = causal().narrow(-1, S, S);
    let none = own.zeros_like();
    let seen = Tensor::cat(&[&none, &own], -1);
    let got = by_blocks([&Mask::Seen(none), &Mask::Causal], Some(&kept), 0.3);
    for ((name, got), expected) in ["result", "dq", "dk", "dv"].iter().zip(got).zip(whole(&seen, Some(&kept), 0.3)) {
        close(name, &got, &expected, TOLERANCE);
    }
}

#[test]
fn the_fused_kernel_is_its_plain_twin() {
    // bfloat16 keeps 8 bits: a result of order 1 is within 2⁻⁸ of the twin's, a gradient, itself a sum of a dozen
    // products of rounded values, within 2⁻⁵.
    for (kind, tolerance) in [(Kind::Double, TOLERANCE), (Kind::BFloat16, 1.0 / 32.0)] {
        let [q, k, v, dy] = sample().map(|x| x.to_kind(kind));
        for (mask, keys) in [(Mask::Causal, S), (Mask::Full, 2 * S), (Mask::Seen(windows()), 2 * S)] {
            let (k, v) = (k.narrow(2, 0, keys), v.narrow(2, 0, keys));
            let fused = forward(&q, &k, &v, &mask, None).unwrap();
            let plain = plain_forward(&q, &k, &v, &mask, None).unwrap();
            let what = |part: &str| format!("{part} of {kind:?}, {keys} keys, {mask:?}");
            close(&what("result"), &fused.y_bhsk, &plain.y_bhsk, tolerance);
            close(&what("logarithm"), &fused.log_sum_bhs, &plain.log_sum_bhs, tolerance);
            // The logarithm as another's memory: what a merge leaves is no longer laid out as the kernel's own.
            let given = Attended { y_bhsk: plain.y_bhsk.shallow_clone(), log_sum_bhs: plain.log_sum_bhs.contiguous() };
            let got = backward(&dy, [&q, &k, &v], &given, &mask, None).unwrap();
            let expected = plain_backward(&dy, [&q, &k, &v], &plain, &mask, None).unwrap();
            close(&what("dq"), &got.dq_bhsk, &expected.dq_bhsk, tolerance);
            close(&what("dk"), &got.dk_bhtk, &expected.dk_bhtk, tolerance);
            close(&what("dv"), &got.dv_bhtk, &expected.dv_bhtk, tolerance);
        }
    }
}
