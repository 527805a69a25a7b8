//! What the ranks of one group share: rounds of collectives, the mail, and who is gone.
//!
//! One lock guards it all and is held only to note things down; elements are copied and reduced outside of it.

use std::collections::HashMap;

use super::mail::Mail;
use super::round::Round;
use crate::sync::{lock, wait, Condvar, Mutex, MutexGuard};
use crate::{Call, Error};

/// The shared state of a group.
pub(super) struct Hub {
    pub(super) name: String,
    pub(super) size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// What the lock guards.
pub(super) struct State {
    /// Collectives under way, by their number in the group.
    pub(super) rounds: HashMap<u64, Round>,
    /// How many collectives each rank has entered.
    pub(super) entered: Vec<u64>,
    /// Who will never come again.
    pub(super) gone: Vec<bool>,
    pub(super) mail: Mail,
}

impl Hub {
    pub(super) fn new(name: &str, size: usize) -> Self {
        let state =
            State { rounds: HashMap::new(), entered: vec![0; size], gone: vec![false; size], mail: Mail::default() };
        Self { name: name.into(), size, state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Blocks until `ready` has an answer.
    pub(super) fn wait_for<R>(&self, mut ready: impl FnMut(&mut State) -> Option<R>) -> R {
        let mut state = self.lock();
        loop {
            if let Some(answer) = ready(&mut state) {
                return answer;
            }
            state = wait(&self.changed, state);
        }
    }

    /// Marks a rank as gone and fails whatever waits for it.
    pub(super) fn leave(&self, rank: usize) {
        let mut state = self.lock();
        let state = &mut *state;
        state.gone[rank] = true;
        for round in state.rounds.values_mut() {
            round.lose(&self.name, rank);
        }
        self.notify();
    }
}

/// Says that a peer is gone.
pub(super) fn gone(call: Call, group: &str, peer: usize) -> Error {
    Error::PeerGone { call, group: group.into(), peer: crate::Rank(peer) }
}

/// A rank's stay in its group; the last owner's drop is its leave.
pub(super) struct Member {
    pub(super) hub: std::sync::Arc<Hub>,
    pub(super) rank: usize,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.hub.leave(self.rank);
    }
}
