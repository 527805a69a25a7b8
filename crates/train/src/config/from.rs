//! `model.from`: what a configuration takes from the folder that its model comes from, a published one or a run's.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use mp_plan::{Architecture, LoraConfig, ModelConfig};
use toml::{Table, Value};

use super::layers::{merge, Layers};
use super::{resume, schema, Config, BYTES};
use crate::huggingface::{Adapter, Folder};
use crate::run_folder::{self, CHECKPOINTS};
use crate::text::vocabulary;
use crate::{Error, Result};

/// A model of so many tokens may well be one of bytes and a few marks between texts.
const BYTES_VOCAB: RangeInclusive<usize> = 256..=512;

/// What a folder says.
struct Origin {
    model: Architecture,
    /// The keys of dropouts that are not all one.
    uneven_dropout: Option<String>,
    tokenizer: Option<String>,
    /// The adapters beside the model, where there are any.
    lora: Option<LoraConfig>,
}

impl Config {
    /// Lists the folders that may say something of the model beside its weights: the one it comes from and, where that holds
    /// published adapters, the one of the model under them.
    pub fn model_folders(&self) -> Vec<PathBuf> {
        let from = self.model.from.as_deref();
        let under = from.and_then(|from| Adapter::under(from, self.model.base.as_deref()));
        from.map(Path::to_path_buf).into_iter().chain(under).collect()
    }
}

/// Fills `[model]`, and the tokenizer where none is given, from the folder that `model.from` names.
///
/// What the user says of the model must be what the folder says; of dropout alone the user decides.
pub(super) fn resolve(layers: &Layers, mut config: Config) -> Result<Config> {
    let base = config.model.base.clone();
    let Some(from) = config.model.from.clone() else { return base.map_or(Ok(config), |base| Err(no_adapters(&base))) };
    let origin = origin(&from, base.as_deref())?;
    let said = layers.said();
    config.lora = match (&origin.lora, &base) {
        (Some(own), _) => lora(&said, config.lora, own, &from)?,
        (None, Some(base)) => return Err(no_adapters(base)),
        (None, None) => config.lora,
    };
    let says = |section: &str, key: &str| said.get(section).and_then(|section| section.get(key)).is_some();
    let mut model = ModelConfig { from: Some(from.clone()), base, ..origin.model.to_config() };
    if says("model", "dropout") {
        model.dropout = config.model.dropout;
    } else {
        // Of no concern to who does not train.
        config.uneven_dropout = origin.uneven_dropout;
    }
    refuse_changes(&said, &model, &from)?;
    config.model = model;
    if !says("data", "tokenizer") {
        config.data.tokenizer = tokenizer(origin.tokenizer, origin.model.vocab);
        follow(&mut config);
    }
    if !says("train", "seq") {
        config.train.seq = config.train.seq.min(origin.model.max_seq);
    }
    Ok(config)
}

/// Takes the tokenizer of the model under adapters from where the user says that this lies now.
pub(super) fn follow(config: &mut Config) {
    let gone = config.data.tokenizer != BYTES && !Path::new(&config.data.tokenizer).is_file();
    if let Some(file) = config.model.base.as_deref().and_then(Folder::tokenizer).filter(|_| gone) {
        config.data.tokenizer = file.to_string_lossy().into_owned();
    }
}

pub(super) fn no_adapters(base: &Path) -> Error {
    let rule = "names where the model under adapters lies now, and there are no adapters; leave it out";
    Error::Config { key: "model.base", value: base.display().to_string(), rule: rule.into() }
}

/// Chooses adapters where the folder holds some: none, and they are folded into the model; or these, where the user says all
/// that is said of them alike. Dropout is the user's. Other adapters beside these are not computed.
fn lora(said: &Table, asked: LoraConfig, own: &LoraConfig, from: &Path) -> Result<LoraConfig> {
    let Some(Value::Table(keys)) = said.get("lora") else { return Ok(LoraConfig::default()) };
    if asked.rank == 0 && (keys.contains_key("rank") || keys.is_empty()) {
        return Ok(LoraConfig::default());
    }
    let mut chosen = LoraConfig { dropout: asked.dropout, ..own.clone() };
    if !keys.contains_key("dropout") {
        chosen.dropout = own.dropout;
    }
    let left = LoraConfig {
        rank: asked.rank,
        alpha: if keys.contains_key("alpha") { asked.alpha } else { own.alpha },
        targets: if keys.contains_key("targets") { asked.targets } else { own.targets.clone() },
        dropout: own.dropout,
    };
    if left.computes_as(own) {
        return Ok(chosen);
    }
    let problem = format!(
        "it holds adapters with `lora.rank` = {}, `lora.alpha` = {} and `lora.targets` = {:?}: say the same to go on with \
         them, or leave `lora` out to train the model that they are folded into; for other adapters export it with `--merged` \
         and begin from that",
        own.rank, own.alpha, own.targets
    );
    Err(Error::Published { path: from.into(), problem })
}

