//! Paired sends and receives: around rings, by pairs, with oneself, several at once, between collectives and messages.

use half::bf16;

use super::collectives::equal;
use super::messages::{next, partner, previous};
use super::values::{each_kind, input, joined, long, reduced, Value, LENGTHS};
use super::{same, Bench, Check, Outcome};
use crate::{Rank, ReduceOp, Request, Tag};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "pairs around a ring, either way", body: |c| each_kind!(ring, c) },
    Check { name: "pairs whose ends differ in length", body: lengths },
    Check { name: "pairs whose ends differ in kind", body: kinds },
    Check { name: "pairs of neighbours, and of a rank with itself", body: neighbours },
    Check { name: "pairs of all ranks with themselves", body: themselves },
    Check { name: "several pairs under way, completed backwards", body: several },
    Check { name: "pairs between collectives and messages", body: between },
    Check { name: "pairs that are polled for", body: polling },
    Check { name: "pairs whose requests are dropped", body: dropped },
];

/// Starts to send what this rank holds, so many elements, and to receive as many.
fn start<T: Value>(comm: &Bench, len: usize, to: Rank, from: Rank, tag: u16) -> crate::Result<Request> {
    let (send, receive) = (comm.owned(input::<T>(comm.rank().0, len))?, comm.owned(vec![T::of(99.0); len])?);
    comm.start_send_receive(send, to, receive, from, Tag(tag))
}

fn ring<T: Value>(comm: &Bench) -> Outcome {
    let (next, previous) = (next(&***comm), previous(&***comm));
    for (to, from) in [(next, previous), (previous, next)] {
        for len in LENGTHS.into_iter().chain([long::<T>()]) {
            let found = comm.wait(start::<T>(comm, len, to, from, 0)?)?;
            equal(format!("{len} {:?} from rank {}", T::KIND, from.0), &input::<T>(from.0, len), &found)?;
        }
    }
    Ok(())
}

fn lengths(comm: &Bench) -> Outcome {
    // Nothing to send here, nothing to receive there; fewer and more chunks on one end than on the other.
    let len = |rank: Rank| [257, 0, long::<f32>(), 3, long::<f32>() / 3, 0, 0, 1][rank.0 % 8];
    let (next, previous) = (next(&***comm), previous(&***comm));
    for (to, from) in [(next, previous), (previous, next)] {
        let send = comm.owned(input::<f32>(comm.rank().0, len(comm.rank())))?;
        let receive = comm.owned(vec![99f32; len(from)])?;
        let found = comm.wait(comm.start_send_receive(send, to, receive, from, Tag(1))?)?;
        equal(format!("what rank {} sent", from.0), &input::<f32>(from.0, len(from)), &found)?;
    }
    Ok(())
}

fn kinds(comm: &Bench) -> Outcome {
    let (next, previous) = (next(&***comm), previous(&***comm));
    let wide = |rank: Rank| rank.0.is_multiple_of(2);
    let send = match wide(comm.rank()) {
        true => comm.owned(vec![comm.rank().0 as i64; 30])?,
        false => comm.owned(vec![bf16::from_f32(comm.rank().0 as f32); 50])?,
    };
    let receive = match wide(previous) {
        true => comm.owned(vec![99i64; 30])?,
        false => comm.owned(vec![bf16::ONE; 50])?,
    };
    let request = comm.start_send_receive(send, next, receive, previous, Tag(2))?;
    match wide(previous) {
        true => same("whole numbers", vec![previous.0 as i64; 30], comm.wait(request)?),
        false => same("narrow ones", vec![bf16::from_f32(previous.0 as f32); 50], comm.wait(request)?),
    }
}

fn neighbours(comm: &Bench) -> Outcome {
    // The last of an odd group is left over, and is its own partner.
    let partner = partner(&***comm);
    let found = comm.wait(start::<i32>(comm, 5000, partner, partner, 3)?)?;
    equal("the neighbour's".into(), &input::<i32>(partner.0, 5000), &found)?;
    // Rank 0 with itself while the others go round.
    let (rank, others) = (comm.rank().0, comm.size().saturating_sub(1).max(1));
    let (to, from) = match rank {
        0 => (0, 0),
        _ => (1 + rank % others, 1 + (rank + others - 2) % others),
    };
    let found = comm.wait(start::<f64>(comm, 257, Rank(to), Rank(from), 3)?)?;
    equal("with rank 0 apart".into(), &input::<f64>(from, 257), &found)
}

