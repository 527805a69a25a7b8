//! MPI requests under way: what their errors tell, how they are waited for, and how they are taken back.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

use mpi::ffi;

use super::engine;
use super::group::Group;
use super::raw::{self, datatype, int, invoke, Handle, Ticket, What};
use super::session::{abort, may_block};
use crate::{Call, Kind, Rank, Result};

/// One MPI request under way.
pub(super) struct Leg {
    ticket: Ticket,
    /// The function that started it, for errors that are found when it completes.
    function: &'static str,
    bytes: usize,
    /// Who is at the other end, where one rank is.
    peer: Option<Rank>,
    /// Whether a message of just so many bytes has to come.
    expects: bool,
}

impl Leg {
    /// Keeps a request with what the call that started it was told.
    pub(super) fn new(ticket: Ticket, what: What<'_>) -> Self {
        Self { ticket, function: what.function, bytes: what.bytes, peer: what.peer, expects: false }
    }

    /// Says whether the library has let go of it; an error ends a request too.
    fn is_over(&self) -> bool {
        self.ticket.is_null()
    }

    /// Says whether the request is complete, without blocking.
    fn test(&mut self, group: &Group, call: Call) -> Result<bool> {
        let (mut done, mut received) = (0, 0);
        let what = group.what(call, self.function, self.bytes, self.peer);
        // SAFETY: the ticket is this leg's own; its memory is kept by whoever keeps the leg.
        invoke(what, || unsafe { raw::mp_comm_test(&mut self.ticket.0, &mut done, &mut received) })?;
        if done != 0 {
            self.check(group, call, received)?;
        }
        Ok(done != 0)
    }

    /// Blocks inside the library until the request is complete.
    fn wait(&mut self, group: &Group, call: Call) -> Result<()> {
        let mut received = 0;
        let what = group.what(call, self.function, self.bytes, self.peer);
        // SAFETY: as for `test`.
        invoke(what, || unsafe { raw::mp_comm_wait(&mut self.ticket.0, &mut received) })?;
        self.check(group, call, received)
    }

    fn check(&self, group: &Group, call: Call, received: c_int) -> Result<()> {
        if self.expects {
            return arrived(group, call, self.bytes, received);
        }
        Ok(())
    }
}

/// Checks that a message brought as many bytes as were asked for.
pub(super) fn arrived(group: &Group, call: Call, expected: usize, received: c_int) -> Result<()> {
    group.site(call).length("the message in bytes", expected, received.max(0) as usize)
}

/// Starts to receive. The memory stays the caller's, untouched, until the leg is complete.
pub(super) fn post_receive(
    group: &Group,
    comm: Handle,
    call: Call,
    memory: &mut [u8],
    from: Rank,
    tag: c_int,
) -> Result<Leg> {
    post_receive_at(group, comm, call, (memory.as_mut_ptr().cast(), memory.len()), from, tag)
}

/// Starts to receive into memory of the host, or of a device that the library follows addresses on.
pub(super) fn post_receive_at(
    group: &Group,
    comm: Handle,
    call: Call,
    (start, bytes): (*mut c_void, usize),
    from: Rank,
    tag: c_int,
) -> Result<Leg> {
    let mut ticket = Ticket::null();
    let what = group.what(call, "MPI_Irecv", bytes, Some(from));
    // SAFETY: the callers keep the memory, untouched, until the leg is complete.
    invoke(what, || unsafe {
        let kind = datatype(Kind::U8);
        ffi::MPI_Irecv(start, int(bytes), kind, int(from.0), tag, comm.0, &mut ticket.0)
    })?;
    Ok(Leg { expects: true, ..Leg::new(ticket, what) })
}

/// Starts to send. The memory stays the caller's, unchanged, until the leg is complete.
pub(super) fn post_send(group: &Group, comm: Handle, call: Call, memory: &[u8], to: Rank, tag: c_int) -> Result<Leg> {
    post_send_at(group, comm, call, (memory.as_ptr().cast(), memory.len()), to, tag)
}

/// Starts to send from memory of the host, or of a device that the library follows addresses on.
pub(super) fn post_send_at(
    group: &Group,
    comm: Handle,
    call: Call,
    (start, bytes): (*const c_void, usize),
    to: Rank,
    tag: c_int,
) -> Result<Leg> {
    let mut ticket = Ticket::null();
    let what = group.what(call, "MPI_Isend", bytes, Some(to));
    // SAFETY: the callers keep the memory, unchanged, until the leg is complete.
    invoke(what, || unsafe {
        let kind = datatype(Kind::U8);
        ffi::MPI_Isend(start, int(bytes), kind, int(to.0), tag, comm.0, &mut ticket.0)
    })?;
    Ok(Leg::new(ticket, what))
}

/// The requests of one call, in the order in which they were posted.
pub(super) type Legs = VecDeque<Leg>;

/// Drops the legs that are over; says whether none is left. A leg's error is told once.
///
/// The first posted comes first: where two ends disagree about a message, its first chunk tells, and others may never come.
pub(super) fn advance(group: &Group, call: Call, legs: &mut Legs) -> Result<bool> {
    while let Some(leg) = legs.front_mut() {
        let outcome = leg.test(group, call);
        if leg.is_over() {
            legs.pop_front();
        }
        if !outcome? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Blocks until all legs are complete, and keeps what this process has started elsewhere going meanwhile.
///
/// Takes the outcome of posting them, since legs posted before one failed have to be dealt with all the same.
pub(super) fn complete(group: &Group, call: Call, posted: Result<()>, mut legs: Legs) -> Result<()> {
    let outcome = posted.and_then(|()| settle(group, call, &mut legs));
    if outcome.is_err() {
        withdraw(group, call, legs);
    }
    outcome
}

fn settle(group: &Group, call: Call, legs: &mut Legs) -> Result<()> {
    if may_block() && engine::all_idle() {
        while let Some(leg) = legs.front_mut() {
            let outcome = leg.wait(group, call);
            if leg.is_over() {
                legs.pop_front();
            }
            outcome?;
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
/// Where a peer never takes a send the run is aborted: returning would let the library read memory that may be freed.
fn withdraw(group: &Group, call: Call, mut legs: Legs) {
    cancel(group, call, &mut legs);
    let since = Instant::now();
    loop {
        legs.retain_mut(|leg| {
            // What it ends in is no news, the call has failed already.
            _ = leg.test(group, call);
            !leg.is_over()
        });
        if legs.is_empty() {
            return;
        }
        if since.elapsed() > PATIENCE {
            abort(1);
        }
        std::thread::yield_now();
    }
}

/// Asks the library to give up the receives among the legs; sends cannot be given up.
pub(super) fn cancel(group: &Group, call: Call, legs: &mut Legs) {
    for leg in legs.iter_mut().filter(|leg| leg.expects && !leg.is_over()) {
        leg.expects = false;
        // SAFETY: the ticket is this leg's own and not over.
        _ = invoke(group.what(call, "MPI_Cancel", 0, leg.peer), || unsafe { ffi::MPI_Cancel(&mut leg.ticket.0) });
    }
}
