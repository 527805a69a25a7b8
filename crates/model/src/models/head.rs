//! A body with a language-model head: scores for the next token, and their loss.

use std::ops::Range;

use mp_runtime::{autograd, Tensor};

use crate::collective;
use crate::layers::cross_entropy::vocab_parallel_cross_entropy;
use crate::layers::linear::ColumnParallel;
use crate::models::Body;
use crate::regions::TensorGroup;
use crate::stage::Stage;
use crate::{Parameters, Pass, Result};

/// A whole causal language model.
pub struct LanguageModel {
    pub(crate) parameters: Parameters,
    pub(crate) body: Box<dyn Body>,
    /// The head, cut by vocabulary; its matrix is the embedding's where the two are tied.
    pub(crate) head: ColumnParallel,
    /// This rank's token ids.
    pub(crate) ids: Range<usize>,
    pub(crate) group: TensorGroup,
}

impl Stage for LanguageModel {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn loss_sum(&self, pass: &Pass<'_>, targets: &Tensor) -> Result<Tensor> {
        let logits = self.head.forward(&self.body.forward(pass)?)?;
        vocab_parallel_cross_entropy(&logits, self.ids.clone(), targets, &*self.group.comm)
    }

    fn logits(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let _off = autograd::no_grad();
        let local = self.head.forward(&self.body.forward(pass)?)?;
        let all = collective::all_gather(&*self.group.comm, &local, 2)?;
        Ok(all.f_narrow(2, 0, self.parameters.partition().architecture.vocab as i64)?)
    }
}
