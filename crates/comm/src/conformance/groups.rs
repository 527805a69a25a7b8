//! Groups: what they say of themselves, and splits.

use super::{same, Bench, Check, Outcome};
use crate::{Error, Rank, ReduceOp};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "ranks and sizes", body: identity },
    Check { name: "split by parity, in reverse", body: parity },
    Check { name: "split with ranks left out", body: left_out },
    Check { name: "split of a split", body: nested },
    Check { name: "split with large colors and keys", body: large },
    Check { name: "two groups used by two threads", body: two_threads },
];

/// Sums over a group, to see who is in it.
fn sum(comm: &Bench, mine: usize) -> Result<i64, Error> {
    let mut x = comm.array(vec![mine as i64])?;
    comm.all_reduce(x.buffer_mut()?, ReduceOp::Sum)?;
    Ok(comm.look(&x)?[0])
}

fn identity(comm: &Bench) -> Outcome {
    let n = comm.size();
    same("the rank is below the size", true, comm.rank().0 < n)?;
    same("the local rank is below the local size", true, comm.local_rank().0 < comm.local_size())?;
    same("the node holds no more than the group", true, comm.local_size() <= n)?;
    same("ranks count from 0", (n * (n - 1) / 2) as i64, sum(comm, comm.rank().0)?)
}

fn parity(comm: &Bench) -> Outcome {
    let (rank, n) = (comm.rank().0, comm.size());
    let Some(half) = comm.split(Some(rank as u32 % 2), (n - rank) as u32, "half")? else {
        return same("a group", true, false);
    };
    let members: Vec<usize> = (0..n).filter(|other| other % 2 == rank % 2).rev().collect();
    same("its name", "half", half.name())?;
    same("its size", members.len(), half.size())?;
    same("the rank in it", members.iter().position(|m| *m == rank), Some(half.rank().0))?;
    same("its members", members.iter().sum::<usize>() as i64, sum(&comm.of(half), rank)?)?;
    // The old group is as it was.
    same("the old group", n as i64, sum(comm, 1)?)
}

fn left_out(comm: &Bench) -> Outcome {
    let rank = comm.rank();
    let color = (rank != Rank(0)).then_some(3);
    let rest = comm.split(color, 0, "rest")?;
    same("rank 0 alone is left out", rank != Rank(0), rest.is_some())?;
    if let Some(rest) = rest {
        same("its size", comm.size() - 1, rest.size())?;
        same("ranks keep their order", rank.0 - 1, rest.rank().0)?;
        rest.barrier()?;
    }
    same("nobody wants a group", true, comm.split(None, 0, "nobody")?.is_none())
}

fn nested(comm: &Bench) -> Outcome {
    let rank = comm.rank().0;
    let Some(pair) = comm.split(Some(rank as u32 / 2), 0, "pair")? else { return same("a pair", true, false) };
    let Some(alone) = pair.split(Some(pair.rank().0 as u32), 0, "alone")? else {
        return same("a group of one", true, false);
    };
    same("its size", 1, alone.size())?;
    // Children outlive their parents.
    drop(pair);
    same("its sum", rank as i64, sum(&comm.of(alone), rank)?)
}

fn large(comm: &Bench) -> Outcome {
    let (rank, n) = (comm.rank().0, comm.size());
    match comm.split(Some(u32::MAX), u32::MAX - rank as u32, "reversed")? {
        Some(all) => same("the rank in it", n - 1 - rank, all.rank().0),
        None => same("a group", true, false),
    }
}

fn two_threads(comm: &Bench) -> Outcome {
    let groups = [comm.split(Some(0), 0, "first")?, comm.split(Some(0), 0, "second")?];
    let rounds = |group: &Bench| -> Result<i64, Error> { (0..50).try_fold(0, |total, i| Ok(total + sum(group, i)?)) };
    let [Some(first), Some(second)] = groups else { return same("two groups", true, false) };
    let (first, second) = (comm.of(first), comm.of(second));
    let (a, b) = std::thread::scope(|scope| {
        // On one stream the calls of either thread would wait for those of the other.
        let other = scope.spawn(|| second.own_stream().and_then(|()| rounds(&second)));
        // Which of the two groups a rank serves first is up to its scheduler, and other on each.
        let a = rounds(&first);
        (a, other.join().unwrap_or(Ok(-1)))
    });
    let expected = (comm.size() * 50 * 49 / 2) as i64;
    same("the first group's sums", expected, a?)?;
    same("the second group's sums", expected, b?)
}
