//! One stream of a fake device: work in order, on a thread of its own.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{lock, Pace};

type Work = Box<dyn FnOnce() + Send>;

/// A stream.
pub(super) struct Lane {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Work>,
    /// How much was queued, may happen and has happened, since the beginning.
    queued: u64,
    released: u64,
    done: u64,
    closed: bool,
}

impl Lane {
    /// Makes a stream with its thread, which ends once the lane is closed and empty.
    pub(super) fn new(pace: Pace) -> Arc<Self> {
        let released = if pace == Pace::Prompt { u64::MAX } else { 0 };
        let state = State { released, ..State::default() };
        let lane = Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() });
        #[cfg(all(test, not(feature = "shuttle")))]
        super::wires::add_lane(&lane);
        let worker = Arc::clone(&lane);
        std::thread::spawn(move || worker.work());
        lane
    }

    fn work(&self) {
        loop {
            let mut state = lock(&self.state);
            let work = loop {
                if state.done < state.released {
                    if let Some(work) = state.queue.pop_front() {
                        break work;
                    }
                }
                if state.closed && state.queue.is_empty() {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            work();
            lock(&self.state).done += 1;
            self.changed.notify_all();
        }
    }

    pub(super) fn queue(&self, work: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.state);
        state.queue.push_back(Box::new(work));
        state.queued += 1;
        self.changed.notify_all();
    }

    /// Marks what is queued by now.
    pub(super) fn mark(&self) -> u64 {
        lock(&self.state).queued
    }

    /// Lets what comes before a mark happen.
    pub(super) fn release(&self, mark: u64) {
        let mut state = lock(&self.state);
        state.released = state.released.max(mark);
        self.changed.notify_all();
    }

    pub(super) fn is_done(&self, mark: u64) -> bool {
        lock(&self.state).done >= mark
    }

    /// Blocks until what comes before a mark has happened.
    pub(super) fn wait(&self, mark: u64) {
        self.release(mark);
        let mut state = lock(&self.state);
        while state.done < mark {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets all that is queued happen, and the thread end.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        (state.closed, state.released) = (true, u64::MAX);
        self.changed.notify_all();
    }
}
