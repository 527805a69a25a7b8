//! Parameters shared out among the data ranks: gathered unit by unit ahead of use, let go after.
//!
//! # Source
//! Rajbhandari et al. 2019, arXiv:1910.02054, §5.3; gathering ahead: Zhao et al. 2023, arXiv:2304.11277, §3.3.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use mp_comm::Communicator;
use mp_runtime::{autograd, Tensor};

use crate::collective::{start_all_gather_into, Arriving};
use crate::Result;

/// Parameters that are gathered together.
#[derive(Debug)]
pub(crate) struct Unit {
    range: Range<usize>,
    group: Arc<dyn Communicator>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Each bucket's elements with this rank's part of their values.
    shards: Vec<(Range<usize>, Tensor)>,
    whole: Option<Tensor>,
    arriving: Vec<Arriving>,
}

impl Unit {
    /// Makes a unit of buckets that follow each other.
    ///
    /// # Panics
    /// If there are none.
    pub(crate) fn new(group: &Arc<dyn Communicator>, shards: Vec<(Range<usize>, Tensor)>) -> Self {
        let range = shards[0].0.start..shards[shards.len() - 1].0.end;
        let state = Mutex::new(State { shards, whole: None, arriving: Vec::new() });
        Self { range, group: Arc::clone(group), state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Starts to gather, unless that has been done.
    fn start(&self, state: &mut State) -> Result<Tensor> {
        if let Some(whole) = &state.whole {
            return Ok(whole.shallow_clone());
        }
        let shard = &state.shards[0].1;
        let whole = Tensor::f_empty([self.range.len() as i64], (shard.kind(), shard.device()))?;
        for (range, shard) in &state.shards {
            let place = whole.f_narrow(0, (range.start - self.range.start) as i64, range.len() as i64)?;
            state.arriving.push(start_all_gather_into(&*self.group, shard, place)?);
        }
        state.whole = Some(whole.shallow_clone());
        Ok(whole)
    }

    /// Starts to gather what will be needed soon.
    fn expect(&self) -> Result<()> {
        self.start(&mut self.state()).map(drop)
    }

    /// Views the values of some elements, gathered first where they are not.
    pub(crate) fn view(&self, range: Range<usize>) -> Result<Tensor> {
        let mut state = self.state();
        let whole = self.start(&mut state)?;
        for arriving in std::mem::take(&mut state.arriving) {
            let _arrived = arriving.wait()?;
        }
        Ok(whole.f_narrow(0, (range.start - self.range.start) as i64, range.len() as i64)?)
    }

    /// Lets the gathered values go.
    fn release(&self) -> Result<()> {
        let mut state = self.state();
        for arriving in std::mem::take(&mut state.arriving) {
            let _arrived = arriving.wait()?;
        }
        state.whole = None;
        Ok(())
    }
}

/// When the values that one part of a model multiplies by are there: around its forward, and again around its backward.
///
/// Where every rank keeps all values, this does nothing.
#[derive(Debug, Clone, Default)]
pub struct Residence {
    pub(crate) own: Vec<Arc<Unit>>,
    pub(crate) next: Vec<Arc<Unit>>,
    pub(crate) previous: Vec<Arc<Unit>>,
}

impl Residence {
    /// Runs a part of a model that takes no activation, the entrance.
    ///
    /// # Errors
    /// What `run` and the gathering raise.
    pub fn enter(&self, run: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        self.expect(&self.next)?;
        let y = run()?;
        self.release()?;
        Ok(y)
    }

    /// Runs a part of a model from its input to its output.
    ///
    /// # Errors
    /// What `run` and the gathering raise.
    pub fn around(&self, x: &Tensor, run: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        if self.own.is_empty() {
            return run(x);
        }
        let inside = x.f_detach()?;
        let done = self.clone();
        autograd::attach(&[x], &[inside.shallow_clone()], move |gradients| {
            done.release()?;
            Ok(gradients)
        })?;
        self.expect(&self.next)?;
        let y = run(&inside)?;
        self.release()?;
        let outside = y.f_detach()?;
        let back = self.clone();
        autograd::attach(&[&y], &[outside.shallow_clone()], move |gradients| {
            back.expect(&back.previous)?;
            Ok(gradients)
        })?;
        Ok(outside)
    }

    fn expect(&self, soon: &[Arc<Unit>]) -> Result<()> {
        for unit in self.own.iter().chain(soon) {
            unit.expect()?;
        }
        Ok(())
    }

    fn release(&self) -> Result<()> {
        self.own.iter().try_for_each(|unit| unit.release())
    }
}
