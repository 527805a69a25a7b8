//! A `config.json` key by key: each is taken by whoever understands it, and what nobody took is refused.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Refusal, Result};

/// The file that describes a model.
pub(super) const MODEL: &str = "config.json";

/// Keys that change nothing of what a causal or masked language model computes: where it comes from, how it was trained,
/// what a program does around it, and parts that other classes of transformers add.
const WITHOUT_EFFECT: [&str; 75] = [
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "predict_special_tokens",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "vocab_file",
];

/// Keys of every class that would change the computation, with the one value that does not.
const INERT: [(&str, &[Value]); 10] = [
    ("add_cross_attention", &[Value::Bool(false)]),
    ("cross_attention_hidden_size", &[]),
    ("is_decoder", &[Value::Bool(false)]),
    ("is_encoder_decoder", &[Value::Bool(false)]),
    ("rope_interleaved", &[Value::Bool(false)]),
    ("tie_encoder_decoder", &[Value::Bool(false)]),
    ("use_mrope", &[Value::Bool(false)]),
    ("attn_logit_softcapping", &[]),
    ("final_logit_softcapping", &[]),
    ("quantization_config", &[]),
];

/// A `config.json`, or another file of the kind, and what of it was understood.
#[derive(Debug)]
pub(super) struct Keys<'a> {
    file: &'static str,
    table: &'a Map<String, Value>,
    taken: BTreeSet<&'static str>,
}

impl<'a> Keys<'a> {
    pub fn new(json: &'a Value) -> Result<Self> {
        Self::of(MODEL, json)
    }

    /// Reads another file than a model's.
    pub fn of(file: &'static str, json: &'a Value) -> Result<Self> {
        Ok(Self { file, table: json.as_object().ok_or(Refusal::NoObject { file })?, taken: BTreeSet::new() })
    }

    /// Takes a key; `null` is none.
    pub fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.taken.insert(key);
        self.table.get(key).filter(|value| !value.is_null())
    }

    pub fn word(&mut self, key: &'static str) -> Result<Option<&'a str>> {
        self.typed(key, Value::as_str, "it must be a word")
    }

    pub fn flag(&mut self, key: &'static str, default: bool) -> Result<bool> {
        Ok(self.typed(key, Value::as_bool, "it must be true or false")?.unwrap_or(default))
    }

    pub fn number(&mut self, key: &'static str, default: f64) -> Result<f64> {
        Ok(self.typed(key, Value::as_f64, "it must be a number")?.unwrap_or(default))
    }

    /// Takes a size that may be left out.
    pub fn size(&mut self, key: &'static str) -> Result<Option<usize>> {
        let size = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
        self.typed(key, size, "it must be a whole number above 0")
    }

    /// Takes a size that has a default where the key is left out, and is none where it is `null`.
    pub fn size_or(&mut self, key: &'static str, default: usize) -> Result<Option<usize>> {
        match self.table.contains_key(key) {
            true => self.size(key),
            false => Ok(Some(default)),
        }
    }

    /// Refuses the value of a key.
    pub fn refuse(&self, key: &str, rule: impl Into<String>) -> Refusal {
        let value = self.table.get(key).unwrap_or(&Value::Null).to_string();
        Refusal::Value { file: self.file, key: key.into(), value, rule: rule.into() }
    }

    /// Takes a size that must be there.
    pub fn needed(&mut self, key: &'static str) -> Result<usize> {
        self.size(key)?.ok_or(Refusal::MissingKey { file: self.file, key })
    }

    fn typed<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
        rule: &str,
    ) -> Result<Option<T>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.refuse(key, rule))
    }

    /// Takes a key that may be left out, and must otherwise have one of some values.
    pub fn must_be(&mut self, key: &'static str, allowed: &[Value]) -> Result<()> {
        let Some(value) = self.take(key) else { return Ok(()) };
        if allowed.contains(value) {
            return Ok(());
        }
        let listed: Vec<String> = allowed.iter().map(Value::to_string).collect();
        let rule = match listed.is_empty() {
            true => "that is not computed".into(),
            false => format!("only {} is computed", listed.join(" or ")),
        };
        Err(self.refuse(key, rule))
    }

    /// Takes a key that may be left out, and must otherwise ask for nothing: be null, false or empty.
    pub fn must_be_empty(&mut self, key: &'static str) -> Result<()> {
        let Some(value) = self.take(key) else { return Ok(()) };
        let empty = match value {
            Value::Bool(flag) => !flag,
            Value::Array(list) => list.is_empty(),
            Value::Object(table) => table.is_empty(),
            _ => false,
        };
        match empty {
            true => Ok(()),
            false => Err(self.refuse(key, "that is not computed")),
        }
    }

    /// Takes dropout probabilities: the one that they all are, or the names of those that differ.
    pub fn dropout(&mut self, defaults: &[(&'static str, f64)]) -> Result<(f64, Option<String>)> {
        let mut found = Vec::new();
        for &(key, default) in defaults {
            found.push((key, self.number(key, default)?));
        }
        let first = found[0].1;
        match found.iter().all(|&(_, value)| value == first) {
            true => Ok((first, None)),
            false => {
                let listed: Vec<String> = found.iter().map(|(key, value)| format!("`{key}` = {value}")).collect();
                Ok((0.0, Some(listed.join(", "))))
            }
        }
    }

    /// Refuses what nobody took of a model's keys.
    pub fn finish(mut self) -> Result<()> {
        for (key, allowed) in INERT {
            self.must_be(key, allowed)?;
        }
        // Of old releases: tokens that are added to the vocabulary, and heads that are taken out.
        self.must_be("n_special", &[0.into()])?;
        self.must_be_empty("pruned_heads")?;
        self.finish_but(&WITHOUT_EFFECT)
    }

    /// Refuses what nobody took, but for keys that change nothing.
    pub fn finish_but(self, without_effect: &[&str]) -> Result<()> {
        let known = |key: &str| self.taken.contains(key) || without_effect.contains(&key);
        match self.table.iter().find(|(key, value)| !known(key) && !value.is_null()) {
            Some((key, value)) => {
                Err(Refusal::UnknownKey { file: self.file, key: key.clone(), value: value.to_string() })
            }
            None => Ok(()),
        }
    }
}
