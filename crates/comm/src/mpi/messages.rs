//! Messages between two ranks, cut in chunks, and the exchanges that are made of them.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mpi::ffi;

use super::engine;
use super::group::Group;
use super::raw::{self, datatype, int, invoke, Handle, Ticket};
use super::session::{abort, may_block};
use super::MESSAGE_CHUNK_BYTES;
use crate::chunks::cut_message;
use crate::communicator::Pending;
use crate::{Buffer, BufferMut, Call, Kind, OwnedBuffer, Rank, Result, Tag};

/// The tag of exchanges within collectives, above all tags of callers.
pub(super) const EXCHANGE_TAG: c_int = 1 << 16;

/// One MPI request under way.
pub(super) struct Leg {
    ticket: Ticket,
    /// Who is at the other end, where one rank is.
    peer: Option<Rank>,
    /// How many bytes have to come, for receives.
    expected: Option<usize>,
}

impl Leg {
    pub(super) fn new(ticket: Ticket) -> Self {
        Self { ticket, peer: None, expected: None }
    }

    fn function(&self) -> &'static str {
        match (self.expected, self.peer) {
            (Some(_), _) => "MPI_Irecv",
            (None, Some(_)) => "MPI_Isend",
            (None, None) => "MPI_Test",
        }
    }

    /// Says whether the request is complete, without blocking.
    fn test(&mut self, group: &Group, call: Call) -> Result<bool> {
        let (mut done, mut received) = (0, 0);
        let what = group.what(call, self.function(), self.expected.unwrap_or(0), self.peer);
        // SAFETY: the ticket is this leg's own and not complete; its memory is kept by whoever keeps the leg.
        invoke(what, || unsafe { raw::mp_comm_test(&mut self.ticket.0, &mut done, &mut received) })?;
        if done != 0 {
            self.check(group, call, received)?;
        }
        Ok(done != 0)
    }

    /// Blocks inside the library until the request is complete.
    fn wait(&mut self, group: &Group, call: Call) -> Result<()> {
        let mut received = 0;
        let what = group.what(call, self.function(), self.expected.unwrap_or(0), self.peer);
        // SAFETY: as for `test`.
        invoke(what, || unsafe { raw::mp_comm_wait(&mut self.ticket.0, &mut received) })?;
        self.check(group, call, received)
    }

    fn check(&self, group: &Group, call: Call, received: c_int) -> Result<()> {
        match self.expected {
            Some(expected) => arrived(group, call, expected, received),
            None => Ok(()),
        }
    }
}

/// Checks that a message brought as many bytes as were asked for.
fn arrived(group: &Group, call: Call, expected: usize, received: c_int) -> Result<()> {
    group.site(call).length("the message in bytes", expected, received.max(0) as usize)
}

/// Drops the legs that are complete; says whether none is left.
pub(super) fn advance(group: &Group, call: Call, legs: &mut Vec<Leg>) -> Result<bool> {
    while let Some(leg) = legs.last_mut() {
        if !leg.test(group, call)? {
            return Ok(false);
        }
        legs.pop();
    }
    Ok(true)
}

/// Blocks until all legs are complete, and keeps what this process has started elsewhere going meanwhile.
///
/// Takes the outcome of posting them, since legs posted before one failed have to be dealt with all the same.
pub(super) fn complete(group: &Group, call: Call, posted: Result<()>, mut legs: Vec<Leg>) -> Result<()> {
    let outcome = posted.and_then(|()| settle(group, call, &mut legs));
    if outcome.is_err() {
        withdraw(group, call, legs);
    }
    outcome
}

fn settle(group: &Group, call: Call, legs: &mut Vec<Leg>) -> Result<()> {
    if may_block() && engine::all_idle() {
        while let Some(mut leg) = legs.pop() {
            leg.wait(group, call)?;
        }
        return Ok(());
    }
    while !advance(group, call, legs)? {
        engine::drive_all();
        std::thread::yield_now();
    }
    Ok(())
}

/// How long a failed call waits for what it has posted already.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes legs back after a failure, so that the library lets go of memory that the caller is about to get back.
///
/// Receives can be cancelled, sends not. Where a peer never takes a send the run is aborted: returning would let the
/// library read memory that may be freed.
fn withdraw(group: &Group, call: Call, mut legs: Vec<Leg>) {
    for leg in legs.iter_mut().filter(|leg| leg.expected.is_some()) {
        leg.expected = None;
        // SAFETY: the ticket is this leg's own and not complete.
        _ = invoke(group.what(call, "MPI_Cancel", 0, leg.peer), || unsafe { ffi::MPI_Cancel(&mut leg.ticket.0) });
    }
    let since = Instant::now();
    loop {
        // A leg that ends in an error has ended.
        legs.retain_mut(|leg| matches!(leg.test(group, call), Ok(false)));
        if legs.is_empty() {
            return;
        }
        if since.elapsed() > PATIENCE {
            abort(1);
        }
        std::thread::yield_now();
    }
}

