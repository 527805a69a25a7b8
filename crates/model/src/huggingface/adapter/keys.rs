//! The keys of an `adapter_config.json`.

use std::collections::BTreeMap;

use mp_plan::LoraConfig;
use serde_json::{json, Map, Value};

use super::FILE;
use crate::huggingface::keys::Keys;
use crate::huggingface::{Family, Refusal, Result};

/// Keys that must ask for nothing: each changes what is computed, or which modules have adapters.
const EMPTY: [&str; 23] = [
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
    "layers_skip",
    "ensure_weight_tying",
];

/// Keys that change nothing of what adapters compute: where they come from, and how matrices are stored that are beside them.
const WITHOUT_EFFECT: [&str; 8] = [
    "auto_mapping",
    "fan_in_fan_out",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// What an `adapter_config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Rows of the first factors.
    pub rank: usize,
    /// What adapters add is multiplied by `alpha / rank`, or by `alpha / √rank` where [`rank_stabilized`](Self::rank_stabilized).
    pub alpha: f64,
    /// Kalajdzievski 2023, arXiv:2312.03732.
    pub rank_stabilized: bool,
    /// Probability with which an element of what adapters read is dropped in training.
    pub dropout: f64,
    /// The ends of names of modules that adapters stand beside.
    pub targets: Vec<String>,
    /// Ranks of modules that have others.
    pub ranks: BTreeMap<String, usize>,
    /// Alphas of modules that have others.
    pub alphas: BTreeMap<String, f64>,
    /// What the model under them is called.
    pub base: Option<String>,
}

impl AdapterConfig {
    /// Reads an `adapter_config.json`.
    ///
    /// # Errors
    /// [`Refusal`] naming the first key that is missing, unknown, or asks for what is not computed.
    pub fn read(json: &Value) -> Result<Self> {
        let mut keys = Keys::of(FILE, json)?;
        let kind = keys.word("peft_type")?.ok_or(Refusal::MissingKey { file: FILE, key: "peft_type" })?;
        if kind != "LORA" {
            return Err(keys.refuse("peft_type", "only \"LORA\" is computed"));
        }
        keys.must_be("task_type", &["CAUSAL_LM".into(), "FEATURE_EXTRACTION".into()])?;
        keys.must_be("bias", &["none".into()])?;
        // Others change the model under the adapters when they are loaded.
        keys.must_be("init_lora_weights", &[true.into(), false.into(), "gaussian".into()])?;
        EMPTY.iter().try_for_each(|key| keys.must_be_empty(key))?;
        let read = Self {
            rank: keys.needed("r")?,
            alpha: keys.number("lora_alpha", 8.0)?,
            rank_stabilized: keys.flag("use_rslora", false)?,
            dropout: keys.number("lora_dropout", 0.0)?,
            targets: targets(&mut keys)?,
            ranks: pattern(&mut keys, "rank_pattern", |value| value.as_u64().map(|rank| rank as usize))?,
            alphas: pattern(&mut keys, "alpha_pattern", Value::as_f64)?,
            base: keys.word("base_model_name_or_path")?.map(str::to_string),
        };
        if !(read.alpha > 0.0 && read.alpha.is_finite()) {
            return Err(keys.refuse("lora_alpha", "it must be a finite number above 0"));
        }
        if !(0.0..1.0).contains(&read.dropout) {
            return Err(keys.refuse("lora_dropout", "it must be at least 0 and below 1"));
        }
        keys.finish_but(&WITHOUT_EFFECT)?;
        Ok(read)
    }

    /// Says whether these are the keys that some adapters of ours are published with.
    pub(super) fn is_written_as(&self, written: &Written) -> bool {
        let mut targets = self.targets.clone();
        targets.sort_unstable();
        let Written { rank, alpha, names, ranks, alphas } = written;
        // As text and back a number may move by its last bit.
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b;
        let same = self.alphas.len() == alphas.len() && self.alphas.keys().eq(alphas.keys());
        let plain = !self.rank_stabilized && self.rank == *rank && close(self.alpha, *alpha);
        plain
            && targets == *names
            && self.ranks == *ranks
            && same
            && self.alphas.values().zip(alphas.values()).all(|(&a, &b)| close(a, b))
    }

