//! Messages between two ranks, cut in chunks, and the exchanges that are made of them.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError};

use mpi::ffi;

use super::engine;
use super::group::Group;
use super::legs::{advance, arrived, cancel, complete, post_receive, post_send, Legs};
use super::raw::{self, datatype, int, invoke};
use super::session::may_block;
use super::MESSAGE_CHUNK_BYTES;
use crate::buffer::{Host, HostMut};
use crate::chunks::cut_message;
use crate::communicator::Pending;
use crate::{Call, Error, Kind, OwnedBuffer, Rank, Result, Tag};

/// The tag of exchanges within collectives, above all tags of callers.
pub(super) const EXCHANGE_TAG: c_int = 1 << 16;

fn send_chunks(group: &Group, call: Call, bytes: &[u8], to: Rank, tag: c_int, legs: &mut Legs) -> Result<()> {
    for run in cut_message(bytes.len(), MESSAGE_CHUNK_BYTES) {
        legs.push_back(post_send(group, group.comm, call, &bytes[run], to, tag)?);
    }
    Ok(())
}

fn receive_chunks(group: &Group, call: Call, bytes: &mut [u8], from: Rank, tag: c_int, legs: &mut Legs) -> Result<()> {
    for run in cut_message(bytes.len(), MESSAGE_CHUNK_BYTES) {
        legs.push_back(post_receive(group, group.comm, call, &mut bytes[run], from, tag)?);
    }
    Ok(())
}

/// Sends and waits.
pub(super) fn send(group: &Group, buffer: Host<'_>, to: Rank, tag: Tag) -> Result<()> {
    let bytes = buffer.bytes();
    if bytes.len() > MESSAGE_CHUNK_BYTES || !may_block() || !engine::all_idle() {
        let mut legs = Legs::new();
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
pub(super) fn receive(group: &Group, mut buffer: HostMut<'_>, from: Rank, tag: Tag) -> Result<()> {
    let bytes = buffer.bytes_mut();
    if bytes.len() > MESSAGE_CHUNK_BYTES || !may_block() || !engine::all_idle() {
        let mut legs = Legs::new();
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
    let mut legs = Legs::new();
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
    legs: Legs,
    /// `None` once given back.
    buffer: Option<OwnedBuffer>,
    /// The first error, for whoever asks next.
    failed: Option<Error>,
}

/// Starts a send.
pub(super) fn start_send(group: &Arc<Group>, call: Call, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Message> {
    let post = |message: &mut Message, buffer: &mut OwnedBuffer| {
        send_chunks(group, message.call, buffer.as_host().bytes(), to, tag.0.into(), &mut message.legs)
    };
    Message::start(group, call, buffer, post)
}

/// Starts a receive.
pub(super) fn start_receive(
    group: &Arc<Group>,
    call: Call,
    buffer: OwnedBuffer,
    from: Rank,
    tag: Tag,
) -> Result<Message> {
    let post = |message: &mut Message, buffer: &mut OwnedBuffer| {
        let bytes = buffer.as_host_mut().into_bytes();
        receive_chunks(group, message.call, bytes, from, tag.0.into(), &mut message.legs)
    };
    Message::start(group, call, buffer, post)
}

impl Message {
    fn start(
        group: &Arc<Group>,
        call: Call,
        mut buffer: OwnedBuffer,
        post: impl FnOnce(&mut Message, &mut OwnedBuffer) -> Result<()>,
    ) -> Result<Self> {
        orphans();
        let mut message = Self { group: Arc::clone(group), call, legs: Legs::new(), buffer: None, failed: None };
        let posted = post(&mut message, &mut buffer);
        // Should posting fail half-way, dropping the message keeps its buffer as long as it must.
        message.buffer = Some(buffer);
        message.failed = posted.err();
        match &message.failed {
            Some(error) => Err(error.clone()),
            None => Ok(message),
        }
    }

    /// Moves the message forward; an error stays.
    fn advance(&mut self) -> Result<bool> {
        if self.failed.is_none() {
            match advance(&self.group, self.call, &mut self.legs) {
                Ok(done) => return Ok(done),
                Err(error) => self.failed = Some(error),
            }
        }
        self.failed.clone().map_or(Ok(true), Err)
    }
}

impl Pending for Message {
    fn poll(&mut self) -> Result<bool> {
        engine::drive_all();
        self.advance()
    }

    fn finish(mut self: Box<Self>) -> Result<OwnedBuffer> {
        // Until the last leg is over the message keeps its buffer, also when a leg fails.
        while !self.advance()? {
            engine::drive_all();
            std::thread::yield_now();
        }
        Ok(self.buffer.take().unwrap_or_else(|| unreachable!("a message finishes once")))
    }
}

/// Messages whose requests were dropped: their memory is the library's until they are over.
static ORPHANS: Mutex<Vec<Message>> = Mutex::new(Vec::new());

impl Drop for Message {
    fn drop(&mut self) {
        if self.legs.is_empty() || self.buffer.is_none() {
            return;
        }
        if self.failed.is_some() {
            cancel(&self.group, self.call, &mut self.legs);
        }
        let orphan = Message {
            group: Arc::clone(&self.group),
            call: self.call,
            legs: std::mem::take(&mut self.legs),
            buffer: self.buffer.take(),
            failed: None,
        };
        ORPHANS.lock().unwrap_or_else(PoisonError::into_inner).push(orphan);
    }
}

/// Frees the orphans that are over; returns how many requests the others have under way.
pub(super) fn orphans() -> usize {
    let mut orphans = ORPHANS.lock().unwrap_or_else(PoisonError::into_inner);
    orphans.retain_mut(|orphan| {
        if advance(&orphan.group, orphan.call, &mut orphan.legs).is_err() {
            cancel(&orphan.group, orphan.call, &mut orphan.legs);
        }
        !orphan.legs.is_empty()
    });
    orphans.iter().map(|orphan| orphan.legs.len()).sum()
}
