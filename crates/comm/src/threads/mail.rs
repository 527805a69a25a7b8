//! Messages between two ranks.
//!
//! The `k`-th receive of a channel (sender, receiver, tag) gets the `k`-th message sent on it, in whatever order
//! requests are completed. Whoever comes second copies: a sender into the buffer of a receive that was started already,
//! a receiver out of a message that waits. So a started receive completes whatever its rank does meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::hub::{gone, Hub, Member};
use crate::arguments::Site;
use crate::buffer::lent::Lent;
use crate::buffer::HostMut;
use crate::communicator::Pending;
use crate::{Call, Kind, OwnedBuffer, Rank, Result, Tag};

/// Sender, receiver and tag.
pub(super) type Channel = (usize, usize, u16);

/// All messages under way in a group.
#[derive(Default)]
pub(super) struct Mail {
    sent: HashMap<Channel, u64>,
    posted: HashMap<Channel, u64>,
    messages: HashMap<(Channel, u64), Message>,
    /// Buffers of started receives whose message has not come.
    expecting: HashMap<(Channel, u64), OwnedBuffer>,
    /// Started receives that are over.
    delivered: HashMap<(Channel, u64), Result<OwnedBuffer>>,
    /// Receives that were given up; their messages are thrown away.
    abandoned: HashSet<(Channel, u64)>,
    /// Sends somebody waits for, and how they ended.
    receipts: HashMap<(Channel, u64), Option<Receipt>>,
}

/// How a send ended: the buffer of a non-blocking one comes back.
type Receipt = Result<Option<OwnedBuffer>>;

/// A message that nobody has received yet.
struct Message {
    kind: Kind,
    payload: Payload,
}

/// Where a message's bytes are.
pub(super) enum Payload {
    /// In a copy; the sender has gone on.
    Copied(Vec<u8>),
    /// With the sender, who waits.
    Lent(Lent),
    /// With the message, until the sender's request takes them back.
    Owned(OwnedBuffer),
}

impl Payload {
    fn bytes(&self) -> &[u8] {
        match self {
            Payload::Copied(bytes) => bytes,
            Payload::Lent(bytes) => bytes,
            Payload::Owned(buffer) => buffer.as_host().bytes(),
        }
    }

    fn into_buffer(self) -> Option<OwnedBuffer> {
        match self {
            Payload::Owned(buffer) => Some(buffer),
            Payload::Copied(_) | Payload::Lent(_) => None,
        }
    }
}

impl Hub {
    /// Posts a message; returns its number in the channel.
    pub(super) fn post(&self, call: Call, channel: Channel, kind: Kind, payload: Payload) -> Result<u64> {
        let mut state = self.lock();
        if state.gone[channel.1] {
            return Err(gone(call, &self.name, channel.1));
        }
        let counter = state.mail.sent.entry(channel).or_default();
        let key = (channel, *counter);
        *counter += 1;
        let waits = !matches!(payload, Payload::Copied(_));
        if state.mail.abandoned.remove(&key) {
            if waits {
                state.mail.receipts.insert(key, Some(Ok(payload.into_buffer())));
            }
            return Ok(key.1);
        }
        if let Some(mut buffer) = state.mail.expecting.remove(&key) {
            drop(state);
            let outcome = self.deliver(Call::StartReceive, kind, &payload, buffer.as_host_mut());
            let mut state = self.lock();
            if !state.mail.abandoned.remove(&key) {
                state.mail.delivered.insert(key, outcome.clone().map(|()| buffer));
            }
            if waits {
                state.mail.receipts.insert(key, Some(outcome.map(|()| payload.into_buffer())));
            }
            self.notify();
            return Ok(key.1);
        }
        if waits {
            state.mail.receipts.insert(key, None);
        }
        state.mail.messages.insert(key, Message { kind, payload });
        self.notify();
        Ok(key.1)
    }

    /// Copies a message's elements where they belong.
    fn deliver(&self, call: Call, kind: Kind, payload: &Payload, mut buffer: HostMut<'_>) -> Result<()> {
        let site = Site { call, group: &self.name, size: self.size };
        site.kind(buffer.kind(), kind)?;
        site.length("the message", buffer.len(), payload.bytes().len() / kind.bytes())?;
        buffer.bytes_mut().copy_from_slice(payload.bytes());
        Ok(())
    }

    /// Copies a message out and tells its sender.
    fn open(&self, call: Call, key: (Channel, u64), message: Message, buffer: HostMut<'_>) -> Result<()> {
        let Message { kind, payload } = message;
        let outcome = self.deliver(call, kind, &payload, buffer);
        let returned = payload.into_buffer();
        if let Some(receipt) = self.lock().mail.receipts.get_mut(&key) {
            *receipt = Some(outcome.clone().map(|()| returned));
        }
        self.notify();
        outcome
    }

