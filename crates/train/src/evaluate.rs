//! The mean loss over held-out text.

mod consecutive;

use std::ops::Range;
use std::sync::Arc;

use mp_comm::{BufferMut, Communicator, ReduceOp};
use mp_data::{open_whole, Batch, PackedRows, Tokenizer, Windows, IGNORED};
use mp_runtime::Device;
use serde::Serialize;

pub use consecutive::Consecutive;

use crate::agree::agree;
use crate::assembled::Assembled;
use crate::checkpoint::Verify;
use crate::config::DataFormat;
use crate::examples;
use crate::inference::{Inference, Use};
use crate::pipeline::forward_only;
use crate::{weights, Config, Error, Result};

/// A text cut into windows, each a row of a batch.
pub trait Walk {
    /// Returns the number of windows.
    fn count(&self) -> usize;

    /// Returns some of them as a batch.
    ///
    /// # Errors
    /// [`Error::Data`] for what a file of them should not hold.
    fn batch(&self, windows: Range<usize>) -> Result<Batch>;
}

impl Walk for Windows {
    fn count(&self) -> usize {
        Windows::count(self)
    }

    fn batch(&self, windows: Range<usize>) -> Result<Batch> {
        Ok(Windows::batch(self, windows)?)
    }
}

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// Mean over the predicted tokens, in nats.
    pub loss: f64,
    /// How many were predicted.
    pub tokens: u64,
    /// The loss over the bytes that these tokens stand for, in bits.
    pub bits_per_byte: f64,
}

impl Measured {
    /// Returns the exponential of the loss: among how many equally likely tokens the model would be as uncertain.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

impl Walk for PackedRows {
    fn count(&self) -> usize {
        PackedRows::count(self)
    }

