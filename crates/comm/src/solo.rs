//! A group of one rank, which answers at once.
//!
//! Layers are written for groups; with [`Solo`] a single process is a group like any other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::arguments::Site;
use crate::buffer::HostMut;
use crate::communicator::Pending;
use crate::{Buffer, BufferMut, Call, Communicator, Error, Kind, OwnedBuffer, Rank, ReduceOp, Request, Result, Tag};

/// A group of one: collectives copy what there is to copy, messages go from the rank to itself.
///
/// Of memory on a device it takes what needs no copy, an all-reduce or a broadcast; for the rest wrap it in
/// [`Staged`](crate::staged::Staged).
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
    mailbox: Arc<Mailbox>,
}

/// One message.
#[derive(Debug)]
struct Message {
    kind: Kind,
    bytes: Vec<u8>,
}

/// Where a started receive finds its message.
type Slot = Arc<OnceLock<Message>>;

/// What is under way with one tag: messages that no receive has claimed, or receives that no message has reached.
#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    waiting: VecDeque<Slot>,
}

impl Queue {
    /// Gives a message to the first receive that waits.
    fn send(&mut self, message: Message) {
        match self.waiting.pop_front() {
            Some(slot) => _ = slot.set(message),
            None => self.messages.push_back(message),
        }
    }

    /// Claims the next message, or a place in the queue for one.
    fn claim(&mut self) -> Slot {
        let slot = Slot::default();
        match self.messages.pop_front() {
            Some(message) => _ = slot.set(message),
            None => self.waiting.push_back(Arc::clone(&slot)),
        }
        slot
    }

    /// Gives a place in the queue up.
    fn leave(&mut self, slot: &Slot) {
        self.waiting.retain(|other| !Arc::ptr_eq(other, slot));
    }
}

type Mailbox = Mutex<BTreeMap<u16, Queue>>;

/// Runs something on one tag's queue.
fn with_queue<R>(mailbox: &Mailbox, tag: Tag, body: impl FnOnce(&mut Queue) -> R) -> R {
    let mut queues = mailbox.lock().unwrap_or_else(PoisonError::into_inner);
    body(queues.entry(tag.0).or_default())
}

impl Solo {
    /// Makes a group of one.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), mailbox: Arc::default() }
    }

    fn site(&self, call: Call) -> Site<'_> {
        Site { call, group: &self.name, size: 1 }
    }

    fn receiving(&self, tag: Tag) -> Inbox {
        let slot = with_queue(&self.mailbox, tag, Queue::claim);
        Inbox { group: self.name.clone(), mailbox: Arc::clone(&self.mailbox), tag, slot }
    }
}

/// Copies what this rank sends to where it receives.
fn copy(site: Site<'_>, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
    site.host_mut(receive)?.bytes_mut().copy_from_slice(site.host(send)?.bytes());
    Ok(())
}

/// The right to one message.
struct Inbox {
    group: String,
    mailbox: Arc<Mailbox>,
    tag: Tag,
    slot: Slot,
}

