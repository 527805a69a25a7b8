//! The tensors that files hold, against those that a model needs: none is missing, and none is left over.

use std::collections::BTreeMap;

use mp_plan::Architecture;

use super::place::Published;
use super::{Family, Place, Refusal, Result};

/// What each file's tensor is to the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
    /// Where each parameter lies, under the tensors' names in the files.
    pub places: Vec<Place>,
    /// Tensors that a tied model has once and files hold twice: (the second, the first). Who reads must refuse two that
    /// differ.
    pub same: Vec<(String, String)>,
}

impl Inventory {
    /// Finds each parameter among tensors of these names and shapes.
    ///
    /// Files of a bare model lack the prefix that a model with a head puts before its names, and old ones have other names
    /// for norms, and buffers that are no parameters; all are known.
    ///
    /// # Errors
    /// [`Refusal`] naming a tensor that is missing, has no place, comes twice or has another shape.
    pub fn take(family: Family, architecture: &Architecture, stored: &[(String, Vec<usize>)]) -> Result<Self> {
        let mut places = family.places(architecture);
        let expected = Published::gather(places.clone());
        let (mut found, mut twins, mut left) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (name, shape) in stored {
            let known = |candidate: &String| expected.iter().find(|tensor| tensor.name == *candidate);
            let candidates = [name.clone(), format!("{}{name}", prefix(family)), renamed(family, name)];
            let twin = twins_of(family, architecture).iter().find(|(twin, _)| twin == name).map(|(_, first)| *first);
            if let Some(tensor) = candidates.iter().find_map(known) {
                if *shape != tensor.shape {
                    let (found, expected) = (shape.clone(), tensor.shape.clone());
                    return Err(Refusal::Shape { name: name.clone(), found, expected });
                }
                if let Some(first) = found.insert(tensor.name.clone(), name.clone()) {
                    return Err(Refusal::TwiceTensor { first, second: name.clone() });
                }
            } else if let Some(first) = twin {
                twins.push((name.clone(), first));
            } else if !is_outside(family, architecture, name) {
                left.push(name.clone());
            }
        }
        let missing: Vec<&Published> = expected.iter().filter(|tensor| !found.contains_key(&tensor.name)).collect();
        if let Some(first) = missing.first() {
            return Err(Refusal::MissingTensor { name: first.name.clone(), count: missing.len() });
        }
        if let Some(first) = left.first() {
            return Err(Refusal::UnexpectedTensor { name: first.clone(), count: left.len() });
        }
        for place in &mut places {
            place.tensor.clone_from(&found[&place.tensor]);
        }
        let same = twins.into_iter().map(|(twin, first)| (twin, found[first].clone())).collect();
        Ok(Self { places, same })
    }
}

/// What a model with a head puts before the names of the model in it.
pub(super) fn prefix(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "transformer.",
        Family::Llama | Family::Mistral | Family::Qwen2 => "model.",
        Family::Bert => "bert.",
    }
}

/// Returns today's name of a tensor: the first BERTs, translated from TensorFlow, name the parts of norms differently.
fn renamed(family: Family, name: &str) -> String {
    let norm = |old: &str, new: &str| name.strip_suffix(old).map(|at| format!("{at}{new}"));
    let new = norm(".LayerNorm.gamma", ".LayerNorm.weight").or_else(|| norm(".LayerNorm.beta", ".LayerNorm.bias"));
    new.filter(|_| family == Family::Bert).unwrap_or_default()
}

/// Lists the names under which files may hold again what a tied model has once, each with the name that counts.
fn twins_of(family: Family, architecture: &Architecture) -> &'static [(&'static str, &'static str)] {
    match family {
        _ if !architecture.tie_embeddings => &[],
        Family::Gpt2 => &[("lm_head.weight", "transformer.wte.weight")],
        Family::Llama | Family::Mistral | Family::Qwen2 => &[("lm_head.weight", "model.embed_tokens.weight")],
        Family::Bert => &[
            ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ],
    }
}

/// Says whether a tensor has no part in what the model computes: a buffer that old releases wrote and that follows from the
/// configuration (masks, frequencies, positions), or BERT's head for next sentences, which files often keep and the class
/// without it does not read.
fn is_outside(family: Family, architecture: &Architecture, name: &str) -> bool {
    let bare = name.strip_prefix(prefix(family)).unwrap_or(name);
    let in_layer = |at: &str, ends: &[&str]| {
        let rest = bare.strip_prefix(at).and_then(|rest| rest.split_once('.'));
        let (layer, rest) = rest.unwrap_or_default();
        !layer.is_empty() && layer.bytes().all(|byte| byte.is_ascii_digit()) && ends.contains(&rest)
    };
    match family {
        Family::Gpt2 => in_layer("h.", &["attn.bias", "attn.masked_bias"]),
        Family::Llama | Family::Mistral | Family::Qwen2 => in_layer("layers.", &["self_attn.rotary_emb.inv_freq"]),
        Family::Bert => {
            let head = ["pooler.dense.", "cls.seq_relationship."].iter().any(|at| bare.starts_with(at));
            ["embeddings.position_ids", "embeddings.token_type_ids"].contains(&bare)
                || head && !architecture.next_sentence
        }
    }
}