/// Reads what a folder says of its model; that under adapters may lie at `base`.
fn origin(from: &Path, base: Option<&Path>) -> Result<Origin> {
    if Adapter::is(from) {
        return adapters(from, base);
    }
    if Folder::is(from) {
        published(from)
    } else {
        run(from)
    }
}

/// Reads which model adapters belong to; a tokenizer beside them goes before the model's.
fn adapters(from: &Path, base: Option<&Path>) -> Result<Origin> {
    let adapter = Adapter::open(from, base)?;
    let base = origin(adapter.base(), None)?;
    let own = Folder::tokenizer(from).map(|file| file.to_string_lossy().into_owned());
    Ok(Origin { lora: Some(adapter.lora().clone()), tokenizer: own.or(base.tokenizer), ..base })
}

/// Describes the model of a folder, a published one or a run's.
///
/// # Errors
/// What of it is not computed or missing.
pub(crate) fn described(from: &Path) -> Result<Architecture> {
    match Folder::is(from) {
        true => Ok(Folder::describe(from)?.architecture),
        false => Ok(run(from)?.model),
    }
}

fn published(from: &Path) -> Result<Origin> {
    let described = Folder::describe(from)?;
    let tokenizer = Folder::tokenizer(from).map(|file| file.to_string_lossy().into_owned());
    Ok(Origin { model: described.architecture, uneven_dropout: described.uneven_dropout, tokenizer, lora: None })
}

/// Reads a run's own configuration; the folder of one of its checkpoints will do.
fn run(from: &Path) -> Result<Origin> {
    let folder = match from.parent() {
        Some(parent) if parent.ends_with(CHECKPOINTS) => parent.parent().unwrap_or(parent),
        _ => from,
    };
    if !folder.join(run_folder::CONFIG).is_file() {
        let rule = "must be a folder with the `config.json` of a published model or the `adapter_config.json` of adapters, or \
                    a run folder";
        return Err(Error::Config { key: "model.from", value: from.display().to_string(), rule: rule.into() });
    }
    let saved = schema::read(resume::saved(folder)?)?;
    let vocab = match saved.model.vocab {
        0 => vocabulary(&saved, &saved.data.open_tokenizer()?),
        said => said,
    };
    let model = Architecture::resolve(&saved.model, vocab, saved.train.seq)?;
    let lora = Some(saved.lora).filter(|lora| lora.rank > 0);
    Ok(Origin { model, uneven_dropout: None, tokenizer: Some(saved.data.tokenizer), lora })
}

/// Chooses the tokenizer of a folder; a name without letters is none.
fn tokenizer(own: Option<String>, vocab: usize) -> String {
    match own {
        Some(file) => file,
        None if BYTES_VOCAB.contains(&vocab) => BYTES.into(),
        None => String::new(),
    }
}

/// Refuses what the user says of the model where the folder says otherwise. 0 chooses, and so takes the folder's.
fn refuse_changes(said: &Table, model: &ModelConfig, from: &Path) -> Result<()> {
    let Some(Value::Table(keys)) = said.get("model") else { return Ok(()) };
    let written = |model: &ModelConfig| Table::try_from(model).expect("a tree of plain values is TOML");
    let mut only = Table::new();
    merge(&mut only, Table::from_iter([("model".to_string(), Value::Table(keys.clone()))]));
    let (asked, has) = (written(&schema::read(only)?.model), written(model));
    for key in keys.keys().filter(|key| !["from", "base", "dropout"].contains(&key.as_str())) {
        let (asked, has) = (asked.get(key), has.get(key));
        let chooses = asked.is_some_and(|asked| *asked == Value::Integer(0));
        if asked != has && !chooses {
            let shown = |value: Option<&Value>| value.map_or("unset".into(), Value::to_string);
            let problem = format!("its `model.{key}` is {}, not {} as you say", shown(has), shown(asked));
            return Err(Error::Published { path: from.into(), problem });
        }
    }
    Ok(())
}