impl Inbox {
    /// Copies the message out. Where there is none the right to it ends, so that the next receive has it.
    fn take(&self, call: Call, mut buffer: HostMut<'_>) -> Result<()> {
        let sent = with_queue(&self.mailbox, self.tag, |queue| {
            queue.leave(&self.slot);
            self.slot.get()
        });
        let Some(Message { kind, bytes }) = sent else {
            return Err(Error::NeverSent { call, group: self.group.clone(), tag: self.tag.0 });
        };
        let site = Site { call, group: &self.group, size: 1 };
        site.kind(buffer.kind(), *kind)?;
        site.length("the message", buffer.len(), bytes.len() / kind.bytes())?;
        buffer.bytes_mut().copy_from_slice(bytes);
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
        Ok(self.inbox.slot.get().is_some())
    }
    fn finish(mut self: Box<Self>) -> Result<OwnedBuffer> {
        self.inbox.take(Call::StartReceive, self.buffer.as_host_mut())?;
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

    fn reduce_scatter(&self, send: Buffer<'_>, receive: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        let site = self.site(Call::ReduceScatter);
        site.reduce_scatter(send, receive.as_buffer(), op)?;
        copy(site, send, receive)
    }

    fn all_gather(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        let site = self.site(Call::AllGather);
        site.all_gather(send, receive.as_buffer())?;
        copy(site, send, receive)
    }

    fn all_to_all(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        let site = self.site(Call::AllToAll);
        site.all_to_all(send, receive.as_buffer())?;
        copy(site, send, receive)
    }

    fn all_to_all_v(
        &self,
        send: Buffer<'_>,
        send_counts: &[usize],
        receive: BufferMut<'_>,
        receive_counts: &[usize],
    ) -> Result<()> {
        let site = self.site(Call::AllToAllV);
        site.all_to_all_v(Rank(0), (send, send_counts), (receive.as_buffer(), receive_counts))?;
        copy(site, send, receive)
    }

    fn broadcast(&self, _buffer: BufferMut<'_>, root: Rank) -> Result<()> {
        self.site(Call::Broadcast).rank(root)
    }

    fn send(&self, _buffer: Buffer<'_>, to: Rank, _tag: Tag) -> Result<()> {
        self.site(Call::Send).peer(Rank(0), to)
    }

    fn receive(&self, buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<()> {
        let site = self.site(Call::Receive);
        site.rank(from)?;
        let buffer = site.host_mut(buffer)?;
        self.receiving(tag).take(Call::Receive, buffer)
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        self.site(Call::StartAllReduce).op(buffer.kind(), op)?;
        Ok(Request::ready(buffer))
    }

    fn start_reduce_scatter(&self, send: OwnedBuffer, mut receive: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        let site = self.site(Call::StartReduceScatter);
        site.reduce_scatter(send.as_buffer(), receive.as_buffer(), op)?;
        copy(site, send.as_buffer(), receive.as_buffer_mut())?;
        Ok(Request::ready(receive))
    }

    fn start_all_gather(&self, send: OwnedBuffer, mut receive: OwnedBuffer) -> Result<Request> {
        let site = self.site(Call::StartAllGather);
        site.all_gather(send.as_buffer(), receive.as_buffer())?;
        copy(site, send.as_buffer(), receive.as_buffer_mut())?;
        Ok(Request::ready(receive))
    }

    fn start_send(&self, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Request> {
        let site = self.site(Call::StartSend);
        site.rank(to)?;
        let message = Message { kind: buffer.kind(), bytes: site.host(buffer.as_buffer())?.bytes().to_vec() };
        with_queue(&self.mailbox, tag, |queue| queue.send(message));
        Ok(Request::ready(buffer))
    }

    fn start_receive(&self, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Request> {
        let site = self.site(Call::StartReceive);
        site.rank(from)?;
        site.owned(&buffer)?;
        Ok(Request::new(Receiving { inbox: self.receiving(tag), buffer }))
    }

    fn start_send_receive(
        &self,
        send: OwnedBuffer,
        to: Rank,
        mut receive: OwnedBuffer,
        from: Rank,
        _tag: Tag,
    ) -> Result<Request> {
        let site = self.site(Call::StartSendReceive);
        site.paired(Rank(0), to, from)?;
        site.kind(receive.kind(), send.kind())?;
        site.length("the message", receive.len(), send.len())?;
        copy(site, send.as_buffer(), receive.as_buffer_mut())?;
        Ok(Request::ready(receive))
    }

    fn split(&self, color: Option<u32>, _key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>> {
        Ok(color.map(|_| Arc::new(Solo::new(name)) as Arc<dyn Communicator>))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(solo: &Solo, value: u8) {
        solo.start_send(vec![value].into(), Rank(0), Tag(4)).and_then(Request::wait).expect("a send");
    }

    #[test]
    fn a_receive_that_nobody_can_answer_takes_no_message_away() {
        let solo = Solo::new("alone");
        let mut x = [0u8; 1];
        let never = |call| Error::NeverSent { call, group: "alone".into(), tag: 4 };
        assert_eq!(solo.receive(BufferMut::new(&mut x), Rank(0), Tag(4)), Err(never(Call::Receive)));
        let started = solo.start_receive(vec![0u8].into(), Rank(0), Tag(4)).expect("a receive");
        assert_eq!(started.wait().map(drop), Err(never(Call::StartReceive)));

        send(&solo, 7);
        solo.receive(BufferMut::new(&mut x), Rank(0), Tag(4)).expect("the message");
        assert_eq!(x, [7]);
    }

    #[test]
    fn messages_go_to_receives_in_the_order_of_their_starts() {
        let solo = Solo::new("alone");
        send(&solo, 1);
        let start = || solo.start_receive(vec![0u8].into(), Rank(0), Tag(4)).expect("a receive");
        let (first, dropped, third) = (start(), start(), start());
        // A request that is dropped still takes its message.
        drop(dropped);
        send(&solo, 2);
        send(&solo, 3);
        send(&solo, 4);
        let mut x = [0u8; 1];
        solo.receive(BufferMut::new(&mut x), Rank(0), Tag(4)).expect("a message");
        let of = |request: Request| request.wait().expect("a message").to_vec::<u8>();
        assert_eq!((of(third), of(first), x), (vec![3], vec![1], [4]));
    }
}
