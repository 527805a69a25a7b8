//! A group of one rank, which answers at once.
//!
//! Layers are written for groups; with [`Solo`] a single process is a group like any other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::arguments::Site;
use crate::communicator::Pending;
use crate::{Buffer, BufferMut, Call, Communicator, Error, Kind, OwnedBuffer, Rank, ReduceOp, Request, Result, Tag};

/// A group of one: collectives copy what there is to copy, messages go from the rank to itself.
///
/// # Examples
/// ```
/// use mp_comm::{solo::Solo, BufferMut, Communicator, ReduceOp};
///
/// let alone = Solo::new("tp");
/// let mut x = [1.0f32, 2.0];
/// alone.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum)?;
/// assert_eq!(x, [1.0, 2.0]);
/// # Ok::<(), mp_comm::Error>(())
/// ```
#[derive(Debug)]
pub struct Solo {
    name: String,
    mailbox: Arc<Mutex<Mailbox>>,
}

/// Messages from the rank to itself, numbered by tag in the order of sends and of receives.
#[derive(Debug, Default)]
struct Mailbox {
    messages: BTreeMap<(u16, u64), (Kind, Vec<u8>)>,
    sent: BTreeMap<u16, u64>,
    posted: BTreeMap<u16, u64>,
}

fn next(counters: &mut BTreeMap<u16, u64>, tag: Tag) -> u64 {
    let counter = counters.entry(tag.0).or_default();
    *counter += 1;
    *counter
}

fn lock(mailbox: &Mutex<Mailbox>) -> MutexGuard<'_, Mailbox> {
    mailbox.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Solo {
    /// Makes a group of one.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), mailbox: Arc::default() }
    }

    fn site(&self, call: Call) -> Site<'_> {
        Site { call, group: &self.name, size: 1 }
    }

    fn post(&self, tag: Tag) -> Inbox {
        let number = next(&mut lock(&self.mailbox).posted, tag);
        Inbox { group: self.name.clone(), mailbox: Arc::clone(&self.mailbox), tag, number }
    }
}

/// The right to one message.
struct Inbox {
    group: String,
    mailbox: Arc<Mutex<Mailbox>>,
    tag: Tag,
    number: u64,
}

impl Inbox {
    fn arrived(&self) -> bool {
        lock(&self.mailbox).messages.contains_key(&(self.tag.0, self.number))
    }

    fn take(&self, call: Call, mut buffer: BufferMut<'_>) -> Result<()> {
        let message = lock(&self.mailbox).messages.remove(&(self.tag.0, self.number));
        let Some((kind, bytes)) = message else {
            return Err(Error::NeverSent { call, group: self.group.clone(), tag: self.tag.0 });
        };
        let site = Site { call, group: &self.group, size: 1 };
        site.kind(buffer.kind(), kind)?;
        site.length("the message", buffer.len(), bytes.len() / kind.bytes())?;
        buffer.bytes_mut().copy_from_slice(&bytes);
        Ok(())
    }
}

/// A started receive.
struct Receiving {
    inbox: Inbox,
    buffer: OwnedBuffer,
}

impl Pending for Receiving {
    fn poll(&mut self) -> Result<bool> {
        Ok(self.inbox.arrived())
    }
    fn finish(mut self: Box<Self>) -> Result<OwnedBuffer> {
        self.inbox.take(Call::StartReceive, self.buffer.as_buffer_mut())?;
        Ok(self.buffer)
    }
}

impl Communicator for Solo {
    fn name(&self) -> &str {
        &self.name
    }
    fn rank(&self) -> Rank {
        Rank(0)
    }
    fn size(&self) -> usize {
        1
    }
    fn local_rank(&self) -> Rank {
        Rank(0)
    }
    fn local_size(&self) -> usize {
        1
    }

    fn all_reduce(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        self.site(Call::AllReduce).op(buffer.kind(), op)
    }

    fn reduce_scatter(&self, send: Buffer<'_>, mut receive: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        self.site(Call::ReduceScatter).reduce_scatter(send, receive.as_buffer(), op)?;
        receive.bytes_mut().copy_from_slice(send.bytes());
        Ok(())
    }

    fn all_gather(&self, send: Buffer<'_>, mut receive: BufferMut<'_>) -> Result<()> {
        self.site(Call::AllGather).all_gather(send, receive.as_buffer())?;
        receive.bytes_mut().copy_from_slice(send.bytes());
        Ok(())
    }

    fn all_to_all(&self, send: Buffer<'_>, mut receive: BufferMut<'_>) -> Result<()> {
        self.site(Call::AllToAll).all_to_all(send, receive.as_buffer())?;
        receive.bytes_mut().copy_from_slice(send.bytes());
        Ok(())
    }

    fn all_to_all_v(
        &self,
        send: Buffer<'_>,
        send_counts: &[usize],
        mut receive: BufferMut<'_>,
        receive_counts: &[usize],
    ) -> Result<()> {
        let site = self.site(Call::AllToAllV);
        site.all_to_all_v(Rank(0), (send, send_counts), (receive.as_buffer(), receive_counts))?;
        receive.bytes_mut().copy_from_slice(send.bytes());
        Ok(())
    }

    fn broadcast(&self, _buffer: BufferMut<'_>, root: Rank) -> Result<()> {
        self.site(Call::Broadcast).rank(root)
    }

    fn send(&self, _buffer: Buffer<'_>, to: Rank, _tag: Tag) -> Result<()> {
        self.site(Call::Send).peer(Rank(0), to)
    }

    fn receive(&self, buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<()> {
        self.site(Call::Receive).rank(from)?;
        self.post(tag).take(Call::Receive, buffer)
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        self.site(Call::StartAllReduce).op(buffer.kind(), op)?;
        Ok(Request::ready(buffer))
    }

    fn start_reduce_scatter(&self, send: OwnedBuffer, mut receive: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        self.site(Call::StartReduceScatter).reduce_scatter(send.as_buffer(), receive.as_buffer(), op)?;
        receive.as_buffer_mut().bytes_mut().copy_from_slice(send.as_buffer().bytes());
        Ok(Request::ready(receive))
    }

    fn start_all_gather(&self, send: OwnedBuffer, mut receive: OwnedBuffer) -> Result<Request> {
        self.site(Call::StartAllGather).all_gather(send.as_buffer(), receive.as_buffer())?;
        receive.as_buffer_mut().bytes_mut().copy_from_slice(send.as_buffer().bytes());
        Ok(Request::ready(receive))
    }

    fn start_send(&self, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Request> {
        self.site(Call::StartSend).rank(to)?;
        let mut mailbox = lock(&self.mailbox);
        let number = next(&mut mailbox.sent, tag);
        let bytes = buffer.as_buffer().bytes().to_vec();
        mailbox.messages.insert((tag.0, number), (buffer.kind(), bytes));
        drop(mailbox);
        Ok(Request::ready(buffer))
    }

    fn start_receive(&self, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Request> {
        self.site(Call::StartReceive).rank(from)?;
        Ok(Request::new(Receiving { inbox: self.post(tag), buffer }))
    }

    fn split(&self, color: Option<u32>, _key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>> {
        Ok(color.map(|_| Arc::new(Solo::new(name)) as Arc<dyn Communicator>))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receive_that_nobody_can_answer_is_an_error() {
        let solo = Solo::new("alone");
        let mut x = [0u8; 1];
        let error = solo.receive(BufferMut::new(&mut x), Rank(0), Tag(4)).unwrap_err();
        assert_eq!(error, Error::NeverSent { call: Call::Receive, group: "alone".into(), tag: 4 });
    }
}
