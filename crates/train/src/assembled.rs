//! A rank's share of a model as passes run through it, in training or not: the layers, the groups, and how sequences are
//! cut.

use mp_data::Batch;
use mp_model::context::Context;
use mp_model::pass::Positions;
use mp_model::regions::Between;
use mp_model::{Model, Parameters, Pass};
use mp_plan::{Stages, Zero};
use mp_runtime::Tensor;

use crate::groups::Groups;
use crate::pipeline::Line;
use crate::Result;

/// What a pass needs of a rank.
#[derive(Clone, Copy)]
pub struct Assembled<'a> {
    /// The rank's groups.
    pub groups: &'a Groups,
    /// Its stages and their parameters.
    pub model: &'a Model,
    /// All stages of the model.
    pub stages: &'a Stages,
    /// The ranks that share each sequence.
    pub context: &'a Context,
    /// How activations lie between the tensor-parallel regions.
    pub between: Between,
}

impl<'a> Assembled<'a> {
    /// Returns this rank's shards.
    pub fn parameters(&self) -> &'a Parameters {
        self.model.parameters()
    }

    /// Returns the ways between this rank's stages and the others'.
    pub fn line(&self) -> Line<'a> {
        Line { stages: self.stages, group: &*self.groups.pp }
    }

    /// Says whether the data ranks keep parts of the parameters, so that all of them take part in every pass.
    pub fn is_shared_out(&self) -> bool {
        self.parameters().sharing().zero == Zero::Parameters
    }

    /// Puts this rank's part of a batch where the model is.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) if the sequences cannot be cut over the context ranks.
    pub fn own(&self, batch: &Batch) -> Result<Own> {
        let (shape, device) = ([batch.batch as i64, batch.seq as i64], self.parameters().device());
        let full = |ids: &[i64]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(ids).and_then(|full| full.f_view(shape)).map_err(mp_runtime::Error::from)?)
        };
        let place = |ids: &Tensor| -> Result<Tensor> { Ok(ids.f_to_device(device).map_err(mp_runtime::Error::from)?) };
        let put = |ids: &[i64]| place(&self.context.own(&full(ids)?)?);
        Ok(Own {
            tokens: put(&batch.tokens)?,
            targets: put(&batch.targets)?,
            segments: batch.segments.as_ref().map(|ids| place(&full(ids)?)).transpose()?,
            places: batch.positions.as_ref().map(|ids| put(ids)).transpose()?,
            token_types: batch.token_types.as_ref().map(|ids| put(ids)).transpose()?,
            labels: batch.labels.as_ref().map(|labels| place(&Tensor::from_slice(labels))).transpose()?,
            positions: self.context.positions(batch.seq)?,
        })
    }

    /// Returns the shape of the activations between stages, for sequences of which this rank's stages see `[b, s]`
    /// tokens.
    pub fn activation_shape(&self, batch: usize, seq: usize) -> [i64; 3] {
        let seq = match self.between {
            Between::Replicated => seq,
            Between::SequenceSharded => seq / self.groups.tp.size(),
        };
        [batch as i64, seq as i64, self.parameters().partition().architecture.hidden as i64]
    }
}

/// A rank's part of a batch.
#[derive(Debug)]
pub struct Own {
    /// Token ids, `[b, s / cp]`.
    pub tokens: Tensor,
    /// What is to be predicted, `[b, s / cp]`.
    pub targets: Tensor,
    /// Which segment each token of the whole sequences belongs to, `[b, s]`: also others' are to be told apart.
    pub segments: Option<Tensor>,
    /// Where each token is taken to be in its segment, `[b, s / cp]`.
    pub places: Option<Tensor>,
    /// The tokens' types, `[b, s / cp]`.
    pub token_types: Option<Tensor>,
    /// What each sequence is to be told as, `[b]`.
    pub labels: Option<Tensor>,
    /// Where in their sequences they stand.
    pub positions: Positions,
}

impl Own {
    /// Makes a pass over it, without dropout.
    pub fn pass(&self) -> Pass<'_> {
        Pass {
            positions: self.positions.clone(),
            segments: self.segments.as_ref(),
            places: self.places.as_ref(),
            token_types: self.token_types.as_ref(),
            ..Pass::evaluation(&self.tokens)
        }
    }
}
