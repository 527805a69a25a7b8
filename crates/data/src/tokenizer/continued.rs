//! What goes on in the middle of a text: tokenizers that put a blank before a text put none there.

use serde_json::{json, Value};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use crate::error::Cause;

/// Makes the tokenizer that puts nothing before a text.
pub fn without_prefix(tokenizer: &Tokenizer) -> Result<Tokenizer, Cause> {
    let mut plain = tokenizer.clone();
    let mut normalizer = serde_json::to_value(tokenizer.get_normalizer())?;
    let mut splitter = serde_json::to_value(tokenizer.get_pre_tokenizer())?;
    strip(&mut normalizer);
    strip(&mut splitter);
    plain.with_normalizer(serde_json::from_value::<Option<NormalizerWrapper>>(normalizer)?)?;
    plain.with_pre_tokenizer(serde_json::from_value::<Option<PreTokenizerWrapper>>(splitter)?);
    Ok(plain)
}

/// Takes from the steps of a normalizer or a pre-tokenizer what they put before a text.
fn strip(step: &mut Value) {
    match step["type"].as_str() {
        Some("Metaspace") => step["prepend_scheme"] = json!("never"),
        Some("ByteLevel") if step.get("add_prefix_space").is_some() => step["add_prefix_space"] = json!(false),
        Some("Prepend") => *step = json!({ "type": "Sequence", "normalizers": [] }),
        Some("Sequence") => {
            for list in ["normalizers", "pretokenizers"] {
                if let Some(steps) = step.get_mut(list).and_then(Value::as_array_mut) {
                    steps.iter_mut().for_each(strip);
                }
            }
        }
        _ => {}
    }
}
