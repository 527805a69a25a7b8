//! Llama as transformers has it, and Mistral and Qwen2, which add windows and biases to it: the same matrices as ours
//! under other names.

use mp_plan::{Architecture, ArchitectureName, AttentionBias, ModelConfig};
use serde_json::{json, Map, Value};

use super::keys::Keys;
use super::place::Place;
use super::{rope, Family, Refusal, Result};

/// Reads the keys of Llama, or of one that differs from it in biases and windows.
pub(super) fn read(keys: &mut Keys<'_>, family: Family) -> Result<(Architecture, Option<String>)> {
    keys.must_be("hidden_act", &["silu".into(), "swish".into()])?;
    let (hidden, heads) = (keys.needed("hidden_size")?, keys.needed("num_attention_heads")?);
    let layers = keys.needed("num_hidden_layers")?;
    let max_seq = keys.needed("max_position_embeddings")?;
    let (rope_theta, rope_scaling) = rope::read(keys, max_seq)?;
    // Nothing else is ever dropped.
    let uneven = match keys.number("attention_dropout", 0.0)? {
        0.0 => None,
        dropout => Some(format!("`attention_dropout` = {dropout}, and 0 elsewhere")),
    };
    let (attention_bias, bias) = biases(keys, family)?;
    let config = ModelConfig {
        architecture: ArchitectureName::Llama,
        hidden,
        layers,
        heads,
        kv_heads: kv_heads(keys, family)?.unwrap_or(heads),
        head_dim: keys.size("head_dim")?.unwrap_or(0),
        ffn: keys.needed("intermediate_size")?,
        vocab: keys.needed("vocab_size")?,
        max_seq,
        tie_embeddings: Some(keys.flag("tie_word_embeddings", false)?),
        bias: Some(bias),
        attention_bias: Some(attention_bias),
        window: window(keys, family, layers)?.unwrap_or(0),
        rope_theta,
        rope_scaling,
        norm_eps: keys.number("rms_norm_eps", 1e-6)?,
        ..ModelConfig::default()
    };
    Ok((Architecture::resolve(&config, config.vocab, config.max_seq)?, uneven))
}

/// Reads which projections of the attention, and whether those of the perceptron, carry a bias.
fn biases(keys: &mut Keys<'_>, family: Family) -> Result<(AttentionBias, bool)> {
    match family {
        Family::Llama => {
            keys.must_be("pretraining_tp", &[1.into()])?;
            let all = if keys.flag("attention_bias", false)? { AttentionBias::All } else { AttentionBias::None };
            Ok((all, keys.flag("mlp_bias", false)?))
        }
        Family::Qwen2 => Ok((AttentionBias::Qkv, false)),
        _ => Ok((AttentionBias::None, false)),
    }
}

/// Reads how many heads keys and values have; Mistral alone has a number of its own where none is given.
fn kv_heads(keys: &mut Keys<'_>, family: Family) -> Result<Option<usize>> {
    match family {
        Family::Mistral => keys.size_or("num_key_value_heads", 8),
        _ => keys.size("num_key_value_heads"),
    }
}

/// Reads how many positions a query sees; the same in all layers.
fn window(keys: &mut Keys<'_>, family: Family, layers: usize) -> Result<Option<usize>> {
    match family {
        Family::Mistral => keys.size_or("sliding_window", 4096),
        Family::Qwen2 => {
            let window = keys.size_or("sliding_window", 4096)?;
            let window = window.filter(|_| keys.flag("use_sliding_window", false).unwrap_or(false));
            keys.flag("use_sliding_window", false)?;
            // Layers from this one on.
            let first = keys.number("max_window_layers", 28.0)?;
            let windowed = layer_types(keys, layers)?
                .unwrap_or_else(|| (0..layers).map(|layer| window.is_some() && layer as f64 >= first).collect());
            match windowed.iter().all(|&here| here == windowed[0]) {
                true => Ok(window.filter(|_| windowed[0])),
                false => Err(keys.refuse("max_window_layers", "all layers see through the same window, or none")),
            }
        }
        _ => Ok(None),
    }
}

/// Reads which layers see through a window, where each is named.
fn layer_types(keys: &mut Keys<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = keys.take("layer_types") else { return Ok(None) };
    let kind = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Some(false),
        Some("sliding_attention") => Some(true),
        _ => None,
    };
    let listed = value.as_array().and_then(|list| list.iter().map(kind).collect::<Option<Vec<bool>>>());
    let rule = "it must name \"full_attention\" or \"sliding_attention\" for each layer, the same for all";
    match listed.filter(|listed| listed.len() == layers && listed.iter().all(|&here| here == listed[0])) {
        Some(listed) => Ok(Some(listed)),
        None => Err(Refusal::value("layer_types", value, rule)),
    }
}

/// Finds which of the families computes what a Llama of ours does.
pub(super) fn family(architecture: &Architecture) -> Result<Family> {
    let &Architecture { bias, window, hidden, heads, .. } = architecture;
    // transformers checks this in Llama alone, which is otherwise a Mistral without a window.
    let even = hidden.is_multiple_of(heads);
    match (architecture.attention_biases(), bias, window) {
        (AttentionBias::Qkv, false, _) => Ok(Family::Qwen2),
        (AttentionBias::None, false, window) if window.is_some() || !even => Ok(Family::Mistral),
        (AttentionBias::Qkv, true, _) => {
            Err(Refusal::counterpart("model.bias", true, "with `model.attention_bias` = \"qkv\" transformers has none"))
        }
        (_, _, Some(window)) => {
            let rule = "transformers has windows only without biases, or with `model.attention_bias` = \"qkv\"";
            Err(Refusal::counterpart("model.window", window, rule))
        }
        _ if !even => {
            let rule = "with biases transformers wants `model.hidden` to be a multiple of it";
            Err(Refusal::counterpart("model.heads", heads, rule))
        }
        _ => Ok(Family::Llama),
    }
}

/// Writes the keys of Llama, or of one that differs from it in biases and windows.
pub(super) fn write(architecture: &Architecture, family: Family) -> Result<Map<String, Value>> {
    let &Architecture { hidden, heads, dropout, bias, window, .. } = architecture;
    if dropout != 0.0 {
        let rule = "transformers drops nothing but attention weights here; export with `--dropout 0`";
        return Err(Refusal::counterpart("model.dropout", dropout, rule));
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
        "attention_dropout": 0.0,
    }) else {
        unreachable!("an object was written")
    };
    match family {
        Family::Mistral => {
            keys.insert("sliding_window".into(), json!(window));
        }
        Family::Qwen2 => {
            keys.insert("use_sliding_window".into(), window.is_some().into());
            keys.insert("sliding_window".into(), json!(window));
            // The first layer that sees through the window.
            let first = if window.is_some() { 0 } else { architecture.layers };
            keys.insert("max_window_layers".into(), first.into());
        }
        _ => {
            let attention = architecture.attention_biases() == AttentionBias::All;
            keys.insert("attention_bias".into(), attention.into());
            keys.insert("mlp_bias".into(), bias.into());
            keys.insert("pretraining_tp".into(), 1.into());
        }
    }
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
