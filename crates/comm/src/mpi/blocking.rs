//! Blocking collectives, cut in chunks that stay in the cache. Nothing is sent for lengths of zero, on any rank.
#![allow(unsafe_code)]

use std::ffi::c_int;

use mpi::ffi;

use super::engine;
use super::group::Group;
use super::legs::{complete, Leg, Legs};
use super::messages::exchange;
use super::raw::{self, datatype, int, invoke, operation, MPI_Request, Ticket, What};
use super::session::may_block;
use super::{scale, REDUCE_CHUNK_BYTES, SMALL_BYTES};
use crate::buffer::{Host, HostMut};
use crate::chunks::cut;
use crate::{Call, Kind, Rank, ReduceOp, Result};

/// Makes one collective MPI call and blocks until it is complete.
///
/// MPI does not match blocking with non-blocking collectives, so the form depends on the thread level alone, which all
/// ranks share. Inside a blocking call no queue of ours moves, and a peer may be waiting for just that: what is queued
/// is handed to the library first.
pub(super) fn collective(
    group: &Group,
    what: What<'_>,
    blocking: impl FnOnce() -> c_int,
    starting: impl FnOnce(*mut MPI_Request) -> c_int,
) -> Result<()> {
    if may_block() {
        engine::launch_all();
        return invoke(what, blocking);
    }
    let mut ticket = Ticket::null();
    invoke(what, || starting(&mut ticket.0))?;
    complete(group, what.call, Ok(()), Legs::from([Leg::new(ticket, what)]))
}