    fn batch(&self, rows: Range<usize>) -> Result<Batch> {
        Ok(PackedRows::batch(self, rows)?)
    }
}

/// Measures the model that `model.from` names on all of `data.path`, cut into [`Consecutive`] windows of `train.seq` tokens or,
/// if `data.format` says that it holds examples, packed into rows of so many; `batch` at a time. Of examples what would be
/// learned counts. Collective over the world.
///
/// # Errors
/// On all ranks: [`Error::Config`] where no model or no data are named, for a blend, and where a window predicts nothing; what
/// cannot be cut or read.
pub fn measure(config: &Config, world: &Arc<dyn Communicator>, device: Device, batch: usize) -> Result<Measured> {
    let input = || -> Result<_> {
        let from = config.model.from.as_deref().ok_or_else(unnamed)?;
        refuse_blend(config)?;
        let tokenizer = config.data.open_tokenizer()?;
        let vocab = if config.model.vocab > 0 { config.model.vocab } else { tokenizer.vocab_size() };
        let windows = walk(config, &tokenizer, vocab)?;
        Ok((weights::open(from, config.model.base.as_deref(), Verify::shared(&**world))?, tokenizer, windows))
    };
    let (source, tokenizer, windows) = agree(&**world, input())?;
    let inference = Inference::new(config, tokenizer.vocab_size(), &*source, world, device, Use::Reading)?;
    let lengths = agree(&**world, tokenizer.byte_lengths().map_err(Error::from))?;
    let bytes = |target: i64| usize::try_from(target).ok().and_then(|id| lengths.get(id)).copied().unwrap_or(0);
    let sums = sums(inference.assembled(), &*windows, batch, 0, bytes);
    let Sums { loss, targets, bytes } = sums.map_err(|error| inference.explained(error, batch))?;
    if !loss.is_finite() {
        return Err(Error::Unmeasurable);
    }
    let bits_per_byte = loss / std::f64::consts::LN_2 / bytes;
    Ok(Measured { loss: loss / targets, tokens: targets as u64, bits_per_byte })
}

/// Opens all of what is to be measured on.
fn walk(config: &Config, tokenizer: &Tokenizer, vocab: usize) -> Result<Box<dyn Walk>> {
    if config.data.format != DataFormat::Text {
        let path = config.data.path.as_deref().ok_or_else(examples::unnamed)?;
        let all = examples::reader(config, tokenizer, vocab)?.read(path)?;
        return Ok(Box::new(PackedRows::new(vec![all], config.train.seq)?));
    }
    let path = config.data.path.as_deref().ok_or_else(no_text)?;
    Ok(Box::new(Consecutive::new(open_whole(path, tokenizer, vocab)?, config.train.seq)?))
}

fn no_text() -> Error {
    let rule = "must name what the model is measured on: a text, a folder of texts, or a `.bin` and `.idx` pair";
    Error::Config { key: "data.path", value: "unset".into(), rule: rule.into() }
}

/// A blend draws from its sources by weight, without an end: it has no "whole" to measure.
fn refuse_blend(config: &Config) -> Result<()> {
    let names: Vec<String> = config.data.blend.iter().map(|source| source.path.display().to_string()).collect();
    match names.is_empty() {
        true => Ok(()),
        false => {
            let rule = "is for training: measure each source by itself, as `data.path`".to_string();
            Err(Error::Config { key: "data.blend", value: names.join(", "), rule })
        }
    }
}

fn unnamed() -> Error {
    let rule = "must name the model: a folder with the `config.json` of a published one, or a run folder";
    Error::Config { key: "model.from", value: "unset".into(), rule: rule.into() }
}

/// Computes the mean loss over windows, in nats; the data ranks share the batches. Collective over the world; every rank
/// gets the mean.
///
/// `limit` is the number of batches of `batch` windows; 0 takes all.
///
/// # Errors
/// Whatever a layer or a collective raises.
pub fn evaluate(model: Assembled<'_>, windows: &dyn Walk, batch: usize, limit: usize) -> Result<f64> {
    let sums = sums(model, windows, batch, limit, |_| 0)?;
    Ok(sums.loss / sums.targets)
}

/// What ranks add up.
struct Sums {
    loss: f64,
    targets: f64,
    bytes: f64,
}

fn sums(
    model: Assembled<'_>,
    windows: &dyn Walk,
    batch: usize,
    limit: usize,
    bytes: impl Fn(i64) -> usize,
) -> Result<Sums> {
    let _span = tracing::info_span!("evaluate").entered();
    let groups = model.groups;
    let mut sums = [0.0f64; 3];
    let (count, all) = (windows.count(), windows.count().div_ceil(batch));
    let batches = if limit == 0 { all } else { all.min(limit) };
    for round in 0..batches.div_ceil(groups.dp.size()) {
        let index = round * groups.dp.size() + groups.dp.rank().0;
        let counts = index < batches;
        // Where parameters are shared out, every data rank takes part in every pass, if only to give its part of them.
        let own = match counts {
            true => index * batch..((index + 1) * batch).min(count),
            false if model.is_shared_out() => 0..1,
            false => continue,
        };
        let batch = windows.batch(own)?;
        let own = model.own(&batch)?;
        let shape = model.activation_shape(batch.batch, own.positions.count());
        let last = |last: &dyn mp_model::Stage, hidden: &_| last.loss_sum(hidden, &own.targets);
        let loss = forward_only(model.line(), model.model, &own.pass(), shape, last)?;
        if let (Some(loss), true) = (loss, counts) {
            sums[0] += loss.f_double_value(&[]).map_err(mp_runtime::Error::from)?;
            let targets = || batch.targets.iter().filter(|&&target| target != IGNORED);
            // Context ranks have the same targets in their batches.
            sums[1] += targets().count() as f64 / groups.cp.size() as f64;
            sums[2] += targets().map(|&target| bytes(target)).sum::<usize>() as f64 / groups.cp.size() as f64;
        }
    }
    for group in [&groups.data, &groups.pp] {
        group.all_reduce(BufferMut::new(&mut sums), ReduceOp::Sum)?;
    }
    let [loss, targets, bytes] = sums;
    Ok(Sums { loss, targets: targets.round(), bytes: bytes.round() })
}
