//! Keys and values of the positions that a model has seen, so that the next token costs one position's work.
//!
//! A rank keeps those of its own layers and key/value heads: the tensor group's ranks divide the heads, the pipeline's the
//! layers. All memory is taken at once, for the longest sequence that is to come.
//!
//! A *row* is one sequence. A prompt fills its row in a pass of its own; after that each step has one token for each of the
//! first rows. These tokens stand side by side as if they were one sequence, `[1, n]`: all layers but attention look at
//! each token alone, so that rows of different lengths need no padding.

use std::collections::BTreeMap;

use mp_runtime::kernels::attention::{self, Mask};
use mp_runtime::{Device, Kind, Tensor};

use crate::layers::attention::Sight;
use crate::pass::Positions;
use crate::{Error, Parameters, Result};

/// A rank's keys and values.
#[derive(Debug)]
pub struct Cache {
    rows: usize,
    length: usize,
    layers: BTreeMap<usize, Entry>,
}

/// One layer's keys and values, `[rows, kv, length, k]` each.
#[derive(Debug)]
struct Entry {
    keys: Tensor,
    values: Tensor,
}

/// What a pass reads and writes of a cache.
#[derive(Debug)]
pub enum Cached<'a> {
    /// The pass holds a whole prompt, from position 0 on, and leaves its keys and values in a row.
    Prompt {
        /// The cache.
        cache: &'a Cache,
        /// The row.
        row: usize,
    },
    /// The pass holds the next token of each of the first rows.
    Step {
        /// The cache.
        cache: &'a Cache,
        /// The positions of these tokens.
        at: Vec<usize>,
    },
}

impl Cache {
    /// Takes memory for `rows` sequences of up to `length` tokens, for all layers whose parameters this rank holds:
    /// [`mp_plan::cache_bytes`] says how much.
    ///
    /// # Errors
    /// [`Error::TooLong`] beyond the model's positions; [`Error::Runtime`] if the device has no room.
    pub fn new(parameters: &Parameters, rows: usize, length: usize) -> Result<Self> {
        let architecture = &parameters.partition().architecture;
        if length > architecture.max_seq {
            return Err(Error::TooLong { seq: length, max_seq: architecture.max_seq });
        }
        let options = (parameters.compute_kind(), parameters.device());
        let mut layers = BTreeMap::new();
        for layer in 0..architecture.layers {
            let name = format!("layers.{layer}.attention.key.weight");
            let Some(key) = parameters.partition().get(&name) else { continue };
            let width = key.range(parameters.tp_rank()).map_or(key.spec.shape[0], |(_, range)| range.len());
            let heads = width / architecture.head_dim;
            let shape = [rows, heads, length, architecture.head_dim].map(|n| n as i64);
            let made = || Tensor::f_zeros(shape, options);
            layers.insert(layer, Entry { keys: made()?, values: made()? });
        }
        Ok(Self { rows, length, layers })
    }

    /// Returns how many sequences there is room for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns how many positions each has.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Returns the bytes that it takes.
    ///
    /// # Units
    /// Bytes.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        self.layers.values().map(|entry| bytes(&entry.keys) + bytes(&entry.values)).sum()
    }

    /// Copies a row over another, whose sequence is over.
    ///
    /// # Errors
    /// [`Error::Runtime`] if there is no such row.
    pub fn replace(&self, row: usize, by: usize) -> Result<()> {
        for entry in self.layers.values() {
            for tensor in [&entry.keys, &entry.values] {
                tensor.f_select(0, row as i64)?.f_copy_(&tensor.f_select(0, by as i64)?)?;
            }
        }
        Ok(())
    }

    fn entry(&self, layer: usize) -> Result<&Entry> {
        self.layers.get(&layer).ok_or(Error::NotHere { what: "the keys and values of another stage's layer" })
    }

    /// Returns the positions of a step's tokens, as a pass takes them.
    pub fn positions(&self, at: &[usize]) -> Positions {
        Positions::new(self.length, at.iter().map(|&position| position..position + 1))
    }
}

impl Entry {
    /// Leaves a prompt's keys and values.
    fn fill(&self, row: usize, k_bshk: &Tensor, v_bshk: &Tensor) -> Result<()> {
        for (tensor, new) in [(&self.keys, k_bshk), (&self.values, v_bshk)] {
            let place = tensor.f_select(0, row as i64)?.f_narrow(1, 0, new.size()[1])?;
            place.shallow_clone().f_copy_(&new.f_select(0, 0)?.f_transpose(0, 1)?)?;
        }
        Ok(())
    }

