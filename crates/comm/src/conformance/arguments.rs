//! Arguments that every backend refuses before anything is sent; all ranks make the same mistake together.

use std::sync::Arc;

use super::{Check, Outcome, Wrong};
use crate::{Buffer, BufferMut, Call, Communicator, Error, Kind, Rank, ReduceOp, Tag};

pub(super) const REFUSALS: &[Check] = &[
    Check { name: "averages of integers are refused", body: averages },
    Check { name: "ranks beyond the group are refused", body: ranks },
    Check { name: "a blocking send to oneself is refused", body: to_itself },
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

fn averages(comm: &Arc<dyn Communicator>) -> Outcome {
    let n = comm.size();
    let unsupported = |e: &Error| matches!(e, Error::UnsupportedOp { op: ReduceOp::Avg, .. });
    refused("i64", comm.all_reduce(BufferMut::new(&mut [1i64]), ReduceOp::Avg), unsupported)?;
    refused("started i32", comm.start_all_reduce(vec![1i32].into(), ReduceOp::Avg), unsupported)?;
    let (send, mut out) = (vec![1u8; n], [0u8]);
    refused("u8", comm.reduce_scatter(Buffer::new(&send), BufferMut::new(&mut out), ReduceOp::Avg), unsupported)?;
    refused("started u8", comm.start_reduce_scatter(send.into(), vec![0u8].into(), ReduceOp::Avg), unsupported)
}

fn ranks(comm: &Arc<dyn Communicator>) -> Outcome {
    let beyond = Rank(comm.size());
    let named = |call: Call| move |e: &Error| matches!(e, Error::NoSuchRank { call: c, rank, .. } if *c == call && *rank == beyond);
    let mut x = [0f32];
    refused("broadcast", comm.broadcast(BufferMut::new(&mut x), beyond), named(Call::Broadcast))?;
    refused("send", comm.send(Buffer::new(&[0f32]), beyond, Tag(0)), named(Call::Send))?;
    refused("receive", comm.receive(BufferMut::new(&mut x), beyond, Tag(0)), named(Call::Receive))?;
    refused("start_send", comm.start_send(vec![0f32].into(), beyond, Tag(0)), named(Call::StartSend))?;
    refused("start_receive", comm.start_receive(vec![0f32].into(), beyond, Tag(0)), named(Call::StartReceive))
}

fn to_itself(comm: &Arc<dyn Communicator>) -> Outcome {
    let to_itself = |e: &Error| matches!(e, Error::ToItself { .. });
    refused("send", comm.send(Buffer::new(&[1u8]), comm.rank(), Tag(0)), to_itself)
}

fn lengths(comm: &Arc<dyn Communicator>) -> Outcome {
    let n = comm.size();
    let length = |e: &Error| matches!(e, Error::Length { .. });
    let mut out = vec![0f32; n + 1];
    refused("all_gather", comm.all_gather(Buffer::new(&[1f32]), BufferMut::new(&mut out)), length)?;
    refused("start_all_gather", comm.start_all_gather(vec![1f32].into(), vec![0f32; n + 1].into()), length)?;
    let send = vec![1f32; 2 * n];
    let sum = ReduceOp::Sum;
    refused("reduce_scatter", comm.reduce_scatter(Buffer::new(&send), BufferMut::new(&mut out[..1]), sum), length)?;
    refused("all_to_all", comm.all_to_all(Buffer::new(&send), BufferMut::new(&mut out[..n])), length)?;
    let counts = vec![1; n];
    let short = BufferMut::new(&mut out[..n]);
    refused("all_to_all_v", comm.all_to_all_v(Buffer::new(&send), &counts, short, &counts), length)?;
    let short = BufferMut::new(&mut out[..n]);
    refused("counts", comm.all_to_all_v(Buffer::new(&send[..n]), &counts[1..], short, &counts), length)?;
    if n > 1 {
        let indivisible = |e: &Error| matches!(e, Error::NotDivisible { .. });
        let odd = Buffer::new(&send[..n + 1]);
        refused("reduce_scatter", comm.reduce_scatter(odd, BufferMut::new(&mut out[..1]), sum), indivisible)?;
        refused("all_to_all", comm.all_to_all(odd, BufferMut::new(&mut out)), indivisible)?;
    }
    Ok(())
}

fn kinds(comm: &Arc<dyn Communicator>) -> Outcome {
    let n = comm.size();
    let kind = |e: &Error| matches!(e, Error::Kind { expected: Kind::F32, found: Kind::I32, .. });
    let (send, mut out) = (vec![1f32; n], vec![0i32; n]);
    let sum = ReduceOp::Sum;
    refused("all_gather", comm.all_gather(Buffer::new(&[1f32]), BufferMut::new(&mut out)), kind)?;
    refused("all_to_all", comm.all_to_all(Buffer::new(&send), BufferMut::new(&mut out)), kind)?;
    refused("reduce_scatter", comm.reduce_scatter(Buffer::new(&send), BufferMut::new(&mut out[..1]), sum), kind)?;
    refused("start_all_gather", comm.start_all_gather(vec![1f32].into(), vec![0i32; n].into()), kind)
}

fn goes_on(comm: &Arc<dyn Communicator>) -> Outcome {
    averages(comm)?;
    let mut x = [2f64];
    comm.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum)?;
    super::same("the sum", [2.0 * comm.size() as f64], x)
}
