//! Messages between two ranks.
//!
//! The `k`-th receive of a channel (sender, receiver, tag) gets the `k`-th message sent on it, in whatever order
//! requests are completed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::hub::{gone, Hub, Member};
use crate::arguments::Site;
use crate::buffer::lent::Lent;
use crate::communicator::Pending;
use crate::{BufferMut, Call, Kind, OwnedBuffer, Rank, Result, Tag};

/// Sender, receiver and tag.
pub(super) type Channel = (usize, usize, u16);

/// All messages under way in a group.
#[derive(Default)]
pub(super) struct Mail {
    sent: HashMap<Channel, u64>,
    posted: HashMap<Channel, u64>,
    messages: HashMap<(Channel, u64), Message>,
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
            Payload::Owned(buffer) => buffer.as_buffer().bytes(),
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
        if waits {
            state.mail.receipts.insert(key, None);
        }
        state.mail.messages.insert(key, Message { kind, payload });
        self.notify();
        Ok(key.1)
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

    /// Takes the next place in a channel's queue of receives.
    pub(super) fn queue(&self, channel: Channel) -> u64 {
        let mut state = self.lock();
        let counter = state.mail.posted.entry(channel).or_default();
        *counter += 1;
        *counter - 1
    }

    /// Blocks until a message is there and copies it out.
    pub(super) fn take(&self, call: Call, channel: Channel, number: u64, mut buffer: BufferMut<'_>) -> Result<()> {
        let key = (channel, number);
        let message = self.wait_for(|state| match state.mail.messages.remove(&key) {
            Some(message) => Some(Ok(message)),
            None if state.gone[channel.0] => Some(Err(gone(call, &self.name, channel.0))),
            None => None,
        })?;
        let Message { kind, payload } = message;
        let site = Site { call, group: &self.name, size: self.size };
        let outcome = site
            .kind(buffer.kind(), kind)
            .and_then(|()| site.length("the message", buffer.len(), payload.bytes().len() / kind.bytes()));
        if outcome.is_ok() {
            buffer.bytes_mut().copy_from_slice(payload.bytes());
        }
        let returned = payload.into_buffer();
        if let Some(receipt) = self.lock().mail.receipts.get_mut(&key) {
            *receipt = Some(outcome.clone().map(|()| returned));
        }
        self.notify();
        outcome
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
    /// `None` once it was asked for.
    pub(super) buffer: Option<OwnedBuffer>,
}

impl Receiving {
    fn channel(&self) -> Channel {
        (self.from.0, self.member.rank, self.tag.0)
    }
}

impl Pending for Receiving {
    fn poll(&mut self) -> Result<bool> {
        let key = (self.channel(), self.number);
        let state = self.member.hub.lock();
        Ok(state.gone[self.from.0] || state.mail.messages.contains_key(&key))
    }

    fn finish(mut self: Box<Self>) -> Result<OwnedBuffer> {
        let mut buffer = self.buffer.take().unwrap_or_else(|| unreachable!("a request finishes once"));
        self.member.hub.take(Call::StartReceive, self.channel(), self.number, buffer.as_buffer_mut())?;
        Ok(buffer)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if self.buffer.is_none() {
            return;
        }
        let key = (self.channel(), self.number);
        let mut state = self.member.hub.lock();
        let mail = &mut state.mail;
        match mail.messages.remove(&key) {
            Some(message) => {
                if let Some(receipt) = mail.receipts.get_mut(&key) {
                    *receipt = Some(Ok(message.payload.into_buffer()));
                }
            }
            None => _ = mail.abandoned.insert(key),
        }
        self.member.hub.notify();
    }
}
