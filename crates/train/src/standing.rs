//! How a run's evaluations stand: the best loss so far, and how long it has been the best.

use serde::{Deserialize, Serialize};

/// The best of a run's evaluations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The lowest validation loss.
    pub best: Option<f64>,
    /// Evaluations since it was measured.
    pub without_gain: u64,
}

impl Standing {
    /// Hears of one more evaluation.
    pub fn hear(&mut self, loss: f64) {
        match self.best {
            Some(best) if loss >= best => self.without_gain += 1,
            _ => *self = Self { best: Some(loss), without_gain: 0 },
        }
    }

    /// Says whether as many evaluations in a row brought no gain as are put up with; 0 puts up with any.
    pub fn exhausts(&self, patience: u64) -> bool {
        patience > 0 && self.without_gain >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_evaluations_in_a_row() {
        let mut standing = Standing::default();
        assert!(!standing.exhausts(1));
        for (loss, without_gain) in [(3.0, 0), (3.0, 1), (2.0, 0), (2.5, 1), (2.1, 2)] {
            standing.hear(loss);
            assert_eq!(standing.without_gain, without_gain);
        }
        assert_eq!(standing.best, Some(2.0));
        assert!(standing.exhausts(2) && !standing.exhausts(3) && !standing.exhausts(0));
    }
}
