//! One collective: every rank's arrival, the verdict whether they meant the same, and what they brought.

use std::fmt;
use std::sync::Arc;

use super::hub::{gone, Hub, Member};
use crate::buffer::lent::{Lent, LentMut};
use crate::{Call, Error, Kind, OwnedBuffer, Rank, ReduceOp, Result, Tag};

/// What must agree between the ranks of a collective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Signature {
    pub(super) call: Call,
    pub(super) kind: Option<Kind>,
    pub(super) len: usize,
    pub(super) op: Option<ReduceOp>,
    pub(super) root: Option<Rank>,
    pub(super) tag: Option<Tag>,
}

impl Signature {
    pub(super) fn new(call: Call) -> Self {
        Self { call, kind: None, len: 0, op: None, root: None, tag: None }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.call)?;
        if let Some(kind) = self.kind {
            write!(f, " of {} {kind:?}", self.len)?;
        }
        if let Some(op) = self.op {
            write!(f, ", {op:?}")?;
        }
        if let Some(root) = self.root {
            write!(f, ", root {}", root.0)?;
        }
        if let Some(tag) = self.tag {
            write!(f, " with tag {}", tag.0)?;
        }
        Ok(())
    }
}

/// What a rank brings to a round.
pub(super) enum Deposit {
    /// Its presence.
    Nothing,
    /// Memory that all peers read.
    Shared(Lent),
    /// Memory that peers read by runs of these lengths, in elements, with the lengths that it expects.
    Runs { memory: Lent, send: Vec<usize>, receive: Vec<usize> },
    /// Memory cut into one piece a rank, each reduced and overwritten by that rank.
    Pieces(Vec<Option<LentMut>>),
    /// Memory of a non-blocking call; `receive` holds the result in the end.
    Owned { send: Option<OwnedBuffer>, receive: OwnedBuffer },
    /// Memory that one rank gets, and memory that is filled by one; `send` is taken by the last to arrive.
    Paired { send: Option<OwnedBuffer>, to: usize, receive: OwnedBuffer, from: usize },
    /// A wish for a new group, answered by the last to arrive.
    Wish { color: Option<u32>, key: u32, name: String },
    /// The new group.
    Place(Option<(Arc<Hub>, usize)>),
}

/// A collective under way.
pub(super) struct Round {
    first: Option<(usize, Signature)>,
    arrived: Vec<bool>,
    /// Ranks that have what they came for, or never will.
    through: Vec<bool>,
    pub(super) deposits: Vec<Deposit>,
    /// `None` until all have arrived or one failed.
    pub(super) verdict: Option<Result<()>>,
}

impl Round {
    fn new(size: usize) -> Self {
        Self {
            first: None,
            arrived: vec![false; size],
            through: vec![false; size],
            deposits: (0..size).map(|_| Deposit::Nothing).collect(),
            verdict: None,
        }
    }

    /// Notes an arrival; says whether all have now arrived in agreement.
    fn arrive(&mut self, group: &str, rank: usize, signature: Signature, deposit: Deposit) -> bool {
        self.arrived[rank] = true;
        if self.verdict.is_some() {
            return false;
        }
        let (first, expected) = *self.first.get_or_insert((rank, signature));
        if signature != expected {
            self.fail(Error::Mismatch {
                group: group.into(),
                first: Rank(first),
                first_call: expected.to_string(),
                second: Rank(rank),
                second_call: signature.to_string(),
            });
            return false;
        }
        self.deposits[rank] = deposit;
        self.arrived.iter().all(|here| *here) && self.runs_agree(group) && self.pairs_agree(group)
    }

