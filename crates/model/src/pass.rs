//! What one forward pass works on, beside the weights.

use mp_runtime::Tensor;

/// One micro-batch on its way through a model.
#[derive(Debug)]
pub struct Pass<'a> {
    /// Token ids, `[b, s]`, the same on all tensor ranks.
    pub tokens: &'a Tensor,
    /// Index of the first sequence within the global batch: what dropout draws by.
    pub first_sample: usize,
    /// What dropout draws from, or `None` outside training.
    pub dropout: Option<DropoutKey>,
}

impl<'a> Pass<'a> {
    /// A pass without dropout.
    pub fn evaluation(tokens: &'a Tensor) -> Self {
        Self { tokens, first_sample: 0, dropout: None }
    }

    /// Returns the number of sequences.
    pub fn batch(&self) -> usize {
        self.tokens.size()[0] as usize
    }

    /// Returns the number of tokens of a sequence.
    pub fn seq(&self) -> usize {
        self.tokens.size()[1] as usize
    }
}

/// The seed and step that a training pass draws its dropout from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step.
    pub step: u64,
}
