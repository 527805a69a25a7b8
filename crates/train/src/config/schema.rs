//! From a TOML table to the tree of values, with errors that a person can act on.
//!
//! The known keys are asked from serde itself, so that no second list of them can fall behind.

use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use toml::{Table, Value};

use mp_plan::ScheduleName;

use super::{CheckpointConfig, Config, DataConfig, EvalConfig, OptimizerConfig, TrainConfig};
use crate::error::nearest;
use crate::{Error, Result};

/// Reads a whole configuration; what the table leaves out keeps its default.
pub(super) fn read(table: Table) -> Result<Config> {
    check_keys(&table)?;
    let value = Value::Table(table);
    serde_path_to_error::deserialize(value.clone()).map_err(|error| explain(&value, &error))
}

/// Returns a section's keys.
fn keys(section: &str) -> Option<&'static [&'static str]> {
    Some(match section {
        "model" => fields::<mp_plan::ModelConfig>(),
        "parallel" => fields::<mp_plan::ParallelConfig>(),
        "train" => fields::<TrainConfig>(),
        "optimizer" => fields::<OptimizerConfig>(),
        "data" => fields::<DataConfig>(),
        "checkpoint" => fields::<CheckpointConfig>(),
        "eval" => fields::<EvalConfig>(),
        "lora" => fields::<mp_plan::LoraConfig>(),
        _ => return None,
    })
}

/// Refuses the first section or key that does not exist.
fn check_keys(table: &Table) -> Result<()> {
    for (section, value) in table {
        let Some(known) = keys(section) else {
            return Err(unknown(section.clone(), "the configuration", fields::<Config>()));
        };
        let Value::Table(entries) = value else {
            return Err(Error::WrongType {
                key: section.clone(),
                value: value.to_string(),
                expected: format!("a section, such as [{section}] with {} = … in it", known[0]),
            });
        };
        if let Some(key) = entries.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(unknown(format!("{section}.{key}"), &format!("[{section}]"), known));
        }
    }
    Ok(())
}

/// Words an unknown key. Its last part may well be right and only the section wrong.
fn unknown(key: String, section: &str, known: &[&str]) -> Error {
    let last = key.rsplit('.').next().unwrap_or(&key);
    let all: Vec<String> = fields::<Config>()
        .iter()
        .flat_map(|section| keys(section).unwrap_or(&[]).iter().map(move |key| format!("{section}.{key}")))
        .collect();
    let elsewhere = all.iter().find(|full| full.rsplit('.').next() == Some(last)).cloned();
    let prefix = key.rsplit_once('.').map(|(section, _)| format!("{section}."));
    let in_section = prefix.and_then(|prefix| nearest(last, known).map(|key| prefix + &key));
    let nearest = elsewhere.or(in_section).or_else(|| nearest(&key, known)).or_else(|| nearest(&key, &all));
    Error::UnknownKey {
        nearest,
        section: section.into(),
        known: known.iter().map(|key| key.to_string()).collect(),
        key,
    }
}

/// Turns serde's complaint into the key, its value and what it takes.
pub(crate) fn explain(value: &Value, error: &serde_path_to_error::Error<toml::de::Error>) -> Error {
    let mut key = error.path().to_string();
    let mut found = Some(value);
    for part in error.path() {
        use serde_path_to_error::Segment;
        found = match part {
            Segment::Map { key } => found.and_then(|value| value.get(key)),
            Segment::Seq { index } => found.and_then(|value| value.get(index)),
            _ => found,
        };
    }
    if key == "." {
        key = "configuration".into();
    }
    let expected = match expected(&key, error.inner().message()) {
        plain if plain == LIST => format!("{plain}{}", found.map_or_else(String::new, |value| bracketed(&key, value))),
        plain if plain == WORD => plain + &found.map_or_else(String::new, |value| quoted(&key, value)),
        plain => plain + &found.map_or_else(String::new, |value| resuming(&key, value)),
    };
    let found = found.map(Value::to_string).unwrap_or_else(|| "missing".into());
    Error::WrongType { key, value: found, expected }
}

/// What a key takes that takes several values.
const LIST: &str = "a list in brackets";

/// Writes what was typed, numbers or words with commas, as a list.
fn bracketed(key: &str, typed: &Value) -> String {
    let items = match typed {
        // A source is more than its path.
        Value::String(_) if key == "data.blend" => return String::new(),
        Value::String(text) => text.split(',').map(|item| item.trim().to_string()).collect(),
        Value::Integer(number) => vec![number.to_string()],
        _ => return String::new(),
    };
    let literal = |item: &String| match item.parse::<i64>() {
        Ok(_) => item.clone(),
        Err(_) => format!("\"{item}\""),
    };
    let items: Vec<String> = items.iter().filter(|item| !item.is_empty()).map(literal).collect();
    format!(", '[{}]'", items.join(","))
}

/// What a key takes that takes a word.
const WORD: &str = "a string";

/// Writes what was typed, a number or yes or no, as a word.
fn quoted(key: &str, typed: &Value) -> String {
    match typed {
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => format!(", '{key}=\"{typed}\"'"),
        _ => String::new(),
    }
}

/// Says how a run is continued whose folder was given where only yes or no is taken.
fn resuming(key: &str, typed: &Value) -> String {
    match typed {
        Value::String(folder) if key == "checkpoint.resume" => format!(
            "; to continue the run in that folder, say --config {folder}/config.toml --set checkpoint.resume=true, or name it \
             by train.out and train.name; to begin a new run from its weights, set model.from"
        ),
        _ => String::new(),
    }
}

