//! Started collectives, cut in chunks of which only a few are in flight.
//!
//! MPI progresses everything that was started at once, which for a long transfer means walking over memory that left
//! the cache long ago (a factor of four to eight, measured). So each group keeps a queue: chunks start in the order of
//! the calls, [`WINDOW`] at a time, on a communicator of their own, so that their order is the same on every rank.
//! Whoever waits on this process drives every queue, or empties it before blocking inside the library, so that no rank
//! waits for a chunk that a peer has queued and does not start.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mpi::ffi;

use super::group::Group;
use super::legs::{advance, post_receive, post_send, Leg, Legs};
use super::messages::EXCHANGE_TAG;
use super::raw::{self, datatype, int, invoke, operation, MPI_Datatype, Ticket};
use super::{scale, EXCHANGE_CHUNK_BYTES, REDUCE_CHUNK_BYTES};
use crate::chunks::cut;
use crate::communicator::Pending;
use crate::{reduce, Call, Kind, OwnedBuffer, Rank, ReduceOp, Result};

/// Chunks of one group in flight.
const WINDOW: usize = 2;

/// Operations of this process that are not over.
static UNFINISHED: AtomicUsize = AtomicUsize::new(0);

/// The groups whose queues are not empty. They live on until then, though nobody else may hold them any more: peers
/// wait for what is queued. Locked after a group's own queue where both are.
static ACTIVE: Mutex<Vec<Arc<Group>>> = Mutex::new(Vec::new());

/// Says whether nothing is under way on this process.
pub(super) fn all_idle() -> bool {
    UNFINISHED.load(Ordering::Acquire) == 0
}

/// Moves every group's queue forward, without blocking.
pub(super) fn drive_all() {
    if all_idle() {
        return;
    }
    groups().iter().for_each(|group| drive(group, WINDOW));
}

/// Starts all that is queued, for a caller that is about to block inside the library.
pub(super) fn launch_all() {
    if all_idle() {
        return;
    }
    groups().iter().for_each(|group| drive(group, usize::MAX));
}

fn groups() -> Vec<Arc<Group>> {
    lock(&ACTIVE).clone()
}

