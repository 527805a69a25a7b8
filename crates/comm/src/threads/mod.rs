//! Ranks as threads of one process, over memory that they share.
//!
//! Blocking collectives lend their buffers to peers instead of copying them: in an all-reduce every rank reduces its own
//! slice of the elements straight from and into all peers' memory. Reductions fold in rank order, so results are the
//! same at every run. Disagreement between ranks (call, kind, length, reduction, root, counts) is an error on all of
//! them, and a rank that panics, ends or drops its handle is [`PeerGone`](crate::Error::PeerGone) to whoever waits for it.
//!
//! Blocking sends up to [`EAGER_BYTES`] are copied and return at once; longer ones wait for the receiver, as MPI's do,
//! so that an exchange that would deadlock there shows here as well.

mod hub;
mod mail;
mod round;
mod run;

use std::fmt;
use std::sync::Arc;

use self::hub::{Hub, Member};
use self::mail::{Payload, Receiving, Sending};
use self::round::{Deposit, Round, Signature, Started};
pub use self::run::{run, try_run, Failure};
use crate::arguments::Site;
use crate::buffer::lent::{lend, lend_mut, Lent, LentMut};
use crate::buffer::{Host, HostMut};
use crate::{reduce, Buffer, BufferMut, Call, Communicator, Kind, OwnedBuffer, Rank, ReduceOp, Request, Result, Tag};

/// The longest message, in bytes, whose blocking send does not wait for the receiver.
pub const EAGER_BYTES: usize = 4096;

/// One rank's handle of a group of threads.
///
/// # Examples
/// ```
/// use mp_comm::{threads, BufferMut, ReduceOp};
///
/// let sums = threads::run(4, |comm| {
///     let mut x = [comm.rank().0 as f32];
///     comm.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum)?;
///     Ok::<_, mp_comm::Error>(x[0])
/// });
/// assert_eq!(sums, [6.0; 4]);
/// ```
pub struct Threads {
    member: Arc<Member>,
    name: String,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Member { hub, rank } = &*self.member;
        f.debug_struct("Threads").field("name", &self.name).field("rank", rank).field("size", &hub.size).finish()
    }
}

impl Threads {
    /// Makes a group of `n`, one handle a rank, in rank order; each is to move to its own thread.
    pub fn group(n: usize, name: &str) -> Vec<Arc<dyn Communicator>> {
        let hub = Arc::new(Hub::new(name, n));
        (0..n).map(|rank| Self::handle(&hub, rank, name)).collect()
    }

    fn handle(hub: &Arc<Hub>, rank: usize, name: &str) -> Arc<dyn Communicator> {
        Arc::new(Self { member: Arc::new(Member { hub: Arc::clone(hub), rank }), name: name.into() })
    }

    fn hub(&self) -> &Hub {
        &self.member.hub
    }

    fn site(&self, call: Call) -> Site<'_> {
        Site { call, group: &self.hub().name, size: self.hub().size }
    }

    /// Tells the peers of a collective when this rank's own arguments were refused.
    fn checked<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|reason| self.hub().refuse(self.member.rank, reason))
    }

    /// Meets the peers with something to read, and hands all they brought to `copy`.
    fn exchange(&self, signature: Signature, deposit: Deposit, copy: impl FnOnce(Vec<Lent>)) -> Result<()> {
        let peers = self.hub().meet(self.member.rank, signature, deposit, |_| {}, shared)?;
        copy(peers);
        Ok(())
    }

    fn start(&self, signature: Signature, deposit: Deposit, compute: impl FnOnce(&mut [Deposit])) -> Result<Request> {
        let number = self.hub().start(self.member.rank, signature, deposit, compute);
        Ok(Request::new(Started { member: Arc::clone(&self.member), number }))
    }
}

/// Checks that both buffers of a call are the host's.
fn both<'a, 'b>(site: Site<'_>, send: Buffer<'a>, receive: BufferMut<'b>) -> Result<(Host<'a>, HostMut<'b>)> {
    Ok((site.host(send)?, site.host_mut(receive)?))
}

/// Takes a token of every rank's memory, in rank order; ranks that brought none are left out.
fn shared(round: &mut Round) -> Vec<Lent> {
    let tokens = round.deposits.iter().filter_map(|deposit| match deposit {
        Deposit::Shared(token) | Deposit::Runs { memory: token, .. } => Some(token.clone()),
        _ => None,
    });
    tokens.collect()
}

/// Cuts lent memory into one piece a rank, as even as whole elements allow.
fn pieces(mut memory: LentMut, kind: Kind, size: usize) -> Vec<Option<LentMut>> {
    let len = memory.len() / kind.bytes();
    let mut pieces = Vec::with_capacity(size);
    for rank in 0..size {
        let elements = len * (rank + 1) / size - len * rank / size;
        let (piece, rest) = memory.split_at(elements * kind.bytes());
        pieces.push(Some(piece));
        memory = rest;
    }
    pieces
}

