//! What a run reads: the samples that it trains on, and the windows that it is measured on.

use std::path::Path;
use std::sync::Arc;

use mp_data::{open, open_whole, seed_of, Attend, Blend, Ingredient, Part, SampleSource, Split, TextSource, Tokenizer};
use mp_data::{MaskedSource, Masking, Sample, Validation, Windows};
use mp_plan::ArchitectureName;

use crate::config::{BlendConfig, DataConfig};
use crate::{Config, Error, Result};

/// The data of a run, opened.
pub struct Text {
    /// What is trained on.
    pub source: Arc<dyn SampleSource>,
    /// What is held out, where something is.
    pub windows: Option<Windows>,
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
        let (data, seq, seed) = (&config.data, config.train.seq, config.train.seed);
        let attend = if data.attend_across { Attend::Across } else { Attend::Within };
        let mut limits = None;
        let (source, held_out): (Arc<dyn SampleSource>, Vec<Part>) = match data.blend.is_empty() {
            true => {
                let parts = open(data.path.as_deref(), tokenizer, vocab, &data.validation, seq)?;
                (
                    Arc::new(TextSource::new(parts.train, seq, seed)?.attending(attend)),
                    parts.validation.into_iter().collect(),
                )
            }
            false => {
                let (blend, held_out) = blend(data, tokenizer, vocab, (seq, seed), attend)?;
                let blend = Arc::new(blend);
                limits = Some(Arc::clone(&blend));
                (blend, held_out)
            }
        };
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
    if pairs && !config.data.attend_across {
        let rule = "must be true with `model.next_sentence`, whose halves attend to each other".to_string();
        return Err(Error::Config { key: "data.attend_across", value: "false".into(), rule });
    }
    Ok(Arc::new(MaskedSource::new(source, masking, pairs)?))
}

/// Opens the sources of a blend, and what is held out: a fraction of each, or data of its own.
fn blend(
    data: &DataConfig,
    tokenizer: &Tokenizer,
    vocab: usize,
    (seq, seed): (usize, u64),
    attend: Attend,
) -> Result<(Blend, Vec<Part>)> {
    let fraction = match &data.validation {
        Validation::Fraction(fraction) => *fraction,
        Validation::File(_) => 0.0,
    };
    let one = |path: &Path| open(Some(path), tokenizer, vocab, &Validation::Fraction(fraction), seq);
    let mut held_out = Vec::new();
    let ingredient = |(index, source): (usize, &BlendConfig)| -> Result<Ingredient> {
        let Split { train, validation } = one(&source.path)?;
        held_out.extend(validation);
        Ok(Ingredient {
            name: source.path.display().to_string(),
            source: Box::new(TextSource::new(train, seq, seed_of(seed, index))?.attending(attend)),
            weight: source.weight,
            epochs: source.epochs,
        })
    };
    let ingredients = data.blend.iter().enumerate().map(ingredient).collect::<Result<Vec<_>>>()?;
    if let Validation::File(path) = &data.validation {
        held_out.push(open_whole(path, tokenizer, vocab)?);
    }
    Ok((Blend::new(ingredients)?, held_out))
}
