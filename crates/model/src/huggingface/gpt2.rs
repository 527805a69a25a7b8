//! GPT-2 as transformers has it: linear layers as `Conv1D`, transposed to ours, with query, key and value in one.

use mp_plan::{Architecture, ArchitectureName, ModelConfig};
use serde_json::{json, Map, Value};

use super::keys::Keys;
use super::place::Place;
use super::Result;

/// Reads the family's keys.
pub(super) fn read(keys: &mut Keys<'_>) -> Result<(Architecture, Option<String>)> {
    keys.must_be("activation_function", &["gelu_new".into(), "gelu_pytorch_tanh".into()])?;
    keys.must_be("scale_attn_weights", &[true.into()])?;
    keys.must_be("scale_attn_by_inverse_layer_idx", &[false.into()])?;
    keys.must_be("reorder_and_upcast_attn", &[false.into()])?;
    let (hidden, positions) = (keys.needed("n_embd")?, keys.needed("n_positions")?);
    // What releases before 4.0 called the same.
    keys.must_be("n_ctx", &[positions.into()])?;
    let dropouts = [("resid_pdrop", 0.1), ("embd_pdrop", 0.1), ("attn_pdrop", 0.1)];
    let (dropout, uneven) = keys.dropout(&dropouts)?;
    let config = ModelConfig {
        architecture: ArchitectureName::Gpt2,
        hidden,
        layers: keys.needed("n_layer")?,
        heads: keys.needed("n_head")?,
        ffn: keys.size("n_inner")?.unwrap_or(hidden.saturating_mul(4)),
        vocab: keys.needed("vocab_size")?,
        max_seq: positions,
        tie_embeddings: Some(keys.flag("tie_word_embeddings", true)?),
        bias: Some(true),
        dropout,
        norm_eps: keys.number("layer_norm_epsilon", 1e-5)?,
        ..ModelConfig::default()
    };
    Ok((Architecture::resolve(&config, config.vocab, config.max_seq)?, uneven))
}

/// Writes the family's keys.
pub(super) fn write(architecture: &Architecture) -> Result<Map<String, Value>> {
    let &Architecture { hidden, layers, heads, ffn, vocab, max_seq, dropout, .. } = architecture;
    super::plain_attention(architecture, "GPT-2")?;
    let Value::Object(keys) = json!({
        "activation_function": "gelu_new",
        "vocab_size": vocab,
        "n_positions": max_seq,
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_inner": ffn,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "layer_norm_epsilon": architecture.norm_eps,
        "tie_word_embeddings": architecture.tie_embeddings,
        "scale_attn_weights": true,
        "scale_attn_by_inverse_layer_idx": false,
        "reorder_and_upcast_attn": false,
    }) else {
        unreachable!("an object was written")
    };
    Ok(keys)
}

/// Lists where each parameter lies.
pub(super) fn places(architecture: &Architecture) -> Vec<Place> {
    let place = |parameter: mp_plan::ParameterSpec| {
        let name = parameter.name.as_str();
        let Some((layer, rest)) = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
            return Place::whole(name, &parameter.shape, ends(name));
        };
        let (at, kind) = rest.rsplit_once('.').expect("a name ends with weight or bias");
        let (module, part) = module(at);
        let mut place = Place::whole(name, &parameter.shape, format!("transformer.h.{layer}.{module}.{kind}"));
        if let Some(part) = part {
            place.rows = 3 * architecture.hidden;
            place.start = part * architecture.hidden;
        }
        place.transposed = parameter.shape.len() == 2;
        place
    };
    architecture.parameters().into_iter().map(place).collect()
}

/// Names what lies outside the layers.
fn ends(name: &str) -> String {
    match name.rsplit_once('.') {
        Some(("embedding", _)) => "transformer.wte.weight".into(),
        Some(("positions", _)) => "transformer.wpe.weight".into(),
        Some(("final_norm", kind)) => format!("transformer.ln_f.{kind}"),
        _ => "lm_head.weight".into(),
    }
}

/// Names a layer's module, and the third of it that a fused part is.
fn module(at: &str) -> (&'static str, Option<usize>) {
    match at {
        "attention_norm" => ("ln_1", None),
        "attention.query" => ("attn.c_attn", Some(0)),
        "attention.key" => ("attn.c_attn", Some(1)),
        "attention.value" => ("attn.c_attn", Some(2)),
        "attention.output" => ("attn.c_proj", None),
        "mlp_norm" => ("ln_2", None),
        "mlp.up" => ("mlp.c_fc", None),
        "mlp.down" => ("mlp.c_proj", None),
        other => unreachable!("GPT-2 has no `{other}`"),
    }
}