/// Views what each rank writes in a started collective, and takes what it reads out of the way.
fn owned_parts(deposits: &mut [Deposit]) -> (Vec<Option<OwnedBuffer>>, Vec<&mut [u8]>) {
    let parts = deposits.iter_mut().filter_map(|deposit| match deposit {
        Deposit::Owned { send, receive } => Some((send.take(), receive.as_host_mut().into_bytes())),
        _ => None,
    });
    parts.unzip()
}

impl Communicator for Threads {
    fn name(&self) -> &str {
        &self.name
    }
    fn rank(&self) -> Rank {
        Rank(self.member.rank)
    }
    fn size(&self) -> usize {
        self.hub().size
    }
    fn local_rank(&self) -> Rank {
        self.rank()
    }
    fn local_size(&self) -> usize {
        self.size()
    }

    fn all_reduce(&self, buffer: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        let (site, kind) = (self.site(Call::AllReduce), buffer.kind());
        let mut buffer = self.checked(site.op(kind, op).and_then(|()| site.host_mut(buffer)))?;
        let signature =
            Signature { kind: Some(kind), len: buffer.len(), op: Some(op), ..Signature::new(Call::AllReduce) };
        let Member { hub, rank } = &*self.member;
        lend_mut(buffer.bytes_mut(), |memory| {
            let deposit = Deposit::Pieces(pieces(memory, kind, hub.size));
            let mut mine = hub.meet(*rank, signature, deposit, |_| {}, |round| column(round, *rank))?;
            let mut parts: Vec<&mut [u8]> = mine.iter_mut().map(|piece| &mut **piece).collect();
            reduce::in_all(&mut parts, kind, op);
            Ok(())
        })
    }

    fn reduce_scatter(&self, send: Buffer<'_>, receive: BufferMut<'_>, op: ReduceOp) -> Result<()> {
        let site = self.site(Call::ReduceScatter);
        let checked = site.reduce_scatter(send, receive.as_buffer(), op);
        let (send, mut receive) = self.checked(checked.and_then(|()| both(site, send, receive)))?;
        let signature =
            Signature { kind: Some(send.kind()), len: send.len(), op: Some(op), ..Signature::new(Call::ReduceScatter) };
        lend(send.bytes(), |memory| {
            self.exchange(signature, Deposit::Shared(memory), |peers| {
                let out = receive.bytes_mut();
                let range = self.member.rank * out.len()..(self.member.rank + 1) * out.len();
                let parts: Vec<&[u8]> = peers.iter().map(|peer| &peer[range.clone()]).collect();
                reduce::into(&parts, out, send.kind(), op);
            })
        })
    }

    fn all_gather(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        let site = self.site(Call::AllGather);
        let checked = site.all_gather(send, receive.as_buffer());
        let (send, mut receive) = self.checked(checked.and_then(|()| both(site, send, receive)))?;
        let signature = Signature { kind: Some(send.kind()), len: send.len(), ..Signature::new(Call::AllGather) };
        lend(send.bytes(), |memory| {
            self.exchange(signature, Deposit::Shared(memory), |peers| {
                let mut rest = receive.bytes_mut();
                for peer in &peers {
                    let run;
                    (run, rest) = rest.split_at_mut(peer.len());
                    run.copy_from_slice(peer);
                }
            })
        })
    }

    fn all_to_all(&self, send: Buffer<'_>, receive: BufferMut<'_>) -> Result<()> {
        let site = self.site(Call::AllToAll);
        let checked = site.all_to_all(send, receive.as_buffer());
        let (send, mut receive) = self.checked(checked.and_then(|()| both(site, send, receive)))?;
        let signature = Signature { kind: Some(send.kind()), len: send.len(), ..Signature::new(Call::AllToAll) };
        let run = send.bytes().len() / self.size();
        let mine = self.member.rank * run..(self.member.rank + 1) * run;
        lend(send.bytes(), |memory| {
            self.exchange(signature, Deposit::Shared(memory), |peers| {
                for (peer, out) in peers.iter().zip(receive.bytes_mut().chunks_exact_mut(run.max(1))) {
                    out.copy_from_slice(&peer[mine.clone()]);
                }
            })
        })
    }