/// Starts receiving a chunk of a started collective. The memory stays the caller's until the leg is complete.
pub(super) fn post_receive(group: &Group, call: Call, memory: &mut [u8], from: usize) -> Result<Leg> {
    receive_on(group, group.background, call, memory, Rank(from), EXCHANGE_TAG)
}

/// Starts sending a chunk of a started collective. The memory stays the caller's until the leg is complete.
pub(super) fn post_send(group: &Group, call: Call, memory: &[u8], to: usize) -> Result<Leg> {
    send_on(group, group.background, call, memory, Rank(to), EXCHANGE_TAG)
}

fn receive_on(group: &Group, comm: Handle, call: Call, memory: &mut [u8], from: Rank, tag: c_int) -> Result<Leg> {
    let mut ticket = Ticket::null();
    // SAFETY: the callers keep the memory, untouched, until the leg is complete.
    invoke(group.what(call, "MPI_Irecv", memory.len(), Some(from)), || unsafe {
        let (start, kind) = (memory.as_mut_ptr().cast(), datatype(Kind::U8));
        ffi::MPI_Irecv(start, int(memory.len()), kind, int(from.0), tag, comm.0, &mut ticket.0)
    })?;
    Ok(Leg { ticket, peer: Some(from), expected: Some(memory.len()) })
}

fn send_on(group: &Group, comm: Handle, call: Call, memory: &[u8], to: Rank, tag: c_int) -> Result<Leg> {
    let mut ticket = Ticket::null();
    // SAFETY: the callers keep the memory, unchanged, until the leg is complete.
    invoke(group.what(call, "MPI_Isend", memory.len(), Some(to)), || unsafe {
        let (start, kind) = (memory.as_ptr().cast(), datatype(Kind::U8));
        ffi::MPI_Isend(start, int(memory.len()), kind, int(to.0), tag, comm.0, &mut ticket.0)
    })?;
    Ok(Leg { ticket, peer: Some(to), expected: None })
}

fn send_chunks(group: &Group, call: Call, bytes: &[u8], to: Rank, tag: c_int, legs: &mut Vec<Leg>) -> Result<()> {
    for run in cut_message(bytes.len(), MESSAGE_CHUNK_BYTES) {
        legs.push(send_on(group, group.comm, call, &bytes[run], to, tag)?);
    }
    Ok(())
}

fn receive_chunks(
    group: &Group,
    call: Call,
    bytes: &mut [u8],
    from: Rank,
    tag: c_int,
    legs: &mut Vec<Leg>,
) -> Result<()> {
    for run in cut_message(bytes.len(), MESSAGE_CHUNK_BYTES) {
        legs.push(receive_on(group, group.comm, call, &mut bytes[run], from, tag)?);
    }
    Ok(())
}

/// Sends and waits.
pub(super) fn send(group: &Group, buffer: Buffer<'_>, to: Rank, tag: Tag) -> Result<()> {
    let bytes = buffer.bytes();
    if bytes.len() > MESSAGE_CHUNK_BYTES || !may_block() || !engine::all_idle() {
        let mut legs = Vec::new();
        let posted = send_chunks(group, Call::Send, bytes, to, tag.0.into(), &mut legs);
        return complete(group, Call::Send, posted, legs);
    }
    // SAFETY: `bytes` is borrowed during the call.
    invoke(group.what(Call::Send, "MPI_Send", bytes.len(), Some(to)), || unsafe {
        let (start, kind) = (bytes.as_ptr().cast(), datatype(Kind::U8));
        ffi::MPI_Send(start, int(bytes.len()), kind, int(to.0), tag.0.into(), group.comm.0)
    })
}