    /// Leaves each token's key and value at its position of its row.
    fn put(&self, at: &[usize], k_bshk: &Tensor, v_bshk: &Tensor) -> Result<()> {
        for (tensor, new) in [(&self.keys, k_bshk), (&self.values, v_bshk)] {
            for (row, &position) in at.iter().enumerate() {
                let place = tensor.f_select(0, row as i64)?.f_select(1, position as i64)?;
                place.shallow_clone().f_copy_(&new.f_select(0, 0)?.f_select(0, row as i64)?)?;
            }
        }
        Ok(())
    }
}

impl Cached<'_> {
    /// Says whether each sequence attends to what is in the cache, and not to what the pass holds alone.
    pub(crate) fn is_step(&self) -> bool {
        matches!(self, Self::Step { .. })
    }

    /// Keeps the keys and values that the pass brings.
    ///
    /// # Shapes
    /// - `k_bshk`, `v_bshk`: `[1, s, kv, k]`
    ///
    /// # Errors
    /// [`Error::NotHere`] for a layer of another rank; [`Error::Runtime`] beyond the cache's room.
    pub(crate) fn keep(&self, layer: usize, k_bshk: &Tensor, v_bshk: &Tensor) -> Result<()> {
        match self {
            Self::Prompt { cache, row } => cache.entry(layer)?.fill(*row, k_bshk, v_bshk),
            Self::Step { cache, at } => cache.entry(layer)?.put(at, k_bshk, v_bshk),
        }
    }

    /// Attends from each row's token to all of its row, the token itself included.
    ///
    /// The query heads that share a key/value head take the place of queries at several positions: what a row keeps is
    /// read where it lies, without a copy for each of them.
    ///
    /// # Shapes
    /// - `q_bshk`: `[1, n, h, k]`
    /// - returns the same
    ///
    /// # Errors
    /// As [`keep`](Self::keep); [`Error::NotHere`] for a pass that is no step.
    pub(crate) fn attend(&self, layer: usize, q_bshk: &Tensor, sight: Sight) -> Result<Tensor> {
        let Self::Step { cache, at } = self else { return Err(Error::NotHere { what: "a step's tokens" }) };
        let entry = cache.entry(layer)?;
        let seen = Seen::of(at, sight.window);
        let own = |tensor: &Tensor| {
            let length = (seen.end - seen.start) as i64;
            tensor.f_narrow(0, 0, at.len() as i64)?.f_narrow(2, seen.start as i64, length)
        };
        let (keys, values) = (own(&entry.keys)?, own(&entry.values)?);
        let (n, kv, h, k) = (at.len() as i64, keys.size()[1], q_bshk.size()[2], q_bshk.size()[3]);
        let q_ngk = q_bshk.f_reshape([n, kv, h / kv, k])?;
        let mask = seen.mask(at, sight.window, h / kv, keys.device())?;
        let attended = attention::forward(&q_ngk, &keys, &values, &mask, None)?;
        Ok(attended.y_bhsk.f_reshape([1, n, h, k])?)
    }
}

/// The positions between which all that a step's tokens see lies.
struct Seen {
    start: usize,
    end: usize,
    even: bool,
}

impl Seen {
    fn of(at: &[usize], window: Option<usize>) -> Self {
        let (least, most) = at.iter().fold((usize::MAX, 0), |(least, most), &p| (least.min(p), most.max(p)));
        let start = window.map_or(0, |window| (least + 1).saturating_sub(window));
        Self { start, end: most + 1, even: least == most }
    }

    /// Says which of them each row's token sees: no later one, and none beyond the window.
    fn mask(&self, at: &[usize], window: Option<usize>, queries: i64, device: Device) -> Result<Mask> {
        if self.even {
            return Ok(Mask::Full);
        }
        let at: Vec<i64> = at.iter().map(|&position| position as i64).collect();
        let at_n1 = Tensor::f_from_slice(&at)?.f_to_device(device)?.f_unsqueeze(1)?;
        let keys_t = Tensor::f_arange_start(self.start as i64, self.end as i64, (Kind::Int64, device))?;
        let back_nt = at_n1.f_sub(&keys_t)?;
        let mut seen = back_nt.f_ge(0)?;
        if let Some(window) = window {
            seen = seen.f_logical_and(&back_nt.f_lt(window as i64)?)?;
        }
        let (n, t) = (seen.size()[0], seen.size()[1]);
        Ok(Mask::Seen(seen.f_view([n, 1, 1, t])?.f_expand([n, 1, queries, t], false)?))
    }
}
