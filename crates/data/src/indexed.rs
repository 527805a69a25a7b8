//! Tokens in the `.bin` and `.idx` files of Megatron-LM, read in place.
//!
//! `PREFIX.bin` is all tokens of all documents, one after the other. `PREFIX.idx`, every number little-endian:
//!
//! | bytes | hold |
//! |---|---|
//! | 9 | `MMIDIDX\0\0` |
//! | 8 | the version, 1 |
//! | 1 | the kind of a token: see [`Element`] |
//! | 8 | the number of sequences, `n` |
//! | 8 | the number of document bounds, `d`: one more than documents |
//! | 4·n | how many tokens each sequence has |
//! | 8·n | at which byte of `.bin` each sequence starts |
//! | 8·d | which sequence each document starts with; at the end `n` |
//!
//! Files of several kinds of data ("multimodal") have another byte for each sequence, and are refused.
//!
//! # Source
//! NVIDIA/Megatron-LM, `megatron/core/datasets/indexed_dataset.py`.

mod element;
mod index;
mod writer;

use std::ops::Range;
use std::path::{Path, PathBuf};

pub use element::Element;
use index::Index;
pub use writer::IndexedWriter;

use crate::{Error, Mapping, Result};

/// A dataset of documents of tokens. Nothing of it is loaded: to open one takes as long for any size, and a look-up
/// reads what it needs.
#[derive(Debug)]
pub struct Indexed {
    prefix: PathBuf,
    index: Index,
    bin: Mapping,
    tokens: u64,
}

impl Indexed {
    /// Opens `PREFIX.idx` and `PREFIX.bin`. What can be told from a few numbers is checked now; the rest when it is
    /// read.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::NotAFile`], [`Error::Unreadable`]; [`Error::Format`] for what is foreign, cut short,
    /// of the other byte order, or at odds with its sibling.
    pub fn open(prefix: impl AsRef<Path>) -> Result<Self> {
        let prefix = prefix.as_ref();
        let index = Index::open(&with_suffix(prefix, ".idx"))?;
        let path = with_suffix(prefix, ".bin");
        let bin = Mapping::open(&path)?;
        let expected = index.data_bytes()?;
        if bin.len() != expected {
            let end = bin.len().min(expected);
            let problem = format!(
                "it has {} bytes where its index `{}` counts {expected}; one of the two is cut short or of another dataset",
                bin.len(),
                index.path().display()
            );
            return Err(Error::Format { path, offset: end, problem });
        }
        let tokens = bin.len() / index.element().bytes();
        Ok(Self { prefix: prefix.into(), index, bin, tokens })
    }

    /// Says whether both files of a dataset lie at `prefix`.
    pub fn exists(prefix: &Path) -> bool {
        Self::files(prefix).iter().all(|path| path.is_file())
    }

    /// Says whether one of them does.
    pub(crate) fn exists_in_part(prefix: &Path) -> bool {
        Self::files(prefix).iter().any(|path| path.is_file())
    }

    /// Names a dataset's files.
    fn files(prefix: &Path) -> [PathBuf; 2] {
        [".idx", ".bin"].map(|suffix| with_suffix(prefix, suffix))
    }

    /// Returns the files' common name.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Returns how tokens are stored.
    pub fn element(&self) -> Element {
        self.index.element()
    }

    /// Returns the number of tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Returns the number of sequences; a document has any number of them.
    pub fn sequences(&self) -> u64 {
        self.index.sequences()
    }

    /// Returns the number of documents.
    pub fn documents(&self) -> u64 {
        self.index.documents()
    }

    /// Returns which tokens a document has.
    ///
    /// # Errors
    /// [`Error::Beyond`]; [`Error::Format`] where the index contradicts itself.
    pub fn document(&self, document: u64) -> Result<Range<u64>> {
        if document >= self.documents() {
            return Err(self.beyond("documents", self.documents(), document));
        }
        let bounds = self.index.bound(document)?..self.index.bound(document + 1)?;
        if bounds.start > bounds.end {
            return Err(self.index.unordered_bound(document + 1));
        }
        let range = self.start_of(bounds.start)?..self.start_of(bounds.end)?;
        if range.start > range.end {
            return Err(self.index.unordered_pointer(bounds.end.min(self.sequences().saturating_sub(1))));
        }
        // Lengths and starts say the same twice over; a document's ends are where they must agree.
        for sequence in [Some(bounds.start), bounds.end.checked_sub(1)].into_iter().flatten() {
            if bounds.contains(&sequence) {
                self.check_sequence(sequence)?;
            }
        }
        Ok(range)
    }