/// Says in plain words what serde expected.
fn expected(key: &str, message: &str) -> String {
    if let Some(name) = message.strip_prefix("data did not match any variant of untagged enum ") {
        return match name {
            "Validation" => "a fraction or a path".into(),
            _ => format!("one of the forms of {name}"),
        };
    }
    match message.rsplit_once("expected ").map_or(message, |(_, expected)| expected) {
        "usize" | "u64" | "u32" => "a whole number from 0".into(),
        "i64" => "a whole number".into(),
        "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "neither a legal value nor \"auto\"" => format!("{} or \"auto\"", choices(key)),
        "path string" => "a path in quotes".into(),
        "an array of length 2" => "a list of two numbers".into(),
        "a sequence" => LIST.into(),
        "struct BlendConfig" => "a source, such as { path = \"TEXT\", weight = 1 }".into(),
        other => other.replace('`', "\""),
    }
}

/// Lists what a switch takes beside "auto".
fn choices(key: &str) -> String {
    match key {
        "parallel.schedule" => ScheduleName::ALL.map(|name| format!("\"{name}\"")).join(", "),
        "parallel.recompute" => "\"none\", \"selective\", \"full\"".into(),
        "parallel.zero" => "0, 1, 2, 3".into(),
        _ => "true, false".into(),
    }
}

/// Returns the names of a struct's fields as serde reads them.
fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    /// Notes the fields that are asked for, and gives nothing.
    struct Ask<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Ask<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            _visitor: V,
        ) -> std::result::Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(Self::Error::custom("only the names were wanted"))
        }

        fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> std::result::Result<V::Value, Self::Error> {
            Err(Self::Error::custom("not a struct"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    // The error is certain and means nothing.
    let _ = T::deserialize(Ask(&mut names));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        read(text.parse().unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn every_section_has_keys() {
        assert_eq!(fields::<Config>().len(), 8);
        for section in fields::<Config>() {
            assert!(!keys(section).unwrap().is_empty(), "{section}");
        }
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        for (text, meant) in [
            ("[train]\nstep = 3", "train.steps"),
            ("[train]\nlr = 3", "optimizer.lr"),
            ("lr = 3", "optimizer.lr"),
            ("[model]\nlayer = 3", "model.layers"),
            ("[optimiser]\nlr = 3", "optimizer"),
            ("[optimizer]\nweigth_decay = 3", "optimizer.weight_decay"),
        ] {
            let error = refused(text);
            assert!(error.contains(&format!("did you mean `{meant}`?")), "{error}");
        }
        let error = refused("[eval]\nzzzzzzzz = 3");
        assert_eq!(error, "unknown configuration key `eval.zzzzzzzz`; [eval] has every, batches");
    }

    #[test]
    fn wrong_types_name_key_value_and_type() {
        for (text, expected) in [
            ("train.steps = \"many\"", "`train.steps` is \"many\", but must be a whole number from 0"),
            ("train.steps = -3", "`train.steps` is -3, but must be a whole number from 0"),
            ("train.steps = 1.5", "`train.steps` is 1.5, but must be a whole number from 0"),
            ("optimizer.lr = \"fast\"", "`optimizer.lr` is \"fast\", but must be a number"),
            (
                "train.precision = \"fp16\"",
                "`train.precision` is \"fp16\", but must be one of \"fp32\", \"bf16\", \"fp64\"",
            ),
            (
                "parallel.transport = \"gloo\"",
                "`parallel.transport` is \"gloo\", but must be one of \"auto\", \"nccl\", \"mpi\", \"staged\"",
            ),
            ("checkpoint.resume = 1", "`checkpoint.resume` is 1, but must be true or false"),
            ("data.path = 1", "`data.path` is 1, but must be a path in quotes"),
            ("data.validation = true", "`data.validation` is true, but must be a fraction or a path"),
            (
                "parallel.sequence_parallel = 2",
                "`parallel.sequence_parallel` is 2, but must be true, false or \"auto\"",
            ),
            ("optimizer.betas = [0.9]", "`optimizer.betas` is [0.9], but must be a list of two numbers"),
            ("parallel.split = \"3,1\"", "`parallel.split` is \"3,1\", but must be a list in brackets, '[3,1]'"),
            ("parallel.split = 4", "`parallel.split` is 4, but must be a list in brackets, '[4]'"),
            (
                "lora.targets = \"mlp.up, mlp.down\"",
                "`lora.targets` is \"mlp.up, mlp.down\", but must be a list in brackets, '[\"mlp.up\",\"mlp.down\"]'",
            ),
            ("data.blend = \"a.txt\"", "`data.blend` is \"a.txt\", but must be a list in brackets"),
            (
                "checkpoint.resume = \"runs/a\"",
                "`checkpoint.resume` is \"runs/a\", but must be true or false; to continue the run in that folder, say \
                 --config runs/a/config.toml --set checkpoint.resume=true, or name it by train.out and train.name; to begin \
                 a new run from its weights, set model.from",
            ),
            ("optimizer.betas = [0.9, \"x\"]", "`optimizer.betas[1]` is \"x\", but must be a number"),
            ("train = 3", "`train` is 3, but must be a section, such as [train] with steps = … in it"),
        ] {
            assert_eq!(refused(text), expected);
        }
    }

    #[test]
    fn whole_numbers_serve_where_numbers_are_taken() {
        let config = read("optimizer.lr = 1\nparallel.sequence_parallel = \"auto\"".parse().unwrap()).unwrap();
        assert_eq!(config.optimizer.lr, 1.0);
    }
}
