//! Dropout of activations by their place in the whole model.

use mp_runtime::kernels::dropout::{self, Place};
use mp_runtime::rng::Stream;
use mp_runtime::Tensor;

use crate::pass::{DropoutKey, Pass};
use crate::regions::TensorGroup;
use crate::Result;

/// One place of a model where elements are dropped.
#[derive(Debug, Clone)]
pub struct Dropout {
    probability: f64,
    name: String,
}

impl Dropout {
    /// Makes the layer; `name` tells its random numbers from those of all others.
    pub fn new(probability: f64, name: String) -> Self {
        Self { probability, name }
    }

    /// Returns what to draw from in this pass, or `None` where nothing is dropped.
    pub fn stream(&self, pass: &Pass<'_>) -> Option<Stream> {
        let DropoutKey { seed, step } = pass.dropout.filter(|_| self.probability > 0.0)?;
        Some(Stream::new(seed, &self.name, step))
    }

    /// Returns the probability.
    pub fn probability(&self) -> f64 {
        self.probability
    }

    /// Drops elements of an activation that lies between a tensor group's regions.
    ///
    /// # Shapes
    /// - `x`: `[b, s, d]`, or `[b, s / tp, d]`, its part of the sequence
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where libtorch refuses.
    pub fn forward(&self, x: Tensor, pass: &Pass<'_>, group: &TensorGroup) -> Result<Tensor> {
        let Some(stream) = self.stream(pass) else { return Ok(x) };
        let (seq, width) = (pass.seq(), x.size()[2] as u64);
        let own = group.positions(seq);
        let rows: Vec<u64> = (0..pass.batch())
            .flat_map(|sample| own.clone().map(move |position| (sample, position)))
            .map(|(sample, position)| ((pass.first_sample + sample) * seq + position) as u64 * width)
            .collect();
        Ok(dropout::dropout(&x, self.probability, Place { rows: &rows, stream })?)
    }
}
