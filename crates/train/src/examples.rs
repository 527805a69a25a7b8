//! The examples that a run is fine-tuned on, or measured on: which files, how their lines are read, what is held out.

use std::path::{Path, PathBuf};

use mp_data::{ExampleReader, Examples, Packed, PackedSource, Reading, Template, Tokenizer, Validation};
use mp_runtime::device;

use crate::config::DataFormat;
use crate::{Config, Error, Result};

/// Makes what reads the files of `[data]`, with as many threads as tensor operations use.
///
/// # Errors
/// [`Error::Data`] for a template that is none, and a tokenizer that cannot end completions.
pub fn reader<'a>(config: &Config, tokenizer: &'a Tokenizer, vocab: usize) -> Result<ExampleReader<'a>> {
    let reading = match config.data.format {
        DataFormat::Chat => Reading::chats(template(config)?),
        DataFormat::Completion | DataFormat::Text => Reading::completions(tokenizer)?,
    };
    Ok(ExampleReader { tokenizer, reading, vocab, seq: config.train.seq, threads: device::threads() })
}

/// Returns the chat template that lies beside the tokenizer or, where none does, in the folder that the model comes from or, if
/// that holds adapters, in the one of the model under them; else the built-in one.
///
/// # Errors
/// [`Error::Data`].
pub fn template(config: &Config) -> Result<Template> {
    let model = config.model_folders();
    let folders: Vec<&Path> =
        config.data.tokenizer_folder().into_iter().chain(model.iter().map(PathBuf::as_path)).collect();
    Ok(Template::find(&folders)?.unwrap_or_else(Template::chatml))
}

/// Reads the examples of a path, and splits them as `validation` says.
///
/// # Errors
/// [`Error::Data`].
pub fn split(reader: &ExampleReader<'_>, path: &Path, validation: &Validation) -> Result<(Examples, Option<Examples>)> {
    let all = reader.read(path)?;
    Ok(match validation {
        Validation::Fraction(fraction) => all.split(*fraction, reader.seq)?,
        Validation::File(path) => (all, Some(reader.read(path)?)),
    })
}

/// Packs examples into samples.
///
/// # Errors
/// [`Error::Data`].
pub fn source(examples: Examples, seq: usize, seed: u64) -> Result<PackedSource> {
    Ok(PackedSource::new(Packed::new(examples, seq)?, seed))
}

/// Refuses to read examples where no file is named.
pub fn unnamed() -> Error {
    let rule = "must name JSON lines, for `data.format` is not \"text\"";
    Error::Config { key: "data.path", value: "unset".into(), rule: rule.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_template_of_the_model_under_adapters_counts_where_they_have_none() {
        let folder = tempfile::tempdir().unwrap();
        let [base, adapters] = ["base", "adapters"].map(|name| folder.path().join(name));
        [&base, &adapters].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
        fs::write(adapters.join("adapter_config.json"), r#"{"base_model_name_or_path": "../base"}"#).unwrap();
        fs::write(base.join("chat_template.jinja"), "of the base").unwrap();
        let mut config = Config::default();
        config.model.from = Some(adapters.clone());
        config.data.tokenizer = adapters.join("tokenizer.json").to_string_lossy().into_owned();
        assert_eq!(template(&config).unwrap().source(), "of the base");
        fs::write(adapters.join("chat_template.jinja"), "of the adapters").unwrap();
        assert_eq!(template(&config).unwrap().source(), "of the adapters");
    }
}
