//! The vocabulary-parallel embedding, and learned positions.

use std::ops::Range;

use mp_runtime::kernels::runs;
use mp_runtime::{autograd, Tensor};

use crate::pass::Positions;
use crate::regions::TensorGroup;
use crate::weight::Weight;
use crate::{Error, Result};

/// Looks tokens up in this rank's rows of the table.
#[derive(Debug)]
pub struct VocabParallelEmbedding {
    weight: Weight,
    ids: Range<usize>,
    whole: bool,
    group: TensorGroup,
}

impl VocabParallelEmbedding {
    /// Makes the layer from the rows for token ids `ids` of a vocabulary of `vocab`; rows beyond are padding.
    pub fn new(weight: Weight, ids: Range<usize>, vocab: usize, group: &TensorGroup) -> Self {
        let whole = ids == (0..vocab);
        Self { weight, ids, whole, group: group.clone() }
    }

    /// Looks up each token; ids outside this rank's range contribute nothing here.
    ///
    /// # Shapes
    /// - `tokens`: `[b, s]`, replicated
    /// - returns `[b, s, d]`, replicated; or `[b, s / tp, d]`, its part of the sequence
    ///
    /// # Communication
    /// Forward: one all-reduce (with sequence shards one reduce-scatter) of `b·s·d` elements. Backward: none; with
    /// sequence shards one all-gather, unless the table is frozen.
    ///
    /// # Errors
    /// [`Error::Runtime`] for ids beyond the vocabulary.
    ///
    /// # Source
    /// Shoeybi et al. 2019, arXiv:1909.08053, §3.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (local, outside) = self.locate(tokens)?;
        let y = {
            let _off = autograd::no_grad();
            let mut rows = Tensor::f_embedding(&self.weight.value()?, &local, -1, false, false)?;
            if let Some(outside) = &outside {
                let _ = rows.f_masked_fill_(&outside.f_unsqueeze(-1)?, 0.0)?;
            }
            self.group.leave(rows)?
        };
        let (weight, group) = (self.weight.share(), self.group.clone());
        autograd::attach(&[self.weight.anchor()], &[y.shallow_clone()], move |gradients| {
            if let (Some(dy), false) = (&gradients[0], weight.is_frozen()) {
                let dy = group.leave_backward(dy)?;
                let rows = match &outside {
                    Some(outside) => dy.f_masked_fill(&outside.f_unsqueeze(-1)?, 0.0)?,
                    None => dy,
                };
                let width = *rows.size().last().unwrap_or(&1);
                weight.accumulate_rows(&local.f_view([-1])?, &rows.f_reshape([-1, width])?)?;
            }
            Ok(vec![None])
        })?;
        Ok(y)
    }

    /// Turns ids into rows of the shard, and says which lie outside it.
    fn locate(&self, tokens: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        if self.whole {
            return Ok((tokens.shallow_clone(), None));
        }
        let (start, end) = (self.ids.start as i64, self.ids.end as i64);
        let outside = tokens.f_lt(start)?.f_logical_or(&tokens.f_ge(end)?)?;
        Ok((tokens.f_sub_scalar(start)?.f_masked_fill(&outside, 0)?, Some(outside)))
    }
}

/// Adds a learned vector for the type of each token.
#[derive(Debug)]
pub struct TokenTypes {
    weight: Weight,
    group: TensorGroup,
}

impl TokenTypes {
    /// Makes the layer from the whole table, `[types, d]`.
    pub fn new(weight: Weight, group: &TensorGroup) -> Self {
        Self { weight, group: group.clone() }
    }

    /// Adds row `t` to each token of type `t`; without types, row 0 to all.
    ///
    /// # Shapes
    /// - `x`: `[b, s, d]`, or `[b, s / tp, d]`, its part of the sequence
    /// - `types`: `[b, s]`
    /// - returns the shape of `x`
    ///
    /// # Communication
    /// None. Under sequence shards the table's gradient is partial: each rank saw its own positions.
    ///
    /// # Errors
    /// [`Error::Runtime`] for a type beyond the table.
    pub fn forward(&self, x: &Tensor, types: Option<&Tensor>) -> Result<Tensor> {
        let table = self.weight.tracked()?;
        let Some(types) = types else { return Ok(x.f_add(&table.f_select(0, 0)?)?) };
        let own = self.group.positions(types.size()[1] as usize);
        let types = types.f_narrow(1, own.start as i64, own.len() as i64)?;
        Ok(x.f_add(&Tensor::f_embedding(&table, &types, -1, false, false)?)?)
    }
}

/// Adds a learned vector for each position.
#[derive(Debug)]
pub struct LearnedPositions {
    weight: Weight,
    group: TensorGroup,
}

impl LearnedPositions {
    /// Makes the layer from the whole table, `[max_seq, d]`.
    pub fn new(weight: Weight, group: &TensorGroup) -> Self {
        Self { weight, group: group.clone() }
    }

    /// Adds row `p` to the token at position `p`; with `places`, the row that these say to each token.
    ///
    /// # Shapes
    /// - `x`: `[b, s, d]`, or `[b, s / tp, d]`, its part of the sequence
    /// - `places`: `[b, s]`
    /// - returns the shape of `x`
    ///
    /// # Communication
    /// None. Under sequence shards the table's gradient is partial: each rank saw its own positions.
    ///
    /// # Errors
    /// [`Error::TooLong`] beyond the table; [`Error::Runtime`] for a place beyond it.
    pub fn forward(&self, x: &Tensor, positions: &Positions, places: Option<&Tensor>) -> Result<Tensor> {
        let (seq, max_seq) = (positions.seq(), self.weight.shape()[0] as usize);
        if seq > max_seq {
            return Err(Error::TooLong { seq, max_seq });
        }
        let held = self.group.positions(positions.count());
        if let Some(places) = places {
            let own = places.f_narrow(1, held.start as i64, held.len() as i64)?;
            return Ok(x.f_add(&Tensor::f_embedding(&self.weight.tracked()?, &own, -1, false, false)?)?);
        }
        let own = positions.part(held);
        Ok(x.f_add(&runs::select(&self.weight.tracked()?, 0, own.runs())?)?)
    }
}
