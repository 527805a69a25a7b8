//! The thread that sees to it that nothing waits for ever: it knows what is under way on the device, for how long, and asks
//! the library how it fares.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::handle::Handle;
use crate::{Accelerator, Call, Event, Result};

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(20);

/// A call under way on the device.
pub(super) struct Watched {
    pub(super) handle: Arc<Handle>,
    pub(super) call: Call,
    /// When the stream came to the call, and to its end.
    pub(super) begun: Box<dyn Event>,
    pub(super) ended: Box<dyn Event>,
    /// Since when it runs, as far as was seen.
    pub(super) since: Option<Instant>,
}

impl Watched {
    /// Looks; says whether there is anything left to watch.
    fn look(&mut self) -> Result<bool> {
        if self.ended.is_done()? {
            return Ok(false);
        }
        if self.since.is_none() && self.begun.is_done()? {
            self.since = Some(Instant::now());
        }
        let overdue = self.since.is_some_and(|since| since.elapsed() > self.handle.patience);
        self.handle.watch(self.call, overdue);
        Ok(self.handle.failure().is_ok())
    }
}

/// The thread, and what it watches.
pub(super) struct Watch {
    board: Arc<Board>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Board {
    list: Mutex<List<Watched>>,
    changed: Condvar,
}

struct List<T> {
    watched: Vec<T>,
    closed: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { watched: Vec::new(), closed: false }
    }
}

impl<T> List<T> {
    /// Takes one more; says whether the thread may sleep for want of any. Else it looks soon: were it woken for each, a host that
    /// is far ahead of its device would have it ask for all that is under way with every call.
    fn add(&mut self, watched: T) -> bool {
        self.watched.push(watched);
        self.watched.len() == 1
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, List<Watched>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut list = self.lock();
        while !list.closed {
            if list.watched.is_empty() {
                list = self.changed.wait(list).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let mut watched = std::mem::take(&mut list.watched);
            // The library is asked without the lock, which callers want.
            drop(list);
            // A device that cannot even be asked has told, or will tell, whoever uses it.
            watched.retain_mut(|watched| watched.look().unwrap_or(false));
            list = self.lock();
            list.watched.append(&mut watched);
            list = self.changed.wait_timeout(list, PERIOD).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Watch {
    /// Starts the thread, for calls on this device.
    pub(super) fn new(accelerator: Arc<dyn Accelerator>) -> Self {
        let board = Arc::new(Board::default());
        let worker = Arc::clone(&board);
        let thread = std::thread::spawn(move || {
            // Of a thread that has selected none, the first device is: to ask for an event, or to free one, would make a
            // context there, of half a gigabyte for each rank that computes elsewhere. Where it cannot be had, calls say so.
            let _ = accelerator.select();
            worker.work();
        });
        Self { board, thread: Some(thread) }
    }

    pub(super) fn add(&self, watched: Watched) {
        if self.board.lock().add(watched) {
            self.board.changed.notify_all();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.board.lock().closed = true;
        self.board.changed.notify_all();
        // It ends after the look that it is at.
        self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn the_thread_is_woken_for_the_first_alone() {
        let mut list = List::default();
        assert_eq!([list.add('a'), list.add('b'), list.add('c')], [true, false, false]);
        assert_eq!(std::mem::take(&mut list.watched), ['a', 'b', 'c']);
        assert!(list.add('d'));
    }
}
