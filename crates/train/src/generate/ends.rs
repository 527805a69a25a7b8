//! The tokens at which a text is over.

use std::fs;
use std::path::{Path, PathBuf};

use mp_data::Tokenizer;
use serde_json::Value;

use crate::Config;

/// Files that may name them, the first that does so counts.
const FILES: [&str; 2] = ["generation_config.json", "config.json"];

/// Finds the tokens that end texts: those that the model's folder, that of the model under adapters, or else the tokenizer's, calls `eos_token_id`; where
/// neither says, the token that ends documents in the tokenizer's vocabulary.
pub fn ends(config: &Config, tokenizer: &Tokenizer) -> Vec<u32> {
    let model = config.model_folders();
    let folders = model.iter().map(PathBuf::as_path).chain(config.data.tokenizer_folder());
    let files = folders.flat_map(|folder| FILES.map(|name| folder.join(name)));
    let said = files.filter_map(|file| named(&file)).next();
    said.unwrap_or_else(|| tokenizer.end_of_document().into_iter().collect())
}

/// Reads what a file names: one token, several or, where it names nothing explicitly, none.
fn named(file: &Path) -> Option<Vec<u32>> {
    let json: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match json.get("eos_token_id")? {
        Value::Array(several) => Some(several.iter().filter_map(id).collect()),
        one => Some(id(one).into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_bytes_lies_nothing() {
        let config = Config::default();
        assert_eq!((config.data.tokenizer.as_str(), config.data.tokenizer_folder()), ("bytes", None));
        let sets = ["data.tokenizer=/folder/tokenizer.json".to_string()];
        let config = Config::load(None, None, &sets).unwrap();
        assert_eq!(config.data.tokenizer_folder(), Some(Path::new("/folder")));
    }

    #[test]
    fn the_models_folder_says_at_which_tokens_texts_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.model.from = Some(folder.path().into());
        let found = || ends(&config, &Tokenizer::bytes());
        assert!(found().is_empty());
        fs::write(folder.path().join("config.json"), r#"{"eos_token_id": 7}"#).unwrap();
        assert_eq!(found(), [7]);
        fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [3, 4]}"#).unwrap();
        assert_eq!(found(), [3, 4]);
        fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": null}"#).unwrap();
        assert!(found().is_empty());
    }
}
