//! Buckets of gradients, reduced over the data ranks while the backward pass still runs.
//!
//! Each use of a parameter counts; when the last one of a bucket has added its gradient, the bucket's reduction starts
//! and goes on behind what is left of the pass. All data ranks run the same layers in the same order, so buckets fill in
//! the same order on all of them.
//!
//! | shared out | memory for gradients | a reduction is |
//! |---|---|---|
//! | nothing | the whole bucket | an all-reduce in place |
//! | optimizer state | the whole bucket; the own part's sum until the next one has been started | a reduce-scatter into the own part, once a step |
//! | gradients | the own part; the bucket while it fills, and until the next one has | a reduce-scatter added to the own part, once a micro-batch |
//!
//! # Source
//! Li et al. 2020, arXiv:2006.15704, §3.2.3; Rajbhandari et al. 2019, arXiv:1910.02054, §5.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use mp_comm::{Communicator, ReduceOp};
use mp_plan::Zero;
use mp_runtime::{Device, Kind, Tensor};

use crate::collective::{start_all_reduce, start_reduce_scatter, Arriving};
use crate::{Error, Result};

/// One bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    range: Range<usize>,
    zero: Zero,
    group: Arc<dyn Communicator>,
    kind: (Kind, Device),
    /// Contributions that come once a step.
    sums: AtomicUsize,
    state: Mutex<State>,
    /// The reduction under way of all buckets that are shared out.
    line: Arc<Line>,
}

/// Where data ranks share out, one bucket of a rank is reduced at a time: others behind it would all have their sums beside the
/// gradients, or the gradients would all be whole, until they are waited for.
#[derive(Debug, Default)]
pub(crate) struct Line(Mutex<Option<Travelling>>);

/// A sum on its way, and where it belongs.
#[derive(Debug)]
struct Travelling {
    /// The bucket's elements.
    range: Range<usize>,
    arriving: Arriving,
    own: Tensor,
    /// Whether the own part has the sums of earlier micro-batches, and not this rank's own gradients.
    adds: bool,
}

impl Line {
    /// Lets a reduction travel, and waits for the one before.
    fn send(&self, travelling: Option<Travelling>) -> Result<()> {
        let earlier = std::mem::replace(&mut *self.travelling(), travelling);
        let Some(Travelling { arriving, mut own, adds, .. }) = earlier else { return Ok(()) };
        let sum = arriving.wait()?;
        if adds {
            let _ = own.f_add_(&sum)?;
        } else {
            own.f_copy_(&sum)?;
        }
        Ok(())
    }

    /// Waits for the last reduction of a bucket that is about to fill again.
    fn refill(&self, range: &Range<usize>) -> Result<()> {
        let own = self.travelling().as_ref().is_some_and(|travelling| travelling.range == *range);
        if own {
            self.send(None)
        } else {
            Ok(())
        }
    }

    fn travelling(&self) -> MutexGuard<'_, Option<Travelling>> {
        self.0.lock().expect("no holder panics")
    }
}

#[derive(Debug)]
struct State {
    /// The gradients of all the bucket's elements; comes and goes where gradients are shared out.
    whole: Option<Tensor>,
    /// Where the sum of the own part belongs.
    own: Tensor,
    /// Contributions missing until the next reduction; 0 outside a step.
    left: usize,
    /// Reductions still to come in this step.
    rounds: usize,
    reducing: Option<Arriving>,
    /// Who contributes.
    uses: Vec<Use>,
    /// Of the step under way or the last one; 0 before the first.
    micro_batches: usize,
}

/// The elements that a handle adds gradients to.
#[derive(Debug)]
struct Use {
    range: Range<usize>,
    handles: usize,
    /// Contributions in this step.
    made: usize,
}

impl State {
    /// Counts the handles that add a gradient in each pass.
    fn handles(&self) -> usize {
        self.uses.iter().map(|used| used.handles).sum()
    }
}

