//! A tokenizer learned from text: byte-level pairs, as GPT-2 has them.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;

use tokenizers::models::bpe::{BpeTrainer, BPE};
use tokenizers::models::TrainerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::AddedToken;

use crate::{Documents, Error, Result, Tokenizer};

/// The token that ends a document.
const END: &str = "<|endoftext|>";
/// Bytes, and that one.
const LEAST: usize = 257;

/// Learns a vocabulary of at most `vocab` tokens from documents and writes it as a `tokenizer.json`; of little text it becomes
/// smaller. Returns the tokenizer.
///
/// # Errors
/// [`Error::SmallVocabulary`], those of reading documents, [`Error::Exists`], [`Error::Unwritable`].
pub fn train_tokenizer(documents: Documents, vocab: usize, path: &Path) -> Result<Tokenizer> {
    if vocab < LEAST {
        return Err(Error::SmallVocabulary { vocab, least: LEAST });
    }
    if path.exists() {
        return Err(Error::Exists { path: path.into() });
    }
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END, true)])
        .build();
    let byte_level = ByteLevel::default().add_prefix_space(false);
    let mut learned = tokenizers::Tokenizer::new(BPE::default());
    learned.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level)).with_post_processor(Some(byte_level));
    // The trainer knows no errors of what it reads: the first one ends the text, and is asked for after.
    let failure = Mutex::new(None);
    let texts = documents.texts().map_while(|text| match text {
        Ok(text) => Some(text),
        Err(error) => {
            failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).replace(error);
            None
        }
    });
    let trained = learned.train(&mut TrainerWrapper::BpeTrainer(trainer), texts).map(|_| ());
    if let Some(error) = failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        return Err(error);
    }
    let spec = path.display().to_string();
    trained.map_err(|cause| Error::TokenizerFile { spec: spec.clone(), cause })?;
    let json = learned.to_string(false).map_err(|cause| Error::TokenizerFile { spec: spec.clone(), cause })?;
    write(path, json.as_bytes()).map_err(|source| Error::Unwritable { path: path.into(), source })?;
    Tokenizer::load(&spec)
}

/// Writes a file that appears whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
