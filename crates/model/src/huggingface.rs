//! Models as transformers publishes them: what a `config.json` says, and where each of our parameters lies among the
//! tensors of a `model.safetensors`. Names and integers alone: no file is opened here.
//!
//! | file | is |
//! |---|---|
//! | `huggingface/keys.rs` | reading a `config.json` key by key, so that none is passed over |
//! | `huggingface/gpt2.rs`, `huggingface/llama.rs`, `huggingface/bert.rs` | a family's keys, both ways, and its names |
//! | `huggingface/rope.rs` | the rotary angles' keys, in their old and new form |
//! | `huggingface/place.rs` | a parameter as a part of a published tensor |
//! | `huggingface/inventory.rs` | the tensors that are there against those that must be |
//! | `huggingface/adapter.rs` | adapters as PEFT publishes them |
//!
//! What a published model computes and ours does not is refused by name. Keys that change nothing of what is computed
//! are listed, and every other key is refused too: it may change something.

pub mod adapter;
mod bert;
mod gpt2;
mod inventory;
mod keys;
mod llama;
mod place;
mod refusal;
mod rope;

use mp_plan::{Architecture, ArchitectureName, AttentionBias};
use serde_json::{Map, Value};

pub use inventory::Inventory;
pub use place::{Place, Published};
pub use refusal::Refusal;

use keys::Keys;

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Refusal>;

/// The published families, as `model_type` calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// `gpt2`.
    Gpt2,
    /// `llama`.
    Llama,
    /// `mistral`: Llama through a window.
    Mistral,
    /// `qwen2`: Llama with biases of queries, keys and values.
    Qwen2,
    /// `bert`, with the head of a masked language model.
    Bert,
}

/// BERT with its second head.
const NEXT_SENTENCE: &str = "BertForPreTraining";

impl Family {
    const ALL: [Family; 5] = [Family::Gpt2, Family::Llama, Family::Mistral, Family::Qwen2, Family::Bert];

    /// Returns the `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Gpt2 => "gpt2",
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Bert => "bert",
        }
    }

    /// Returns the classes of transformers that hold no more than this model; the first is the one to export for.
    fn classes(self) -> &'static [&'static str] {
        match self {
            Family::Gpt2 => &["GPT2LMHeadModel", "GPT2Model"],
            Family::Llama => &["LlamaForCausalLM", "LlamaModel"],
            Family::Mistral => &["MistralForCausalLM", "MistralModel"],
            Family::Qwen2 => &["Qwen2ForCausalLM", "Qwen2Model"],
            Family::Bert => &["BertForMaskedLM", NEXT_SENTENCE],
        }
    }

    /// Finds the family that computes what an architecture does.
    ///
    /// # Errors
    /// [`Refusal::NoCounterpart`] if none does.
    pub fn of(architecture: &Architecture) -> Result<Self> {
        match architecture.name {
            ArchitectureName::Gpt2 => Ok(Family::Gpt2),
            ArchitectureName::Bert => Ok(Family::Bert),
            ArchitectureName::Llama => llama::family(architecture),
            other => {
                Err(Refusal::counterpart("model.architecture", format!("{other:?}"), "transformers has no such model"))
            }
        }
    }

    /// Lists where each parameter lies, in the order of [`Architecture::parameters`].
    pub fn places(self, architecture: &Architecture) -> Vec<Place> {
        match self {
            Family::Gpt2 => gpt2::places(architecture),
            Family::Llama | Family::Mistral | Family::Qwen2 => llama::places(architecture),
            Family::Bert => bert::places(architecture),
        }
    }
}

/// What a `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// The published family.
    pub family: Family,
    /// The model.
    pub architecture: Architecture,
    /// The keys of dropout probabilities that are not all the same; then the architecture has none.
    pub uneven_dropout: Option<String>,
}

impl Description {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Refusal`] naming the first key that is missing, unknown, or asks for what is not computed.
    pub fn read(json: &Value) -> Result<Self> {
        let mut keys = Keys::new(json)?;
        let model_type =
            keys.word("model_type")?.ok_or(Refusal::MissingKey { file: keys::MODEL, key: "model_type" })?;
        let family = Family::ALL.into_iter().find(|family| family.model_type() == model_type);
        let family = family.ok_or_else(|| {
            let known = Family::ALL.map(|family| format!("\"{}\"", family.model_type())).join(", ");
            Refusal::value("model_type", &Value::from(model_type), format!("the models that are computed are {known}"))
        })?;
        let classes = classes(&mut keys, family)?;
        let (architecture, uneven_dropout) = match family {
            Family::Gpt2 => gpt2::read(&mut keys)?,
            Family::Llama | Family::Mistral | Family::Qwen2 => llama::read(&mut keys, family)?,
            Family::Bert => bert::read(&mut keys, classes.contains(&NEXT_SENTENCE))?,
        };
        keys.finish()?;
        Ok(Self { family, architecture, uneven_dropout })
    }
}

/// Refuses attention that GPT-2 and BERT do not have: without biases, with shared keys and values, with heads of another
/// width, or through a window.
fn plain_attention(architecture: &Architecture, model: &str) -> Result<()> {
    let &Architecture { bias, hidden, heads, kv_heads, head_dim, window, .. } = architecture;
    let refuse =
        |key, value: String, has: &str| Err(Refusal::counterpart(key, value, &format!("transformers' {model} {has}")));
    if !bias || architecture.attention_biases() != AttentionBias::All {
        return refuse("model.bias", bias.to_string(), "has all biases");
    }
    if kv_heads != heads {
        return refuse("model.kv_heads", kv_heads.to_string(), "has as many as `model.heads`");
    }
    if head_dim * heads != hidden {
        return refuse("model.head_dim", head_dim.to_string(), "has heads of width `model.hidden / model.heads`");
    }
    match window {
        Some(window) => refuse("model.window", window.to_string(), "sees all positions"),
        None => Ok(()),
    }
}

/// Returns the classes that a model is of, and refuses one that has more than the model and its head.
fn classes<'a>(keys: &mut Keys<'a>, family: Family) -> Result<Vec<&'a str>> {
    let Some(named) = keys.take("architectures") else { return Ok(Vec::new()) };
    let known = |class: &Value| class.as_str().is_some_and(|class| family.classes().contains(&class));
    match named.as_array() {
        Some(classes) if classes.iter().all(known) => Ok(classes.iter().filter_map(Value::as_str).collect()),
        _ => {
            Err(Refusal::value("architectures", named, format!("only {} are computed", family.classes().join(" and "))))
        }
    }
}

/// Writes the `config.json` of a model whose tensors are of a kind that transformers calls `dtype`.
///
/// # Errors
/// [`Refusal::NoCounterpart`] for what transformers does not compute.
pub fn config(architecture: &Architecture, dtype: &str) -> Result<Map<String, Value>> {
    let family = Family::of(architecture)?;
    let mut written = match family {
        Family::Gpt2 => gpt2::write(architecture)?,
        Family::Llama | Family::Mistral | Family::Qwen2 => llama::write(architecture, family)?,
        Family::Bert => bert::write(architecture)?,
    };
    written.insert("model_type".into(), family.model_type().into());
    let class = if architecture.next_sentence { NEXT_SENTENCE } else { family.classes()[0] };
    written.insert("architectures".into(), vec![class].into());
    // Two releases of transformers read the same under two names.
    for key in ["dtype", "torch_dtype"] {
        written.insert(key.into(), dtype.into());
    }
    Ok(written)
}
