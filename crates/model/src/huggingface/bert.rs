//! BERT as transformers has it, with the head of a masked language model, and with or without that for next sentences.

use mp_plan::{Architecture, ArchitectureName, ModelConfig};
use serde_json::{json, Map, Value};

use super::keys::Keys;
use super::place::Place;
use super::{Refusal, Result};

/// Reads the family's keys; `next_sentence` says whether the class has that head.
pub(super) fn read(keys: &mut Keys<'_>, next_sentence: bool) -> Result<(Architecture, Option<String>)> {
    keys.must_be("hidden_act", &["gelu".into()])?;
    keys.must_be("position_embedding_type", &["absolute".into()])?;
    keys.must_be("tie_word_embeddings", &[true.into()])?;
    keys.must_be("directionality", &["bidi".into()])?;
    let (dropout, uneven) = keys.dropout(&[("hidden_dropout_prob", 0.1), ("attention_probs_dropout_prob", 0.1)])?;
    let config = ModelConfig {
        architecture: ArchitectureName::Bert,
        hidden: keys.needed("hidden_size")?,
        layers: keys.needed("num_hidden_layers")?,
        heads: keys.needed("num_attention_heads")?,
        ffn: keys.needed("intermediate_size")?,
        vocab: keys.needed("vocab_size")?,
        max_seq: keys.needed("max_position_embeddings")?,
        tie_embeddings: Some(true),
        bias: Some(true),
        token_types: keys.size("type_vocab_size")?.unwrap_or(2),
        next_sentence,
        dropout,
        norm_eps: keys.number("layer_norm_eps", 1e-12)?,
        ..ModelConfig::default()
    };
    Ok((Architecture::resolve(&config, config.vocab, config.max_seq)?, uneven))
}

/// Writes the family's keys.
pub(super) fn write(architecture: &Architecture) -> Result<Map<String, Value>> {
    let dropout = architecture.dropout;
    if !architecture.tie_embeddings {
        let rule = "transformers' BERT has a bias of its own there when its head is not tied";
        return Err(Refusal::counterpart("model.tie_embeddings", false, rule));
    }
    super::plain_attention(architecture, "BERT")?;
    let Value::Object(keys) = json!({
        "hidden_act": "gelu",
        "vocab_size": architecture.vocab,
        "hidden_size": architecture.hidden,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "intermediate_size": architecture.ffn,
        "max_position_embeddings": architecture.max_seq,
        "type_vocab_size": architecture.token_types,
        "layer_norm_eps": architecture.norm_eps,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "tie_word_embeddings": true,
    }) else {
        unreachable!("an object was written")
    };
    Ok(keys)
}

/// Lists where each parameter lies.
pub(super) fn places(architecture: &Architecture) -> Vec<Place> {
    let place = |parameter: mp_plan::ParameterSpec| {
        let name = parameter.name.as_str();
        let (at, kind) = name.rsplit_once('.').expect("a name ends with weight or bias");
        let tensor = match at.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
            Some((layer, at)) => format!("bert.encoder.layer.{layer}.{}.{kind}", module(at)),
            None => format!("{}.{kind}", ends(at, kind)),
        };
        Place::whole(name, &parameter.shape, tensor)
    };
    architecture.parameters().into_iter().map(place).collect()
}

/// Names what lies outside the layers.
fn ends(at: &str, kind: &str) -> &'static str {
    match (at, kind) {
        ("embedding", _) => "bert.embeddings.word_embeddings",
        ("positions", _) => "bert.embeddings.position_embeddings",
        ("token_types", _) => "bert.embeddings.token_type_embeddings",
        ("embedding_norm", _) => "bert.embeddings.LayerNorm",
        ("head.dense", _) => "cls.predictions.transform.dense",
        ("head.norm", _) => "cls.predictions.transform.LayerNorm",
        ("head", "bias") => "cls.predictions",
        ("head", _) => "cls.predictions.decoder",
        ("pooler", _) => "bert.pooler.dense",
        ("next_sentence", _) => "cls.seq_relationship",
        (other, _) => unreachable!("BERT has no `{other}`"),
    }
}

fn module(at: &str) -> &'static str {
    match at {
        "attention.query" => "attention.self.query",
        "attention.key" => "attention.self.key",
        "attention.value" => "attention.self.value",
        "attention.output" => "attention.output.dense",
        "attention_norm" => "attention.output.LayerNorm",
        "mlp.up" => "intermediate.dense",
        "mlp.down" => "output.dense",
        "mlp_norm" => "output.LayerNorm",
        other => unreachable!("BERT has no `{other}`"),
    }
}