    fn all_to_all_v(
        &self,
        send: Buffer<'_>,
        send_counts: &[usize],
        receive: BufferMut<'_>,
        receive_counts: &[usize],
    ) -> Result<()> {
        let (own, kind) = (self.rank(), send.kind());
        let site = self.site(Call::AllToAllV);
        let checked = site.all_to_all_v(own, (send, send_counts), (receive.as_buffer(), receive_counts));
        let (send, mut receive) = self.checked(checked.and_then(|()| both(site, send, receive)))?;
        let signature = Signature { kind: Some(kind), ..Signature::new(Call::AllToAllV) };
        lend(send.bytes(), |memory| {
            let (send, receive_counts) = (send_counts.to_vec(), receive_counts.to_vec());
            let deposit = Deposit::Runs { memory, send, receive: receive_counts };
            let runs = self.hub().meet(own.0, signature, deposit, |_| {}, |round| runs(round, own.0))?;
            let mut rest = receive.bytes_mut();
            for (peer, start, len) in runs {
                let out;
                (out, rest) = rest.split_at_mut(len * kind.bytes());
                out.copy_from_slice(&peer[start * kind.bytes()..(start + len) * kind.bytes()]);
            }
            Ok(())
        })
    }

    fn broadcast(&self, buffer: BufferMut<'_>, root: Rank) -> Result<()> {
        let site = self.site(Call::Broadcast);
        let mut buffer = self.checked(site.rank(root).and_then(|()| site.host_mut(buffer)))?;
        let signature = Signature {
            kind: Some(buffer.kind()),
            len: buffer.len(),
            root: Some(root),
            ..Signature::new(Call::Broadcast)
        };
        if self.rank() == root {
            return lend(buffer.bytes_mut(), |memory| self.exchange(signature, Deposit::Shared(memory), |_| {}));
        }
        self.exchange(signature, Deposit::Nothing, |peers| {
            peers.iter().for_each(|peer| buffer.bytes_mut().copy_from_slice(peer));
        })
    }

    fn send(&self, buffer: Buffer<'_>, to: Rank, tag: Tag) -> Result<()> {
        let site = self.site(Call::Send);
        site.peer(self.rank(), to)?;
        let buffer = site.host(buffer)?;
        let channel = (self.member.rank, to.0, tag.0);
        if buffer.bytes().len() <= EAGER_BYTES {
            let payload = Payload::Copied(buffer.bytes().to_vec());
            return self.hub().post(Call::Send, channel, buffer.kind(), payload).map(drop);
        }
        lend(buffer.bytes(), |memory| {
            let number = self.hub().post(Call::Send, channel, buffer.kind(), Payload::Lent(memory))?;
            self.hub().await_receipt(Call::Send, channel, number).map(drop)
        })
    }

    fn receive(&self, buffer: BufferMut<'_>, from: Rank, tag: Tag) -> Result<()> {
        let site = self.site(Call::Receive);
        site.rank(from)?;
        let channel = (from.0, self.member.rank, tag.0);
        self.hub().take(Call::Receive, channel, site.host_mut(buffer)?)
    }

    fn barrier(&self) -> Result<()> {
        self.exchange(Signature::new(Call::Barrier), Deposit::Nothing, |_| {})
    }

    fn start_all_reduce(&self, buffer: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        let kind = buffer.kind();
        let site = self.site(Call::StartAllReduce);
        self.checked(site.op(kind, op).and_then(|()| site.owned(&buffer)))?;
        let signature =
            Signature { kind: Some(kind), len: buffer.len(), op: Some(op), ..Signature::new(Call::StartAllReduce) };
        self.start(signature, Deposit::Owned { send: None, receive: buffer }, |deposits| {
            reduce::in_all(&mut owned_parts(deposits).1, kind, op);
        })
    }

    fn start_reduce_scatter(&self, send: OwnedBuffer, receive: OwnedBuffer, op: ReduceOp) -> Result<Request> {
        let kind = send.kind();
        let site = self.site(Call::StartReduceScatter);
        let checked = site.reduce_scatter(send.as_buffer(), receive.as_buffer(), op);
        self.checked(checked.and_then(|()| site.owned(&send)).and_then(|()| site.owned(&receive)))?;
        let signature =
            Signature { kind: Some(kind), len: send.len(), op: Some(op), ..Signature::new(Call::StartReduceScatter) };
        self.start(signature, Deposit::Owned { send: Some(send), receive }, |deposits| {
            let (sends, outs) = owned_parts(deposits);
            for (rank, out) in outs.into_iter().enumerate() {
                let range = rank * out.len()..(rank + 1) * out.len();
                let runs: Vec<&[u8]> = sends.iter().flatten().map(|s| &s.as_host().bytes()[range.clone()]).collect();
                reduce::into(&runs, out, kind, op);
            }
        })
    }

