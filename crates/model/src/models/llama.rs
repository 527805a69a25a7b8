//! Llama: rotary positions, RMSNorm before each half of a block, SwiGLU, grouped-query attention.
//!
//! # Source
//! Touvron et al. 2023, arXiv:2302.13971, §2.2; grouped queries as in arXiv:2307.09288, §2.2.

use mp_plan::RopeScaling;
use mp_runtime::kernels::rotary::Angles;

use crate::layers::embedding::LearnedPositions;
use crate::layers::mlp::Activation;
use crate::layers::norm::Norm;
use crate::models::Family;
use crate::shards::Shards;
use crate::Result;

/// The Llama family.
#[derive(Debug)]
pub struct Llama {
    angles: Angles,
}

impl Llama {
    /// Makes what all layers share: the rotary table.
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where libtorch refuses.
    pub fn new(shards: &Shards<'_>) -> Result<Self> {
        let architecture = shards.architecture();
        let factor = match architecture.rope_scaling {
            Some(RopeScaling::Linear { factor }) => factor,
            _ => 1.0,
        };
        let (length, width) = (architecture.max_seq, architecture.head_dim);
        let (kind, device) = (shards.kind(), shards.device());
        Ok(Self { angles: Angles::new(length, width, architecture.rope_theta, factor, kind, device)? })
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
