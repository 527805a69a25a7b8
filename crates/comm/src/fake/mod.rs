//! A device for tests, made of memory that host code sees through copies alone.
//!
//! Its work is queued and happens later, in the order of the streams, on a thread for each. At [`Pace::Late`] nothing
//! happens before somebody waits for it, or asks whether it has: whoever forgets an event reads what was there before, every
//! time. What would be undefined on a real device spoils bytes here: host memory that is touched while a copy reads it
//! arrives as `0xEE`, and memory that is freed while a stream uses it, and was not [kept](Accelerator::keep), becomes `0xDD`.
//!
//! It also records what it was told, in order ([`FakeDevice::take_log`]).

mod lane;
mod memory;
#[cfg(all(test, not(feature = "shuttle")))]
pub(crate) mod wires;

use std::any::Any;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use self::lane::Lane;
use self::memory::{Block, FakeMemory, FakePinned};
use crate::{Accelerator, DeviceMemory, DeviceRun, Error, Event, Pinned, Result, Stream};

/// When queued work happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// When somebody waits for it, or asks.
    Late,
    /// As soon as a thread gets to it.
    Prompt,
}

/// One thing that a [`FakeDevice`] was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// An event marked a stream.
    Record(Stream, EventName),
    /// A stream waits for an event.
    Block(Stream, EventName),
    /// The host waited for an event.
    Synchronize(EventName),
    /// So many bytes go to the host.
    Down(Stream, usize),
    /// So many bytes come from the host.
    Up(Stream, usize),
    /// So many bytes move within the device.
    Across(Stream, usize),
    /// The memory at an address is kept for a stream.
    Keep(Stream, usize),
}

/// An event, by the order in which events were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventName(pub u64);

thread_local! {
    /// Where a thread queues its work, if it has chosen.
    static CURRENT: Cell<Option<Stream>> = const { Cell::new(None) };
    /// The device that a thread has selected, if any.
    static SELECTED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A device without hardware. Threads queue on [`FakeDevice::COMPUTE`] unless they choose another stream.
pub struct FakeDevice(Arc<Inner>);

struct Inner {
    index: usize,
    pace: Pace,
    /// What is allocated, by address.
    memory: Mutex<BTreeMap<usize, Arc<Block>>>,
    /// By a stream's number.
    lanes: Mutex<Vec<Arc<Lane>>>,
    log: Mutex<Vec<Step>>,
    events: AtomicU64,
    /// Which threads asked for events, each with the device that it had selected.
    asked: Mutex<HashMap<ThreadId, Option<usize>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for FakeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fake device {}", self.0.index)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        lock(&self.lanes).iter().for_each(|lane| lane.close());
    }
}

impl FakeDevice {
    /// The current stream of a thread that has chosen none.
    pub const COMPUTE: Stream = Stream(0);

    /// Makes a device.
    pub fn new(index: usize, pace: Pace) -> Self {
        Self(Arc::new(Inner {
            index,
            pace,
            memory: Mutex::default(),
            lanes: Mutex::new(vec![Lane::new(pace)]),
            log: Mutex::default(),
            events: AtomicU64::new(0),
            asked: Mutex::default(),
        }))
    }

    /// Allocates memory of the device, all zeros.
    pub fn allocate(&self, bytes: usize) -> Box<dyn DeviceMemory> {
        Box::new(FakeMemory::new(&self.0, bytes))
    }

    /// Takes what was recorded since the last time.
    pub fn take_log(&self) -> Vec<Step> {
        std::mem::take(&mut *lock(&self.0.log))
    }

    /// Returns which threads have asked whether an event is done, each with the device that it had selected when it last did.
    pub fn asked(&self) -> HashMap<ThreadId, Option<usize>> {
        lock(&self.0.asked).clone()
    }

    /// Returns how many bytes are allocated.
    pub fn allocated_bytes(&self) -> usize {
        lock(&self.0.memory).values().map(|block| block.len()).sum()
    }

    fn failed(&self, doing: &'static str, message: String) -> Error {
        Error::Device { device: self.0.index, doing, message }
    }

    fn lane(&self, stream: Stream) -> Result<Arc<Lane>> {
        self.0.lane(stream)
    }

    /// Finds the block of a run.
    fn block(&self, run: DeviceRun<'_>) -> Result<Arc<Block>> {
        let memory: &dyn Any = run.memory();
        let memory = memory.downcast_ref::<FakeMemory>().filter(|memory| memory.is_of(&self.0));
        memory.map(FakeMemory::block).ok_or_else(|| self.failed("finding memory", "memory of another device".into()))
    }

    fn host<'a>(&self, pinned: &'a mut dyn Pinned) -> Result<&'a mut FakePinned> {
        let pinned: &mut dyn Any = pinned;
        pinned.downcast_mut().ok_or_else(|| self.failed("finding host memory", "memory that is not its own".into()))
    }
}

