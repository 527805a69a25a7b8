//! What the engine trains: a model, or a slice of one, behind a trait object.

use mp_runtime::Tensor;

use crate::{Parameters, Pass, Result};

/// A model on one rank of its tensor group.
///
/// All ranks of the group call the same methods in the same order, with the same tokens.
pub trait Stage: Send {
    /// Returns this rank's shards.
    fn parameters(&self) -> &Parameters;

    /// Sums the cross-entropy of each target, in nats; targets of −1 do not count.
    ///
    /// # Shapes
    /// - `targets`: `[b, s]`
    /// - returns a scalar of the master kind, the same on all tensor ranks, in the graph
    ///
    /// # Errors
    /// [`Error::TooLong`](crate::Error::TooLong) beyond the model's positions; whatever a layer or a collective raises.
    fn loss_sum(&self, pass: &Pass<'_>, targets: &Tensor) -> Result<Tensor>;

    /// Computes the scores of the whole vocabulary, gathered on every rank, padding cut off.
    ///
    /// # Shapes
    /// - returns `[b, s, v]`, outside the graph
    ///
    /// # Errors
    /// As [`loss_sum`](Self::loss_sum).
    fn logits(&self, pass: &Pass<'_>) -> Result<Tensor>;
}