    /// Compares what each rank of a paired send and receive sends with what its receiver expects.
    fn pairs_agree(&mut self, group: &str) -> bool {
        let mut wrong = None;
        for (rank, sender) in self.deposits.iter().enumerate() {
            let Deposit::Paired { send: Some(send), to, .. } = sender else { return true };
            let Deposit::Paired { receive, from, .. } = &self.deposits[*to] else { return true };
            if (*from, receive.kind(), receive.len()) != (rank, send.kind(), send.len()) {
                let call = |len: usize, kind: Kind, end: &str, peer: usize| {
                    format!("{} of {len} {kind:?} {end} rank {peer}", Call::StartSendReceive)
                };
                let sends = call(send.len(), send.kind(), "to", *to);
                wrong = Some((rank, sends, *to, call(receive.len(), receive.kind(), "from", *from)));
            }
        }
        let Some((first, first_call, second, second_call)) = wrong else { return true };
        let (first, second) = (Rank(first), Rank(second));
        self.fail(Error::Mismatch { group: group.into(), first, first_call, second, second_call });
        false
    }

    /// Compares what each pair of ranks of an uneven all-to-all promised each other.
    fn runs_agree(&mut self, group: &str) -> bool {
        let mut wrong = None;
        for (from, sender) in self.deposits.iter().enumerate() {
            let Deposit::Runs { send, .. } = sender else { return true };
            for (to, receiver) in self.deposits.iter().enumerate() {
                let Deposit::Runs { receive, .. } = receiver else { return true };
                if send[to] != receive[from] {
                    wrong = Some((from, to, send[to], receive[from]));
                }
            }
        }
        let Some((from, to, sent, expected)) = wrong else { return true };
        self.fail(Error::Mismatch {
            group: group.into(),
            first: Rank(from),
            first_call: format!("{} with {sent} elements for rank {to}", Call::AllToAllV),
            second: Rank(to),
            second_call: format!("{} with {expected} elements from rank {from}", Call::AllToAllV),
        });
        false
    }

    /// Ends the round with an error and gives lent memory back.
    fn fail(&mut self, error: Error) {
        self.verdict = Some(Err(error));
        self.deposits.iter_mut().for_each(|d| *d = Deposit::Nothing);
    }

    /// Fails the round if it still waits for `rank`.
    pub(super) fn lose(&mut self, group: &str, rank: usize) {
        if self.arrived[rank] {
            return;
        }
        self.through[rank] = true;
        if self.verdict.is_none() {
            let call = self.first.map_or(Call::Barrier, |(_, signature)| signature.call);
            self.fail(gone(call, group, rank));
        }
    }
}

impl Hub {
    /// Enters the rank's next round without meeting it: its own arguments were refused, and peers must hear of it.
    pub(super) fn refuse(&self, rank: usize, reason: Error) -> Error {
        let mut state = self.lock();
        let number = state.enter(rank, self);
        if let Some(round) = state.rounds.get_mut(&number) {
            round.arrived[rank] = true;
            if round.verdict.is_none() {
                let reason = Box::new(reason.clone());
                round.fail(Error::PeerRefused { group: self.name.clone(), peer: Rank(rank), reason });
            }
        }
        state.pass(number, rank);
        self.notify();
        reason
    }

    /// Brings a deposit to the rank's next round, blocks until the verdict, and takes from the round with `take`.
    ///
    /// `last` runs once, on the last to arrive, before anybody takes.
    pub(super) fn meet<R>(
        &self,
        rank: usize,
        signature: Signature,
        deposit: Deposit,
        last: impl FnOnce(&mut Round),
        take: impl FnOnce(&mut Round) -> R,
    ) -> Result<R> {
        let mut state = self.lock();
        let number = state.enter(rank, self);
        if let Some(round) = state.rounds.get_mut(&number) {
            if round.arrive(&self.name, rank, signature, deposit) {
                last(round);
                round.verdict = Some(Ok(()));
            }
            if round.verdict.is_some() {
                self.notify();
            }
        }
        drop(state);
        self.collect(number, rank, take)
    }