    /// Returns which tokens a sequence has.
    ///
    /// # Errors
    /// [`Error::Beyond`]; [`Error::Format`] where the index contradicts itself.
    pub fn sequence(&self, sequence: u64) -> Result<Range<u64>> {
        if sequence >= self.sequences() {
            return Err(self.beyond("sequences", self.sequences(), sequence));
        }
        self.check_sequence(sequence)?;
        Ok(self.start_of(sequence)?..self.start_of(sequence + 1)?)
    }

    /// Returns the document that a token belongs to: a search by halves over the documents' starts.
    ///
    /// # Errors
    /// [`Error::Beyond`]; [`Error::Format`] where the index contradicts itself.
    pub fn document_at(&self, token: u64) -> Result<u64> {
        if token >= self.tokens {
            return Err(self.beyond("tokens", self.tokens, token));
        }
        // The last document that starts at or before the token: those before it that start there too are empty.
        let (mut low, mut high) = (0, self.documents());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.start_of(self.index.bound(middle)?)? <= token {
                true => low = middle,
                false => high = middle,
            }
        }
        match self.document(low)?.contains(&token) {
            true => Ok(low),
            false => Err(self.index.unordered_bound(low + 1)),
        }
    }

    /// Appends the tokens of a range.
    ///
    /// # Errors
    /// [`Error::Beyond`]; [`Error::Format`] for the first one that a vocabulary of `vocab` ids does not hold.
    pub fn read(&self, tokens: Range<u64>, vocab: usize, into: &mut Vec<i64>) -> Result<()> {
        if tokens.end > self.tokens || tokens.start > tokens.end {
            return Err(self.beyond("tokens", self.tokens, tokens.end.max(tokens.start)));
        }
        let size = self.element().bytes();
        let bytes = &self.bin.bytes()[(tokens.start * size) as usize..(tokens.end * size) as usize];
        let first = into.len();
        self.element().decode(bytes, into);
        match into[first..].iter().position(|&id| id < 0 || id as u64 >= vocab as u64) {
            None => Ok(()),
            Some(at) => Err(self.foreign_token(tokens.start + at as u64, into[first + at], vocab)),
        }
    }

    /// Reads the whole index, and every token where a vocabulary is given; returns the largest token id.
    ///
    /// # Errors
    /// [`Error::Format`] for the first number that contradicts another.
    pub fn verify(&self, vocab: Option<usize>) -> Result<Option<i64>> {
        for sequence in 0..self.sequences() {
            self.check_sequence(sequence)?;
        }
        for document in 0..self.documents() {
            self.document(document)?;
        }
        const PART: u64 = 1 << 20;
        let mut largest = None;
        let mut part = Vec::new();
        for start in (0..self.tokens).step_by(PART as usize) {
            part.clear();
            self.read(start..self.tokens.min(start + PART), vocab.unwrap_or(usize::MAX), &mut part)?;
            largest = largest.max(part.iter().copied().max());
        }
        Ok(largest)
    }

    /// Returns the first token of a sequence; of the one after the last, the number of tokens.
    fn start_of(&self, sequence: u64) -> Result<u64> {
        match sequence == self.sequences() {
            true => Ok(self.tokens),
            false => self.index.start(sequence, self.tokens),
        }
    }

    /// Checks that a sequence ends where the next one starts.
    fn check_sequence(&self, sequence: u64) -> Result<()> {
        let start = self.start_of(sequence)?;
        match start.checked_add(self.index.length(sequence)?) == Some(self.start_of(sequence + 1)?) {
            true => Ok(()),
            false => Err(self.index.at_odds(sequence)),
        }
    }

    fn foreign_token(&self, token: u64, id: i64, vocab: usize) -> Error {
        let problem = match id {
            ..0 => format!("token {token} has the id {id}, and ids are not negative; the file is damaged"),
            _ => format!(
                "token {token} has the id {id}, beyond the vocabulary of {vocab}; raise `model.vocab` to at least {}, or give \
                 the tokenizer that the data was made with",
                id + 1
            ),
        };
        Error::Format { path: with_suffix(&self.prefix, ".bin"), offset: token * self.element().bytes(), problem }
    }

    fn beyond(&self, what: &'static str, count: u64, index: u64) -> Error {
        Error::Beyond { prefix: self.prefix.display().to_string(), what, count, index }
    }
}

/// Appends to a path's last name.
fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
