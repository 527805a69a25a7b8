//! Why a published model is not taken, or one of ours not published.

use serde_json::Value;

use super::keys::MODEL;

/// Something of a published model that is not computed here, or something of ours that transformers does not compute.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A `config.json`, or `adapter_config.json`, that is no JSON object.
    #[error("`{file}` is no JSON object")]
    NoObject {
        /// The file.
        file: &'static str,
    },
    /// A key that is needed.
    #[error("`{file}` lacks `{key}`")]
    MissingKey {
        /// The file.
        file: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A key with a value that asks for what is not computed.
    #[error("`{file}` has `{key}` = {value}, but {rule}")]
    Value {
        /// The file.
        file: &'static str,
        /// The key.
        key: String,
        /// Its value as JSON.
        value: String,
        /// What is computed.
        rule: String,
    },
    /// A key that may mean anything.
    #[error(
        "`{file}` has `{key}` = {value}, and what that changes of the computation is not known here; remove it \
         if it is nothing"
    )]
    UnknownKey {
        /// The file.
        file: &'static str,
        /// The key.
        key: String,
        /// Its value as JSON.
        value: String,
    },
    /// Tensors that the model needs.
    #[error("there is no tensor `{name}`{}", others(*count))]
    MissingTensor {
        /// The first of them.
        name: String,
        /// How many there are.
        count: usize,
    },
    /// Tensors that the model has no use for.
    #[error("the tensor `{name}` has no place in the model that `config.json` describes{}", more(*count))]
    UnexpectedTensor {
        /// The first of them.
        name: String,
        /// How many there are.
        count: usize,
    },
    /// A tensor that comes under two names.
    #[error("the tensors `{first}` and `{second}` are the same part of the model")]
    TwiceTensor {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error("the tensor `{name}` has shape {found:?} where `config.json` says {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that follows from the configuration.
        expected: Vec<usize>,
    },
    /// An adapter's factor of another shape than its matrix and rank make it.
    #[error("the tensor `{name}` has shape {found:?} where the model and `adapter_config.json` make it {expected:?}")]
    Factor {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that follows.
        expected: Vec<usize>,
    },
    /// A tensor of adapters that are not computed.
    #[error("the tensor `{name}` is no adapter that is computed here: {rule}")]
    Foreign {
        /// Its name.
        name: String,
        /// What is.
        rule: String,
    },
    /// A model of ours that no published family computes.
    #[error("`{key}` is {value}, but {rule}")]
    NoCounterpart {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What transformers computes.
        rule: String,
    },
    /// Sizes that make no model.
    #[error("`config.json`: {0}")]
    Plan(#[from] mp_plan::Error),
}

impl Refusal {
    /// Refuses a value of `config.json`.
    pub(super) fn value(key: &str, value: &Value, rule: impl Into<String>) -> Self {
        Refusal::Value { file: MODEL, key: key.into(), value: value.to_string(), rule: rule.into() }
    }

    /// Refuses to publish.
    pub(super) fn counterpart(key: &'static str, value: impl ToString, rule: &str) -> Self {
        Refusal::NoCounterpart { key, value: value.to_string(), rule: rule.into() }
    }
}

fn others(count: usize) -> String {
    if count > 1 {
        format!(" (nor {} others)", count - 1)
    } else {
        String::new()
    }
}

fn more(count: usize) -> String {
    if count > 1 {
        format!(", and neither have {} others", count - 1)
    } else {
        String::new()
    }
}
