//! Blocking collectives: every kind, every reduction, lengths from nothing to several chunks.

use std::sync::Arc;

use half::bf16;

use super::values::{each_kind, input, joined, long, ops, reduced, Value, LENGTHS};
use super::{same, Bench, Check, Outcome, Rounding, Wrong};
use crate::{BufferMut, Communicator, Rank, ReduceOp};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "all_reduce", body: |c| each_kind!(all_reduce, c) },
    Check { name: "all_reduce of several chunks", body: |c| each_kind!(long_all_reduce, c) },
    Check { name: "bf16 sums accumulate in f32", body: narrow_sums },
    Check { name: "reduce_scatter", body: |c| each_kind!(reduce_scatter, c) },
    Check { name: "reduce_scatter of several chunks", body: |c| each_kind!(long_reduce_scatter, c) },
    Check { name: "all_gather", body: |c| each_kind!(all_gather, c) },
    Check { name: "all_to_all", body: |c| each_kind!(all_to_all, c) },
    Check { name: "all_to_all_v", body: |c| each_kind!(all_to_all_v, c) },
    Check { name: "broadcast from every root", body: |c| each_kind!(broadcast, c) },
    Check { name: "barrier", body: barrier },
    Check { name: "every rank ends with the same bits", body: same_bits },
];

fn all_reduce_of<T: Value>(comm: &Bench, len: usize, op: ReduceOp) -> Outcome {
    let mut x = comm.array(input::<T>(comm.rank().0, len))?;
    comm.all_reduce(x.buffer_mut()?, op)?;
    let found = comm.look(&x)?;
    equal(format!("{op:?} of {len} {:?}", T::KIND), &reduced::<T>(comm.size(), 0..len, op), &found)
}

/// Compares long vectors and tells of the first difference only.
pub(super) fn equal<T: Value>(what: String, expected: &[T], found: &[T]) -> Outcome {
    same(format_args!("{what}: length"), expected.len(), found.len())?;
    // At once where nothing differs, which is the rule.
    if expected == found {
        return Ok(());
    }
    match expected.iter().zip(found).position(|(e, f)| e != f) {
        None => Ok(()),
        Some(i) => same(format_args!("{what}: element {i}"), expected[i], found[i]),
    }
}

fn all_reduce<T: Value>(comm: &Bench) -> Outcome {
    for len in LENGTHS {
        ops::<T>().iter().try_for_each(|op| all_reduce_of::<T>(comm, len, *op))?;
    }
    Ok(())
}

fn long_all_reduce<T: Value>(comm: &Bench) -> Outcome {
    all_reduce_of::<T>(comm, long::<T>(), ops::<T>()[ops::<T>().len() - 1])
}

fn narrow_sums(comm: &Bench) -> Outcome {
    // Beyond 256 bfloat16 steps by 2: adding ones one by one, rounded each time, would stay at 256.
    let mine = if comm.rank() == Rank(0) { 256.0 } else { 1.0 };
    let exact = 256.0 + (comm.size() - 1) as f32;
    let expected = bf16::from_f32(exact);
    let close = |what: &str, found: Vec<bf16>| match comm.rounding {
        Rounding::Once => equal(what.into(), &[expected; 100], &found),
        // Each of the additions may lose half a step.
        Rounding::EachSum => {
            let near = |x: &bf16| (x.to_f32() - exact).abs() <= comm.size() as f32;
            same(format_args!("{what}: {found:?} are near {exact}"), true, found.iter().all(near))
        }
    };
    let many = |n: usize| vec![bf16::from_f32(mine); n];
    let mut x = comm.array(many(100))?;
    comm.all_reduce(x.buffer_mut()?, ReduceOp::Sum)?;
    close("all_reduce", comm.look(&x)?)?;
    let send = comm.array(many(100 * comm.size()))?;
    comm.reduce_scatter(send.buffer()?, x.buffer_mut()?, ReduceOp::Sum)?;
    close("reduce_scatter", comm.look(&x)?)?;
    close("start_all_reduce", comm.wait(comm.start_all_reduce(comm.owned(many(100))?, ReduceOp::Sum)?)?)?;
    let (send, part) = (comm.owned(many(100 * comm.size()))?, comm.owned(vec![bf16::ZERO; 100])?);
    close("start_reduce_scatter", comm.wait(comm.start_reduce_scatter(send, part, ReduceOp::Sum)?)?)
}

fn reduce_scatter_of<T: Value>(comm: &Bench, n: usize, op: ReduceOp) -> Outcome {
    let (rank, size) = (comm.rank().0, comm.size());
    let (send, mut out) = (comm.array(input::<T>(rank, n * size))?, comm.array(vec![T::of(99.0); n])?);
    comm.reduce_scatter(send.buffer()?, out.buffer_mut()?, op)?;
    let found = comm.look(&out)?;
    equal(format!("{op:?} of {n} {:?} a rank", T::KIND), &reduced(size, rank * n..(rank + 1) * n, op), &found)
}

fn reduce_scatter<T: Value>(comm: &Bench) -> Outcome {
    for n in LENGTHS {
        ops::<T>().iter().try_for_each(|op| reduce_scatter_of::<T>(comm, n, *op))?;
    }
    Ok(())
}