    /// Blocks until a message has been received, or never will be.
    pub(super) fn await_receipt(&self, call: Call, channel: Channel, number: u64) -> Receipt {
        let key = (channel, number);
        self.wait_for(|state| {
            if let Some(Some(receipt)) = state.mail.receipts.get_mut(&key).map(Option::take) {
                state.mail.receipts.remove(&key);
                return Some(receipt);
            }
            // A message that was taken out already is being copied: its receipt comes.
            if state.gone[channel.1] && state.mail.messages.remove(&key).is_some() {
                state.mail.receipts.remove(&key);
                return Some(Err(gone(call, &self.name, channel.1)));
            }
            None
        })
    }

    /// Blocks until the next message of a channel is there and copies it out.
    pub(super) fn take(&self, call: Call, channel: Channel, buffer: HostMut<'_>) -> Result<()> {
        let key = (channel, self.lock().mail.queue(channel));
        let message = self.wait_for(|state| match state.mail.messages.remove(&key) {
            Some(message) => Some(Ok(message)),
            None if state.gone[channel.0] => Some(Err(gone(call, &self.name, channel.0))),
            None => None,
        })?;
        self.open(call, key, message, buffer)
    }

    /// Takes the next message of a channel if it is there, or leaves the buffer for its sender to fill.
    pub(super) fn expect(&self, channel: Channel, mut buffer: OwnedBuffer) -> (u64, Option<Result<OwnedBuffer>>) {
        let mut state = self.lock();
        let key = (channel, state.mail.queue(channel));
        let Some(message) = state.mail.messages.remove(&key) else {
            state.mail.expecting.insert(key, buffer);
            return (key.1, None);
        };
        drop(state);
        let outcome = self.open(Call::StartReceive, key, message, buffer.as_host_mut());
        (key.1, Some(outcome.map(|()| buffer)))
    }
}

impl Mail {
    /// Takes the next place in a channel's queue of receives.
    fn queue(&mut self, channel: Channel) -> u64 {
        let counter = self.posted.entry(channel).or_default();
        *counter += 1;
        *counter - 1
    }
}

/// A send under way.
pub(super) struct Sending {
    pub(super) member: Arc<Member>,
    pub(super) to: Rank,
    pub(super) tag: Tag,
    pub(super) number: u64,
}

impl Sending {
    fn channel(&self) -> Channel {
        (self.member.rank, self.to.0, self.tag.0)
    }
}

impl Pending for Sending {
    fn poll(&mut self) -> Result<bool> {
        let key = (self.channel(), self.number);
        let state = self.member.hub.lock();
        let lost = state.gone[self.to.0] && state.mail.messages.contains_key(&key);
        Ok(lost || state.mail.receipts.get(&key).is_none_or(Option::is_some))
    }

    fn finish(self: Box<Self>) -> Result<OwnedBuffer> {
        let returned = self.member.hub.await_receipt(Call::StartSend, self.channel(), self.number)?;
        Ok(returned.unwrap_or_else(|| unreachable!("a started send returns its buffer")))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // The message still goes out; nobody asks for its buffer any more.
        self.member.hub.lock().mail.receipts.remove(&(self.channel(), self.number));
    }
}

/// A receive under way.
pub(super) struct Receiving {
    pub(super) member: Arc<Member>,
    pub(super) from: Rank,
    pub(super) tag: Tag,
    pub(super) number: u64,
    /// There already if the message was there first.
    pub(super) outcome: Option<Result<OwnedBuffer>>,
    /// Whether somebody will ask for the outcome.
    pub(super) wanted: bool,
}

impl Receiving {
    fn key(&self) -> (Channel, u64) {
        ((self.from.0, self.member.rank, self.tag.0), self.number)
    }
}

impl Pending for Receiving {
    fn poll(&mut self) -> Result<bool> {
        let key = self.key();
        let state = self.member.hub.lock();
        let lost = state.gone[self.from.0] && state.mail.expecting.contains_key(&key);
        Ok(self.outcome.is_some() || lost || state.mail.delivered.contains_key(&key))
    }

    fn finish(mut self: Box<Self>) -> Result<OwnedBuffer> {
        self.wanted = false;
        if let Some(outcome) = self.outcome.take() {
            return outcome;
        }
        let key = self.key();
        let Member { hub, .. } = &*self.member;
        hub.wait_for(|state| {
            if let Some(outcome) = state.mail.delivered.remove(&key) {
                return Some(outcome);
            }
            // A buffer that was taken out already is being filled.
            if state.gone[self.from.0] && state.mail.expecting.remove(&key).is_some() {
                return Some(Err(gone(Call::StartReceive, &hub.name, self.from.0)));
            }
            None
        })
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if !self.wanted || self.outcome.is_some() {
            return;
        }
        let key = self.key();
        let mut state = self.member.hub.lock();
        state.mail.expecting.remove(&key);
        if state.mail.delivered.remove(&key).is_none() {
            state.mail.abandoned.insert(key);
        }
    }
}