/// Receives and waits.
pub(super) fn receive(group: &Group, mut buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<()> {
    let bytes = buffer.bytes_mut();
    if bytes.len() > MESSAGE_CHUNK_BYTES || !may_block() || !engine::all_idle() {
        let mut legs = Vec::new();
        let posted = receive_chunks(group, Call::Receive, bytes, from, tag.0.into(), &mut legs);
        return complete(group, Call::Receive, posted, legs);
    }
    let mut received = 0;
    // SAFETY: `bytes` is borrowed during the call.
    invoke(group.what(Call::Receive, "MPI_Recv", bytes.len(), Some(from)), || unsafe {
        let (start, len) = (bytes.as_mut_ptr().cast(), int(bytes.len()));
        raw::mp_comm_receive(start, len, int(from.0), tag.0.into(), group.comm.0, &mut received)
    })?;
    arrived(group, Call::Receive, bytes.len(), received)
}

/// Exchanges runs between all pairs of ranks; `sends[p]` goes to rank `p`, `receives[p]` comes from it.
pub(super) fn exchange(group: &Group, call: Call, sends: &[&[u8]], receives: &mut [&mut [u8]]) -> Result<()> {
    let own = group.rank;
    receives[own].copy_from_slice(sends[own]);
    let mut legs = Vec::new();
    let receives = receives.iter_mut().enumerate().filter(|(peer, _)| *peer != own);
    let sends = sends.iter().enumerate().filter(|(peer, _)| *peer != own);
    let posted = receives
        .map(|(peer, memory)| (Rank(peer), memory))
        .try_for_each(|(from, memory)| receive_chunks(group, call, memory, from, EXCHANGE_TAG, &mut legs))
        .and_then(|()| {
            let mut sends = sends.map(|(peer, memory)| (Rank(peer), memory));
            sends.try_for_each(|(to, memory)| send_chunks(group, call, memory, to, EXCHANGE_TAG, &mut legs))
        });
    complete(group, call, posted, legs)
}

/// A started message with its buffer.
pub(super) struct Message {
    group: Arc<Group>,
    call: Call,
    legs: Vec<Leg>,
    /// `None` once given back.
    buffer: Option<OwnedBuffer>,
}

/// Starts a send.
pub(super) fn start_send(group: &Arc<Group>, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Message> {
    sweep();
    // Should posting fail half-way, dropping the message keeps its buffer as long as it must.
    let mut message =
        Message { group: Arc::clone(group), call: Call::StartSend, legs: Vec::new(), buffer: Some(buffer) };
    if let Some(buffer) = &message.buffer {
        send_chunks(group, message.call, buffer.as_buffer().bytes(), to, tag.0.into(), &mut message.legs)?;
    }
    Ok(message)
}

/// Starts a receive.
pub(super) fn start_receive(group: &Arc<Group>, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Message> {
    sweep();
    let call = Call::StartReceive;
    let mut message = Message { group: Arc::clone(group), call, legs: Vec::new(), buffer: Some(buffer) };
    if let Some(buffer) = &mut message.buffer {
        let bytes = buffer.as_buffer_mut().into_bytes();
        receive_chunks(group, call, bytes, from, tag.0.into(), &mut message.legs)?;
    }
    Ok(message)
}

impl Pending for Message {
    fn poll(&mut self) -> Result<bool> {
        engine::drive_all();
        advance(&self.group, self.call, &mut self.legs)
    }

    fn finish(mut self: Box<Self>) -> Result<OwnedBuffer> {
        // Until the last leg is complete the message keeps its buffer, also when a leg fails.
        while !advance(&self.group, self.call, &mut self.legs)? {
            engine::drive_all();
            std::thread::yield_now();
        }
        Ok(self.buffer.take().unwrap_or_else(|| unreachable!("a message finishes once")))
    }
}

/// Messages whose requests were dropped: their memory is the library's until they are complete.
static ORPHANS: Mutex<Vec<Message>> = Mutex::new(Vec::new());

impl Drop for Message {
    fn drop(&mut self) {
        if self.legs.is_empty() || self.buffer.is_none() {
            return;
        }
        let orphan = Message {
            group: Arc::clone(&self.group),
            call: self.call,
            legs: std::mem::take(&mut self.legs),
            buffer: self.buffer.take(),
        };
        ORPHANS.lock().unwrap_or_else(PoisonError::into_inner).push(orphan);
    }
}

/// Frees the orphans that are complete.
fn sweep() {
    let mut orphans = ORPHANS.lock().unwrap_or_else(PoisonError::into_inner);
    orphans.retain_mut(|orphan| {
        let done = advance(&orphan.group, orphan.call, &mut orphan.legs);
        // Dropped here, it must not come back; a failed one may still be in use and is never freed.
        match done {
            Ok(done) => !done,
            Err(_) => true,
        }
    });
}
