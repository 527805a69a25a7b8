//! Llama as transformers has it: the same matrices as ours under other names.

use mp_plan::{Architecture, ArchitectureName, ModelConfig};
use serde_json::{json, Map, Value};

use super::keys::Keys;
use super::place::Place;
use super::{rope, Refusal, Result};

/// Reads the family's keys.
pub(super) fn read(keys: &mut Keys<'_>) -> Result<(Architecture, Option<String>)> {
    keys.must_be("hidden_act", &["silu".into(), "swish".into()])?;
    keys.must_be("pretraining_tp", &[1.into()])?;
    let (hidden, heads) = (keys.needed("hidden_size")?, keys.needed("num_attention_heads")?);
    let max_seq = keys.needed("max_position_embeddings")?;
    let (rope_theta, rope_scaling) = rope::read(keys, max_seq)?;
    // Elsewhere Llama drops nothing.
    let (dropout, uneven) = match keys.number("attention_dropout", 0.0)? {
        0.0 => (0.0, None),
        dropout => (0.0, Some(format!("`attention_dropout` = {dropout}, and 0 elsewhere"))),
    };
    let bias = keys.flag("attention_bias", false)?;
    keys.must_be("mlp_bias", &[bias.into()])?;
    if bias && !keys.flag("mlp_bias", false)? {
        return Err(Refusal::value(
            "attention_bias",
            &true.into(),
            "biases are computed in all linear layers or in none",
        ));
    }
    let config = ModelConfig {
        architecture: ArchitectureName::Llama,
        hidden,
        layers: keys.needed("num_hidden_layers")?,
        heads,
        kv_heads: keys.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim: keys.size("head_dim")?.unwrap_or(0),
        ffn: keys.needed("intermediate_size")?,
        vocab: keys.needed("vocab_size")?,
        max_seq,
        tie_embeddings: Some(keys.flag("tie_word_embeddings", false)?),
        bias: Some(bias),
        dropout,
        rope_theta,
        rope_scaling,
        norm_eps: keys.number("rms_norm_eps", 1e-6)?,
        ..ModelConfig::default()
    };
    Ok((Architecture::resolve(&config, config.vocab, config.max_seq)?, uneven))
}

/// Writes the family's keys.
pub(super) fn write(architecture: &Architecture) -> Result<Map<String, Value>> {
    let &Architecture { hidden, heads, dropout, bias, .. } = architecture;
    if dropout != 0.0 {
        let rule = "transformers' Llama drops nothing but attention weights; export with `--set model.dropout=0`";
        return Err(Refusal::counterpart("model.dropout", dropout, rule));
    }
    if !hidden.is_multiple_of(heads) {
        let rule = "transformers' Llama wants `model.hidden` to be a multiple of it";
        return Err(Refusal::counterpart("model.heads", heads, rule));
    }
    let Value::Object(mut keys) = json!({
        "hidden_act": "silu",
        "vocab_size": architecture.vocab,
        "hidden_size": hidden,
        "intermediate_size": architecture.ffn,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": architecture.kv_heads,
        "head_dim": architecture.head_dim,
        "max_position_embeddings": architecture.max_seq,
        "rms_norm_eps": architecture.norm_eps,
        "tie_word_embeddings": architecture.tie_embeddings,
        "attention_bias": bias,
        "mlp_bias": bias,
        "attention_dropout": 0.0,
        "pretraining_tp": 1,
    }) else {
        unreachable!("an object was written")
    };
    rope::write(architecture, &mut keys)?;
    Ok(keys)
}

/// Lists where each parameter lies.
pub(super) fn places(architecture: &Architecture) -> Vec<Place> {
    let place = |parameter: mp_plan::ParameterSpec| {
        let name = parameter.name.as_str();
        let tensor = match name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => {
                let (at, kind) = rest.rsplit_once('.').expect("a name ends with weight or bias");
                format!("model.layers.{layer}.{}.{kind}", module(at))
            }
            None => match name {
                "embedding.weight" => "model.embed_tokens.weight".into(),
                "final_norm.weight" => "model.norm.weight".into(),
                _ => "lm_head.weight".into(),
            },
        };
        Place::whole(name, &parameter.shape, tensor)
    };
    architecture.parameters().into_iter().map(place).collect()
}

fn module(at: &str) -> &'static str {
    match at {
        "attention_norm" => "input_layernorm",
        "attention.query" => "self_attn.q_proj",
        "attention.key" => "self_attn.k_proj",
        "attention.value" => "self_attn.v_proj",
        "attention.output" => "self_attn.o_proj",
        "mlp_norm" => "post_attention_layernorm",
        "mlp.gate" => "mlp.gate_proj",
        "mlp.up" => "mlp.up_proj",
        "mlp.down" => "mlp.down_proj",
        other => unreachable!("Llama has no `{other}`"),
    }
}