    fn start_all_gather(&self, send: OwnedBuffer, receive: OwnedBuffer) -> Result<Request> {
        let site = self.site(Call::StartAllGather);
        let checked = site.all_gather(send.as_buffer(), receive.as_buffer());
        self.checked(checked.and_then(|()| site.owned(&send)).and_then(|()| site.owned(&receive)))?;
        let signature = Signature { kind: Some(send.kind()), len: send.len(), ..Signature::new(Call::StartAllGather) };
        self.start(signature, Deposit::Owned { send: Some(send), receive }, |deposits| {
            let (sends, outs) = owned_parts(deposits);
            for out in outs {
                let runs = sends.iter().flatten().map(|s| s.as_host().bytes());
                let mut rest = out;
                for run in runs {
                    let here;
                    (here, rest) = rest.split_at_mut(run.len());
                    here.copy_from_slice(run);
                }
            }
        })
    }

    fn start_send(&self, buffer: OwnedBuffer, to: Rank, tag: Tag) -> Result<Request> {
        let site = self.site(Call::StartSend);
        site.rank(to)?;
        site.owned(&buffer)?;
        let channel = (self.member.rank, to.0, tag.0);
        let number = self.hub().post(Call::StartSend, channel, buffer.kind(), Payload::Owned(buffer))?;
        Ok(Request::new(Sending { member: Arc::clone(&self.member), to, tag, number }))
    }

    fn start_receive(&self, buffer: OwnedBuffer, from: Rank, tag: Tag) -> Result<Request> {
        let site = self.site(Call::StartReceive);
        site.rank(from)?;
        site.owned(&buffer)?;
        let (number, outcome) = self.hub().expect((from.0, self.member.rank, tag.0), buffer);
        let member = Arc::clone(&self.member);
        Ok(Request::new(Receiving { member, from, tag, number, outcome, wanted: true }))
    }

    /// Goes by the order, not by tags, so that ranks which start it in different orders hear of it here.
    fn start_send_receive(
        &self,
        send: OwnedBuffer,
        to: Rank,
        receive: OwnedBuffer,
        from: Rank,
        tag: Tag,
    ) -> Result<Request> {
        let site = self.site(Call::StartSendReceive);
        let checked = site.paired(self.rank(), to, from).and_then(|()| site.owned(&send));
        self.checked(checked.and_then(|()| site.owned(&receive)))?;
        let signature = Signature { tag: Some(tag), ..Signature::new(Call::StartSendReceive) };
        let deposit = Deposit::Paired { send: Some(send), to: to.0, receive, from: from.0 };
        self.start(signature, deposit, hand_over)
    }

    fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Arc<dyn Communicator>>> {
        let rank = self.member.rank;
        let wish = Deposit::Wish { color, key, name: name.into() };
        let place =
            self.hub().meet(rank, Signature::new(Call::Split), wish, seat, |round| {
                match std::mem::replace(&mut round.deposits[rank], Deposit::Nothing) {
                    Deposit::Place(place) => place,
                    _ => None,
                }
            })?;
        Ok(place.map(|(hub, rank)| Self::handle(&hub, rank, name)))
    }
}

/// Copies what each rank sends to where its receiver wants it.
fn hand_over(deposits: &mut [Deposit]) {
    for rank in 0..deposits.len() {
        let Deposit::Paired { send, to, .. } = &mut deposits[rank] else { continue };
        let (sent, to) = (send.take(), *to);
        if let (Some(sent), Deposit::Paired { receive, .. }) = (sent, &mut deposits[to]) {
            receive.as_host_mut().bytes_mut().copy_from_slice(sent.as_host().bytes());
        }
    }
}

/// Takes one rank's piece of everybody's memory.
fn column(round: &mut Round, rank: usize) -> Vec<LentMut> {
    let taken = round.deposits.iter_mut().filter_map(|deposit| match deposit {
        Deposit::Pieces(pieces) => pieces[rank].take(),
        _ => None,
    });
    taken.collect()
}

/// Finds, in every rank's memory, the run for one rank: token, first element, elements.
fn runs(round: &mut Round, rank: usize) -> Vec<(Lent, usize, usize)> {
    let runs = round.deposits.iter().filter_map(|deposit| match deposit {
        Deposit::Runs { memory, send, .. } => Some((memory.clone(), send[..rank].iter().sum(), send[rank])),
        _ => None,
    });
    runs.collect()
}

/// Answers everybody's wish for a new group.
fn seat(round: &mut Round) {
    let mut wishes: Vec<(u32, u32, usize, String)> = Vec::new();
    for (rank, deposit) in round.deposits.iter_mut().enumerate() {
        if let Deposit::Wish { color: Some(color), key, name } = deposit {
            wishes.push((*color, *key, rank, std::mem::take(name)));
        }
    }
    wishes.sort();
    for group in wishes.chunk_by(|a, b| a.0 == b.0) {
        let hub = Arc::new(Hub::new(&group[0].3, group.len()));
        for (new, (_, _, old, _)) in group.iter().enumerate() {
            round.deposits[*old] = Deposit::Place(Some((Arc::clone(&hub), new)));
        }
    }
}