    /// Blocks until a round's verdict and takes from it.
    pub(super) fn collect<R>(&self, number: u64, rank: usize, take: impl FnOnce(&mut Round) -> R) -> Result<R> {
        let mut take = Some(take);
        self.wait_for(|state| {
            let round = state.rounds.get_mut(&number)?;
            let verdict = round.verdict.clone()?;
            let answer = verdict.map(|()| take.take().map(|t| t(round)));
            state.pass(number, rank);
            // `take` is there, since this closure answers once.
            Some(answer.map(Option::unwrap))
        })
    }

    /// Brings owned buffers to the rank's next round; the last to arrive computes. Returns the round's number.
    pub(super) fn start(
        &self,
        rank: usize,
        signature: Signature,
        deposit: Deposit,
        compute: impl FnOnce(&mut [Deposit]),
    ) -> u64 {
        let mut state = self.lock();
        let number = state.enter(rank, self);
        let Some(round) = state.rounds.get_mut(&number) else { return number };
        let complete = round.arrive(&self.name, rank, signature, deposit);
        if !complete {
            self.notify();
            return number;
        }
        let mut deposits = std::mem::take(&mut round.deposits);
        drop(state);
        let mut outcome = Outcome { hub: self, number, rank, call: signature.call, deposits: None };
        compute(&mut deposits);
        outcome.deposits = Some(deposits);
        number
    }

    /// Says whether a round has its verdict.
    pub(super) fn is_decided(&self, number: u64) -> bool {
        self.lock().rounds.get(&number).is_none_or(|round| round.verdict.is_some())
    }

    /// Gives up what a rank would have taken from a round.
    pub(super) fn forgo(&self, number: u64, rank: usize) {
        self.lock().pass(number, rank);
    }
}

/// Publishes what the last to arrive computed, or that it panicked over it.
struct Outcome<'a> {
    hub: &'a Hub,
    number: u64,
    rank: usize,
    call: Call,
    deposits: Option<Vec<Deposit>>,
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        if let Some(round) = state.rounds.get_mut(&self.number) {
            match self.deposits.take() {
                Some(deposits) => {
                    round.deposits = deposits;
                    round.verdict = Some(Ok(()));
                }
                None => round.fail(gone(self.call, &self.hub.name, self.rank)),
            }
        }
        self.hub.notify();
    }
}

impl super::hub::State {
    /// Counts a rank into its next round, which is made by the first to come; fails it if somebody can never come.
    fn enter(&mut self, rank: usize, hub: &Hub) -> u64 {
        let number = self.entered[rank];
        self.entered[rank] += 1;
        let round = self.rounds.entry(number).or_insert_with(|| {
            let mut round = Round::new(hub.size);
            for peer in 0..hub.size {
                if self.gone[peer] && self.entered[peer] <= number {
                    round.lose(&hub.name, peer);
                }
            }
            round
        });
        debug_assert!(!round.arrived[rank]);
        number
    }

    /// Notes that a rank is through with a round; the last one removes it.
    fn pass(&mut self, number: u64, rank: usize) {
        let Some(round) = self.rounds.get_mut(&number) else { return };
        round.through[rank] = true;
        if round.through.iter().all(|through| *through) {
            self.rounds.remove(&number);
        }
    }
}

/// A non-blocking collective of one rank.
pub(super) struct Started {
    pub(super) member: Arc<Member>,
    pub(super) number: u64,
}

impl crate::communicator::Pending for Started {
    fn poll(&mut self) -> Result<bool> {
        Ok(self.member.hub.is_decided(self.number))
    }

    fn finish(self: Box<Self>) -> Result<OwnedBuffer> {
        let rank = self.member.rank;
        self.member.hub.collect(self.number, rank, |round| {
            match std::mem::replace(&mut round.deposits[rank], Deposit::Nothing) {
                Deposit::Owned { receive, .. } | Deposit::Paired { receive, .. } => receive,
                _ => unreachable!("a started round holds owned buffers"),
            }
        })
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.member.hub.forgo(self.number, self.member.rank);
    }
}