fn long_reduce_scatter<T: Value>(comm: &Bench) -> Outcome {
    reduce_scatter_of::<T>(comm, long::<T>() / comm.size(), ops::<T>()[ops::<T>().len() - 1])
}

fn all_gather<T: Value>(comm: &Bench) -> Outcome {
    for n in LENGTHS.into_iter().chain([long::<T>() / comm.size()]) {
        let mut out = comm.array(vec![T::of(99.0); n * comm.size()])?;
        comm.all_gather(comm.array(input::<T>(comm.rank().0, n))?.buffer()?, out.buffer_mut()?)?;
        let expected: Vec<T> = joined(0..comm.size(), |rank| input(rank, n));
        equal(format!("{n} {:?} a rank", T::KIND), &expected, &comm.look(&out)?)?;
    }
    Ok(())
}

/// What one rank sends another.
fn letter<T: Value>(from: usize, to: usize, len: usize) -> Vec<T> {
    input(3 * from + 8 * to, len)
}

fn all_to_all<T: Value>(comm: &Bench) -> Outcome {
    let (rank, size) = (comm.rank().0, comm.size());
    for n in LENGTHS.into_iter().chain([long::<T>() / size]) {
        let send: Vec<T> = joined(0..size, |to| letter(rank, to, n));
        let mut out = comm.array(vec![T::of(99.0); n * size])?;
        comm.all_to_all(comm.array(send)?.buffer()?, out.buffer_mut()?)?;
        let expected: Vec<T> = joined(0..size, |from| letter(from, rank, n));
        equal(format!("{n} {:?} a rank", T::KIND), &expected, &comm.look(&out)?)?;
    }
    Ok(())
}

fn all_to_all_v<T: Value>(comm: &Bench) -> Outcome {
    let (rank, size) = (comm.rank().0, comm.size());
    // From nothing at all, over pairs with nothing between them, to several chunks.
    for unit in [0, 1, 100, long::<T>() / 3 / size + 1] {
        let count = |from: usize, to: usize| (3 * from + 5 * to) % 4 * unit;
        let send_counts: Vec<usize> = (0..size).map(|to| count(rank, to)).collect();
        let receive_counts: Vec<usize> = (0..size).map(|from| count(from, rank)).collect();
        let send: Vec<T> = joined(0..size, |to| letter(rank, to, send_counts[to]));
        let (send, mut out) = (comm.array(send)?, comm.array(vec![T::of(99.0); receive_counts.iter().sum()])?);
        comm.all_to_all_v(send.buffer()?, &send_counts, out.buffer_mut()?, &receive_counts)?;
        let expected: Vec<T> = joined(0..size, |from| letter(from, rank, receive_counts[from]));
        equal(format!("units of {unit} {:?}", T::KIND), &expected, &comm.look(&out)?)?;
    }
    Ok(())
}

fn broadcast<T: Value>(comm: &Bench) -> Outcome {
    for root in 0..comm.size() {
        let lengths = LENGTHS.into_iter().chain((root == 0).then(long::<T>));
        for len in lengths {
            let mut x = comm.array(input::<T>(comm.rank().0, len))?;
            comm.broadcast(x.buffer_mut()?, Rank(root))?;
            equal(format!("{len} {:?} from {root}", T::KIND), &input(root, len), &comm.look(&x)?)?;
        }
    }
    Ok(())
}

fn barrier(comm: &Bench) -> Outcome {
    (0..10).try_for_each(|_| comm.barrier())?;
    Ok(())
}

fn same_bits(comm: &Bench) -> Outcome {
    // Quotients, whose sums depend on the order in which they are added.
    let mine = |len| (0..len).map(|i| 1.0 / (1 + i + 7919 * comm.rank().0) as f32).collect::<Vec<f32>>();
    for len in [4000, long::<f32>()] {
        let mut x = comm.array(mine(len))?;
        comm.all_reduce(x.buffer_mut()?, ReduceOp::Sum)?;
        let started = comm.wait(comm.start_all_reduce(comm.owned(mine(len))?, ReduceOp::Sum)?)?;
        for x in [comm.look(&x)?, started] {
            let mut first = comm.array(x.clone())?;
            comm.broadcast(first.buffer_mut()?, Rank(0))?;
            equal(format!("{len} against rank 0"), &comm.look(&first)?, &x)?;
        }
    }
    Ok(())
}

/// Collectives of more bytes, and elements, than a C int counts.
pub(super) fn beyond_c_int(comm: &Arc<dyn Communicator>) -> Result<(), Wrong> {
    let len = (1 << 31) + 11;
    let mut x = vec![1u8; len];
    comm.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum)?;
    let expected = comm.size() as u8;
    match x.iter().position(|v| *v != expected) {
        Some(i) => same(format_args!("all_reduce: element {i}"), expected, x[i])?,
        None => x[len - 1] = comm.rank().0 as u8 + 40,
    }
    comm.broadcast(BufferMut::new(&mut x), Rank(0))?;
    same("broadcast: the last element", 40, x[len - 1])
}
