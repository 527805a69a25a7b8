//! Elementwise reduction in rank order, the arithmetic of the backends that live in one process.
//!
//! Elements are folded from rank 0 upwards, so that a result depends on the values alone, never on who came first.
//! bfloat16 is folded in `f32` and rounded once.

use half::bf16;

use crate::{Element, Kind, ReduceOp};

/// Elements folded at a time: the accumulators stay in the first-level cache.
const BLOCK: usize = 1024;

/// A number that sums accumulate in.
trait Accumulator: Copy + Default + PartialOrd {
    fn add(self, other: Self) -> Self;
    fn divide(self, size: usize) -> Self;
}

macro_rules! accumulator {
    ($($t:ty: $add:expr, $divide:expr;)*) => { $(impl Accumulator for $t {
        fn add(self, other: Self) -> Self {
            $add(self, other)
        }
        fn divide(self, size: usize) -> Self {
            $divide(self, size)
        }
    })* };
}
// Averages of integers are refused before any arithmetic.
accumulator! {
    f64: |a, b| a + b, |a, size| a / size as f64;
    f32: |a, b| a + b, |a, size| a / size as f32;
    i64: i64::wrapping_add, |a, _| a;
    i32: i32::wrapping_add, |a, _| a;
    u8: u8::wrapping_add, |a, _| a;
}

/// An element with the type that its sums accumulate in.
trait Numeric: Element + PartialEq {
    type Wide: Accumulator;
    fn widen(self) -> Self::Wide;
    fn narrow(wide: Self::Wide) -> Self;
}

macro_rules! its_own_accumulator {
    ($($t:ty),*) => { $(impl Numeric for $t {
        type Wide = $t;
        fn widen(self) -> $t {
            self
        }
        fn narrow(wide: $t) -> $t {
            wide
        }
    })* };
}
its_own_accumulator!(f64, f32, i64, i32, u8);

impl Numeric for bf16 {
    type Wide = f32;
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(wide: f32) -> bf16 {
        bf16::from_f32(wide)
    }
}

/// Reduces the same run of every rank, in place: all parts end with the result.
pub(crate) fn in_all(parts: &mut [&mut [u8]], kind: Kind, op: ReduceOp) {
    match kind {
        Kind::F64 => in_all_of::<f64>(parts, op),
        Kind::F32 => in_all_of::<f32>(parts, op),
        Kind::Bf16 => in_all_of::<bf16>(parts, op),
        Kind::I64 => in_all_of::<i64>(parts, op),
        Kind::I32 => in_all_of::<i32>(parts, op),
        Kind::U8 => in_all_of::<u8>(parts, op),
    }
}

/// Reduces the same run of every rank into `out`.
pub(crate) fn into(parts: &[&[u8]], out: &mut [u8], kind: Kind, op: ReduceOp) {
    match kind {
        Kind::F64 => into_of::<f64>(parts, out, op),
        Kind::F32 => into_of::<f32>(parts, out, op),
        Kind::Bf16 => into_of::<bf16>(parts, out, op),
        Kind::I64 => into_of::<i64>(parts, out, op),
        Kind::I32 => into_of::<i32>(parts, out, op),
        Kind::U8 => into_of::<u8>(parts, out, op),
    }
}

fn in_all_of<T: Numeric>(parts: &mut [&mut [u8]], op: ReduceOp) {
    let Some(bytes) = parts.first().map(|p| p.len()) else { return };
    let mut result = [T::zeroed(); BLOCK];
    for start in (0..bytes).step_by(BLOCK * size_of::<T>()) {
        let range = start..bytes.min(start + BLOCK * size_of::<T>());
        let len = range.len() / size_of::<T>();
        fold::<T>(parts.iter().map(|p| &p[range.clone()]), &mut result[..len], op, parts.len());
        for part in parts.iter_mut() {
            part[range.clone()].copy_from_slice(bytemuck::cast_slice(&result[..len]));
        }
    }
}

fn into_of<T: Numeric>(parts: &[&[u8]], out: &mut [u8], op: ReduceOp) {
    for (i, chunk) in out.chunks_mut(BLOCK * size_of::<T>()).enumerate() {
        let start = i * BLOCK * size_of::<T>();
        let range = start..start + chunk.len();
        fold::<T>(parts.iter().map(|p| &p[range.clone()]), bytemuck::cast_slice_mut(chunk), op, parts.len());
    }
}

/// Folds one block of at most [`BLOCK`] elements from every rank, in order.
fn fold<'a, T: Numeric>(parts: impl Iterator<Item = &'a [u8]>, out: &mut [T], op: ReduceOp, size: usize) {
    match op {
        ReduceOp::Sum => fold_by(parts, out, T::Wide::add, |x| x),
        ReduceOp::Avg => fold_by(parts, out, T::Wide::add, |x| x.divide(size)),
        ReduceOp::Max => fold_by(parts, out, |a, b| if b > a { b } else { a }, |x| x),
        ReduceOp::Min => fold_by(parts, out, |a, b| if b < a { b } else { a }, |x| x),
    }
}

fn fold_by<'a, T: Numeric>(
    mut parts: impl Iterator<Item = &'a [u8]>,
    out: &mut [T],
    combine: impl Fn(T::Wide, T::Wide) -> T::Wide,
    last: impl Fn(T::Wide) -> T::Wide,
) {
    let Some(first) = parts.next() else { return };
    let mut accumulators = [T::Wide::default(); BLOCK];
    let accumulators = &mut accumulators[..out.len()];
    for (a, x) in accumulators.iter_mut().zip(bytemuck::cast_slice::<u8, T>(first)) {
        *a = x.widen();
    }
    for part in parts {
        for (a, x) in accumulators.iter_mut().zip(bytemuck::cast_slice::<u8, T>(part)) {
            *a = combine(*a, x.widen());
        }
    }
    for (o, a) in out.iter_mut().zip(accumulators.iter()) {
        *o = T::narrow(last(*a));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_sums_round_once() {
        // 256 + 1 rounds back to 256 in bfloat16 (8 significant bits); in f32 the ones add up first to 264.
        let rows: Vec<[bf16; 1]> = std::iter::once(256.0).chain([1.0; 8]).map(|x| [bf16::from_f32(x)]).collect();
        let parts: Vec<&[u8]> = rows.iter().map(|r| bytemuck::cast_slice(r)).collect();
        let mut out = [bf16::ZERO];
        into(&parts, bytemuck::cast_slice_mut(&mut out), Kind::Bf16, ReduceOp::Sum);
        assert_eq!(out[0].to_f32(), 264.0);
    }

    #[test]
    fn blocks_join_without_seams() {
        let len = 2 * BLOCK + 3;
        let mut a: Vec<i64> = (0..len as i64).collect();
        let mut b: Vec<i64> = (0..len as i64).map(|i| 10 * i).collect();
        in_all(&mut [bytemuck::cast_slice_mut(&mut a), bytemuck::cast_slice_mut(&mut b)], Kind::I64, ReduceOp::Sum);
        assert_eq!(a, b);
        assert!(a.iter().enumerate().all(|(i, x)| *x == 11 * i as i64));
    }

    #[test]
    fn nothing_reduces_to_nothing() {
        into(&[&[], &[]], &mut [], Kind::F32, ReduceOp::Sum);
        in_all(&mut [&mut [], &mut []], Kind::F64, ReduceOp::Avg);
    }
}
