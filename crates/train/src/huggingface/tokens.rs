//! What goes with a model's weights: the tokenizer, and the tokens at which texts begin and end.

use std::fs;
use std::path::{Path, PathBuf};

use mp_data::Template;
use serde_json::{json, Map, Value};

use super::{CONFIG, TOKENIZER};
use crate::config::DataFormat;
use crate::run_folder::CHECKPOINTS;
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

/// Keeps in a run's folder what a published model's folders say of the tokens that mark texts, in whichever file they say so.
pub(super) fn keep_marks(from: &[PathBuf], run: &Path) -> Result<()> {
    let mut all = from.iter().find_map(|folder| object(&folder.join(GENERATION))).unwrap_or_default();
    all.append(&mut said(&from.iter().map(PathBuf::as_path).collect::<Vec<_>>()));
    durable::write(&run.join(GENERATION), format!("{:#}\n", Value::Object(all)).as_bytes())
}

/// Reads a JSON object, where there is one.
fn object(file: &Path) -> Option<Map<String, Value>> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// Collects which tokens mark texts; the first file that names one counts, as in transformers.
fn said(folders: &[&Path]) -> Map<String, Value> {
    let mut marks = Map::new();
    for file in folders.iter().flat_map(|folder| [GENERATION, CONFIG].map(|name| folder.join(name))) {
        let known = object(&file).unwrap_or_default();
        let named = MARKS.iter().filter_map(|&key| Some((key, known.get(key)?.clone())));
        for (key, value) in named {
            marks.entry(key).or_insert(value);
        }
    }
    marks
}

/// Returns the folder of a run, which is two above that of a checkpoint.
fn run_folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.ends_with(CHECKPOINTS) => parent.parent().unwrap_or(parent),
        _ => path,
    }
}

/// Writes a run's tokenizer, a copy of its file, one of 256 bytes or none; returns the keys of `config.json` that name tokens.
pub(super) fn write(config: &Config, run: Option<&Path>, out: &Path) -> Result<Map<String, Value>> {
    let path = out.join(TOKENIZER);
    let own = run.map(|run| run_folder(run).join(GENERATION)).filter(|file| file.is_file());
    if let Some(own) = own {
        let target = out.join(GENERATION);
        fs::copy(own, &target).map_err(|source| Error::Write { path: target, source })?;
    }
    match config.data.tokenizer.as_str() {
        "" => {}
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
    if path.exists() && !class.exists() {
        durable::write(&class, format!("{:#}\n", tokenizer_keys(config)?).as_bytes())?;
    }
    marks(config, &out.join(GENERATION))
}

/// Names the special tokens, those that are not there as well: the class that transformers takes for some families adds its
/// own where nothing is said, and the vocabulary has no rows for them.
fn tokenizer_keys(config: &Config) -> Result<Value> {
    let tokenizer = config.data.open_tokenizer()?;
    let end = tokenizer.end_of_document().map(|end| tokenizer.decode(&[end])).transpose()?;
    Ok(json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "bos_token": null,
        "eos_token": end,
        "unk_token": null,
        "pad_token": null,
    }))
}

/// Finds the tokens that mark texts: as the `generation_config.json` that was copied says, or the model's folder, or the
/// tokenizer; and writes that file. A model that was never published says of each mark that there is none: where nothing is
/// said, transformers takes the marks of the family's first models.
fn marks(config: &Config, generation: &Path) -> Result<Map<String, Value>> {
    let copied = object(generation);
    let out = generation.parent().unwrap_or(Path::new("."));
    let model = config.model_folders();
    let models = model.iter().map(PathBuf::as_path);
    let folders: Vec<&Path> = [out].into_iter().chain(models).chain(config.data.tokenizer_folder()).collect();
    let mut marks = said(&folders);
    let end = match config.data.tokenizer.is_empty() {
        true => None,
        false => config.data.open_tokenizer()?.end_of_document(),
    };
    let published = copied.is_some() || !marks.is_empty();
    if let (Some(end), false) = (end, marks.contains_key("eos_token_id")) {
        marks.insert("eos_token_id".into(), end.into());
    }
    if !published {
        for key in MARKS {
            marks.entry(key).or_insert(Value::Null);
        }
    }
    let mut all = copied.unwrap_or_default();
    all.extend(marks.clone());
    durable::write(generation, format!("{:#}\n", Value::Object(all)).as_bytes())?;
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
        let marks = write(&Config::default(), None, folder.path()).unwrap();
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
        write(&Config::default(), None, folder.path()).unwrap();
        assert!(!folder.path().join(TEMPLATE).exists());
        let sets = ["data.format=chat", "data.path=a.jsonl"].map(String::from);
        write(&Config::load(None, None, &sets).unwrap(), None, folder.path()).unwrap();
        let written = fs::read_to_string(folder.path().join(TEMPLATE)).unwrap();
        assert_eq!(written, Template::chatml().source());
    }

    #[test]
    fn marks_and_files_beside_the_tokenizer_go_along() {
        let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(&Config::default(), None, from.path()).unwrap();
        let own = from.path().join(TOKENIZER);
        let config = Config::load(None, None, &[format!("data.tokenizer={}", own.display())]).unwrap();
        fs::write(from.path().join(GENERATION), r#"{"eos_token_id": [7, 9], "bos_token_id": 3}"#).unwrap();
        fs::write(from.path().join("chat_template.jinja"), "{{ a }}").unwrap();
        let marks = write(&config, None, into.path()).unwrap();
        assert_eq!((&marks["eos_token_id"], &marks["bos_token_id"]), (&json!([7, 9]), &json!(3)));
        assert!(!marks.contains_key("pad_token_id"));
        assert_eq!(fs::read_to_string(into.path().join("chat_template.jinja")).unwrap(), "{{ a }}");
    }

    #[test]
    fn marks_that_a_model_names_in_its_configuration_alone_are_kept() {
        let [from, run, out] = [0; 3].map(|_| tempfile::tempdir().unwrap());
        fs::write(from.path().join(CONFIG), r#"{"eos_token_id": [5, 6], "bos_token_id": 4, "vocab_size": 9}"#).unwrap();
        fs::write(from.path().join(GENERATION), r#"{"bos_token_id": 3, "temperature": 0.5}"#).unwrap();
        keep_marks(&[from.path().into()], run.path()).unwrap();
        let kept = object(&run.path().join(GENERATION)).unwrap();
        let expected = json!({ "bos_token_id": 3, "eos_token_id": [5, 6], "temperature": 0.5 });
        assert_eq!(Value::Object(kept), expected);
        // Out again without a tokenizer, from one of the run's checkpoints.
        let mut config = Config::default();
        config.data.tokenizer.clear();
        let step = run.path().join(CHECKPOINTS).join("step-00000000");
        let marks = write(&config, Some(&step), out.path()).unwrap();
        assert_eq!(Value::Object(marks), json!({ "bos_token_id": 3, "eos_token_id": [5, 6] }));
        assert_eq!(Value::Object(object(&out.path().join(GENERATION)).unwrap()), expected);
        assert!(!out.path().join(TOKENIZER).exists() && !out.path().join("tokenizer_config.json").exists());
    }

    #[test]
    fn a_published_model_that_names_no_marks_is_given_none() {
        let [from, run, out] = [0; 3].map(|_| tempfile::tempdir().unwrap());
        keep_marks(&[from.path().into()], run.path()).unwrap();
        assert!(write(&Config::default(), Some(run.path()), out.path()).unwrap().is_empty());
    }
}
