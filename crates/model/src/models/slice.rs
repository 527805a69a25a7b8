//! Consecutive layers of a language model as a stage: the entrance before the first, the exit after the last.

use std::ops::Range;

use mp_runtime::{autograd, Tensor};

use crate::collective;
use crate::layers::cross_entropy::vocab_parallel_cross_entropy;
use crate::layers::dense::Dense;
use crate::layers::dropout::Dropout;
use crate::layers::embedding::{LearnedPositions, TokenTypes, VocabParallelEmbedding};
use crate::layers::linear::ColumnParallel;
use crate::layers::next_sentence::NextSentence;
use crate::layers::norm::Norm;
use crate::models::block::Layer;
use crate::recompute::Recompute;
use crate::regions::TensorGroup;
use crate::stage::{Goal, Stage};
use crate::unit::Residence;
use crate::{Error, Pass, Result};

/// What comes before the first layer.
#[derive(Debug)]
pub struct Entrance {
    /// Tokens to vectors.
    pub embedding: VocabParallelEmbedding,
    /// Learned positions, where the family has them.
    pub positions: Option<LearnedPositions>,
    /// Token types and the norm of the sum, where the family has them.
    pub types: Option<(TokenTypes, Norm)>,
    /// Of their sum.
    pub dropout: Dropout,
    /// When its values are there.
    pub residence: Residence,
}

/// What last hidden states go through before they meet the vocabulary.
#[derive(Debug)]
pub struct Neck {
    /// A product, with exact GELU behind it.
    pub dense: Option<Dense>,
    /// The norm.
    pub norm: Norm,
}

impl Neck {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.dense {
            Some(dense) => self.norm.forward(&dense.forward(x)?.f_gelu("none")?),
            None => self.norm.forward(x),
        }
    }
}

/// What comes after the last layer.
#[derive(Debug)]
pub struct Exit {
    /// Of the last hidden states.
    pub neck: Neck,
    /// The head, cut by vocabulary; its matrix is the embedding's where the two are tied.
    pub head: ColumnParallel,
    /// The head for whole sequences, where there is one.
    pub next_sentence: Option<NextSentence>,
    /// This rank's token ids.
    pub ids: Range<usize>,
    /// The vocabulary, without padding.
    pub vocab: usize,
    /// When its values are there.
    pub residence: Residence,
}

/// Consecutive layers of a language model.
#[derive(Debug)]
pub struct Slice {
    /// On the first stage.
    pub entrance: Option<Entrance>,
    /// The layers.
    pub blocks: Vec<Layer>,
    /// What is computed again in the backward.
    pub recompute: Recompute,
    /// On the last stage.
    pub exit: Option<Exit>,
    /// The ranks that share each matrix.
    pub group: TensorGroup,
}

impl Entrance {
    fn forward(&self, pass: &Pass<'_>, group: &TensorGroup) -> Result<Tensor> {
        self.residence.enter(|| {
            let mut x = self.embedding.forward(pass.tokens)?;
            if let Some(positions) = &self.positions {
                x = positions.forward(&x, &pass.positions, pass.places)?;
            }
            if let Some((types, norm)) = &self.types {
                x = norm.forward(&types.forward(&x, pass.token_types)?)?;
            }
            self.dropout.forward(x, pass, group)
        })
    }
}

impl Exit {
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.head.forward(&self.neck.forward(x)?, None)
    }

    fn tokens_loss(&self, x: &Tensor, targets: &Tensor, group: &TensorGroup) -> Result<Tensor> {
        vocab_parallel_cross_entropy(&self.logits(x)?, self.ids.clone(), targets, &*group.comm)
    }
}

impl Slice {
    fn exit(&self) -> Result<&Exit> {
        self.exit.as_ref().ok_or(Error::NotHere { what: "the head" })
    }
}

impl Stage for Slice {
    fn forward(&self, pass: &Pass<'_>, input: Option<&Tensor>) -> Result<Tensor> {
        let mut x = match (&self.entrance, input) {
            (Some(entrance), None) => entrance.forward(pass, &self.group)?,
            (None, Some(input)) => input.shallow_clone(),
            (Some(_), Some(_)) => return Err(Error::NotHere { what: "a stage before the first" }),
            (None, None) => return Err(Error::NotHere { what: "the embedding" }),
        };
        for block in &self.blocks {
            x = block.forward(&x, pass, &self.group, self.recompute)?;
        }
        Ok(x)
    }

    fn loss_sum(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let exit = self.exit()?;
        exit.residence.around(hidden, |x| exit.tokens_loss(x, targets, &self.group))
    }

    fn loss(&self, hidden: &Tensor, pass: &Pass<'_>, goal: &Goal<'_>) -> Result<Tensor> {
        let exit = self.exit()?;
        exit.residence.around(hidden, |x| {
            let tokens = exit.tokens_loss(x, goal.targets, &self.group)?.f_mul_scalar(goal.share)?;
            let Some((labels, share)) = goal.sentences else { return Ok(tokens) };
            let head = exit.next_sentence.as_ref().ok_or(Error::NotHere { what: "a head for whole sequences" })?;
            let sentences = head.loss_sum(x, pass, labels, &self.group)?;
            Ok(tokens.f_add(&sentences.f_mul_scalar(share)?)?)
        })
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let exit = self.exit()?;
        let _off = autograd::no_grad();
        let local = exit.residence.around(hidden, |x| exit.logits(x))?;
        let all = collective::all_gather(&*self.group.comm, &local, 2)?;
        Ok(all.f_narrow(2, 0, exit.vocab as i64)?)
    }
}
