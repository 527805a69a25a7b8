//! Blocking calls whose buffers lie on a device, for an MPI library that takes device pointers.
//!
//! Whoever calls has waited for the work on the buffers; when a call returns they may be used. Only what the library does
//! alone is done here: averages and bfloat16 need arithmetic of ours. No reduce-scatter is in place, which Open MPI's was
//! wrong for on devices until 2026.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::path::Path;
use std::sync::OnceLock;

use mpi::ffi;

use super::blocking::collective;
use super::group::Group;
use super::legs::{complete, post_receive_at, post_send_at, Legs};
use super::raw::{self, datatype, int, operation};
use super::{session, MESSAGE_CHUNK_BYTES};
use crate::arguments::Site;
use crate::chunks::cut_message;
use crate::nccl::driver::Driver;
use crate::{Buffer, BufferMut, Call, Error, Kind, Rank, ReduceOp, Result, Tag};

/// Elements of device memory that the driver has confirmed.
#[derive(Clone, Copy)]
pub(super) struct Span {
    start: *mut c_void,
    kind: Kind,
    len: usize,
}

/// Says whether the library takes device pointers.
pub(super) fn allowed() -> bool {
    static AWARE: OnceLock<bool> = OnceLock::new();
    *AWARE.get_or_init(|| session::library().cuda_aware == Some(true))
}

/// Checks a buffer on a device; `None` for one of the host.
pub(super) fn span(site: Site<'_>, buffer: Buffer<'_>) -> Result<Option<Span>> {
    static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();
    let Some(run) = buffer.device() else { return Ok(None) };
    if !allowed() {
        return Err(site.out_of_reach(buffer.place()));
    }
    let driver = DRIVER.get_or_init(|| Driver::open(Path::new("libcuda.so.1")));
    driver.as_ref().map_err(Error::clone)?.verify(run)?;
    let start = std::ptr::without_provenance_mut(run.address());
    Ok(Some(Span { start, kind: buffer.kind(), len: buffer.len() }))
}

/// Checks both buffers of a call; `None` unless both are on a device.
pub(super) fn both(site: Site<'_>, send: Buffer<'_>, receive: &BufferMut<'_>) -> Result<Option<(Span, Span)>> {
    Ok(span(site, send)?.zip(span(site, receive.as_buffer())?))
}

/// Refuses the arithmetic that the library lacks.
fn plain(site: Site<'_>, kind: Kind, op: ReduceOp) -> Result<()> {
    if kind == Kind::Bf16 || op == ReduceOp::Avg {
        return Err(Error::UnsupportedOp { call: site.call, group: site.group.into(), op, kind });
    }
    Ok(())
}

pub(super) fn all_reduce(group: &Group, Span { start, kind, len }: Span, op: ReduceOp) -> Result<()> {
    let call = Call::AllReduce;
    plain(group.site(call), kind, op)?;
    let (count, kind_of, op, comm) = (int(len), datatype(kind), operation(op), group.comm.0);
    // SAFETY: returns a constant of the library.
    let here = unsafe { raw::mp_comm_in_place() };
    collective(
        group,
        group.what(call, "MPI_Allreduce", len * kind.bytes(), None),
        // SAFETY: `count` elements of device memory, confirmed by the driver and borrowed until the call is complete; the
        // library takes device pointers.
        || unsafe { ffi::MPI_Allreduce(here, start, count, kind_of, op, comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Iallreduce(here, start, count, kind_of, op, comm, request) },
    )
}

pub(super) fn reduce_scatter(group: &Group, (send, receive): (Span, Span), op: ReduceOp) -> Result<()> {
    let call = Call::ReduceScatter;
    plain(group.site(call), send.kind, op)?;
    let (from, to, count) = (send.start, receive.start, int(receive.len));
    let (kind, op, comm) = (datatype(send.kind), operation(op), group.comm.0);
    collective(
        group,
        group.what(call, "MPI_Reduce_scatter_block", send.len * send.kind.bytes(), None),
        // SAFETY: as for `all_reduce`; `count` elements in `to` and as many for every rank in `from`.
        || unsafe { ffi::MPI_Reduce_scatter_block(from, to, count, kind, op, comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Ireduce_scatter_block(from, to, count, kind, op, comm, request) },
    )
}

pub(super) fn all_gather(group: &Group, (send, receive): (Span, Span)) -> Result<()> {
    let (from, to, count) = (send.start, receive.start, int(send.len));
    let (kind, comm) = (datatype(send.kind), group.comm.0);
    collective(
        group,
        group.what(Call::AllGather, "MPI_Allgather", send.len * send.kind.bytes(), None),
        // SAFETY: as for `all_reduce`; `count` elements in `from` and as many for every rank in `to`.
        || unsafe { ffi::MPI_Allgather(from, count, kind, to, count, kind, comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Iallgather(from, count, kind, to, count, kind, comm, request) },
    )
}

pub(super) fn all_to_all(group: &Group, (send, receive): (Span, Span)) -> Result<()> {
    let (from, to, count) = (send.start, receive.start, int(send.len / group.size));
    let (kind, comm) = (datatype(send.kind), group.comm.0);
    collective(
        group,
        group.what(Call::AllToAll, "MPI_Alltoall", send.len * send.kind.bytes(), None),
        // SAFETY: as for `all_reduce`; `count` elements for every rank in both.
        || unsafe { ffi::MPI_Alltoall(from, count, kind, to, count, kind, comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Ialltoall(from, count, kind, to, count, kind, comm, request) },
    )
}

pub(super) fn broadcast(group: &Group, Span { start, kind, len }: Span, root: Rank) -> Result<()> {
    let (count, kind_of, from, comm) = (int(len), datatype(kind), int(root.0), group.comm.0);
    collective(
        group,
        group.what(Call::Broadcast, "MPI_Bcast", len * kind.bytes(), Some(root)),
        // SAFETY: as for `all_reduce`.
        || unsafe { ffi::MPI_Bcast(start, count, kind_of, from, comm) },
        // SAFETY: as above.
        |request| unsafe { ffi::MPI_Ibcast(start, count, kind_of, from, comm, request) },
    )
}

/// Where a piece of a span begins.
fn at(span: Span, byte: usize) -> *mut c_void {
    span.start.wrapping_byte_add(byte)
}

/// Sends and waits, in the pieces of every message.
pub(super) fn send(group: &Group, span: Span, to: Rank, tag: Tag) -> Result<()> {
    let (call, mut legs) = (Call::Send, Legs::new());
    let mut pieces = cut_message(span.len * span.kind.bytes(), MESSAGE_CHUNK_BYTES);
    let posted = pieces.try_for_each(|run| {
        let memory = (at(span, run.start).cast_const(), run.len());
        legs.push_back(post_send_at(group, group.comm, call, memory, to, tag.0.into())?);
        Ok(())
    });
    complete(group, call, posted, legs)
}

/// Receives and waits, in the pieces of every message.
pub(super) fn receive(group: &Group, span: Span, from: Rank, tag: Tag) -> Result<()> {
    let (call, mut legs) = (Call::Receive, Legs::new());
    let mut pieces = cut_message(span.len * span.kind.bytes(), MESSAGE_CHUNK_BYTES);
    let posted = pieces.try_for_each(|run| {
        let memory = (at(span, run.start), run.len());
        legs.push_back(post_receive_at(group, group.comm, call, memory, from, tag.0.into())?);
        Ok(())
    });
    complete(group, call, posted, legs)
}
