//! Started calls: all copies down at once, then into the communicator inside in order, then up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::blocking::Lane;
use super::slots::Home;
use super::steps::Step;
use super::{lock, Shared};
use crate::accelerator::order;
use crate::communicator::Pending;
use crate::{Communicator, Error, Event, Kind, OwnedBuffer, Rank, ReduceOp, Request, Result, Tag};

/// Which call, with what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum What {
    AllReduce(ReduceOp),
    ReduceScatter(ReduceOp),
    AllGather,
    Send(Rank, Tag),
    Receive(Rank, Tag),
}

/// A call under way. The buffer that is only read, where there are two, is kept by the accelerator.
pub(super) struct Operation {
    inner: Arc<dyn Communicator>,
    what: What,
    kind: Kind,
    /// Steps on their way down.
    down: VecDeque<(Step, Lane)>,
    /// Steps in the communicator inside.
    inside: VecDeque<Inside>,
    /// The buffer that comes back; `None` once it has.
    to: Option<OwnedBuffer>,
    /// The end of the last copy.
    last: Box<dyn Event>,
    failed: Option<Error>,
}

/// A step in the communicator inside, and where its memory comes back to.
struct Inside {
    step: Step,
    request: Request,
    send: Home,
    receive: Option<Home>,
}

impl Operation {
    /// Queues the copies down.
    pub(super) fn new(
        shared: &Shared,
        inner: Arc<dyn Communicator>,
        what: What,
        steps: Vec<Step>,
        (from, to): (Option<OwnedBuffer>, OwnedBuffer),
    ) -> Result<Self> {
        let accelerator = &*shared.accelerator;
        order(accelerator, accelerator.current()?, shared.side)?;
        let source = from.as_ref().unwrap_or(&to).device();
        let mut down = VecDeque::new();
        for step in steps {
            let lane = shared.descend(&step, source)?;
            down.push_back((step, lane));
        }
        shared.keep(source, to.device())?;
        let mut last = accelerator.event()?;
        last.record(shared.side)?;
        let (kind, inside) = (to.kind(), VecDeque::new());
        Ok(Self { inner, what, kind, down, inside, to: Some(to), last, failed: None })
    }

    /// Lets steps into the communicator inside, in order; says whether that is over. Waits for the device where asked to.
    fn enter(&mut self, wait: bool) -> bool {
        let outcome = self.try_enter(wait);
        self.note(outcome).unwrap_or(true)
    }

    /// The first error ends the operation, and is told to whoever waits for it.
    fn note<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            self.failed.get_or_insert_with(|| error.clone());
            self.down.clear();
        }
        outcome
    }

    fn try_enter(&mut self, wait: bool) -> Result<bool> {
        while let Some((_, lane)) = self.down.front_mut() {
            if wait {
                lane.settle()?;
            } else if !lane.is_settled()? {
                return Ok(false);
            }
            let Some((step, lane)) = self.down.pop_front() else { unreachable!("just looked") };
            let (send, receive) = (Home::default(), lane.receive.is_some().then(Home::default));
            let mine = send.lend(lane.send, self.kind, step.send)?;
            let theirs = receive.as_ref().zip(lane.receive);
            let theirs = theirs.map(|(home, slot)| home.lend(slot, self.kind, step.receive)).transpose()?;
            let request = start(&*self.inner, self.what, mine, theirs)?;
            self.inside.push_back(Inside { step, request, send, receive });
        }
        Ok(true)
    }

    /// Takes in the steps that are through, in order; says whether none is left.
    fn land(&mut self, shared: &Shared, wait: bool) -> Result<bool> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let outcome = self.try_land(shared, wait);
        self.note(outcome)
    }

    fn try_land(&mut self, shared: &Shared, wait: bool) -> Result<bool> {
        while let Some(Inside { request, .. }) = self.inside.front_mut() {
            if !wait && !request.is_complete()? {
                return Ok(false);
            }
            let Some(Inside { step, request, send, receive }) = self.inside.pop_front() else {
                unreachable!("just looked")
            };
            // Dropping the buffer sends its slot home.
            drop(request.wait()?);
            let (result, spare) = match &receive {
                Some(receive) => (receive.slot(), send.slot()),
                None => (send.slot(), None),
            };
            spare.into_iter().for_each(|slot| shared.slots.put(slot));
            let Some(result) = result else { unreachable!("a request that is over gives its buffer back") };
            shared.ascend(&step, result, self.to.as_ref().and_then(OwnedBuffer::device))?;
            if !step.up.is_empty() {
                self.last.record(shared.side)?;
            }
        }
        Ok(self.down.is_empty())
    }
}

/// Starts one step in the communicator inside.
fn start(inner: &dyn Communicator, what: What, mine: OwnedBuffer, theirs: Option<OwnedBuffer>) -> Result<Request> {
    match (what, theirs) {
        (What::AllReduce(op), _) => inner.start_all_reduce(mine, op),
        (What::ReduceScatter(op), Some(part)) => inner.start_reduce_scatter(mine, part, op),
        (What::AllGather, Some(all)) => inner.start_all_gather(mine, all),
        (What::Send(to, tag), _) => inner.start_send(mine, to, tag),
        (What::Receive(from, tag), _) => inner.start_receive(mine, from, tag),
        (What::ReduceScatter(_) | What::AllGather, None) => unreachable!("a call with two buffers"),
    }
}

/// Started calls with steps that are not inside yet, in the order of their starts.
#[derive(Default)]
pub(super) struct Queue(Mutex<VecDeque<Arc<Mutex<Operation>>>>);

impl Shared {
    /// Lets everything that was started in, before the caller blocks on peers. Waits for the device alone.
    pub(super) fn flush(&self) {
        self.enter(true);
    }

    /// Lets in what is ready, without blocking.
    fn drive(&self) {
        self.enter(false);
    }

    fn enter(&self, wait: bool) {
        let mut queue = lock(&self.queue.0);
        while let Some(operation) = queue.front() {
            if !lock(operation).enter(wait) {
                return;
            }
            queue.pop_front();
        }
    }
}

/// A started call's request.
pub(super) struct Underway {
    shared: Arc<Shared>,
    operation: Arc<Mutex<Operation>>,
}

impl Underway {
    pub(super) fn start(shared: &Arc<Shared>, mut operation: Operation) -> Self {
        // A receive has nothing to wait for but its slots, and must be inside before a later one.
        let is_receive = matches!(operation.what, What::Receive(..));
        if is_receive {
            operation.enter(true);
        }
        let operation = Arc::new(Mutex::new(operation));
        if !is_receive {
            lock(&shared.queue.0).push_back(Arc::clone(&operation));
            shared.drive();
        }
        Self { shared: Arc::clone(shared), operation }
    }
}

impl Pending for Underway {
    fn poll(&mut self) -> Result<bool> {
        self.shared.drive();
        let mut operation = lock(&self.operation);
        Ok(operation.land(&self.shared, false)? && operation.last.is_done()?)
    }

    fn finish(self: Box<Self>) -> Result<OwnedBuffer> {
        self.shared.flush();
        let mut operation = lock(&self.operation);
        operation.land(&self.shared, true)?;
        let caller = self.shared.accelerator.current()?;
        operation.last.block(caller)?;
        let buffer = operation.to.take();
        Ok(buffer.unwrap_or_else(|| unreachable!("a request finishes once")))
    }
}
