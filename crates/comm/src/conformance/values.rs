//! Elements whose reductions are known exactly, in every kind.

use half::bf16;

use crate::{Element, Kind, ReduceOp};

/// Lengths from nothing to several blocks of every backend.
pub(super) const LENGTHS: [usize; 5] = [0, 1, 3, 257, 5000];

/// A length in elements that crosses every backend's chunks, and divides by no group size.
pub(super) fn long<T: Element>() -> usize {
    (5 << 20) / size_of::<T>() + 7
}

/// The reductions of a kind.
pub(super) fn ops<T: Value>() -> &'static [ReduceOp] {
    use ReduceOp::{Avg, Max, Min, Sum};
    match T::KIND {
        Kind::F64 | Kind::F32 | Kind::Bf16 => &[Sum, Max, Min, Avg],
        Kind::I64 | Kind::I32 | Kind::U8 => &[Sum, Max, Min],
    }
}

/// An element that small whole numbers convert to.
pub(super) trait Value: Element + PartialEq + std::fmt::Debug {
    /// Rounds a number to this type.
    fn of(number: f64) -> Self;
    /// Rounds a quotient in the precision that averages are taken in.
    fn quotient(sum: f64, size: usize) -> Self;
}

macro_rules! value {
    ($($t:ty),*) => { $(impl Value for $t {
        fn of(number: f64) -> Self {
            number as $t
        }
        fn quotient(sum: f64, size: usize) -> Self {
            sum as $t / size as $t
        }
    })* };
}
value!(f64, f32, i64, i32, u8);

impl Value for bf16 {
    fn of(number: f64) -> Self {
        bf16::from_f64(number)
    }
    fn quotient(sum: f64, size: usize) -> Self {
        bf16::from_f32(sum as f32 / size as f32)
    }
}

/// What a rank holds at a position: a whole number from 0 to 12. Sums over eight ranks stay below 2⁷, which is exact in
/// bfloat16 as in any other kind.
fn number(rank: usize, position: usize) -> usize {
    (rank * 5 + position * 7 + position / 11) % 13
}

/// What a rank holds before a call.
pub(super) fn input<T: Value>(rank: usize, len: usize) -> Vec<T> {
    (0..len).map(|i| T::of(number(rank, i) as f64)).collect()
}

/// What a reduction over all ranks gives at the positions of a run.
pub(super) fn reduced<T: Value>(size: usize, run: std::ops::Range<usize>, op: ReduceOp) -> Vec<T> {
    let one = |i| {
        let numbers = (0..size).map(|rank| number(rank, i));
        match op {
            ReduceOp::Max => T::of(numbers.max().unwrap_or(0) as f64),
            ReduceOp::Min => T::of(numbers.min().unwrap_or(0) as f64),
            ReduceOp::Sum => T::of(numbers.sum::<usize>() as f64),
            ReduceOp::Avg => T::quotient(numbers.sum::<usize>() as f64, size),
        }
    };
    run.map(one).collect()
}

/// Runs a generic check for every kind.
macro_rules! each_kind {
    ($check:ident, $comm:expr) => {{
        $check::<f64>($comm)?;
        $check::<f32>($comm)?;
        $check::<half::bf16>($comm)?;
        $check::<i64>($comm)?;
        $check::<i32>($comm)?;
        $check::<u8>($comm)?;
        Ok(())
    }};
}
pub(super) use each_kind;
