//! The update rules over a rank's flat shards.

use std::ops::Range;

use mp_model::Parameters;
use mp_runtime::flat::Flat;
use mp_runtime::update::{self, AdamWState};
use mp_runtime::Tensor;

use crate::config::{OptimizerConfig, OptimizerName};
use crate::Result;

/// Turns gradients into new values.
pub trait Optimizer: Send {
    /// Updates the masters from the gradients.
    ///
    /// `step` counts updates from 1; `lr` is this step's learning rate.
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where libtorch refuses.
    fn update(&mut self, parameters: &Parameters, step: u64, lr: f64) -> Result<()>;

    /// Returns what a checkpoint must keep, each laid out like the parameters.
    fn state(&self) -> Vec<(&'static str, &Flat)>;
}

/// Makes the optimizer that a configuration names.
///
/// # Errors
/// [`Error::Runtime`](crate::Error::Runtime) if the device has no room for its state.
pub fn optimizer(config: &OptimizerConfig, parameters: &Parameters) -> Result<Box<dyn Optimizer>> {
    let state = || -> Result<Flat> { Ok(parameters.state()?) };
    let runs = Runs::new(parameters);
    let decay = config.weight_decay;
    Ok(match config.name {
        OptimizerName::AdamW => Box::new(AdamW {
            runs,
            decay,
            betas: (config.betas[0], config.betas[1]),
            epsilon: config.eps,
            first: state()?,
            second: state()?,
        }),
        OptimizerName::Sgd => Box::new(Sgd { runs, decay, momentum: config.momentum, direction: state()? }),
    })
}

/// The ranges that this rank updates and that decay, and those that do not: matrices, and vectors.
#[derive(Debug)]
struct Runs {
    decaying: Vec<Range<usize>>,
    plain: Vec<Range<usize>>,
}

impl Runs {
    /// Joins neighbours of the same sort.
    fn new(parameters: &Parameters) -> Self {
        let (mut decaying, mut plain) = (Vec::new(), Vec::new());
        for (index, parameter) in parameters.partition().parameters.iter().enumerate() {
            let range = parameters.masters().layout().range(index);
            let runs: &mut Vec<Range<usize>> = if parameter.spec.decays { &mut decaying } else { &mut plain };
            for range in parameters.owned_of(range) {
                match runs.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => runs.push(range),
                }
            }
        }
        Self { decaying, plain }
    }

    /// Returns the ranges with the decay of each sort.
    fn with_decay(&self, decay: f64) -> [(&[Range<usize>], f64); 2] {
        [(&self.decaying, decay), (&self.plain, 0.0)]
    }
}

fn views(flat: &Flat, ranges: &[Range<usize>]) -> Result<Vec<Tensor>> {
    ranges.iter().map(|range| Ok(flat.range(range.clone())?)).collect()
}

/// Adam with decoupled weight decay; see [`update::adamw`].
#[derive(Debug)]
struct AdamW {
    runs: Runs,
    decay: f64,
    betas: (f64, f64),
    epsilon: f64,
    first: Flat,
    second: Flat,
}

impl Optimizer for AdamW {
    fn update(&mut self, parameters: &Parameters, step: u64, lr: f64) -> Result<()> {
        for (ranges, decay) in self.runs.with_decay(self.decay) {
            let settings = update::AdamW { step, lr, betas: self.betas, epsilon: self.epsilon, decay };
            let state = AdamWState {
                parameters: &views(parameters.masters(), ranges)?,
                gradients: &views(parameters.gradients(), ranges)?,
                first: &views(&self.first, ranges)?,
                second: &views(&self.second, ranges)?,
            };
            update::adamw(&settings, &state)?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(&'static str, &Flat)> {
        vec![("first_moment", &self.first), ("second_moment", &self.second)]
    }
}

/// Stochastic gradient descent with momentum; see [`update::sgd`].
#[derive(Debug)]
struct Sgd {
    runs: Runs,
    decay: f64,
    momentum: f64,
    direction: Flat,
}

impl Optimizer for Sgd {
    fn update(&mut self, parameters: &Parameters, _step: u64, lr: f64) -> Result<()> {
        for (ranges, decay) in self.runs.with_decay(self.decay) {
            let settings = update::Sgd { lr, momentum: self.momentum, decay };
            for range in ranges {
                let value = parameters.masters().range(range.clone())?;
                let gradient = parameters.gradients().range(range.clone())?;
                update::sgd(&settings, &value, &gradient, &self.direction.range(range.clone())?)?;
            }
        }
        Ok(())
    }

    fn state(&self) -> Vec<(&'static str, &Flat)> {
        vec![("direction", &self.direction)]
    }
}
