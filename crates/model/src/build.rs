//! The one place where a plan meets a model: names become weights, weights become layers, layers become stages.

use std::ops::Range;

use mp_plan::{Architecture, ArchitectureName};

use crate::layers::embedding::{TokenTypes, VocabParallelEmbedding};
use crate::layers::linear::ColumnParallel;
use crate::layers::next_sentence::NextSentence;
use crate::layers::norm::Norm;
use crate::models::bert::Bert;
use crate::models::block::{Block, Layer};
use crate::models::gpt2::Gpt2;
use crate::models::llama::Llama;
use crate::models::slice::{Entrance, Exit, Slice};
use crate::models::Family;
use crate::parameter::Parameters;
use crate::recompute::Recompute;
use crate::regions::TensorGroup;
use crate::shards::{Options, Shards};
use crate::stage::{Model, Stage};
use crate::{Error, Result};

/// Builds a rank's share of a model: one stage for each range of layers, with the entrance before layer 0 and the exit
/// after the last.
///
/// # Errors
/// [`Error::UnknownParameter`] if the partition lacks a parameter that a stage needs; [`Error::Plan`] if heads cannot be
/// exchanged over the context group; [`Error::Unbuilt`] for what no layer computes.
pub fn build(parameters: Parameters, group: TensorGroup, chunks: &[Range<usize>], options: &Options) -> Result<Model> {
    if options.recompute == (Recompute::Full { every: 0 }) {
        return Err(Error::Unbuilt("recomputing every 0th layer".into()));
    }
    let shards = Shards { parameters: &parameters, group: &group, options };
    let family: Box<dyn Family> = match shards.architecture().name {
        ArchitectureName::Bert => Box::new(Bert),
        ArchitectureName::Gpt2 => Box::new(Gpt2),
        ArchitectureName::Llama => Box::new(Llama::new(&shards)?),
        other => return Err(Error::Unbuilt(format!("architecture {other:?}"))),
    };
    let stage = |layers: &Range<usize>| -> Result<Box<dyn Stage>> { Ok(Box::new(slice(&shards, &*family, layers)?)) };
    #[cfg(feature = "faults")]
    let chunks = &crate::faults::layers(chunks, shards.architecture().layers)[..];
    let stages = chunks.iter().map(stage).collect::<Result<_>>()?;
    Ok(Model::new(parameters, stages))
}

/// Makes the stage of some layers.
fn slice(shards: &Shards<'_>, family: &dyn Family, layers: &Range<usize>) -> Result<Slice> {
    let (first, last) = (layers.start == 0, layers.end == shards.architecture().layers);
    Ok(Slice {
        entrance: if first { Some(entrance(shards, family)?) } else { None },
        blocks: layers.clone().map(|layer| block(shards, family, layer).map(Layer::new)).collect::<Result<_>>()?,
        recompute: shards.options.recompute,
        exit: if last { Some(exit(shards, family)?) } else { None },
        group: shards.group().clone(),
    })
}

fn entrance(shards: &Shards<'_>, family: &dyn Family) -> Result<Entrance> {
    let (name, vocab) = ("embedding.weight", shards.architecture().vocab);
    Ok(Entrance {
        embedding: VocabParallelEmbedding::new(shards.weight(name)?, shards.range(name)?, vocab, shards.group()),
        positions: family.positions(shards)?,
        types: types(shards, family)?,
        dropout: shards.dropout("embedding"),
        residence: shards.parameters.entrance(),
    })
}

fn types(shards: &Shards<'_>, family: &dyn Family) -> Result<Option<(TokenTypes, Norm)>> {
    if shards.architecture().token_types == 0 {
        return Ok(None);
    }
    let types = TokenTypes::new(shards.weight("token_types.weight")?, shards.group());
    Ok(Some((types, family.norm(shards, "embedding_norm")?)))
}

fn block(shards: &Shards<'_>, family: &dyn Family, layer: usize) -> Result<Block> {
    let at = |part: &str| format!("layers.{layer}.{part}");
    Ok(Block {
        layer,
        residence: shards.parameters.layer(layer),
        order: family.order(),
        attention_norm: family.norm(shards, &at("attention_norm"))?,
        attention: shards.attention(layer, family.angles())?,
        attention_dropout: shards.dropout(&at("attention.output")),
        mlp_norm: family.norm(shards, &at("mlp_norm"))?,
        mlp: shards.mlp(&at("mlp"), family.activation())?,
        mlp_dropout: shards.dropout(&at("mlp")),
    })
}

fn exit(shards: &Shards<'_>, family: &dyn Family) -> Result<Exit> {
    let table = if shards.architecture().tie_embeddings { "embedding.weight" } else { "head.weight" };
    let &Architecture { name, bias, next_sentence, .. } = shards.architecture();
    let bias = shards.bias("head", bias && name == ArchitectureName::Bert)?;
    let next_sentence = match next_sentence {
        true => Some(NextSentence { pooler: shards.dense("pooler")?, classes: shards.dense("next_sentence")? }),
        false => None,
    };
    Ok(Exit {
        neck: family.neck(shards)?,
        head: ColumnParallel::new(shards.weight(table)?, bias, shards.group()),
        next_sentence,
        ids: shards.range(table)?,
        vocab: shards.architecture().vocab,
        residence: shards.parameters.exit(),
    })
}
