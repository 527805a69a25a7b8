//! Runs a rank's list of steps: stages forward and backward, and the messages between them.
//!
//! What to do when is the schedule's affair; nothing is decided here. A send leaves its tensor to the library and goes on;
//! each channel's next receive is started as soon as its last one is complete, so that messages arrive behind the
//! computation.

use std::collections::{HashMap, VecDeque};

use mp_comm::{Communicator, Rank, Tag};
use mp_model::collective::{start_receive, start_send, Arriving};
use mp_model::deferral::DeferredProducts;
use mp_model::{Goal, Model, Pass, Stage};
use mp_plan::{Payload, Stages, Step};
use mp_runtime::{autograd, Device, Tensor};

use crate::clock::{Clock, Moment};
use crate::{Error, Result};

/// Where activations go next and come from.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// The virtual stages of the model.
    pub stages: &'a Stages,
    /// The ranks that hold them.
    pub group: &'a dyn Communicator,
}

/// One micro-batch as the executor sees it.
pub struct MicroBatch<'a> {
    /// What the stages compute on.
    pub pass: Pass<'a>,
    /// What the last stage is to bring about.
    pub goal: Goal<'a>,
    /// The shape of the activations between stages.
    pub shape: [i64; 3],
}

/// The work of one update under way on one rank.
pub struct Flight<'a> {
    line: Line<'a>,
    model: &'a Model,
    micro_batches: Vec<MicroBatch<'a>>,
    /// Inputs and outputs of forwards whose backward is still to come, by chunk and micro-batch.
    live: HashMap<(usize, usize), Live>,
    /// Activations and gradients that their stage has not used yet, by payload, producing stage and micro-batch.
    arrived: HashMap<(Payload, usize, usize), Tensor>,
    deferred: HashMap<(usize, usize), DeferredProducts>,
    sends: Vec<Arriving>,
    /// What is still to be received on each channel, in order; the first is under way.
    receives: HashMap<usize, Channel>,
    loss: f64,
    /// Losses that lie on a device: to read one is to wait for it, so that they are read at the end.
    unread: Vec<Tensor>,
    clock: Clock,
    /// Computations done, with the moments when they began and ended.
    worked: Vec<(Step, [Moment; 2])>,
}

struct Live {
    input: Option<Tensor>,
    output: Tensor,
}

struct Channel {
    from: usize,
    /// The micro-batches of the messages.
    waiting: VecDeque<usize>,
    under_way: Option<Arriving>,
}

impl<'a> Flight<'a> {
    /// Prepares to run `steps`: starts the first receive of each channel.
    ///
    /// # Errors
    /// [`Error::Comm`] if one cannot be started.
    pub fn new(line: Line<'a>, model: &'a Model, micro_batches: Vec<MicroBatch<'a>>, steps: &[Step]) -> Result<Self> {
        let mut receives: HashMap<usize, Channel> = HashMap::new();
        for step in steps {
            if let (&Step::Receive { from, micro_batch, .. }, Some(channel)) = (step, step.channel()) {
                let open = || Channel { from, waiting: VecDeque::new(), under_way: None };
                receives.entry(channel).or_insert_with(open).waiting.push_back(micro_batch);
            }
        }
        let mut made = Self {
            line,
            model,
            micro_batches,
            live: HashMap::new(),
            arrived: HashMap::new(),
            deferred: HashMap::new(),
            sends: Vec::new(),
            receives,
            loss: 0.0,
            unread: Vec::new(),
            clock: Clock::of(model.parameters().device()),
            worked: Vec::with_capacity(steps.len()),
        };
        let mut channels: Vec<usize> = made.receives.keys().copied().collect();
        channels.sort_unstable();
        channels.into_iter().try_for_each(|channel| made.start_next(channel))?;
        Ok(made)
    }

    /// Runs one step that computes or communicates along the pipeline; the others are the caller's.
    ///
    /// # Errors
    /// Whatever a layer or a message raises.
    pub fn run(&mut self, step: Step) -> Result<()> {
        if step.computes().is_none() {
            return self.one(step);
        }
        let begun = self.clock.now()?;
        self.one(step)?;
        self.worked.push((step, [begun, self.clock.now()?]));
        Ok(())
    }

