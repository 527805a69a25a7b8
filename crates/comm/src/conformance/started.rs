//! Non-blocking collectives: several at once, completed in any order, between blocking calls.

use super::collectives::equal;
use super::values::{each_kind, input, joined, long, ops, reduced, Value, LENGTHS};
use super::{same, Bench, Check, Outcome};
use crate::{ByteBuffer, Kind, OwnedBuffer, ReduceOp};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "start_all_reduce", body: |c| each_kind!(all_reduce, c) },
    Check { name: "start_reduce_scatter", body: |c| each_kind!(reduce_scatter, c) },
    Check { name: "start_all_gather", body: |c| each_kind!(all_gather, c) },
    Check { name: "several collectives under way, completed backwards", body: several },
    Check { name: "blocking calls while others are under way", body: between },
    Check { name: "ranks that wait in different orders around a reduction", body: |c| crossed(c, reduce) },
    Check { name: "ranks that wait in different orders around a split", body: |c| crossed(c, split) },
    Check { name: "a request that is dropped", body: dropped },
    Check { name: "a request that is dropped with its group", body: dropped_group },
    Check { name: "owners that would give other memory the next time", body: restless },
];

fn all_reduce<T: Value>(comm: &Bench) -> Outcome {
    for len in LENGTHS.into_iter().chain([long::<T>()]) {
        let ops = if len < 5000 { ops::<T>() } else { &ops::<T>()[..1] };
        for op in ops {
            let x = comm.wait(comm.start_all_reduce(comm.owned(input::<T>(comm.rank().0, len))?, *op)?)?;
            equal(format!("{op:?} of {len} {:?}", T::KIND), &reduced::<T>(comm.size(), 0..len, *op), &x)?;
        }
    }
    Ok(())
}

fn reduce_scatter<T: Value>(comm: &Bench) -> Outcome {
    let (rank, size) = (comm.rank().0, comm.size());
    for n in LENGTHS.into_iter().chain([long::<T>() / size]) {
        let ops = if n < 5000 { ops::<T>() } else { &ops::<T>()[..1] };
        for op in ops {
            let (send, out) = (comm.owned(input::<T>(rank, n * size))?, comm.owned(vec![T::of(99.0); n])?);
            let out = comm.wait(comm.start_reduce_scatter(send, out, *op)?)?;
            let expected = reduced::<T>(size, rank * n..(rank + 1) * n, *op);
            equal(format!("{op:?} of {n} {:?} a rank", T::KIND), &expected, &out)?;
        }
    }
    Ok(())
}

fn all_gather<T: Value>(comm: &Bench) -> Outcome {
    for n in LENGTHS.into_iter().chain([long::<T>() / comm.size()]) {
        let send = comm.owned(input::<T>(comm.rank().0, n))?;
        let out = comm.wait(comm.start_all_gather(send, comm.owned(vec![T::of(99.0); n * comm.size()])?)?)?;
        let expected: Vec<T> = joined(0..comm.size(), |rank| input(rank, n));
        equal(format!("{n} {:?} a rank", T::KIND), &expected, &out)?;
    }
    Ok(())
}

fn several(comm: &Bench) -> Outcome {
    let (rank, size) = (comm.rank().0, comm.size());
    let lengths = [10, long::<f32>(), 0, 3000, 1];
    let mut requests = Vec::new();
    for len in lengths {
        requests.push(comm.start_all_reduce(comm.owned(input::<f32>(rank, len))?, ReduceOp::Sum)?);
        let gather =
            comm.start_all_gather(comm.owned(input::<f32>(rank, len))?, comm.owned(vec![0f32; len * size])?)?;
        gather.wait()?;
    }
    for len in lengths.into_iter().rev() {
        let Some(request) = requests.pop() else { return same("requests left", true, false) };
        equal(format!("{len}"), &reduced::<f32>(size, 0..len, ReduceOp::Sum), &comm.wait(request)?)?;
    }
    Ok(())
}