/// Reduces one chunk in place; `wire` is a kind that MPI reduces itself.
fn reduce_chunk(group: &Group, call: Call, bytes: &mut [u8], wire: Kind, op: ReduceOp) -> Result<()> {
    let (len, start) = (int(bytes.len() / wire.bytes()), bytes.as_mut_ptr().cast());
    let (kind, op, comm) = (datatype(wire), operation(op), group.comm.0);
    let what = group.what(call, "MPI_Allreduce", bytes.len(), None);
    // SAFETY: `bytes` holds `len` elements and is borrowed until the call is complete.
    let here = unsafe { raw::mp_comm_in_place() };
    collective(
        group,
        what,
        // SAFETY: as above.
        || unsafe { ffi::MPI_Allreduce(here, start, len, kind, op, comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Iallreduce(here, start, len, kind, op, comm, request) },
    )
}

pub(super) fn all_reduce(group: &Group, mut buffer: HostMut<'_>, op: ReduceOp) -> Result<()> {
    let kind = buffer.kind();
    let mut wide = Vec::new();
    for chunk in buffer.bytes_mut().chunks_mut(REDUCE_CHUNK_BYTES) {
        if kind != Kind::Bf16 {
            reduce_chunk(group, Call::AllReduce, chunk, kind, op)?;
            scale::finish(chunk, kind, op, group.size);
            continue;
        }
        wide.resize(chunk.len() / 2, 0f32);
        scale::widen(chunk, &mut wide);
        reduce_chunk(group, Call::AllReduce, bytemuck::cast_slice_mut(&mut wide), Kind::F32, op)?;
        scale::finish(bytemuck::cast_slice_mut(&mut wide), Kind::F32, op, group.size);
        scale::narrow(&wide, chunk);
    }
    Ok(())
}

pub(super) fn reduce_scatter(group: &Group, send: Host<'_>, mut receive: HostMut<'_>, op: ReduceOp) -> Result<()> {
    let kind = send.kind();
    if send.bytes().is_empty() {
        return Ok(());
    }
    if kind == Kind::Bf16 {
        return reduce_scatter_narrow(group, send, receive, op);
    }
    let out = receive.bytes_mut();
    if send.bytes().len() <= SMALL_BYTES {
        reduce_scatter_block(group, send.bytes(), out, kind, op)?;
        scale::finish(out, kind, op, group.size);
        return Ok(());
    }
    // One reduction to each rank in turn, straight from the send buffer.
    let part = out.len();
    // In whole elements of any kind.
    for run in cut(part, REDUCE_CHUNK_BYTES / group.size.min(4) / 8 * 8) {
        for root in 0..group.size {
            let chunk = &send.bytes()[root * part + run.start..root * part + run.end];
            reduce_to(group, chunk, &mut out[run.clone()], kind, op, Rank(root))?;
        }
        scale::finish(&mut out[run], kind, op, group.size);
    }
    Ok(())
}

/// Reduces all ranks' `send` into the root's `receive`; the others' is left alone.
fn reduce_to(group: &Group, send: &[u8], receive: &mut [u8], wire: Kind, op: ReduceOp, root: Rank) -> Result<()> {
    let (from, to) = (send.as_ptr().cast(), receive.as_mut_ptr().cast());
    let (len, kind, op, comm) = (int(send.len() / wire.bytes()), datatype(wire), operation(op), group.comm.0);
    let root_rank = int(root.0);
    collective(
        group,
        group.what(Call::ReduceScatter, "MPI_Reduce", send.len(), Some(root)),
        // SAFETY: both buffers hold `len` elements and are borrowed until the call is complete.
        || unsafe { ffi::MPI_Reduce(from, to, len, kind, op, root_rank, comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Ireduce(from, to, len, kind, op, root_rank, comm, request) },
    )
}

fn reduce_scatter_block(group: &Group, send: &[u8], receive: &mut [u8], wire: Kind, op: ReduceOp) -> Result<()> {
    let (from, to) = (send.as_ptr().cast(), receive.as_mut_ptr().cast());
    let (len, kind, op, comm) = (int(receive.len() / wire.bytes()), datatype(wire), operation(op), group.comm.0);
    collective(
        group,
        group.what(Call::ReduceScatter, "MPI_Reduce_scatter_block", send.len(), None),
        // SAFETY: `receive` holds `len` elements and `send` as many for every rank, borrowed until completion.
        || unsafe { ffi::MPI_Reduce_scatter_block(from, to, len, kind, op, comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Ireduce_scatter_block(from, to, len, kind, op, comm, request) },
    )
}

/// Reduces bfloat16 through `f32`, chunk by chunk.
fn reduce_scatter_narrow(group: &Group, send: Host<'_>, mut receive: HostMut<'_>, op: ReduceOp) -> Result<()> {
    let (part, mut wide, mut sums) = (receive.len(), Vec::new(), Vec::new());
    for run in cut(part, REDUCE_CHUNK_BYTES / 4 / group.size.min(4)) {
        wide.resize(run.len() * group.size, 0f32);
        sums.resize(run.len(), 0f32);
        for (rank, wide) in wide.chunks_exact_mut(run.len()).enumerate() {
            scale::widen(&send.bytes()[2 * (rank * part + run.start)..2 * (rank * part + run.end)], wide);
        }
        let out = bytemuck::cast_slice_mut(&mut sums);
        reduce_scatter_block(group, bytemuck::cast_slice(&wide), out, Kind::F32, op)?;
        scale::finish(out, Kind::F32, op, group.size);
        scale::narrow(&sums, &mut receive.bytes_mut()[2 * run.start..2 * run.end]);
    }
    Ok(())
}

pub(super) fn all_gather(group: &Group, send: Host<'_>, mut receive: HostMut<'_>) -> Result<()> {
    let (mine, all) = (send.bytes(), receive.bytes_mut());
    if all.is_empty() {
        return Ok(());
    }
    if all.len() > SMALL_BYTES {
        // One broadcast from each rank in turn, straight into place.
        let part = mine.len();
        all[group.rank * part..(group.rank + 1) * part].copy_from_slice(mine);
        for run in cut(part, REDUCE_CHUNK_BYTES) {
            for root in 0..group.size {
                let chunk = &mut all[root * part + run.start..root * part + run.end];
                broadcast_chunk(group, Call::AllGather, chunk, Rank(root))?;
            }
        }
        return Ok(());
    }
    gather(group, Call::AllGather, mine, all)
}

/// Joins every rank's few bytes in one call.
pub(super) fn gather(group: &Group, call: Call, mine: &[u8], all: &mut [u8]) -> Result<()> {
    let (from, to, len) = (mine.as_ptr().cast(), all.as_mut_ptr().cast(), int(mine.len()));
    let (kind, comm) = (datatype(Kind::U8), group.comm.0);
    collective(
        group,
        group.what(call, "MPI_Allgather", mine.len(), None),
        // SAFETY: `mine` holds `len` bytes and `all` as many for every rank, borrowed until completion.
        || unsafe { ffi::MPI_Allgather(from, len, kind, to, len, kind, comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Iallgather(from, len, kind, to, len, kind, comm, request) },
    )
}

pub(super) fn all_to_all(group: &Group, send: Host<'_>, mut receive: HostMut<'_>) -> Result<()> {
    let (mine, all) = (send.bytes(), receive.bytes_mut());
    let part = mine.len() / group.size;
    if part == 0 {
        return Ok(());
    }
    if mine.len() > SMALL_BYTES {
        let sends: Vec<&[u8]> = mine.chunks_exact(part).collect();
        let mut receives: Vec<&mut [u8]> = all.chunks_exact_mut(part).collect();
        return exchange(group, Call::AllToAll, &sends, &mut receives);
    }
    let (from, to, len) = (mine.as_ptr().cast(), all.as_mut_ptr().cast(), int(part));
    let (kind, comm) = (datatype(Kind::U8), group.comm.0);
    collective(
        group,
        group.what(Call::AllToAll, "MPI_Alltoall", mine.len(), None),
        // SAFETY: both buffers hold `len` bytes for every rank and are borrowed until completion.
        || unsafe { ffi::MPI_Alltoall(from, len, kind, to, len, kind, comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Ialltoall(from, len, kind, to, len, kind, comm, request) },
    )
}

pub(super) fn all_to_all_v(
    group: &Group,
    send: (Host<'_>, &[usize]),
    mut receive: (HostMut<'_>, &[usize]),
) -> Result<()> {
    let width = send.0.kind().bytes();
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    let (mut mine, mut all) = (send.0.bytes(), receive.0.bytes_mut());
    for (out, back) in send.1.iter().zip(receive.1) {
        let (run, rest) = mine.split_at(out * width);
        let (place, left) = all.split_at_mut(back * width);
        (mine, all) = (rest, left);
        sends.push(run);
        receives.push(place);
    }
    exchange(group, Call::AllToAllV, &sends, &mut receives)
}

fn broadcast_chunk(group: &Group, call: Call, bytes: &mut [u8], root: Rank) -> Result<()> {
    let (start, len, from) = (bytes.as_mut_ptr().cast(), int(bytes.len()), int(root.0));
    let (kind, comm) = (datatype(Kind::U8), group.comm.0);
    collective(
        group,
        group.what(call, "MPI_Bcast", bytes.len(), Some(root)),
        // SAFETY: `bytes` is borrowed until the call is complete.
        || unsafe { ffi::MPI_Bcast(start, len, kind, from, comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Ibcast(start, len, kind, from, comm, request) },
    )
}

pub(super) fn broadcast(group: &Group, mut buffer: HostMut<'_>, root: Rank) -> Result<()> {
    let chunks = buffer.bytes_mut().chunks_mut(super::MESSAGE_CHUNK_BYTES);
    chunks.into_iter().try_for_each(|chunk| broadcast_chunk(group, Call::Broadcast, chunk, root))
}

pub(super) fn barrier(group: &Group) -> Result<()> {
    let comm = group.comm.0;
    collective(
        group,
        group.what(Call::Barrier, "MPI_Barrier", 0, None),
        // SAFETY: the group's own communicator.
        || unsafe { ffi::MPI_Barrier(comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Ibarrier(comm, request) },
    )
}