    fn one(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Forward { chunk, micro_batch } => self.forward(chunk, micro_batch),
            Step::Backward { chunk, micro_batch } => self.backward(chunk, micro_batch),
            Step::BackwardInput { chunk, micro_batch } => {
                self.model.parameters().defer_products();
                let walked = self.backward(chunk, micro_batch);
                let products = self.model.parameters().take_deferred();
                self.deferred.insert((chunk, micro_batch), products);
                walked
            }
            Step::BackwardWeight { chunk, micro_batch } => {
                let products = self.deferred.remove(&(chunk, micro_batch));
                Ok(products.ok_or_else(|| self.lost(step))?.run()?)
            }
            Step::Send { payload, stage, micro_batch, to } => self.send(step, payload, stage, micro_batch, to),
            Step::Receive { payload, stage, micro_batch, .. } => self.receive(step, payload, stage, micro_batch),
            Step::SumTied | Step::Reduce | Step::Update => Ok(()),
        }
    }

    /// Waits until all messages are taken; returns this rank's part of the loss.
    ///
    /// # Errors
    /// [`Error::Comm`] if a message was not delivered.
    pub fn land(&mut self) -> Result<f64> {
        for sent in self.sends.drain(..) {
            let _over = sent.wait()?;
        }
        for loss in self.unread.drain(..) {
            self.loss += loss.f_double_value(&[]).map_err(mp_runtime::Error::from)?;
        }
        Ok(self.loss)
    }

    /// Returns the computations that were done, each with the seconds that it took; waits until a device has done them.
    ///
    /// # Errors
    /// [`Error::Comm`] where a device refuses.
    pub fn worked(self) -> Result<Vec<(Step, f64)>> {
        let took = |(step, [mut begun, mut ended]): (Step, [Moment; 2])| Ok((step, begun.seconds_until(&mut ended)?));
        self.worked.into_iter().map(took).collect()
    }

    /// Says which step of a list came before what it needs.
    fn lost(&self, step: Step) -> Error {
        let rank = self.line.group.rank().0;
        Error::Schedule { step: step.describe(rank, self.line.stages), rank }
    }

    fn stage(&self, chunk: usize) -> (usize, &'a dyn Stage) {
        let stage = self.line.stages.stage_of(self.line.group.rank().0, chunk);
        (stage, &*self.model.chunks()[chunk])
    }

    /// Takes what the neighbour has made.
    fn take(&mut self, payload: Payload, stage: usize, micro_batch: usize, step: Step) -> Result<Tensor> {
        let made = self.arrived.remove(&(payload, stage, micro_batch));
        made.ok_or_else(|| self.lost(step))
    }

    fn forward(&mut self, chunk: usize, micro_batch: usize) -> Result<()> {
        let _span = tracing::debug_span!("forward", chunk, micro_batch).entered();
        let (index, stage) = self.stage(chunk);
        let input = match index.checked_sub(1) {
            None => None,
            Some(before) => {
                let step = Step::Forward { chunk, micro_batch };
                let input = self.take(Payload::Activation, before, micro_batch, step)?;
                Some(input.f_set_requires_grad(true).map_err(mp_runtime::Error::from)?)
            }
        };
        let work = &self.micro_batches[micro_batch];
        let mut output = stage.forward(&work.pass, input.as_ref())?;
        if self.line.stages.is_last(index) {
            output = stage.loss(&output, &work.pass, &work.goal)?;
            match output.device() {
                Device::Cpu => self.loss += output.double_value(&[]),
                _ => self.unread.push(output.f_detach().map_err(mp_runtime::Error::from)?),
            }
        } else {
            self.hand_over(Payload::Activation, index, micro_batch, &output)?;
        }
        self.live.insert((chunk, micro_batch), Live { input, output });
        Ok(())
    }

    fn backward(&mut self, chunk: usize, micro_batch: usize) -> Result<()> {
        let _span = tracing::debug_span!("backward", chunk, micro_batch).entered();
        let step = Step::Backward { chunk, micro_batch };
        let (index, _) = self.stage(chunk);
        let gradient = match self.line.stages.is_last(index) {
            true => None,
            false => Some(self.take(Payload::Gradient, index + 1, micro_batch, step)?),
        };
        let live = self.live.remove(&(chunk, micro_batch));
        let Live { input, output } = live.ok_or_else(|| self.lost(step))?;
        autograd::backward(&[&output], &[gradient.as_ref()], false)?;
        match input {
            Some(input) => self.hand_over(Payload::Gradient, index, micro_batch, &input.grad()),
            None => Ok(()),
        }
    }

    /// Puts what a stage has made where its neighbour on this rank, or the send, takes it.
    fn hand_over(&mut self, payload: Payload, stage: usize, micro_batch: usize, made: &Tensor) -> Result<()> {
        let made = made.f_detach().and_then(|made| made.f_contiguous()).map_err(mp_runtime::Error::from)?;
        self.arrived.insert((payload, stage, micro_batch), made);
        Ok(())
    }

    fn send(&mut self, step: Step, payload: Payload, stage: usize, micro_batch: usize, to: usize) -> Result<()> {
        let made = self.take(payload, stage, micro_batch, step)?;
        let channel = step.channel().ok_or_else(|| self.lost(step))?;
        // What has been taken is let go: an activation must not live longer for having been sent.
        let mut under_way = Vec::with_capacity(self.sends.len() + 1);
        for mut sent in self.sends.drain(..) {
            if !sent.is_complete()? {
                under_way.push(sent);
            }
        }
        self.sends = under_way;
        self.sends.push(start_send(self.line.group, &made, Rank(to), tag(channel))?);
        Ok(())
    }

    fn receive(&mut self, step: Step, payload: Payload, stage: usize, micro_batch: usize) -> Result<()> {
        let channel = step.channel().ok_or_else(|| self.lost(step))?;
        let arriving = self.receives.get_mut(&channel).and_then(|channel| channel.under_way.take());
        let message = arriving.ok_or_else(|| self.lost(step))?.wait()?;
        self.start_next(channel)?;
        self.arrived.insert((payload, stage, micro_batch), message);
        Ok(())
    }

    /// Starts the next receive of a channel, if there is one.
    fn start_next(&mut self, channel: usize) -> Result<()> {
        let Some(open) = self.receives.get_mut(&channel) else { return Ok(()) };
        let Some(micro_batch) = open.waiting.pop_front() else { return Ok(()) };
        let parameters = self.model.parameters();
        let shape = self.micro_batches[micro_batch].shape;
        let place = Tensor::f_empty(shape, (parameters.compute_kind(), parameters.device()));
        let place = place.map_err(mp_runtime::Error::from)?;
        open.under_way = Some(start_receive(self.line.group, place, Rank(open.from), tag(channel))?);
        Ok(())
    }
}