    /// Returns adapters of one rank and one alpha beside matrices of ours.
    ///
    /// # Errors
    /// [`Refusal::Value`] where modules have ranks or alphas of their own.
    pub(super) fn plain(&self, targets: Vec<String>) -> Result<LoraConfig> {
        let refuse = |key: &str, value: Value| {
            let rule = "one rank and one alpha for all modules are computed".into();
            Err(Refusal::Value { file: FILE, key: key.into(), value: value.to_string(), rule })
        };
        match (self.ranks.is_empty(), self.alphas.is_empty()) {
            (false, _) => refuse("rank_pattern", json!(self.ranks)),
            (_, false) => refuse("alpha_pattern", json!(self.alphas)),
            _ => Ok(self.as_lora(targets)),
        }
    }

    fn as_lora(&self, targets: Vec<String>) -> LoraConfig {
        let root = if self.rank_stabilized { (self.rank as f64).sqrt() } else { 1.0 };
        LoraConfig { rank: self.rank, alpha: self.alpha * root, dropout: self.dropout, targets }
    }
}

fn targets(keys: &mut Keys<'_>) -> Result<Vec<String>> {
    let key = "target_modules";
    let listed = keys.take(key).ok_or(Refusal::MissingKey { file: FILE, key })?;
    let names = listed.as_array().map(|names| names.iter().map(|name| name.as_str().map(str::to_string)).collect());
    match names {
        Some(Some(names)) if !Vec::is_empty(&names) => Ok(names),
        _ => Err(keys.refuse(key, "it must be a list of at least one module's name; patterns are not read")),
    }
}

fn pattern<T>(
    keys: &mut Keys<'_>,
    key: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<BTreeMap<String, T>> {
    let Some(value) = keys.take(key) else { return Ok(BTreeMap::new()) };
    let table = value.as_object().map(|table| {
        let number = |(name, value): (&String, &Value)| Some((name.clone(), read(value)?));
        table.iter().map(number).collect::<Option<_>>()
    });
    table.flatten().ok_or_else(|| keys.refuse(key, "it must be an object of numbers"))
}

/// How adapters of ours are published.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Written {
    pub rank: usize,
    pub alpha: f64,
    /// In order.
    pub names: Vec<String>,
    pub ranks: BTreeMap<String, usize>,
    pub alphas: BTreeMap<String, f64>,
}

impl Written {
    /// Writes all keys that PEFT needs.
    pub fn write(&self, lora: &LoraConfig, family: Family, base: &str) -> Map<String, Value> {
        // A number of JSON has one form; PEFT's own files have whole alphas.
        let number = |alpha: f64| if alpha.fract() == 0.0 { json!(alpha as i64) } else { json!(alpha) };
        let alphas: Map<String, Value> =
            self.alphas.iter().map(|(name, &alpha)| (name.clone(), number(alpha))).collect();
        let Value::Object(keys) = json!({
            "peft_type": "LORA",
            // PEFT has no task for masked language models.
            "task_type": if family == Family::Bert { Value::Null } else { "CAUSAL_LM".into() },
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": number(self.alpha),
            "lora_dropout": lora.dropout,
            "target_modules": self.names,
            "rank_pattern": self.ranks,
            "alpha_pattern": alphas,
            "bias": "none",
            "fan_in_fan_out": family == Family::Gpt2,
            "inference_mode": true,
            "init_lora_weights": true,
            "modules_to_save": null,
            "layers_to_transform": null,
            "use_dora": false,
            "use_rslora": false,
        }) else {
            unreachable!("an object was written")
        };
        keys
    }
}
