//! What goes with a model's weights: the tokenizer, and the tokens at which texts begin and end.

use std::fs;
use std::path::Path;

use mp_data::{Template, Tokenizer};
use serde_json::{json, Map, Value};

use super::TOKENIZER;
use crate::config::DataFormat;
use crate::{durable, examples, Config, Error, Result};

/// Files beside a tokenizer that programs read with it.
const BESIDE: [&str; 4] = ["tokenizer_config.json", "special_tokens_map.json", TEMPLATE, GENERATION];
const TEMPLATE: &str = "chat_template.jinja";
const GENERATION: &str = "generation_config.json";
/// The tokens that both `config.json` and `generation_config.json` name.
const MARKS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// Copies what lies beside a tokenizer.
pub(super) fn copy_beside(from: &Path, into: &Path) -> Result<()> {
    for name in BESIDE {
        let (source, target) = (from.join(name), into.join(name));
        if source.is_file() && !target.exists() {
            fs::copy(&source, &target).map_err(|source| Error::Write { path: target, source })?;
        }
    }
    Ok(())
}

/// Writes a run's tokenizer, a copy of its file or one of 256 bytes; returns the keys of `config.json` that name tokens.
pub(super) fn write(config: &Config, out: &Path) -> Result<Map<String, Value>> {
    let path = out.join(TOKENIZER);
    match config.data.tokenizer.as_str() {
        "bytes" => durable::write(&path, format!("{:#}\n", bytes_tokenizer()).as_bytes())?,
        file => {
            fs::copy(file, &path).map_err(|source| Error::Read { path: file.into(), source })?;
            copy_beside(Path::new(file).parent().unwrap_or(Path::new(".")), out)?;
        }
    }
    if config.data.format == DataFormat::Chat && Template::find(&[out])?.is_none() {
        // The run's conversations were written so, whether by the built-in template or by one of the model's folder.
        durable::write(&out.join(TEMPLATE), examples::template(config)?.source().as_bytes())?;
    }
    let class = out.join("tokenizer_config.json");
    if !class.exists() {
        let keys = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
        durable::write(&class, format!("{keys:#}\n").as_bytes())?;
    }
    marks(config, &out.join(GENERATION))
}

/// Finds the tokens that mark texts: as `generation_config.json` says, which is written where it is missing. Without that,
/// transformers would take the marks of the family's first models.
fn marks(config: &Config, generation: &Path) -> Result<Map<String, Value>> {
    let known = fs::read(generation).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let end = Tokenizer::load(&config.data.tokenizer)?.end_of_document();
    let mark = |key: &str| match &known {
        Some(known) => known[key].clone(),
        None if key == "eos_token_id" => json!(end),
        None => Value::Null,
    };
    let marks: Map<String, Value> = MARKS.iter().map(|&key| (key.to_string(), mark(key))).collect();
    if known.is_none() {
        durable::write(generation, format!("{:#}\n", Value::Object(marks.clone())).as_bytes())?;
    }
    Ok(marks)
}

/// Makes the file of the tokenizer whose tokens are bytes: pairs without merges, over the characters that stand for bytes.
///
/// # Source
/// Radford et al. 2019, the published `encoder.py`: printable bytes stand for themselves, the others follow from U+0100.
fn bytes_tokenizer() -> serde_json::Value {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256u32 {
        let point = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        vocab.insert(char::from_u32(point).expect("a point below U+0200").to_string(), byte.into());
    }
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": level,
        "decoder": level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_tokenizer_is_the_one_of_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let marks = write(&Config::default(), folder.path()).unwrap();
        assert!(marks.values().all(Value::is_null) && marks.len() == 3);
        let file = folder.path().join(TOKENIZER);
        let read = mp_data::Tokenizer::load(file.to_str().unwrap()).unwrap();
        let text: String = (0..0x180u32).filter_map(char::from_u32).collect();
        let ids = read.encode(&text).unwrap();
        assert_eq!(ids, mp_data::Tokenizer::bytes().encode(&text).unwrap());
        assert_eq!((read.vocab_size(), read.decode(&ids).unwrap()), (256, text));
    }

    #[test]
    fn the_template_of_conversations_goes_along() {
        let folder = tempfile::tempdir().unwrap();
        write(&Config::default(), folder.path()).unwrap();
        assert!(!folder.path().join(TEMPLATE).exists());
        let sets = ["data.format=chat", "data.path=a.jsonl"].map(String::from);
        write(&Config::load(None, None, &sets).unwrap(), folder.path()).unwrap();
        let written = fs::read_to_string(folder.path().join(TEMPLATE)).unwrap();
        assert_eq!(written, Template::chatml().source());
    }

    #[test]
    fn marks_and_files_beside_the_tokenizer_go_along() {
        let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(&Config::default(), from.path()).unwrap();
        let own = from.path().join(TOKENIZER);
        let config = Config::load(None, None, &[format!("data.tokenizer={}", own.display())]).unwrap();
        fs::write(from.path().join(GENERATION), r#"{"eos_token_id": [7, 9], "bos_token_id": 3}"#).unwrap();
        fs::write(from.path().join("chat_template.jinja"), "{{ a }}").unwrap();
        let marks = write(&config, into.path()).unwrap();
        assert_eq!((&marks["eos_token_id"], &marks["bos_token_id"]), (&json!([7, 9]), &json!(3)));
        assert_eq!(fs::read_to_string(into.path().join("chat_template.jinja")).unwrap(), "{{ a }}");
    }
}
