//! The configurations that have a name. `default` is [`Config::default`](super::Config); the others are TOML files in
//! `src/presets`, laid over it.

use crate::error::nearest;
use crate::{Error, Result};

/// Every preset's name and what it lays over the defaults.
const PRESETS: &[(&str, &str)] = &[
    ("default", ""),
    ("shakespeare", include_str!("../presets/shakespeare.toml")),
    ("gpt2-124m", include_str!("../presets/gpt2-124m.toml")),
    ("llama-1b", include_str!("../presets/llama-1b.toml")),
];

/// Returns all names.
pub fn names() -> Vec<&'static str> {
    PRESETS.iter().map(|(name, _)| *name).collect()
}

/// Returns a preset as TOML text.
///
/// # Errors
/// [`Error::UnknownPreset`] with the nearest name.
pub fn text(name: &str) -> Result<&'static str> {
    let found = PRESETS.iter().find(|(known, _)| *known == name);
    found.map(|(_, text)| *text).ok_or_else(|| Error::UnknownPreset {
        name: name.into(),
        nearest: nearest(name, names()),
        known: names().iter().map(|name| name.to_string()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn every_preset_loads() {
        for name in names() {
            let config = Config::load(None, Some(name), &[]).unwrap();
            assert_eq!(config.label, name);
        }
    }

    #[test]
    fn a_misspelt_preset_names_the_nearest() {
        let error = text("shakespere").unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no preset `shakespere`; did you mean `shakespeare`?; the presets are default, shakespeare, \
             gpt2-124m, llama-1b"
        );
    }
}