impl Inner {
    fn lane(&self, stream: Stream) -> Result<Arc<Lane>> {
        let lanes = lock(&self.lanes);
        lanes.get(stream.0 as usize).cloned().ok_or_else(|| Error::Device {
            device: self.index,
            doing: "finding a stream",
            message: format!("no stream {}", stream.0),
        })
    }

    fn note(&self, step: Step) {
        lock(&self.log).push(step);
    }
}

impl Accelerator for FakeDevice {
    fn index(&self) -> usize {
        self.0.index
    }

    fn identity(&self) -> Result<[u8; 16]> {
        Ok((self.0.index as u128).to_le_bytes())
    }

    fn select(&self) -> Result<()> {
        SELECTED.set(Some(self.0.index));
        Ok(())
    }

    fn current(&self) -> Result<Stream> {
        Ok(CURRENT.get().unwrap_or(Self::COMPUTE))
    }

    fn make_current(&self, stream: Stream) -> Result<()> {
        self.lane(stream)?;
        CURRENT.set(Some(stream));
        Ok(())
    }

    fn side(&self) -> Result<Stream> {
        let mut lanes = lock(&self.0.lanes);
        lanes.push(Lane::new(self.0.pace));
        Ok(Stream(lanes.len() as u64 - 1))
    }

    fn handle(&self, stream: Stream) -> Result<usize> {
        // Like no other stream's in this process.
        Ok(Arc::as_ptr(&self.lane(stream)?) as usize)
    }

    fn event(&self) -> Result<Box<dyn Event>> {
        let name = EventName(self.0.events.fetch_add(1, Ordering::Relaxed));
        Ok(Box::new(FakeEvent { name, device: Arc::clone(&self.0), mark: None }))
    }

    fn pinned(&self, bytes: usize) -> Result<Box<dyn Pinned>> {
        Ok(Box::new(FakePinned::new(bytes)))
    }

    fn copy_down(&self, from: DeviceRun<'_>, to: &mut dyn Pinned, at: usize, stream: Stream) -> Result<()> {
        let (block, lane, run) = (self.block(from)?, self.lane(stream)?, from.start()..from.start() + from.bytes());
        let arrive = self.host(to)?.arrival(at, run.len());
        self.0.note(Step::Down(stream, run.len()));
        lane.queue(move || arrive(block.read(run)));
        Ok(())
    }

    fn copy_up(&self, from: &mut dyn Pinned, at: usize, to: DeviceRun<'_>, stream: Stream) -> Result<()> {
        let (block, lane) = (self.block(to)?, self.lane(stream)?);
        let depart = self.host(from)?.departure(at, to.bytes());
        self.0.note(Step::Up(stream, to.bytes()));
        let start = to.start();
        lane.queue(move || block.write(start, &depart()));
        Ok(())
    }

    fn copy_across(&self, from: DeviceRun<'_>, to: DeviceRun<'_>, stream: Stream) -> Result<()> {
        let (source, target, lane) = (self.block(from)?, self.block(to)?, self.lane(stream)?);
        if from.bytes() != to.bytes() {
            return Err(self.failed("copying", format!("{} bytes to {}", from.bytes(), to.bytes())));
        }
        let (run, start) = (from.start()..from.start() + from.bytes(), to.start());
        self.0.note(Step::Across(stream, run.len()));
        lane.queue(move || target.write(start, &source.read(run)));
        Ok(())
    }

    fn keep(&self, memory: &dyn DeviceMemory, stream: Stream) -> Result<()> {
        let lane = self.lane(stream)?;
        let any: &dyn Any = memory;
        let Some(owned) = any.downcast_ref::<FakeMemory>() else {
            return Err(self.failed("keeping memory", "memory of another device".into()));
        };
        self.0.note(Step::Keep(stream, memory.address()));
        owned.keep(lane);
        Ok(())
    }
}

/// A mark in a lane.
struct FakeEvent {
    name: EventName,
    device: Arc<Inner>,
    mark: Option<(Arc<Lane>, u64)>,
}

impl Event for FakeEvent {
    fn record(&mut self, stream: Stream) -> Result<()> {
        let lane = self.device.lane(stream)?;
        self.device.note(Step::Record(stream, self.name));
        let mark = lane.mark();
        self.mark = Some((lane, mark));
        Ok(())
    }

    fn block(&mut self, stream: Stream) -> Result<()> {
        let waits = self.device.lane(stream)?;
        self.device.note(Step::Block(stream, self.name));
        if let Some((lane, mark)) = self.mark.clone() {
            waits.queue(move || lane.wait(mark));
        }
        Ok(())
    }

    fn is_done(&mut self) -> Result<bool> {
        lock(&self.device.asked).insert(std::thread::current().id(), SELECTED.get());
        let Some((lane, mark)) = &self.mark else { return Ok(true) };
        lane.release(*mark);
        Ok(lane.is_done(*mark))
    }

    fn synchronize(&mut self) -> Result<()> {
        self.device.note(Step::Synchronize(self.name));
        if let Some((lane, mark)) = &self.mark {
            lane.wait(*mark);
        }
        Ok(())
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
