//! Llama: rotary positions, RMSNorm before each half of a block, SwiGLU, grouped-query attention.
//!
//! # Source
//! Touvron et al. 2023, arXiv:2302.13971, §2.2; grouped queries as in arXiv:2307.09288, §2.2.

use std::f64::consts::PI;

use mp_plan::{Architecture, RopeScaling};
use mp_runtime::kernels::rotary::{self, Angles};

use crate::layers::embedding::LearnedPositions;
use crate::layers::mlp::Activation;
use crate::layers::norm::Norm;
use crate::models::Family;
use crate::shards::Shards;
use crate::{Error, Result};

/// The Llama family.
#[derive(Debug)]
pub struct Llama {
    angles: Angles,
}

impl Llama {
    /// Makes what all layers share: the rotary table.
    ///
    /// # Errors
    /// [`Error::Runtime`] where libtorch refuses.
    pub fn new(shards: &Shards<'_>) -> Result<Self> {
        let Architecture { max_seq, head_dim, rope_theta, rope_scaling, .. } = shards.architecture();
        let mut frequencies = rotary::frequencies(*head_dim, *rope_theta);
        if let Some(scaling) = rope_scaling {
            for frequency in &mut frequencies {
                *frequency = scaled(*frequency, scaling)?;
            }
        }
        Ok(Self { angles: Angles::new(*max_seq, &frequencies, shards.kind(), shards.device())? })
    }
}

/// Scales a frequency, in radians a position, for sequences longer than those the model first saw.
///
/// # Source
/// Linear: Chen et al. 2023, arXiv:2306.15595, §2.3. Llama 3: the reference code released with Llama 3.1 (its report,
/// arXiv:2407.21783, §3.4.2, only tells that long contexts were trained for).
fn scaled(frequency: f64, scaling: &RopeScaling) -> Result<f64> {
    match *scaling {
        RopeScaling::Linear { factor } => Ok(frequency / factor),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        } => {
            let turns = original as f64 * frequency / (2.0 * PI);
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            Ok((1.0 - kept) * frequency / factor + kept * frequency)
        }
        ref other => Err(Error::Unbuilt(format!("rotary scaling {other:?}"))),
    }
}

impl Family for Llama {
    fn positions(&self, _shards: &Shards<'_>) -> Result<Option<LearnedPositions>> {
        Ok(None)
    }

    fn angles(&self) -> Option<Angles> {
        Some(self.angles.share())
    }

    fn activation(&self) -> Activation {
        Activation::SwiGlu
    }

    fn norm(&self, shards: &Shards<'_>, at: &str) -> Result<Norm> {
        shards.root_mean_square_norm(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_angles_are_divided_fast_ones_kept_and_those_between_blended() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        // Frequencies that make so many turns in the original context.
        let of = |turns: f64| 2.0 * PI * turns / 8192.0;
        for (turns, factor) in [(0.5, 1.0 / 8.0), (1.0, 1.0 / 8.0), (4.0, 1.0), (100.0, 1.0)] {
            let got = scaled(of(turns), &scaling).unwrap();
            assert!((got - of(turns) * factor).abs() < 1e-15, "{turns} turns: {got}");
        }
        // Half way: (1 − ½)/8 + ½.
        let got = scaled(of(2.5), &scaling).unwrap();
        assert!((got - of(2.5) * 0.5625).abs() < 1e-15, "{got}");
        assert_eq!(scaled(0.3, &RopeScaling::Linear { factor: 2.0 }).unwrap(), 0.15);
    }
}