impl Bucket {
    /// Makes a bucket for elements `range`; `whole` is their memory, where it stays, and `own` that of the own part.
    pub(crate) fn new(
        range: Range<usize>,
        zero: Zero,
        group: &Arc<dyn Communicator>,
        line: &Arc<Line>,
        whole: Option<Tensor>,
        own: Tensor,
    ) -> Self {
        Self {
            range,
            zero,
            group: Arc::clone(group),
            line: Arc::clone(line),
            kind: (own.kind(), own.device()),
            sums: AtomicUsize::new(0),
            state: Mutex::new(State {
                whole,
                own,
                left: 0,
                rounds: 0,
                reducing: None,
                uses: Vec::new(),
                micro_batches: 0,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Counts one more handle, which adds a gradient of these elements in each pass.
    pub(crate) fn register(&self, range: Range<usize>) {
        let mut state = self.state();
        match state.uses.iter_mut().find(|used| used.range == range) {
            Some(used) => used.handles += 1,
            None => state.uses.push(Use { range, handles: 1, made: 0 }),
        }
    }

    /// Counts one more sum that is made once a step, after all passes.
    pub(crate) fn register_sum(&self) {
        self.sums.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins a step with so many micro-batches, from zero.
    pub(crate) fn begin(&self, micro_batches: usize) -> Result<()> {
        let mut state = self.state();
        let handles = state.handles();
        state.micro_batches = micro_batches;
        state.uses.iter_mut().for_each(|used| used.made = 0);
        if self.zero >= Zero::Gradients {
            // What passes outside a step have left.
            state.whole = None;
        } else if let Some(whole) = &state.whole {
            let _ = whole.shallow_clone().f_zero_()?;
        }
        let _ = state.own.f_zero_()?;
        (state.left, state.rounds) = match self.zero >= Zero::Gradients {
            true => (handles, micro_batches),
            false => (handles * micro_batches + self.sums.load(Ordering::Relaxed), 1),
        };
        Ok(())
    }

    /// Views the sum so far of some elements of the bucket.
    pub(crate) fn sum(&self, range: Range<usize>) -> Result<Tensor> {
        let mut state = self.state();
        let whole = match &mut state.whole {
            Some(whole) => whole,
            none => {
                self.line.refill(&self.range)?;
                none.insert(Tensor::f_zeros([self.range.len() as i64], self.kind)?)
            }
        };
        Ok(whole.f_narrow(0, (range.start - self.range.start) as i64, range.len() as i64)?)
    }

    /// Counts a contribution to some elements; the last one of all starts the reduction.
    pub(crate) fn contributed(&self, range: &Range<usize>) -> Result<()> {
        let mut state = self.state();
        if let Some(used) = state.uses.iter_mut().find(|used| used.range == *range) {
            used.made += 1;
        }
        self.count(state)
    }

    /// Counts a sum that is made once a step.
    pub(crate) fn summed(&self) -> Result<()> {
        self.count(self.state())
    }

    /// Says whether a parameter's gradient lacks contributions in a step: it has no use, or not been used often enough.
    pub(crate) fn lacks(&self, parameter: &Range<usize>) -> bool {
        let state = self.state();
        let covers = |used: &&Use| used.range.start <= parameter.start && parameter.end <= used.range.end;
        let mut uses = state.uses.iter().filter(covers).peekable();
        let enough = |used: &Use| used.made >= used.handles * state.micro_batches;
        state.micro_batches > 0 && (uses.peek().is_none() || !uses.all(enough))
    }

    fn count(&self, mut state: MutexGuard<'_, State>) -> Result<()> {
        if state.rounds == 0 {
            return Ok(());
        }
        state.left = state.left.checked_sub(1).ok_or(Error::GradientTwice { elements: self.range.clone() })?;
        if state.left > 0 {
            return Ok(());
        }
        self.start(&mut state)?;
        state.rounds -= 1;
        if state.rounds > 0 {
            state.left = state.handles();
        }
        Ok(())
    }

    fn start(&self, state: &mut State) -> Result<()> {
        let adds = self.zero >= Zero::Gradients;
        let whole = if adds { state.whole.take() } else { state.whole.as_ref().map(Tensor::shallow_clone) };
        let Some(whole) = whole else { return Ok(()) };
        if self.zero == Zero::Replicated {
            state.reducing = Some(start_all_reduce(&*self.group, whole, ReduceOp::Sum)?);
            return Ok(());
        }
        let arriving = start_reduce_scatter(&*self.group, &whole, 0)?;
        let own = state.own.shallow_clone();
        self.line.send(Some(Travelling { range: self.range.clone(), arriving, own, adds }))
    }

    /// Waits until the own part holds the step's gradient.
    pub(crate) fn finish(&self) -> Result<()> {
        let mut state = self.state();
        if state.rounds > 0 {
            let missing = state.left;
            return Err(Error::GradientMissing { elements: self.range.clone(), missing });
        }
        self.line.send(None)?;
        // In place.
        state.reducing.take().map_or(Ok(()), |arriving| arriving.wait().map(drop))
    }
}