/// Makes a folder independent of the working directory.
pub(super) fn absolute(from: Option<PathBuf>) -> Option<PathBuf> {
    from.map(|path| std::path::absolute(&path).unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut json = serde_json::json!({
            "model_type": "gpt2", "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 16, "vocab_size": 300,
        });
        change(&mut json);
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        folder
    }

    fn load(folder: &Path, sets: &[&str]) -> Result<Config> {
        let mut all = vec![format!("model.from={}", folder.display())];
        all.extend(sets.iter().map(|set| set.to_string()));
        Config::load(None, None, &all)
    }

    #[test]
    fn shape_tokenizer_and_sequence_come_from_the_folder() {
        let folder = folder(|_| ());
        let config = load(folder.path(), &[]).unwrap();
        assert_eq!((config.model.hidden, config.model.heads, config.model.vocab), (12, 3, 300));
        assert_eq!((config.model.dropout, config.data.tokenizer.as_str(), config.train.seq), (0.1, "bytes", 16));
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let own = folder.path().join("tokenizer.json");
        assert_eq!(load(folder.path(), &[]).unwrap().data.tokenizer, own.to_string_lossy());
        assert_eq!(load(folder.path(), &["data.tokenizer=bytes"]).unwrap().data.tokenizer, "bytes");
    }

    #[test]
    fn what_contradicts_the_folder_is_refused_by_name_and_dropout_is_not() {
        let folder = folder(|_| ());
        for (set, shown) in [
            ("model.hidden=24", "its `model.hidden` is 12, not 24"),
            ("model.architecture=llama", "its `model.architecture` is \"gpt2\", not \"llama\""),
            ("model.tie_embeddings=false", "its `model.tie_embeddings` is true, not false"),
            ("model.norm_eps=1e-3", "its `model.norm_eps` is 0.00001"),
            ("model.rope_scaling={kind=\"linear\", factor=2.0}", "its `model.rope_scaling` is unset"),
        ] {
            let error = load(folder.path(), &[set]).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(shown), "{set}: {error}");
        }
        let config = load(folder.path(), &["model.dropout=0", "model.hidden=12", "model.kv_heads=0"]).unwrap();
        assert_eq!(config.model.dropout, 0.0);
    }

    #[test]
    fn a_preset_says_nothing_of_the_model() {
        let folder = folder(|_| ());
        let set = format!("model.from={}", folder.path().display());
        let config = Config::load(None, Some("shakespeare"), &[set]).unwrap();
        assert_eq!(config.model.hidden, 12);
    }

    #[test]
    fn a_saved_configuration_resolves_to_itself() {
        let folder = folder(|_| ());
        let config = load(folder.path(), &["train.steps=7"]).unwrap();
        let file = folder.path().join("saved.toml");
        std::fs::write(&file, config.to_toml()).unwrap();
        let again = Config::load(Some(&file), None, &[]).unwrap();
        assert_eq!(Config { label: config.label.clone(), ..again }, config);
    }

    #[test]
    fn what_a_folder_leaves_open_is_asked_for() {
        for vocab in [37, 1000] {
            let other = folder(|json| json["vocab_size"] = vocab.into());
            let config = load(other.path(), &[]).unwrap();
            let error = config.data.open_tokenizer().unwrap_err();
            assert!(error.is_input() && error.to_string().contains("`data.tokenizer` is unset"), "{error}");
            assert_eq!(config.data.tokenizer_folder(), None);
        }
        let uneven = folder(|json| json["attn_pdrop"] = 0.5.into());
        let error = load(uneven.path(), &[]).unwrap().check_dropout().unwrap_err().to_string();
        assert!(error.contains("`attn_pdrop` = 0.5") && error.contains("`model.dropout`"), "{error}");
        let chosen = load(uneven.path(), &["model.dropout=0.25"]).unwrap();
        chosen.check_dropout().unwrap();
        assert_eq!(chosen.model.dropout, 0.25);
        let empty = tempfile::tempdir().unwrap();
        let error = load(empty.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("`model.from`") && error.contains("or a run folder"), "{error}");
    }

    #[test]
    fn a_runs_model_is_taken_with_its_defaults_filled_in() {
        let run = tempfile::tempdir().unwrap();
        let sets = ["model.hidden=32", "train.seq=48"].map(String::from);
        std::fs::write(run.path().join("config.toml"), Config::load(None, None, &sets).unwrap().to_toml()).unwrap();
        let config = load(run.path(), &[]).unwrap();
        assert_eq!((config.model.hidden, config.model.vocab, config.model.max_seq), (32, 256, 48));
        assert_eq!(config.train.seq, 48);
        let step = run.path().join("checkpoints/step-00000010");
        assert_eq!(load(&step, &[]).unwrap().model.hidden, 32);
    }
}
