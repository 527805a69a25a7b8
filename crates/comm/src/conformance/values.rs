//! Elements whose reductions are known exactly, in every kind.

use std::ops::Range;

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

/// The positions after which [`number`] begins anew: 11 · 13 of them add 7 · 143 + 13, a multiple of 13.
const PERIOD: usize = 11 * 13;

/// What `one` gives at the positions of a run, where it repeats as [`number`] does: asked for one period, then copied.
fn periodic<T: Value>(run: Range<usize>, one: impl Fn(usize) -> T) -> Vec<T> {
    let mut elements = Vec::with_capacity(run.len());
    elements.extend(run.clone().take(PERIOD).map(one));
    while elements.len() < run.len() {
        // Copies of whole periods, twice as many each time.
        elements.extend_from_within(..elements.len().min(run.len() - elements.len()));
    }
    elements
}

/// What a rank holds before a call.
pub(super) fn input<T: Value>(rank: usize, len: usize) -> Vec<T> {
    periodic(0..len, |i| T::of(number(rank, i) as f64))
}

/// One block a rank, in rank order.
pub(super) fn joined<T: Value>(ranks: Range<usize>, block: impl Fn(usize) -> Vec<T>) -> Vec<T> {
    ranks.map(block).collect::<Vec<_>>().concat()
}

/// What a reduction over all ranks gives at the positions of a run.
pub(super) fn reduced<T: Value>(size: usize, run: Range<usize>, op: ReduceOp) -> Vec<T> {
    let one = |i| {
        let numbers = (0..size).map(|rank| number(rank, i));
        match op {
            ReduceOp::Max => T::of(numbers.max().unwrap_or(0) as f64),
            ReduceOp::Min => T::of(numbers.min().unwrap_or(0) as f64),
            ReduceOp::Sum => T::of(numbers.sum::<usize>() as f64),
            ReduceOp::Avg => T::quotient(numbers.sum::<usize>() as f64, size),
        }
    };
    periodic(run, one)
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

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn periods_repeat_what_each_position_holds() {
        for run in [0..0, 5..6, 0..PERIOD, 3..PERIOD + 4, 1000..1000 + 9 * PERIOD + 7] {
            let one = |i| number(2, i) as i32;
            assert_eq!(periodic(run.clone(), one), run.map(one).collect::<Vec<_>>());
        }
    }
}
