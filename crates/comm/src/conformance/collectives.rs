//! Blocking collectives: every kind, every reduction, lengths from nothing to several chunks.

use std::sync::Arc;

use half::bf16;

use super::values::{each_kind, input, long, ops, reduced, Value, LENGTHS};
use super::{same, Check, Outcome, Wrong};
use crate::{Buffer, BufferMut, Communicator, Rank, ReduceOp};

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

fn all_reduce_of<T: Value>(comm: &Arc<dyn Communicator>, len: usize, op: ReduceOp) -> Outcome {
    let mut x = input::<T>(comm.rank().0, len);
    comm.all_reduce(BufferMut::new(&mut x), op)?;
    equal(format!("{op:?} of {len} {:?}", T::KIND), &reduced::<T>(comm.size(), 0..len, op), &x)
}

/// Compares long vectors and tells of the first difference only.
pub(super) fn equal<T: Value>(what: String, expected: &[T], found: &[T]) -> Outcome {
    same(format_args!("{what}: length"), expected.len(), found.len())?;
    match expected.iter().zip(found).position(|(e, f)| e != f) {
        None => Ok(()),
        Some(i) => same(format_args!("{what}: element {i}"), expected[i], found[i]),
    }
}

fn all_reduce<T: Value>(comm: &Arc<dyn Communicator>) -> Outcome {
    for len in LENGTHS {
        ops::<T>().iter().try_for_each(|op| all_reduce_of::<T>(comm, len, *op))?;
    }
    Ok(())
}

fn long_all_reduce<T: Value>(comm: &Arc<dyn Communicator>) -> Outcome {
    all_reduce_of::<T>(comm, long::<T>(), ops::<T>()[ops::<T>().len() - 1])
}

fn narrow_sums(comm: &Arc<dyn Communicator>) -> Outcome {
    // Beyond 256 bfloat16 steps by 2: adding ones one by one, rounded each time, would stay at 256.
    let mine = if comm.rank() == Rank(0) { 256.0 } else { 1.0 };
    let expected = bf16::from_f32(256.0 + (comm.size() - 1) as f32);
    let mut x = vec![bf16::from_f32(mine); 100];
    comm.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum)?;
    equal("all_reduce".into(), &[expected; 100], &x)?;
    let send = vec![bf16::from_f32(mine); 100 * comm.size()];
    comm.reduce_scatter(Buffer::new(&send), BufferMut::new(&mut x), ReduceOp::Sum)?;
    equal("reduce_scatter".into(), &[expected; 100], &x)?;
    let x = comm.start_all_reduce(vec![bf16::from_f32(mine); 100].into(), ReduceOp::Sum)?.wait()?;
    equal("start_all_reduce".into(), &[expected; 100], &x.to_vec())?;
    let x = comm.start_reduce_scatter(send.into(), vec![bf16::ZERO; 100].into(), ReduceOp::Sum)?.wait()?;
    equal("start_reduce_scatter".into(), &[expected; 100], &x.to_vec())
}

fn reduce_scatter_of<T: Value>(comm: &Arc<dyn Communicator>, n: usize, op: ReduceOp) -> Outcome {
    let (rank, size) = (comm.rank().0, comm.size());
    let mut out = vec![T::of(99.0); n];
    comm.reduce_scatter(Buffer::new(&input::<T>(rank, n * size)), BufferMut::new(&mut out), op)?;
    equal(format!("{op:?} of {n} {:?} a rank", T::KIND), &reduced(size, rank * n..(rank + 1) * n, op), &out)
}

fn reduce_scatter<T: Value>(comm: &Arc<dyn Communicator>) -> Outcome {
    for n in LENGTHS {
        ops::<T>().iter().try_for_each(|op| reduce_scatter_of::<T>(comm, n, *op))?;
    }
    Ok(())
}

fn long_reduce_scatter<T: Value>(comm: &Arc<dyn Communicator>) -> Outcome {
    reduce_scatter_of::<T>(comm, long::<T>() / comm.size(), ops::<T>()[ops::<T>().len() - 1])
}