fn between(comm: &Bench) -> Outcome {
    let (rank, size, len) = (comm.rank().0, comm.size(), long::<f64>());
    let mut request = comm.start_all_reduce(comm.owned(input::<f64>(rank, len))?, ReduceOp::Max)?;
    for _ in 0..3 {
        let mut x = comm.array(vec![1i32])?;
        comm.all_reduce(x.buffer_mut()?, ReduceOp::Sum)?;
        same("the blocking sum", vec![size as i32], comm.look(&x)?)?;
        comm.barrier()?;
        request.is_complete()?;
    }
    equal("the started one".into(), &reduced::<f64>(size, 0..len, ReduceOp::Max), &comm.wait(request)?)
}

/// A call that blocks until all ranks make it.
type Blocking = fn(&Bench) -> Outcome;

fn reduce(comm: &Bench) -> Outcome {
    let len = long::<f32>();
    let mut x = comm.array(input::<f32>(comm.rank().0, len))?;
    comm.all_reduce(x.buffer_mut()?, ReduceOp::Sum)?;
    equal("the blocking one".into(), &reduced::<f32>(comm.size(), 0..len, ReduceOp::Sum), &comm.look(&x)?)
}

fn split(comm: &Bench) -> Outcome {
    match comm.split(Some(0), 0, "all")? {
        Some(all) => same("the new group's size", comm.size(), all.size()),
        None => same("a group", true, false),
    }
}

fn crossed(comm: &Bench, blocking: Blocking) -> Outcome {
    // Even ranks wait before the blocking call, odd ones after it: each must keep the other going.
    let (rank, size, len) = (comm.rank().0, comm.size(), long::<f32>());
    let mut request = Some(comm.start_all_reduce(comm.owned(input::<f32>(rank, len))?, ReduceOp::Sum)?);
    let mut early = None;
    if rank.is_multiple_of(2) {
        early = request.take().map(|request| request.wait()).transpose()?;
    }
    blocking(comm)?;
    let late = request.take().map(|request| request.wait()).transpose()?;
    match early.or(late) {
        Some(buffer) => {
            let found = comm.read(buffer.as_buffer())?;
            equal("the started one".into(), &reduced::<f32>(size, 0..len, ReduceOp::Sum), &found)
        }
        None => same("the started one is there", true, false),
    }
}

/// Starts a sum of several chunks, which even ranks drop at once and odd ones wait for.
fn half_dropped(comm: &Bench) -> Outcome {
    let (rank, len) = (comm.rank().0, long::<f32>());
    let request = comm.start_all_reduce(comm.owned(input::<f32>(rank, len))?, ReduceOp::Sum)?;
    if rank.is_multiple_of(2) {
        drop(request);
        return Ok(());
    }
    equal("the sum".into(), &reduced::<f32>(comm.size(), 0..len, ReduceOp::Sum), &comm.wait(request)?)
}

fn dropped(comm: &Bench) -> Outcome {
    half_dropped(comm)?;
    let x = comm.wait(comm.start_all_reduce(comm.owned(vec![1f32; 10])?, ReduceOp::Sum)?)?;
    same("the next one", vec![comm.size() as f32; 10], x)
}

fn dropped_group(comm: &Bench) -> Outcome {
    let Some(part) = comm.split(Some(0), 0, "part")? else { return same("a group", true, false) };
    half_dropped(&comm.of(part))?;
    // Where the group has gone before its chunks, odd ranks never come here.
    comm.barrier()?;
    Ok(())
}

/// Frees what it gave before and gives other memory each time it is asked.
struct Restless(Vec<f32>);

impl ByteBuffer for Restless {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0 = std::iter::repeat_n(1.0, long::<f32>()).collect();
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

fn restless(comm: &Bench) -> Outcome {
    let buffer = || OwnedBuffer::new(Kind::F32, Box::new(Restless(Vec::new())));
    let sum = comm.start_all_reduce(buffer()?, ReduceOp::Sum)?.wait()?;
    equal("the sum".into(), &vec![comm.size() as f32; long::<f32>()], &sum.to_vec())
}