fn themselves(comm: &Bench) -> Outcome {
    let own = comm.rank();
    for len in [0, 1, long::<u8>()] {
        let found = comm.wait(start::<u8>(comm, len, own, own, 4)?)?;
        equal(format!("{len} bytes"), &input::<u8>(own.0, len), &found)?;
    }
    Ok(())
}

fn several(comm: &Bench) -> Outcome {
    let (next, previous) = (next(&***comm), previous(&***comm));
    // With one tag and with two, one way round and the other at once.
    let (one, other) = ((next, previous), (previous, next));
    let started = [(300, one, 5), (long::<f32>(), other, 6), (0, one, 6), (1, one, 5), (5000, other, 5), (20, one, 6)];
    let mut requests = Vec::new();
    for (len, (to, from), tag) in started {
        requests.push((len, from, start::<f32>(comm, len, to, from, tag)?));
    }
    while let Some((len, from, request)) = requests.pop() {
        equal(format!("{len} from rank {}", from.0), &input::<f32>(from.0, len), &comm.wait(request)?)?;
    }
    Ok(())
}

fn between(comm: &Bench) -> Outcome {
    let (rank, size, next, previous) = (comm.rank().0, comm.size(), next(&***comm), previous(&***comm));
    let len = long::<f32>();
    let message = comm.start_receive(comm.owned(vec![0u8; 900])?, previous, Tag(8))?;
    let sum = comm.start_all_reduce(comm.owned(input::<f32>(rank, len))?, ReduceOp::Sum)?;
    let first = start::<f32>(comm, len, next, previous, 7)?;
    let (send, all) = (comm.owned(input::<i32>(rank, 7))?, comm.owned(vec![0i32; 7 * size])?);
    let gathered = comm.start_all_gather(send, all)?;
    let second = start::<f32>(comm, 3, previous, next, 7)?;
    let mut x = comm.array(vec![1i64])?;
    comm.all_reduce(x.buffer_mut()?, ReduceOp::Sum)?;
    same("the blocking sum", vec![size as i64], comm.look(&x)?)?;
    // Ranks send their messages here and there among the rest.
    let sent = comm.start_send(comm.owned(vec![rank as u8; 900])?, next, Tag(8))?;
    equal("the second pair".into(), &input::<f32>(next.0, 3), &comm.wait(second)?)?;
    same("the message", vec![previous.0 as u8; 900], comm.wait(message)?)?;
    equal("the sum".into(), &reduced::<f32>(size, 0..len, ReduceOp::Sum), &comm.wait(sum)?)?;
    equal("the first pair".into(), &input::<f32>(previous.0, len), &comm.wait(first)?)?;
    equal("what was gathered".into(), &joined(0..size, |rank| input::<i32>(rank, 7)), &comm.wait(gathered)?)?;
    sent.wait()?;
    Ok(())
}

fn polling(comm: &Bench) -> Outcome {
    let previous = previous(&***comm);
    let mut request = start::<f64>(comm, 9000, next(&***comm), previous, 9)?;
    while !request.is_complete()? {
        std::thread::yield_now();
    }
    equal("after polling".into(), &input::<f64>(previous.0, 9000), &comm.wait(request)?)
}

fn dropped(comm: &Bench) -> Outcome {
    let (next, previous, len) = (next(&***comm), previous(&***comm), long::<f32>());
    let request = start::<f32>(comm, len, next, previous, 10)?;
    if comm.rank().0.is_multiple_of(2) {
        drop(request);
    } else {
        equal("what a rank sent that did not wait".into(), &input::<f32>(previous.0, len), &comm.wait(request)?)?;
    }
    let found = comm.wait(start::<f32>(comm, 3, next, previous, 10)?)?;
    equal("the next one".into(), &input::<f32>(previous.0, 3), &found)
}