fn all_gather<T: Value>(comm: &Arc<dyn Communicator>) -> Outcome {
    for n in LENGTHS.into_iter().chain([long::<T>() / comm.size()]) {
        let mut out = vec![T::of(99.0); n * comm.size()];
        comm.all_gather(Buffer::new(&input::<T>(comm.rank().0, n)), BufferMut::new(&mut out))?;
        let expected: Vec<T> = (0..comm.size()).flat_map(|rank| input(rank, n)).collect();
        equal(format!("{n} {:?} a rank", T::KIND), &expected, &out)?;
    }
    Ok(())
}

/// What one rank sends another.
fn letter<T: Value>(from: usize, to: usize, len: usize) -> Vec<T> {
    input(3 * from + 8 * to, len)
}

fn all_to_all<T: Value>(comm: &Arc<dyn Communicator>) -> Outcome {
    let (rank, size) = (comm.rank().0, comm.size());
    for n in LENGTHS.into_iter().chain([long::<T>() / size]) {
        let send: Vec<T> = (0..size).flat_map(|to| letter(rank, to, n)).collect();
        let mut out = vec![T::of(99.0); n * size];
        comm.all_to_all(Buffer::new(&send), BufferMut::new(&mut out))?;
        let expected: Vec<T> = (0..size).flat_map(|from| letter(from, rank, n)).collect();
        equal(format!("{n} {:?} a rank", T::KIND), &expected, &out)?;
    }
    Ok(())
}

fn all_to_all_v<T: Value>(comm: &Arc<dyn Communicator>) -> Outcome {
    let (rank, size) = (comm.rank().0, comm.size());
    // From nothing at all, over pairs with nothing between them, to several chunks.
    for unit in [0, 1, 100, long::<T>() / 3 / size + 1] {
        let count = |from: usize, to: usize| (3 * from + 5 * to) % 4 * unit;
        let send_counts: Vec<usize> = (0..size).map(|to| count(rank, to)).collect();
        let receive_counts: Vec<usize> = (0..size).map(|from| count(from, rank)).collect();
        let send: Vec<T> = (0..size).flat_map(|to| letter(rank, to, send_counts[to])).collect();
        let mut out = vec![T::of(99.0); receive_counts.iter().sum()];
        comm.all_to_all_v(Buffer::new(&send), &send_counts, BufferMut::new(&mut out), &receive_counts)?;
        let expected: Vec<T> = (0..size).flat_map(|from| letter(from, rank, receive_counts[from])).collect();
        equal(format!("units of {unit} {:?}", T::KIND), &expected, &out)?;
    }
    Ok(())
}

fn broadcast<T: Value>(comm: &Arc<dyn Communicator>) -> Outcome {
    for root in 0..comm.size() {
        let lengths = LENGTHS.into_iter().chain((root == 0).then(long::<T>));
        for len in lengths {
            let mut x = input::<T>(comm.rank().0, len);
            comm.broadcast(BufferMut::new(&mut x), Rank(root))?;
            equal(format!("{len} {:?} from {root}", T::KIND), &input(root, len), &x)?;
        }
    }
    Ok(())
}

fn barrier(comm: &Arc<dyn Communicator>) -> Outcome {
    (0..10).try_for_each(|_| comm.barrier())?;
    Ok(())
}

fn same_bits(comm: &Arc<dyn Communicator>) -> Outcome {
    // Quotients, whose sums depend on the order in which they are added.
    let mine = |len| (0..len).map(|i| 1.0 / (1 + i + 7919 * comm.rank().0) as f32).collect::<Vec<f32>>();
    for len in [4000, long::<f32>()] {
        let mut x = mine(len);
        comm.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum)?;
        let started = comm.start_all_reduce(mine(len).into(), ReduceOp::Sum)?.wait()?.to_vec();
        for x in [x, started] {
            let mut first = x.clone();
            comm.broadcast(BufferMut::new(&mut first), Rank(0))?;
            equal(format!("{len} against rank 0"), &first, &x)?;
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