/// Moves every queue forward; returns how many chunks are left in them.
pub(super) fn chunks_left() -> usize {
    drive_all();
    let left = |operation: &Operation| operation.waiting.len() + operation.flying.len();
    groups().iter().map(|group| lock(&group.engine).queue.iter().map(left).sum::<usize>()).sum()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One group's operations, in the order of their calls.
#[derive(Default)]
pub(super) struct Engine {
    queue: VecDeque<Operation>,
    over: HashMap<u64, Result<OwnedBuffer>>,
    unwanted: HashSet<u64>,
    started: u64,
}

/// Which collective, with what.
pub(super) enum Task {
    AllReduce { op: ReduceOp },
    ReduceScatter { send: OwnedBuffer, op: ReduceOp },
    AllGather { send: OwnedBuffer },
}

/// A collective under way.
struct Operation {
    number: u64,
    call: Call,
    task: Task,
    buffer: OwnedBuffer,
    /// Runs of the buffer, or of one rank's part of it, not started yet.
    waiting: VecDeque<Range<usize>>,
    flying: VecDeque<Flight>,
    failed: Option<crate::Error>,
}

/// A chunk in flight.
struct Flight {
    run: Range<usize>,
    /// Memory that the library uses beside the operation's own buffers.
    staging: Staging,
    /// Not complete yet.
    legs: Legs,
}

/// What a chunk needs beside the buffers.
enum Staging {
    Nothing,
    Wide(Vec<f32>),
    Peers(Vec<u64>),
}

/// Queues a collective and starts what the window allows.
pub(super) fn start(group: &Arc<Group>, call: Call, task: Task, buffer: OwnedBuffer) -> Result<Started> {
    let elements = match &task {
        Task::AllReduce { .. } | Task::ReduceScatter { .. } => buffer.len(),
        Task::AllGather { send } => send.len(),
    };
    let chunk_bytes = if matches!(task, Task::AllReduce { .. }) { REDUCE_CHUNK_BYTES } else { EXCHANGE_CHUNK_BYTES };
    let waiting = cut(elements, chunk_bytes / buffer.kind().bytes()).collect();
    let mut engine = lock(&group.engine);
    let number = engine.started;
    if engine.queue.is_empty() {
        lock(&ACTIVE).push(Arc::clone(group));
    }
    engine.started += 1;
    UNFINISHED.fetch_add(1, Ordering::AcqRel);
    let operation = Operation { number, call, task, buffer, waiting, flying: VecDeque::new(), failed: None };
    engine.queue.push_back(operation);
    drop(engine);
    drive(group, WINDOW);
    Ok(Started { group: Arc::clone(group), number, wanted: true })
}

/// Moves one group's queue forward, without blocking.
fn drive(group: &Group, window: usize) {
    let mut engine = lock(&group.engine);
    let engine = &mut *engine;
    let mut flying = 0;
    for operation in &mut engine.queue {
        operation.land(group);
        operation.launch(group, window.saturating_sub(flying + operation.flying.len()));
        flying += operation.flying.len();
        if !operation.waiting.is_empty() {
            break;
        }
    }
    engine.retire();
    if engine.queue.is_empty() {
        // Whoever drives a group holds it, so that this is never its end, which would need the lock that is held here.
        lock(&ACTIVE).retain(|active| !std::ptr::eq(&**active, group));
    }
}

impl Engine {
    /// Moves what is over out of the queue.
    fn retire(&mut self) {
        let mut position = 0;
        while let Some(operation) = self.queue.get(position) {
            if !operation.is_over() {
                position += 1;
                continue;
            }
            if let Some(operation) = self.queue.remove(position) {
                UNFINISHED.fetch_sub(1, Ordering::AcqRel);
                let unwanted = self.unwanted.remove(&operation.number);
                let (number, outcome) = (operation.number, operation.into_outcome());
                if !unwanted {
                    self.over.insert(number, outcome);
                }
            }
        }
    }
}

impl Operation {
    fn is_over(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty()
    }

    /// Gives the buffer back; after a failure the library may still hold on to it, so that it must stay for good.
    fn into_outcome(self) -> Result<OwnedBuffer> {
        match self.failed {
            None => Ok(self.buffer),
            Some(error) => {
                std::mem::forget((self.task, self.buffer));
                Err(error)
            }
        }
    }

    /// Starts up to `room` chunks.
    fn launch(&mut self, group: &Group, room: usize) {
        for _ in 0..room.min(self.waiting.len()) {
            let Some(run) = self.waiting.pop_front() else { return };
            match self.flight(group, run) {
                Ok(flight) => self.flying.push_back(flight),
                Err(error) => self.fail(error),
            }
        }
    }

    /// Takes in the chunks that are complete, in order.
    fn land(&mut self, group: &Group) {
        while let Some(flight) = self.flying.front_mut() {
            match advance(group, self.call, &mut flight.legs) {
                Ok(false) => return,
                Ok(true) => {
                    if let Some(flight) = self.flying.pop_front() {
                        self.absorb(group, flight);
                    }
                }
                Err(error) => {
                    // Its other legs may still be in flight.
                    if let Some(flight) = self.flying.pop_front() {
                        std::mem::forget(flight);
                    }
                    self.fail(error);
                }
            }
        }
    }

    /// The first error ends the operation; what is in flight still lands.
    fn fail(&mut self, error: crate::Error) {
        self.failed.get_or_insert(error);
        self.waiting.clear();
    }

    fn flight(&mut self, group: &Group, run: Range<usize>) -> Result<Flight> {
        match self.task {
            Task::AllReduce { op } => self.all_reduce(group, run, op),
            Task::ReduceScatter { .. } => self.reduce_scatter(group, run),
            Task::AllGather { .. } => self.all_gather(group, run),
        }
    }

    fn all_reduce(&mut self, group: &Group, run: Range<usize>, op: ReduceOp) -> Result<Flight> {
        let kind = self.buffer.kind();
        let bytes = self.buffer.run_mut(run.start * kind.bytes()..run.end * kind.bytes());
        let mut staging = Staging::Nothing;
        let (start, wire): (*mut u8, MPI_Datatype) = if kind == Kind::Bf16 {
            let mut wide = vec![0f32; run.len()];
            scale::widen(bytes, &mut wide);
            let start = wide.as_mut_ptr().cast();
            staging = Staging::Wide(wide);
            (start, datatype(Kind::F32))
        } else {
            (bytes.as_mut_ptr(), datatype(kind))
        };
        let mut ticket = Ticket::null();
        let what = group.what(self.call, "MPI_Iallreduce", run.len() * kind.bytes(), None);
        // SAFETY: `run.len()` elements that the operation owns, and gives nobody access to, until the ticket is
        // complete; vectors stay where they are while the flight moves.
        invoke(what, || unsafe {
            let (comm, op) = (group.background.0, operation(op));
            ffi::MPI_Iallreduce(raw::mp_comm_in_place(), start.cast(), int(run.len()), wire, op, comm, &mut ticket.0)
        })?;
        Ok(Flight { run, staging, legs: Legs::from([Leg::new(ticket, what)]) })
    }

    /// Every rank sends each peer that peer's run, and adds up what it gets, in rank order.
    fn reduce_scatter(&mut self, group: &Group, run: Range<usize>) -> Result<Flight> {
        let Task::ReduceScatter { send, .. } = &self.task else { unreachable!("asked of a reduce-scatter") };
        let width = self.buffer.kind().bytes();
        let (bytes, part) = (run.len() * width, self.buffer.len() * width);
        // Whole words, so that any kind is aligned.
        let words = bytes.div_ceil(8);
        let mut room = vec![0u64; words * group.size];
        let mut legs = Legs::with_capacity(2 * group.size);
        let mut post = || -> Result<()> {
            for (peer, words) in room.chunks_exact_mut(words).enumerate().filter(|(peer, _)| *peer != group.rank) {
                let memory = &mut bytemuck::cast_slice_mut(words)[..bytes];
                legs.push_back(from(group, self.call, memory, peer)?);
            }
            for peer in (0..group.size).filter(|peer| *peer != group.rank) {
                let start = peer * part + run.start * width;
                legs.push_back(to(group, self.call, send.run(start..start + bytes), peer)?);
            }
            Ok(())
        };
        if let Err(error) = post() {
            // What was posted before the failure may still be written to.
            std::mem::forget(room);
            return Err(error);
        }
        Ok(Flight { run, staging: Staging::Peers(room), legs })
    }

    /// Every rank sends its run to all peers.
    fn all_gather(&mut self, group: &Group, run: Range<usize>) -> Result<Flight> {
        let Task::AllGather { send } = &self.task else { unreachable!("asked of an all-gather") };
        let width = self.buffer.kind().bytes();
        let part = send.len() * width;
        let mine = send.run(run.start * width..run.end * width);
        let mut legs = Legs::with_capacity(2 * group.size);
        for peer in 0..group.size {
            let start = peer * part + run.start * width;
            let memory = self.buffer.run_mut(start..start + mine.len());
            if peer == group.rank {
                memory.copy_from_slice(mine);
            } else {
                legs.push_back(from(group, self.call, memory, peer)?);
            }
        }
        for peer in (0..group.size).filter(|peer| *peer != group.rank) {
            legs.push_back(to(group, self.call, mine, peer)?);
        }
        Ok(Flight { run, staging: Staging::Nothing, legs })
    }

    /// Does the arithmetic that is left once a chunk has landed.
    fn absorb(&mut self, group: &Group, flight: Flight) {
        let kind = self.buffer.kind();
        let width = kind.bytes();
        let part = self.buffer.len() * width;
        let run = flight.run.start * width..flight.run.end * width;
        let out = self.buffer.run_mut(run.clone());
        match (&self.task, flight.staging) {
            (Task::AllReduce { op }, Staging::Wide(mut wide)) => {
                scale::finish(bytemuck::cast_slice_mut(&mut wide), Kind::F32, *op, group.size);
                scale::narrow(&wide, out);
            }
            (Task::AllReduce { op }, _) => scale::finish(out, kind, *op, group.size),
            (Task::ReduceScatter { send, op }, Staging::Peers(room)) => {
                let words = out.len().div_ceil(8);
                let mine = group.rank * part + run.start;
                let mut parts: Vec<&[u8]> =
                    room.chunks_exact(words).map(|w| &bytemuck::cast_slice(w)[..out.len()]).collect();
                parts[group.rank] = send.run(mine..mine + out.len());
                reduce::into(&parts, out, kind, *op);
            }
            _ => {}
        }
    }
}

/// Starts receiving a chunk from one peer.
fn from(group: &Group, call: Call, memory: &mut [u8], peer: usize) -> Result<Leg> {
    post_receive(group, group.background, call, memory, Rank(peer), EXCHANGE_TAG)
}

/// Starts sending a chunk to one peer.
fn to(group: &Group, call: Call, memory: &[u8], peer: usize) -> Result<Leg> {
    post_send(group, group.background, call, memory, Rank(peer), EXCHANGE_TAG)
}

/// A started collective's request.
pub(super) struct Started {
    group: Arc<Group>,
    number: u64,
    wanted: bool,
}

impl Pending for Started {
    fn poll(&mut self) -> Result<bool> {
        drive_all();
        Ok(lock(&self.group.engine).over.contains_key(&self.number))
    }

    fn finish(mut self: Box<Self>) -> Result<OwnedBuffer> {
        self.wanted = false;
        loop {
            drive(&self.group, WINDOW);
            if let Some(outcome) = lock(&self.group.engine).over.remove(&self.number) {
                return outcome;
            }
            drive_all();
            std::thread::yield_now();
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.wanted {
            return;
        }
        let mut engine = lock(&self.group.engine);
        if engine.over.remove(&self.number).is_none() {
            engine.unwanted.insert(self.number);
        }
    }
}
