//! BERT: learned positions and token types, LayerNorm behind each half of a block, exact GELU, attention in both directions,
//! a head for masked tokens and one for whole sequences.
//!
//! | parameter | in transformers' `BertForPreTraining` |
//! |---|---|
//! | `embedding`, `positions`, `token_types`, `embedding_norm` | `bert.embeddings.{word_embeddings, position_embeddings, token_type_embeddings, LayerNorm}` |
//! | `layers.N.attention.{query, key, value}` | `bert.encoder.layer.N.attention.self.{query, key, value}` |
//! | `layers.N.attention.output`, `layers.N.attention_norm` | `bert.encoder.layer.N.attention.output.{dense, LayerNorm}` |
//! | `layers.N.mlp.up` | `bert.encoder.layer.N.intermediate.dense` |
//! | `layers.N.mlp.down`, `layers.N.mlp_norm` | `bert.encoder.layer.N.output.{dense, LayerNorm}` |
//! | `head.dense`, `head.norm` | `cls.predictions.transform.{dense, LayerNorm}` |
//! | `head.weight` (tied: `embedding.weight`), `head.bias` | `cls.predictions.decoder.{weight, bias}` |
//! | `pooler`, `next_sentence` | `bert.pooler.dense`, `cls.seq_relationship` |
//!
//! # Source
//! Devlin et al. 2019, arXiv:1810.04805, §3 and appendix A.

use mp_runtime::kernels::rotary::Angles;

use crate::layers::embedding::LearnedPositions;
use crate::layers::mlp::Activation;
use crate::layers::norm::Norm;
use crate::models::block::NormOrder;
use crate::models::slice::Neck;
use crate::models::Family;
use crate::shards::Shards;
use crate::Result;

/// The BERT family.
#[derive(Debug)]
pub struct Bert;

impl Family for Bert {
    fn positions(&self, shards: &Shards<'_>) -> Result<Option<LearnedPositions>> {
        Ok(Some(LearnedPositions::new(shards.weight("positions.weight")?, shards.group())))
    }

    fn angles(&self) -> Option<Angles> {
        None
    }

    fn activation(&self) -> Activation {
        Activation::ExactGelu
    }

    fn order(&self) -> NormOrder {
        NormOrder::Behind
    }

    fn neck(&self, shards: &Shards<'_>) -> Result<Neck> {
        Ok(Neck { dense: Some(shards.dense("head.dense")?), norm: self.norm(shards, "head.norm")? })
    }

    fn norm(&self, shards: &Shards<'_>, at: &str) -> Result<Norm> {
        shards.layer_norm(at)
    }
}
