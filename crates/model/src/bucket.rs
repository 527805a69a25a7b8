//! Buckets of gradients, reduced over the data ranks while the backward pass still runs.
//!
//! Each use of a parameter counts; when the last one of a bucket has added its gradient, the bucket's reduction starts
//! and goes on behind what is left of the pass. All data ranks run the same layers in the same order, so buckets fill in
//! the same order on all of them.
//!
//! | shared out | memory for gradients | a reduction is |
//! |---|---|---|
//! | nothing | the whole bucket | an all-reduce in place |
//! | optimizer state | the whole bucket | a reduce-scatter into the own part, once a step |
//! | gradients | the own part; the bucket while it fills | a reduce-scatter added to the own part, once a micro-batch |
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
    /// Handles that add a gradient in each pass.
    handles: AtomicUsize,
    /// Contributions that come once a step.
    sums: AtomicUsize,
    state: Mutex<State>,
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
}

impl Bucket {
    /// Makes a bucket for elements `range`; `whole` is their memory, where it stays, and `own` that of the own part.
    pub(crate) fn new(
        range: Range<usize>,
        zero: Zero,
        group: &Arc<dyn Communicator>,
        whole: Option<Tensor>,
        own: Tensor,
    ) -> Self {
        Self {
            range,
            zero,
            group: Arc::clone(group),
            kind: (own.kind(), own.device()),
            handles: AtomicUsize::new(0),
            sums: AtomicUsize::new(0),
            state: Mutex::new(State { whole, own, left: 0, rounds: 0, reducing: None }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Counts one more handle.
    pub(crate) fn register(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one more sum that is made once a step, after all passes.
    pub(crate) fn register_sum(&self) {
        self.sums.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins a step with so many micro-batches, from zero.
    pub(crate) fn begin(&self, micro_batches: usize) -> Result<()> {
        let handles = self.handles.load(Ordering::Relaxed);
        let mut state = self.state();
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
            none => none.insert(Tensor::f_zeros([self.range.len() as i64], self.kind)?),
        };
        Ok(whole.f_narrow(0, (range.start - self.range.start) as i64, range.len() as i64)?)
    }

    /// Counts a contribution; the last one starts the reduction.
    pub(crate) fn contributed(&self) -> Result<()> {
        let mut state = self.state();
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
            state.left = self.handles.load(Ordering::Relaxed);
        }
        Ok(())
    }

    fn start(&self, state: &mut State) -> Result<()> {
        self.settle(state)?;
        let Some(whole) = &state.whole else { return Ok(()) };
        let whole = whole.shallow_clone();
        state.reducing = Some(match self.zero {
            Zero::Replicated => start_all_reduce(&*self.group, whole, ReduceOp::Sum)?,
            _ => start_reduce_scatter(&*self.group, &whole, 0)?,
        });
        if self.zero >= Zero::Gradients {
            state.whole = None;
        }
        Ok(())
    }

    /// Waits for a reduction under way and puts its result where it belongs.
    fn settle(&self, state: &mut State) -> Result<()> {
        let Some(arriving) = state.reducing.take() else { return Ok(()) };
        let sum = arriving.wait()?;
        match self.zero {
            Zero::Replicated => {}
            Zero::Optimizer => state.own.f_copy_(&sum)?,
            Zero::Gradients | Zero::Parameters => drop(state.own.f_add_(&sum)?),
        }
        Ok(())
    }

    /// Waits until the own part holds the step's gradient.
    pub(crate) fn finish(&self) -> Result<()> {
        let mut state = self.state();
        if state.rounds > 0 {
            let missing = state.left;
            return Err(Error::GradientMissing { elements: self.range.clone(), missing });
        }
        self.settle(&mut state)
    }
}
