//! The head for whole sequences: does the second half follow the first?

use mp_comm::ReduceOp;
use mp_runtime::{autograd, Kind, Reduction, Tensor};

use crate::collective;
use crate::layers::dense::Dense;
use crate::pass::Pass;
use crate::regions::{Between, TensorGroup};
use crate::Result;

/// Classifies each sequence by its first position: `W₂·tanh(W₁·x₀ + b₁) + b₂`.
#[derive(Debug)]
pub struct NextSentence {
    /// `W₁` and `b₁`.
    pub pooler: Dense,
    /// `W₂` and `b₂`, of two rows: 0 for "follows", 1 for "does not".
    pub classes: Dense,
}

impl NextSentence {
    /// Sums the cross-entropy of each sequence's label, in nats. The first position is one rank's of a context group, which
    /// alone has the sum; the others have 0.
    ///
    /// # Shapes
    /// - `hidden`: `[b, s, d]`, or `[b, s / tp, d]`, its part of the pass's positions
    /// - `labels`: `[b]`
    /// - returns a scalar in single precision, double where `hidden` is, the same on all tensor ranks
    ///
    /// # Communication
    /// None; with sequence shards one all-reduce of a number.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) if that fails.
    ///
    /// # Source
    /// Devlin et al. 2019, arXiv:1810.04805, §3.1 and appendix A.2.
    pub fn loss_sum(&self, hidden: &Tensor, pass: &Pass<'_>, labels: &Tensor, group: &TensorGroup) -> Result<Tensor> {
        let own = pass.positions.part(group.positions(pass.positions.count()));
        let first = own.ends().is_some_and(|(first, _)| first == 0);
        // Ranks without the first position go through the same steps for nothing: every parameter counts each rank's use.
        let labels = if first { labels.shallow_clone() } else { labels.f_full_like(-1)? };
        let kind = if hidden.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let pooled = self.pooler.forward(&hidden.f_select(1, 0)?)?.f_tanh()?;
        let scores = self.classes.forward(&pooled)?.f_to_kind(kind)?.f_log_softmax(-1, None)?;
        let sum = scores.f_nll_loss(&labels, None::<Tensor>, Reduction::Sum, -1)?;
        match group.between {
            Between::Replicated => Ok(sum),
            Between::SequenceSharded => told(sum, group),
        }
    }
}

/// Tells all ranks the sum that one has; each one's gradient is its own.
fn told(sum: Tensor, group: &TensorGroup) -> Result<Tensor> {
    let mut all = sum.f_detach_copy()?;
    collective::all_reduce(&*group.comm, &mut all, ReduceOp::Sum)?;
    autograd::attach(&[&sum], &[all.shallow_clone()], |mut gradients| Ok(vec![gradients[0].take()]))?;
    Ok(all)
}
