//! What a run reads: the samples that it trains on, and the windows that it is measured on.

use std::path::Path;
use std::sync::Arc;

use mp_data::{open, open_whole, seed_of, Attend, Blend, Ingredient, Part, SampleSource, TextSource, Tokenizer};
use mp_data::{MaskedSource, Masking, Sample, Validation, Windows};
use mp_plan::ArchitectureName;

use crate::config::{BlendConfig, DataConfig, DataFormat};
use crate::evaluate::Walk;
use crate::examples;
use crate::{Config, Error, Result};

/// The data of a run, opened.
pub struct Text {
    /// What is trained on.
    pub source: Arc<dyn SampleSource>,
    /// What is held out, where something is.
    pub windows: Option<Box<dyn Walk>>,
    /// Tokens held out.
    pub validation_tokens: u64,
    /// The blend, where there is one: its sources may be read so often and no more.
    limits: Option<Arc<Blend>>,
}

impl Text {
    /// Opens what `[data]` names, for samples of `train.seq` tokens of a vocabulary of `vocab` ids, in the order of
    /// `train.seed`. The first sample is read, so that data of another tokenizer are refused before training starts.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn open(config: &Config, tokenizer: &Tokenizer, vocab: usize) -> Result<Self> {
        match config.data.format {
            DataFormat::Text => Self::of_text(config, tokenizer, vocab),
            DataFormat::Completion | DataFormat::Chat => Self::of_examples(config, tokenizer, vocab),
        }
    }

    fn of_text(config: &Config, tokenizer: &Tokenizer, vocab: usize) -> Result<Self> {
        let (data, seq) = (&config.data, config.train.seq);
        let attend = if data.attend_across.unwrap_or(true) { Attend::Across } else { Attend::Within };
        let mut held_out = Vec::new();
        let (source, limits) = source(config, |path, validation, seed| {
            let parts = open(path, tokenizer, vocab, validation, seq)?;
            held_out.extend(parts.validation);
            Ok(Box::new(TextSource::new(parts.train, seq, seed)?.attending(attend)))
        })?;
        if let (Validation::File(path), false) = (&data.validation, data.blend.is_empty()) {
            held_out.push(open_whole(path, tokenizer, vocab)?);
        }
        let masking = masking(config, tokenizer);
        let source = masked(source, config, masking)?;
        source.sample(0, &mut Sample::default())?;
        let validation_tokens = held_out.iter().map(Part::len).sum();
        let windows = match held_out.is_empty() {
            true => None,
            false => Some(Windows::of_parts(held_out, seq, attend)?),
        };
        let windows = match (windows, masking) {
            (Some(windows), Some(masking)) => Some(windows.masked(masking)?),
            (windows, _) => windows,
        };
        let windows = windows.map(|windows| Box::new(windows) as Box<dyn Walk>);
        Ok(Self { source, windows, validation_tokens, limits })
    }

    fn of_examples(config: &Config, tokenizer: &Tokenizer, vocab: usize) -> Result<Self> {
        let reader = examples::reader(config, tokenizer, vocab)?;
        let mut held_out = Vec::new();
        let (source, limits) = source(config, |path, validation, seed| {
            let path = path.ok_or_else(examples::unnamed)?;
            let (train, validation) = examples::split(&reader, path, validation)?;
            held_out.extend(validation);
            Ok(Box::new(examples::source(train, reader.seq, seed)?))
        })?;
        if let (Validation::File(path), false) = (&config.data.validation, config.data.blend.is_empty()) {
            held_out.push(reader.read(path)?);
        }
        let validation_tokens = held_out.iter().map(mp_data::Examples::tokens).sum();
        let windows = match held_out.is_empty() {
            true => None,
            false => Some(Box::new(mp_data::PackedRows::new(held_out, reader.seq)?) as Box<dyn Walk>),
        };
        Ok(Self { source, windows, validation_tokens, limits })
    }

    /// Refuses a run of `samples` samples in all if a source would be read more often than it may be.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn check(&self, samples: u64) -> Result<()> {
        Ok(self.limits.as_ref().map_or(Ok(()), |blend| blend.check(samples))?)
    }
}

/// Returns the least vocabulary for a run's tokens: the tokenizer's, and what masked samples need beside them.
pub fn vocabulary(config: &Config, tokenizer: &Tokenizer) -> usize {
    masking(config, tokenizer).map_or_else(|| tokenizer.vocab_size(), |masking| masking.vocab_size())
}

/// Says how tokens are hidden, for a model that learns so.
fn masking(config: &Config, tokenizer: &Tokenizer) -> Option<Masking> {
    (config.model.architecture == ArchitectureName::Bert).then(|| Masking::new(tokenizer, config.train.seed))
}

/// Hides tokens where the model learns so.
fn masked(source: Arc<dyn SampleSource>, config: &Config, masking: Option<Masking>) -> Result<Arc<dyn SampleSource>> {
    let Some(masking) = masking else { return Ok(source) };
    let pairs = config.model.next_sentence;
    if pairs && config.data.attend_across == Some(false) {
        let rule = "must be true with `model.next_sentence`, whose halves attend to each other".to_string();
        return Err(Error::Config { key: "data.attend_across", value: "false".into(), rule });
    }
    Ok(Arc::new(MaskedSource::new(source, masking, pairs)?))
}

/// What is trained on, and once more as a blend where it is one.
type Mixed = (Arc<dyn SampleSource>, Option<Arc<Blend>>);

/// Opens `data.path` or mixes the sources of `data.blend`: `one` opens each, is told what of it is held out, and has a seed of
/// its own. What a blend is measured on beside parts of its sources is not opened here.
fn source(
    config: &Config,
    mut one: impl FnMut(Option<&Path>, &Validation, u64) -> Result<Box<dyn SampleSource>>,
) -> Result<Mixed> {
    let DataConfig { path, blend, validation, .. } = &config.data;
    let seed = config.train.seed;
    if blend.is_empty() {
        return Ok((one(path.as_deref(), validation, seed)?.into(), None));
    }
    let fraction = Validation::Fraction(match validation {
        Validation::Fraction(fraction) => *fraction,
        Validation::File(_) => 0.0,
    });
    let ingredient = |(index, source): (usize, &BlendConfig)| -> Result<Ingredient> {
        Ok(Ingredient {
            name: source.path.display().to_string(),
            source: one(Some(&source.path), &fraction, seed_of(seed, index))?,
            weight: source.weight,
            epochs: source.epochs,
        })
    };
    let ingredients = blend.iter().enumerate().map(ingredient).collect::<Result<Vec<_>>>()?;
    let blend = Arc::new(Blend::new(ingredients)?);
    Ok((Arc::clone(&blend) as _, Some(blend)))
}
