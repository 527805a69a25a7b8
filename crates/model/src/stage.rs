//! What the engine trains: consecutive layers of a model behind a trait object, and a rank's share of a model made of
//! them.

use mp_runtime::Tensor;

use crate::{Parameters, Pass, Result};

/// Consecutive layers of a model on one rank of its tensor group.
///
/// All ranks of the group call the same methods in the same order, with the same tokens.
pub trait Stage: Send {
    /// Runs this stage's layers.
    ///
    /// # Shapes
    /// - `input`: what the stage before returned; `None` for the first, which looks the pass's tokens up
    /// - returns `[b, s, d]`, or `[b, s / tp, d]`, its part of the sequence
    ///
    /// # Errors
    /// [`Error::NotHere`](crate::Error::NotHere) if the first stage is given an input, or another one none;
    /// [`Error::TooLong`](crate::Error::TooLong) beyond the model's positions; whatever a layer or a collective raises.
    fn forward(&self, pass: &Pass<'_>, input: Option<&Tensor>) -> Result<Tensor>;

    /// Sums the cross-entropy of each target, in nats; targets of −1 do not count. The last stage alone can.
    ///
    /// # Shapes
    /// - `hidden`: what [`forward`](Self::forward) returned
    /// - `targets`: `[b, s]`
    /// - returns a scalar of the master kind, the same on all tensor ranks, in the graph
    ///
    /// # Errors
    /// [`Error::NotHere`](crate::Error::NotHere) on other stages; whatever a layer or a collective raises.
    fn loss_sum(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor>;

    /// Computes this rank's part of what a step makes smaller: the targets' cross-entropy and, with a head for whole sequences,
    /// the labels', each times its share. The last stage alone can.
    ///
    /// # Shapes
    /// As [`loss_sum`](Self::loss_sum).
    ///
    /// # Errors
    /// As [`loss_sum`](Self::loss_sum), and [`Error::NotHere`](crate::Error::NotHere) for labels without a head.
    fn loss(&self, hidden: &Tensor, pass: &Pass<'_>, goal: &Goal<'_>) -> Result<Tensor>;

    /// Computes the scores of the whole vocabulary, gathered on every tensor rank, padding cut off. The last stage alone
    /// can.
    ///
    /// # Shapes
    /// - `hidden`: what [`forward`](Self::forward) returned
    /// - returns `[b, s, v]`, outside the graph
    ///
    /// # Errors
    /// As [`loss_sum`](Self::loss_sum).
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;
}

/// What a micro-batch is to bring about.
#[derive(Debug, Clone, Copy)]
pub struct Goal<'a> {
    /// What is to be predicted at each position, `[b, s]`; −1 where nothing is.
    pub targets: &'a Tensor,
    /// What each target's loss is multiplied with.
    pub share: f64,
    /// A label for each sequence, `[b]`, and what its loss is multiplied with.
    pub sentences: Option<(&'a Tensor, f64)>,
}

/// A rank's share of a model: its parameters, and the stages that use them.
pub struct Model {
    parameters: Parameters,
    chunks: Vec<Box<dyn Stage>>,
}

impl Model {
    /// Puts a model together; `chunks` are this rank's stages in the order of the layers.
    pub fn new(parameters: Parameters, chunks: Vec<Box<dyn Stage>>) -> Self {
        Self { parameters, chunks }
    }

    /// Returns this rank's shards.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Gives the parameters back, for another model of them.
    pub fn into_parameters(self) -> Parameters {
        self.parameters
    }

    /// Returns this rank's stages in the order of the layers.
    pub fn chunks(&self) -> &[Box<dyn Stage>] {
        &self.chunks
    }

    /// Sums the cross-entropy of each target, where all stages are on this rank; see [`Stage::loss_sum`].
    ///
    /// # Errors
    /// As [`Stage::loss_sum`].
    pub fn loss_sum(&self, pass: &Pass<'_>, targets: &Tensor) -> Result<Tensor> {
        let (last, hidden) = self.hidden(pass)?;
        last.loss_sum(&hidden, targets)
    }

    /// Computes the scores of the whole vocabulary, where all stages are on this rank; see [`Stage::logits`].
    ///
    /// # Errors
    /// As [`Stage::logits`].
    pub fn logits(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let _off = mp_runtime::autograd::no_grad();
        let (last, hidden) = self.hidden(pass)?;
        last.logits(&hidden)
    }

    fn hidden(&self, pass: &Pass<'_>) -> Result<(&dyn Stage, Tensor)> {
        let (first, rest) = self.chunks.split_first().expect("a model has a stage");
        let (mut last, mut hidden) = (&**first, first.forward(pass, None)?);
        for stage in rest {
            (last, hidden) = (&**stage, stage.forward(pass, Some(&hidden))?);
        }
        Ok((last, hidden))
    }
}
