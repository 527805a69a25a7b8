//! Page-locked memory that goes from call to call.

use std::sync::{Arc, Mutex};

use super::lock;
use crate::{Accelerator, ByteBuffer, Event, Kind, OwnedBuffer, Pinned, Result, Stream};

/// The least that is allocated at once.
const LEAST_BYTES: usize = 4096;

/// A piece of host memory, with the end of the last copy that used it.
pub(super) struct Slot {
    pub(super) pinned: Box<dyn Pinned>,
    room: usize,
    last: Box<dyn Event>,
}

impl Slot {
    /// Marks that copies which use it were queued.
    pub(super) fn mark(&mut self, stream: Stream) -> Result<()> {
        self.last.record(stream)
    }

    /// Waits until no copy uses it any more: before that the host must not touch it.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.last.synchronize()
    }

    /// Says whether [`settle`](Self::settle) would return at once.
    pub(super) fn is_settled(&mut self) -> Result<bool> {
        self.last.is_done()
    }
}

/// What is free.
#[derive(Default)]
pub(super) struct Slots(Mutex<Vec<Slot>>);

impl Slots {
    /// Takes a slot of at least so many bytes.
    pub(super) fn take(&self, accelerator: &dyn Accelerator, bytes: usize) -> Result<Slot> {
        let room = bytes.next_power_of_two().max(LEAST_BYTES);
        let mut free = lock(&self.0);
        // The one that was used longest ago is the likeliest to have settled.
        if let Some(index) = free.iter().position(|slot| slot.room == room) {
            return Ok(free.remove(index));
        }
        drop(free);
        Ok(Slot { pinned: accelerator.pinned(room)?, room, last: accelerator.event()? })
    }

    /// Gives a slot back; copies may still use it.
    pub(super) fn put(&self, slot: Slot) {
        lock(&self.0).push(slot);
    }
}

/// Where a slot comes back to from a started call of the communicator inside.
#[derive(Default)]
pub(super) struct Home(Arc<Mutex<Option<Slot>>>);

impl Home {
    /// Lends the first bytes of a settled slot.
    pub(super) fn lend(&self, slot: Slot, kind: Kind, bytes: usize) -> Result<OwnedBuffer> {
        let loan = Loan { slot: Some(slot), bytes, home: Arc::clone(&self.0) };
        OwnedBuffer::new(kind, Box::new(loan))
    }

    /// Takes the slot once the buffer has been dropped; a call that failed may have kept it.
    pub(super) fn slot(&self) -> Option<Slot> {
        lock(&self.0).take()
    }
}

/// A slot inside a buffer.
struct Loan {
    slot: Option<Slot>,
    bytes: usize,
    home: Arc<Mutex<Option<Slot>>>,
}

impl ByteBuffer for Loan {
    fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.slot {
            Some(slot) => &mut slot.pinned.bytes_mut()[..self.bytes],
            None => &mut [],
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        *lock(&self.home) = self.slot.take();
    }
}
