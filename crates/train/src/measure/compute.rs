//! What a rank computes: products by shape, sweeps over memory by size, attention with its backward.

use mp_plan::cluster::measured::Product;
use mp_plan::Precision;
use mp_runtime::{autograd, Device, Kind, Tensor};

use super::bench::Bench;
use crate::Result;

/// Lengths of products along each dim. Between two of them logarithms are interpolated.
const LENGTHS: [usize; 4] = [16, 64, 256, 1024];
const QUICK_LENGTHS: [usize; 3] = [16, 128, 1024];
/// A product is run so often at least.
const RUNS: f64 = 7.0;

/// Elements of tensors that are added. The largest are three tensors of 64 MiB on each rank, with little effort of 16: more than most caches' share of a rank.
const ELEMENTS: [i64; 8] = [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24];
const QUICK_ELEMENTS: [i64; 4] = [1 << 12, 1 << 16, 1 << 20, 1 << 22];

/// Positions of attentions, of so many heads of such a width.
const POSITIONS: [i64; 4] = [16, 64, 256, 1024];
const QUICK_POSITIONS: [i64; 2] = [32, 256];
const HEADS: i64 = 4;
const WIDTH: i64 = 32;

fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::Bf16 => Kind::BFloat16,
        Precision::Fp32 => Kind::Float,
        Precision::Fp64 => Kind::Double,
    }
}

fn filled(shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    Ok(Tensor::f_full(shape, 0.5, (kind, device)).map_err(mp_runtime::Error::from)?)
}

/// Times `m × k` by `k × n`, as linear layers multiply, for each length with each; the longest are left out where they would
/// take too long.
pub(super) fn products(bench: &Bench<'_>, precision: Precision) -> Result<Vec<Product>> {
    let lengths = bench.either(&QUICK_LENGTHS[..], &LENGTHS[..]);
    let allowed = bench.either(0.6, 3.0);
    let _off = autograd::no_grad();
    let (mut points, mut fastest): (Vec<Product>, f64) = (Vec::new(), 0.0);
    for (shell, &longest) in lengths.iter().enumerate() {
        let known = &lengths[..=shell];
        let shapes = known.iter().flat_map(|&m| known.iter().flat_map(move |&n| known.iter().map(move |&k| [m, n, k])));
        let shapes: Vec<[usize; 3]> = shapes.filter(|shape| shape.contains(&longest)).collect();
        let flop: f64 = shapes.iter().map(flop).sum();
        // The first two make a grid. What comes next is no slower than the fastest so far.
        if shell > 1 && RUNS * flop / fastest > allowed {
            break;
        }
        for shape in shapes {
            let seconds = product(bench, shape, kind(precision))?;
            let rate = flop_of(shape) / seconds;
            fastest = fastest.max(rate);
            points.push(Product(shape[0], shape[1], shape[2], rate));
        }
    }
    Ok(points)
}

fn flop(shape: &[usize; 3]) -> f64 {
    flop_of(*shape)
}

fn flop_of(shape: [usize; 3]) -> f64 {
    2.0 * shape.into_iter().map(|length| length as f64).product::<f64>()
}

fn product(bench: &Bench<'_>, [m, n, k]: [usize; 3], kind: Kind) -> Result<f64> {
    let made = |rows: usize| filled(&[rows as i64, k as i64], kind, bench.device());
    let (x, weight) = bench.prepared(|| Ok((made(m)?, made(n)?)))?;
    bench.seconds(|| {
        drop(x.f_linear(&weight, None::<Tensor>).map_err(mp_runtime::Error::from)?);
        Ok(())
    })
}

/// Times sums of two tensors, by the bytes that are read and written; what the smallest takes is its start, and left out.
pub(super) fn sweeps(bench: &Bench<'_>) -> Result<Vec<[f64; 2]>> {
    let _off = autograd::no_grad();
    let added = |elements: i64| -> Result<f64> {
        let made = || filled(&[elements], Kind::Float, bench.device());
        let (x, y) = bench.prepared(|| Ok((made()?, made()?)))?;
        bench.seconds(|| {
            drop(x.f_add(&y).map_err(mp_runtime::Error::from)?);
            Ok(())
        })
    };
    let start = added(16)?;
    let elements = bench.either(&QUICK_ELEMENTS[..], &ELEMENTS[..]);
    let point = |&elements: &i64| -> Result<[f64; 2]> {
        let (bytes, seconds) = ((12 * elements) as f64, added(elements)?);
        // Of the least that one takes the start is nearly all, and noise more than the rest.
        Ok([bytes, bytes / (seconds - start).max(0.1 * seconds)])
    };
    elements.iter().map(point).collect()
}

/// Times the fused attention under a causal mask, forward and backward, which makes five products to two.
pub(super) fn attention(bench: &Bench<'_>, precision: Precision) -> Result<Vec<[f64; 2]>> {
    let positions = bench.either(&QUICK_POSITIONS[..], &POSITIONS[..]);
    positions.iter().map(|&seq| attended(bench, seq, kind(precision))).collect()
}

fn attended(bench: &Bench<'_>, seq: i64, kind: Kind) -> Result<[f64; 2]> {
    let shape = [1, HEADS, seq, WIDTH];
    let made = || filled(&shape, kind, bench.device());
    let input = || made().map(|tensor| tensor.set_requires_grad(true));
    let (q, k, v, dy) = bench.prepared(|| Ok((input()?, input()?, input()?, made()?)))?;
    let seconds = bench.seconds(|| {
        let y = Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, true, None, false)
            .map_err(mp_runtime::Error::from)?;
        Ok(autograd::backward(&[&y], &[Some(&dy)], false)?)
    })?;
    let forward = 2.0 * (seq * seq * HEADS * WIDTH) as f64;
    // A pass of the mean size takes half of both.
    let (forward_and_backward, mean) = (3.5 * forward, 1.75 * forward);
    Ok([mean, forward_and_backward / seconds])
}
