//! Arguments that every backend refuses before anything is sent; all ranks make the same mistake together.

use super::{Bench, Check, Outcome, Wrong};
use crate::{Call, Error, Kind, Rank, ReduceOp, Tag};

pub(super) const REFUSALS: &[Check] = &[
    Check { name: "averages of integers are refused", body: averages },
    Check { name: "ranks beyond the group are refused", body: ranks },
    Check { name: "a blocking send to oneself is refused", body: to_itself },
    Check { name: "pairs with oneself on one end alone are refused", body: half_paired },
    Check { name: "buffers of wrong lengths are refused", body: lengths },
    Check { name: "buffers of two kinds are refused", body: kinds },
];

pub(super) const CHECKS: &[Check] = &[Check { name: "the group goes on after a refusal", body: goes_on }];

/// Fails unless the call was refused with the error that is expected.
fn refused<T>(what: &str, result: crate::Result<T>, expected: impl Fn(&Error) -> bool) -> Outcome {
    match result {
        Err(error) if expected(&error) => Ok(()),
        Err(error) => Err(Wrong::Outcome(format!("{what}: another error: {error:?}"))),
        Ok(_) => Err(Wrong::Outcome(format!("{what}: not refused"))),
    }
}

fn averages(comm: &Bench) -> Outcome {
    let n = comm.size();
    let avg = ReduceOp::Avg;
    let unsupported = |e: &Error| matches!(e, Error::UnsupportedOp { op: ReduceOp::Avg, .. });
    refused("i64", comm.all_reduce(comm.array(vec![1i64])?.buffer_mut()?, avg), unsupported)?;
    refused("started i32", comm.start_all_reduce(comm.owned(vec![1i32])?, avg), unsupported)?;
    let (send, mut out) = (comm.array(vec![1u8; n])?, comm.array(vec![0u8])?);
    refused("u8", comm.reduce_scatter(send.buffer()?, out.buffer_mut()?, avg), unsupported)?;
    let (send, out) = (comm.owned(vec![1u8; n])?, comm.owned(vec![0u8])?);
    refused("started u8", comm.start_reduce_scatter(send, out, avg), unsupported)
}

fn ranks(comm: &Bench) -> Outcome {
    let beyond = Rank(comm.size());
    let named = |call: Call| move |e: &Error| matches!(e, Error::NoSuchRank { call: c, rank, .. } if *c == call && *rank == beyond);
    let mut x = comm.array(vec![0f32])?;
    refused("broadcast", comm.broadcast(x.buffer_mut()?, beyond), named(Call::Broadcast))?;
    refused("send", comm.send(x.buffer()?, beyond, Tag(0)), named(Call::Send))?;
    refused("receive", comm.receive(x.buffer_mut()?, beyond, Tag(0)), named(Call::Receive))?;
    refused("start_send", comm.start_send(comm.owned(vec![0f32])?, beyond, Tag(0)), named(Call::StartSend))?;
    refused("start_receive", comm.start_receive(comm.owned(vec![0f32])?, beyond, Tag(0)), named(Call::StartReceive))?;
    for (to, from) in [(beyond, Rank(0)), (Rank(0), beyond)] {
        let pair = comm.start_send_receive(comm.owned(vec![0f32])?, to, comm.owned(vec![0f32])?, from, Tag(0));
        refused("start_send_receive", pair, named(Call::StartSendReceive))?;
    }
    Ok(())
}

fn to_itself(comm: &Bench) -> Outcome {
    let to_itself = |e: &Error| matches!(e, Error::ToItself { .. });
    refused("send", comm.send(comm.array(vec![1u8])?.buffer()?, comm.rank(), Tag(0)), to_itself)
}

fn half_paired(comm: &Bench) -> Outcome {
    let (own, other) = (comm.rank(), Rank((comm.rank().0 + 1) % comm.size()));
    if own == other {
        return Ok(());
    }
    for (to, from) in [(own, other), (other, own)] {
        let unpaired = |e: &Error| matches!(e, Error::Unpaired { to: t, from: f, .. } if (*t, *f) == (to, from));
        let pair = comm.start_send_receive(comm.owned(vec![1u8])?, to, comm.owned(vec![0u8])?, from, Tag(0));
        refused("start_send_receive", pair, unpaired)?;
    }
    Ok(())
}

fn lengths(comm: &Bench) -> Outcome {
    let n = comm.size();
    let length = |e: &Error| matches!(e, Error::Length { .. });
    let one = comm.array(vec![1f32])?;
    let (mut long, mut short) = (comm.array(vec![0f32; n + 1])?, comm.array(vec![0f32; n])?);
    refused("all_gather", comm.all_gather(one.buffer()?, long.buffer_mut()?), length)?;
    let (send, receive) = (comm.owned(vec![1f32])?, comm.owned(vec![0f32; n + 1])?);
    refused("start_all_gather", comm.start_all_gather(send, receive), length)?;
    let send = comm.array(vec![1f32; 2 * n])?;
    let sum = ReduceOp::Sum;
    let mut single = comm.array(vec![0f32])?;
    refused("reduce_scatter", comm.reduce_scatter(send.buffer()?, single.buffer_mut()?, sum), length)?;
    refused("all_to_all", comm.all_to_all(send.buffer()?, short.buffer_mut()?), length)?;
    let counts = vec![1; n];
    let uneven = comm.all_to_all_v(send.buffer()?, &counts, short.buffer_mut()?, &counts);
    refused("all_to_all_v", uneven, length)?;
    let few = comm.array(vec![1f32; n])?;
    refused("counts", comm.all_to_all_v(few.buffer()?, &counts[1..], short.buffer_mut()?, &counts), length)?;
    if n > 1 {
        let indivisible = |e: &Error| matches!(e, Error::NotDivisible { .. });
        let odd = comm.array(vec![1f32; n + 1])?;
        refused("reduce_scatter", comm.reduce_scatter(odd.buffer()?, single.buffer_mut()?, sum), indivisible)?;
        refused("all_to_all", comm.all_to_all(odd.buffer()?, long.buffer_mut()?), indivisible)?;
    }
    Ok(())
}

fn kinds(comm: &Bench) -> Outcome {
    let n = comm.size();
    let kind = |e: &Error| matches!(e, Error::Kind { expected: Kind::F32, found: Kind::I32, .. });
    let (one, send) = (comm.array(vec![1f32])?, comm.array(vec![1f32; n])?);
    let (mut out, mut part) = (comm.array(vec![0i32; n])?, comm.array(vec![0i32])?);
    refused("all_gather", comm.all_gather(one.buffer()?, out.buffer_mut()?), kind)?;
    refused("all_to_all", comm.all_to_all(send.buffer()?, out.buffer_mut()?), kind)?;
    refused("reduce_scatter", comm.reduce_scatter(send.buffer()?, part.buffer_mut()?, ReduceOp::Sum), kind)?;
    let (send, receive) = (comm.owned(vec![1f32])?, comm.owned(vec![0i32; n])?);
    refused("start_all_gather", comm.start_all_gather(send, receive), kind)
}

fn goes_on(comm: &Bench) -> Outcome {
    averages(comm)?;
    let mut x = comm.array(vec![2f64])?;
    comm.all_reduce(x.buffer_mut()?, ReduceOp::Sum)?;
    super::same("the sum", vec![2.0 * comm.size() as f64], comm.look(&x)?)
}
