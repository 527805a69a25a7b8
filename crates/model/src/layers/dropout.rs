//! Dropout of activations, and of attention weights, by their place in the whole model.

use std::ops::Range;

use mp_runtime::kernels::dropout::{self, Place};
use mp_runtime::rng::Stream;
use mp_runtime::Tensor;

use crate::pass::{DropoutKey, Pass, Positions};
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

    /// Returns the probability.
    pub fn probability(&self) -> f64 {
        self.probability
    }

    /// Returns what to draw from in this pass, or `None` where nothing is dropped.
    fn stream(&self, pass: &Pass<'_>) -> Option<Stream> {
        let DropoutKey { seed, step } = pass.dropout.filter(|_| self.probability > 0.0)?;
        Some(Stream::new(seed, &self.name, step))
    }

    /// Returns what drops weights of an attention's `heads`, of `all` in the model, in this pass; `None` where nothing is
    /// dropped.
    pub fn weights(&self, pass: &Pass<'_>, heads: Range<usize>, all: usize) -> Option<WeightDropout> {
        let (samples, seq) = (pass.samples(), pass.positions.seq());
        let stream = self.stream(pass)?;
        Some(WeightDropout { probability: self.probability, stream, samples, heads, all, seq })
    }

    /// Draws which elements of an activation inside a tensor group's regions are kept: 1 for those, 0 for the others; `None`
    /// where nothing is dropped.
    ///
    /// # Shapes
    /// - `x`: `[b, s, columns]`, those columns of all `width` at all positions of the pass
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where libtorch refuses.
    pub(crate) fn inside(
        &self,
        x: &Tensor,
        pass: &Pass<'_>,
        columns: &Range<usize>,
        width: usize,
    ) -> Result<Option<Tensor>> {
        let Some(stream) = self.stream(pass) else { return Ok(None) };
        let seq = pass.positions.seq();
        let first = |sample: usize, position: usize| (((sample * seq + position) * width) + columns.start) as u64;
        let positions = |sample: usize| pass.positions.iter().map(move |position| first(sample, position));
        let rows: Vec<u64> = pass.samples().flat_map(positions).collect();
        Ok(Some(dropout::mask(&x.size(), self.probability, Place { rows: &rows, stream }, x)?))
    }

    /// Drops elements of an activation that lies between a tensor group's regions.
    ///
    /// # Shapes
    /// - `x`: `[b, s, d]`, or `[b, s / tp, d]`, its part of the pass's positions
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where libtorch refuses.
    pub fn forward(&self, x: Tensor, pass: &Pass<'_>, group: &TensorGroup) -> Result<Tensor> {
        let Some(stream) = self.stream(pass) else { return Ok(x) };
        let (seq, width) = (pass.positions.seq(), x.size()[2] as u64);
        let own = pass.positions.part(group.positions(pass.positions.count()));
        let rows: Vec<u64> = pass
            .samples()
            .flat_map(|sample| own.iter().map(move |position| (sample * seq + position) as u64 * width))
            .collect();
        Ok(dropout::dropout(&x, self.probability, Place { rows: &rows, stream })?)
    }
}

/// Dropout of an attention's weights in one pass: each is drawn by sample, head, query position and key position.
#[derive(Debug, Clone)]
pub struct WeightDropout {
    probability: f64,
    stream: Stream,
    samples: Range<usize>,
    heads: Range<usize>,
    /// Heads of the whole model.
    all: usize,
    seq: usize,
}

impl WeightDropout {
    /// Returns the probability.
    pub fn probability(&self) -> f64 {
        self.probability
    }

    /// Narrows to some of the heads, counted from the first of these.
    #[must_use]
    pub fn of_heads(mut self, heads: Range<usize>) -> Self {
        self.heads = self.heads.start + heads.start..self.heads.start + heads.end;
        self
    }

    /// Draws which weights are kept: 1 for those, 0 for the others.
    ///
    /// # Shapes
    /// - returns `[b, h, queries, keys]`, of the kind and on the device of `like`
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where libtorch refuses.
    pub fn mask(&self, queries: &Positions, keys: &Positions, like: &Tensor) -> Result<Tensor> {
        let (b, h, s) = (self.samples.len() as i64, self.heads.len() as i64, queries.count() as i64);
        let run = |run: &Range<usize>| {
            let rows = self.rows(queries, run.start);
            let place = Place { rows: &rows, stream: self.stream };
            Ok(dropout::mask(&[b, h, s, run.len() as i64], self.probability, place, like)?)
        };
        let mut drawn = keys.runs().iter().map(run).collect::<Result<Vec<_>>>()?;
        match drawn.len() {
            1 => Ok(drawn.remove(0)),
            _ => Ok(Tensor::f_cat(&drawn, -1)?),
        }
    }

    /// Returns the global index of the weight of key `key` in each row `(b, h, s)`.
    fn rows(&self, queries: &Positions, key: usize) -> Vec<u64> {
        let mut rows = Vec::with_capacity(self.samples.len() * self.heads.len() * queries.count());
        for sample in self.samples.clone() {
            for head in self.heads.clone() {
                let first = (sample * self.all + head) * self.seq;
                rows.extend(queries.iter().map(|query| ((first + query) * self.seq + key) as u64));
            }
        }
        rows
    }
}