/// Sends one batch through all stages without a backward pass; what the last stage makes of it comes back on its rank.
///
/// # Errors
/// Whatever a layer or a message raises.
pub fn forward_only<T>(
    line: Line<'_>,
    model: &Model,
    pass: &Pass<'_>,
    shape: [i64; 3],
    last: impl FnOnce(&dyn Stage, &Tensor) -> mp_model::Result<T>,
) -> Result<Option<T>> {
    let _off = autograd::no_grad();
    let (rank, stages) = (line.group.rank().0, line.stages);
    let parameters = model.parameters();
    let (mut here, mut sends, mut last, mut made) = (None, Vec::new(), Some(last), None);
    let mut own: Vec<(usize, usize)> =
        (0..stages.chunks()).map(|chunk| (stages.stage_of(rank, chunk), chunk)).collect();
    own.sort_unstable();
    for (index, chunk) in own {
        let stage = &*model.chunks()[chunk];
        if index > 0 && stages.rank_of(index - 1) != rank {
            let place = Tensor::f_empty(shape, (parameters.compute_kind(), parameters.device()));
            let place = place.map_err(mp_runtime::Error::from)?;
            let from = Rank(stages.rank_of(index - 1));
            here = Some(start_receive(line.group, place, from, forward_tag(index - 1))?.wait()?);
        }
        let output = stage.forward(pass, here.take().as_ref())?;
        if stages.is_last(index) {
            made = last.take().map(|last| last(stage, &output)).transpose()?;
        } else if stages.rank_of(index + 1) == rank {
            here = Some(output);
        } else {
            let output = output.f_contiguous().map_err(mp_runtime::Error::from)?;
            sends.push(start_send(line.group, &output, Rank(stages.rank_of(index + 1)), forward_tag(index))?);
        }
    }
    for sent in sends {
        let _over = sent.wait()?;
    }
    Ok(made)
}

/// The tag of a stage's activations.
fn forward_tag(stage: usize) -> Tag {
    let step = Step::Receive { payload: Payload::Activation, stage, micro_batch: 0, from: 0 };
    tag(step.channel().expect("a receive has a channel"))
}

/// Turns a channel into a tag. Pipelines of more stages than there are tags would be deeper than any model.
fn tag(channel: usize) -> Tag {
    Tag(u16::try_from(channel).expect("fewer than 32768 virtual stages"))
}
