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
    /// The head of a model that ties it to the embedding, where files hold it all the same: (head, embedding). Who
    /// reads must refuse two that differ.
    pub same: Option<(String, String)>,
}

impl Inventory {
    /// Finds each parameter among tensors of these names and shapes.
    ///
    /// Files of a bare model lack the prefix that a model with a head puts before its names, and old ones have buffers
    /// that are no parameters; both are known.
    ///
    /// # Errors
    /// [`Refusal`] naming a tensor that is missing, has no place, comes twice or has another shape.
    pub fn take(family: Family, architecture: &Architecture, stored: &[(String, Vec<usize>)]) -> Result<Self> {
        let mut places = family.places(architecture);
        let expected = Published::gather(places.clone());
        let (mut found, mut same, mut left) = (BTreeMap::new(), None, Vec::new());
        for (name, shape) in stored {
            let known = |candidate: &String| expected.iter().find(|tensor| tensor.name == *candidate);
            let candidates = [name.clone(), format!("{}{name}", prefix(family))];
            if let Some(tensor) = candidates.iter().find_map(known) {
                if *shape != tensor.shape {
                    let (found, expected) = (shape.clone(), tensor.shape.clone());
                    return Err(Refusal::Shape { name: name.clone(), found, expected });
                }
                if let Some(first) = found.insert(tensor.name.clone(), name.clone()) {
                    return Err(Refusal::TwiceTensor { first, second: name.clone() });
                }
            } else if architecture.tie_embeddings && name == "lm_head.weight" {
                same = Some(name.clone());
            } else if !is_buffer(family, name) {
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
        let same = same.map(|head| (head, places[0].tensor.clone()));
        Ok(Self { places, same })
    }
}

/// What a model with a head puts before the names of the model in it.
fn prefix(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "transformer.",
        Family::Llama | Family::Mistral | Family::Qwen2 => "model.",
    }
}

/// Says whether a tensor is one that old releases wrote and that follows from the configuration: masks, frequencies.
fn is_buffer(family: Family, name: &str) -> bool {
    let in_layer = |at: &str, ends: &[&str]| {
        let rest = name.strip_prefix(prefix(family)).unwrap_or(name).strip_prefix(at);
        let (layer, rest) = rest.and_then(|rest| rest.split_once('.')).unwrap_or_default();
        !layer.is_empty() && layer.bytes().all(|byte| byte.is_ascii_digit()) && ends.contains(&rest)
    };
    match family {
        Family::Gpt2 => in_layer("h.", &["attn.bias", "attn.masked_bias"]),
        Family::Llama | Family::Mistral | Family::Qwen2 => in_layer("layers.", &["self_attn.rotary_emb.inv_freq"]),
    }
}
