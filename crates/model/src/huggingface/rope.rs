//! The keys of rotary angles: `rope_theta` and `rope_scaling`, or both in `rope_parameters` since transformers 5.

use mp_plan::{Architecture, RopeScaling};
use serde_json::{json, Map, Value};

use super::keys::{Keys, MODEL};
use super::{Refusal, Result};

/// The base where none is given.
const THETA: f64 = 10_000.0;

/// Reads base and scaling, for a model of `max_seq` positions. What is said in both forms must be the same: releases of
/// transformers differ in which of them counts.
pub(super) fn read(keys: &mut Keys<'_>, max_seq: usize) -> Result<(f64, Option<RopeScaling>)> {
    keys.must_be("partial_rotary_factor", &[json!(1.0), json!(1)])?;
    let stated = keys.take("rope_theta").is_some();
    let mut theta = Some(keys.number("rope_theta", THETA)?).filter(|_| stated);
    let mut scaling = None;
    for section in ["rope_scaling", "rope_parameters"] {
        let Some(value) = keys.take(section) else { continue };
        let fields = value.as_object().ok_or_else(|| Refusal::value(section, value, "it must be an object"))?;
        let mut fields = Fields { section, fields, taken: Vec::new() };
        let own = fields.number("rope_theta")?;
        if let (Some(own), Some(theta)) = (own, theta) {
            if own != theta {
                return Err(fields.refuse("rope_theta", format!("elsewhere it is {theta}; leave one of them out")));
            }
        }
        theta = theta.or(own);
        let own = fields.scaling(max_seq)?;
        if scaling.as_ref().is_some_and(|other| *other != own) {
            let rule = "`rope_scaling` says otherwise; leave one of them out";
            return Err(Refusal::Value {
                file: MODEL,
                key: section.into(),
                value: value.to_string(),
                rule: rule.into(),
            });
        }
        scaling = Some(own);
        fields.finish()?;
    }
    Ok((theta.unwrap_or(THETA), scaling.flatten()))
}

/// The object of one of the two keys.
struct Fields<'a> {
    section: &'static str,
    fields: &'a Map<String, Value>,
    taken: Vec<&'static str>,
}

impl Fields<'_> {
    fn refuse(&self, key: &str, rule: impl Into<String>) -> Refusal {
        let value = self.fields.get(key).unwrap_or(&Value::Null);
        Refusal::value(&format!("{}.{key}", self.section), value, rule)
    }

    fn take(&mut self, key: &'static str) -> Option<&Value> {
        self.taken.push(key);
        self.fields.get(key).filter(|value| !value.is_null())
    }

    fn number(&mut self, key: &'static str) -> Result<Option<f64>> {
        match self.take(key).map(Value::as_f64) {
            None => Ok(None),
            Some(Some(number)) => Ok(Some(number)),
            Some(None) => Err(self.refuse(key, "it must be a number")),
        }
    }

    fn needed(&mut self, key: &'static str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.refuse(key, "it must be a number"))
    }

    fn scaling(&mut self, max_seq: usize) -> Result<Option<RopeScaling>> {
        if self.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(self.refuse("partial_rotary_factor", "only 1 is computed"));
        }
        let (new, old) = (self.take("rope_type").cloned(), self.take("type").cloned());
        let kind = new.or(old);
        match kind.as_ref().map(Value::as_str) {
            None | Some(Some("default")) => Ok(None),
            Some(Some("linear")) => Ok(Some(RopeScaling::Linear { factor: self.needed("factor")? })),
            Some(Some("llama3")) => Ok(Some(RopeScaling::Llama3 {
                factor: self.needed("factor")?,
                low_freq_factor: self.needed("low_freq_factor")?,
                high_freq_factor: self.needed("high_freq_factor")?,
                original_max_position_embeddings: self.original(max_seq)?,
            })),
            _ => {
                let key = if self.fields.contains_key("rope_type") { "rope_type" } else { "type" };
                Err(self.refuse(key, "only \"default\", \"linear\" and \"llama3\" are computed"))
            }
        }
    }

    /// Reads the original context, which is the model's own where it is not given.
    fn original(&mut self, max_seq: usize) -> Result<usize> {
        let key = "original_max_position_embeddings";
        match self.take(key).map(Value::as_u64) {
            None => Ok(max_seq),
            Some(Some(original)) if original > 0 => Ok(original as usize),
            _ => Err(self.refuse(key, "it must be a whole number above 0")),
        }
    }

    fn finish(self) -> Result<()> {
        let unknown = self.fields.iter().find(|(key, value)| !self.taken.contains(&key.as_str()) && !value.is_null());
        match unknown {
            Some((key, value)) => Err(Refusal::UnknownKey {
                file: MODEL,
                key: format!("{}.{key}", self.section),
                value: value.to_string(),
            }),
            None => Ok(()),
        }
    }
}

/// Writes base and scaling in both forms, for either release of transformers.
pub(super) fn write(architecture: &Architecture, keys: &mut Map<String, Value>) -> Result<()> {
    let mut fields = match &architecture.rope_scaling {
        None => json!({ "rope_type": "default" }),
        Some(RopeScaling::Linear { factor }) => json!({ "rope_type": "linear", "factor": factor }),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }) => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            })
        }
        Some(other) => {
            let rule = "transformers has no such scaling";
            return Err(Refusal::counterpart("model.rope_scaling", format!("{other:?}"), rule));
        }
    };
    if architecture.rope_scaling.is_some() {
        keys.insert("rope_scaling".into(), fields.clone());
    }
    fields["rope_theta"] = architecture.rope_theta.into();
    keys.insert("rope_theta".into(), architecture.rope_theta.into());
    keys.insert("rope_parameters".into(), fields);
    Ok(())
}
