//! Text to train on: the embedded corpus, a UTF-8 file, or a folder of them. What the text means as tokens is in
//! [`crate::tokenizer`].

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use crate::{file, Error, Result, Tokenizer, Tokens};

/// Embeds the named files of `crates/data/corpus`, with their names.
macro_rules! embed {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../corpus/", $name)))),+]
    };
}

/// The embedded texts in the order in which they are joined; a test compares the list with the folder.
const EMBEDDED: &[(&str, &str)] = embed![
    "00-opening.txt",
    "01-why-divide.txt",
    "02-cutting-a-matrix.txt",
    "03-collectives.txt",
    "04-data-parallel.txt",
    "05-tensor-and-sequence.txt",
    "06-pipelines.txt",
    "07-sharded-state.txt",
    "08-long-contexts.txt",
    "09-inside-the-transformer.txt",
    "10-floating-point.txt",
    "11-random-numbers.txt",
    "12-optimizers.txt",
    "13-checkpoints.txt",
    "14-data-and-tokens.txt",
    "15-planning.txt",
    "16-debugging.txt",
    "17-networks-and-history.txt",
    "18-parables.txt",
];

/// What files are that `data tokenize` reads and nobody means to train on as they stand.
const OTHER: [(&str, &str); 4] =
    [(".jsonl", "lines of JSON"), (".ndjson", "lines of JSON"), (".gz", "compressed"), (".zst", "compressed")];

/// A text of one document or several, and where it comes from.
#[derive(Debug, Clone)]
pub struct Corpus {
    origin: String,
    text: Cow<'static, str>,
    /// The byte after each document.
    ends: Vec<usize>,
}

impl Corpus {
    /// Returns the corpus that comes with the crate: English prose about training one model on many machines.
    pub fn embedded() -> Self {
        let texts: Vec<&str> = EMBEDDED.iter().map(|(_, text)| *text).collect();
        Self::from_text("the embedded corpus", texts.join("\n"))
    }

    /// Reads a file of UTF-8 text, whole, as one document; or all files below a folder, but for hidden and empty ones, in
    /// the order of their paths, as a document each.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::NotAFile`], [`Error::Unreadable`], [`Error::Empty`], or [`Error::NotUtf8`] with the
    /// offset of the first bad byte.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let origin = format!("`{}`", path.display());
        if !path.is_dir() {
            return Ok(Self::from_text(origin, read(path)?));
        }
        let (mut text, mut ends) = (String::new(), Vec::new());
        for file in file::below(path)? {
            match read(&file) {
                Err(Error::Empty { .. }) => continue,
                document => text += &document?,
            }
            ends.push(text.len());
        }
        match ends.is_empty() {
            true => Err(Error::Empty { path: path.into() }),
            false => Ok(Self { origin, text: text.into(), ends }),
        }
    }

    /// Wraps a text that is already in memory; `origin` names it in messages.
    pub fn from_text(origin: impl Into<String>, text: impl Into<Cow<'static, str>>) -> Self {
        let text = text.into();
        Self { origin: origin.into(), ends: vec![text.len()], text }
    }

    /// Returns the text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the number of documents.
    pub fn documents(&self) -> usize {
        self.ends.len()
    }

    /// Returns where the text comes from, as messages name it.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Turns the whole text into tokens. Several documents end with the tokenizer's token for that, if it has one.
    ///
    /// # Errors
    /// [`Error::Encode`] if the tokenizer does not cover the text, [`Error::TokenId`] if it gives an id that its own
    /// vocabulary does not hold.
    pub fn tokenize(&self, tokenizer: &Tokenizer) -> Result<Tokens> {
        self.tokenize_part(tokenizer, 0..self.text.len(), self.origin.clone())
    }

    /// Turns some bytes of the text into tokens, named `origin`.
    pub(crate) fn tokenize_part(&self, tokenizer: &Tokenizer, part: Range<usize>, origin: String) -> Result<Tokens> {
        let _span = tracing::debug_span!("tokenize", origin, bytes = part.len()).entered();
        let end = if self.ends.len() > 1 { tokenizer.end_of_document() } else { None };
        let (mut ids, mut ends, mut start) = (Vec::new(), Vec::new(), part.start);
        for &stop in self.ends.iter().filter(|&&stop| stop > part.start) {
            let stop = stop.min(part.end);
            ids.extend(tokenizer.encode(&self.text[start..stop])?);
            ids.extend(end);
            ends.push(ids.len() as u64);
            start = stop;
            if start == part.end {
                break;
            }
        }
        let tokens = Tokens::of_documents(origin, ids, ends);
        tokens.check(tokenizer.vocab_size())?;
        Ok(tokens)
    }

    /// Returns the bytes of the document that holds a byte.
    pub(crate) fn document_at(&self, byte: usize) -> Range<usize> {
        let document = self.ends.partition_point(|&end| end <= byte).min(self.ends.len() - 1);
        document.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[document]
    }
}

/// Reads a file of UTF-8 text, unless its name says that it is something else.
fn read(path: &Path) -> Result<String> {
    let name = path.to_string_lossy().to_lowercase();
    if let Some((_, what)) = OTHER.iter().find(|(suffix, _)| name.ends_with(suffix)) {
        return Err(Error::NotText { path: path.into(), what });
    }
    String::from_utf8(file::read(path)?).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        Error::NotUtf8 { path: path.into(), offset, byte: error.as_bytes()[offset] }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_embedded_list_is_the_folder_in_name_order() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".txt"))
            .collect();
        names.sort();
        let listed: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, names);
    }

    #[test]
    fn the_embedded_corpus_is_plain_prose() {
        let corpus = Corpus::embedded();
        for (_, text) in EMBEDDED {
            assert!(corpus.text().contains(text.trim()));
        }
        let control = corpus.text().chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(control, None);
    }
}
