//! Consecutive documents of a dataset, in memory or in mapped files: what samples and windows are cut from.

use std::ops::Range;
use std::sync::Arc;

use crate::{Error, Indexed, Result, Tokens};

/// Consecutive documents, all of them or a part. Clones share the tokens.
#[derive(Debug, Clone)]
pub struct Part {
    origin: Arc<str>,
    store: Store,
    documents: Range<u64>,
    tokens: Range<u64>,
}

#[derive(Debug, Clone)]
enum Store {
    Memory(Tokens),
    /// Files, and the vocabulary that holds every id that may be read from them.
    Files(Arc<Indexed>, usize),
}

impl From<Tokens> for Part {
    fn from(tokens: Tokens) -> Self {
        Self {
            origin: tokens.origin().into(),
            documents: 0..tokens.documents(),
            tokens: 0..tokens.len() as u64,
            store: Store::Memory(tokens),
        }
    }
}

impl Part {
    /// Returns all documents of a dataset. Ids beyond a vocabulary of `vocab` are refused when they are read.
    pub fn of_files(data: Arc<Indexed>, vocab: usize) -> Self {
        Self {
            origin: format!("`{}`", data.prefix().display()).into(),
            documents: 0..data.documents(),
            tokens: 0..data.tokens(),
            store: Store::Files(data, vocab),
        }
    }

    /// Returns some of the documents as a part of their own, named after `name`.
    ///
    /// # Errors
    /// [`Error::Beyond`] for documents that are not in this part, [`Error::Format`] where an index contradicts itself.
    pub fn of_documents(&self, documents: Range<u64>, name: &str) -> Result<Self> {
        let (from, to) = (self.documents.start + documents.start, self.documents.start + documents.end);
        if to > self.documents.end || from > to {
            let count = self.documents();
            return Err(Error::Beyond {
                prefix: self.origin.to_string(),
                what: "documents",
                count,
                index: documents.end,
            });
        }
        let start = if from == to { self.tokens.start } else { self.store.document(from)?.start };
        let end = if from == to { start } else { self.store.document(to - 1)?.end };
        let origin = format!("the {name} part of {}", self.origin).into();
        Ok(Self { origin, store: self.store.clone(), documents: from..to, tokens: start..end })
    }

    /// Returns where the tokens come from, as messages name it.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns the number of tokens.
    pub fn len(&self) -> u64 {
        self.tokens.end - self.tokens.start
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Returns the number of documents.
    pub fn documents(&self) -> u64 {
        self.documents.end - self.documents.start
    }

    /// Appends the tokens of a range, counted from the part's first.
    ///
    /// # Errors
    /// [`Error::Format`] for a token beyond the vocabulary in a file.
    ///
    /// # Panics
    /// If the range goes beyond the part.
    pub fn read(&self, tokens: Range<u64>, into: &mut Vec<i64>) -> Result<()> {
        assert!(tokens.end <= self.len(), "tokens {tokens:?} of {}", self.len());
        let (start, end) = (self.tokens.start + tokens.start, self.tokens.start + tokens.end);
        match &self.store {
            Store::Memory(all) => {
                into.extend(all.ids()[start as usize..end as usize].iter().map(|&id| i64::from(id)));
                Ok(())
            }
            Store::Files(files, vocab) => files.read(start..end, *vocab, into),
        }
    }

    /// Lists the documents that a range of tokens reaches into, by their numbers in the whole dataset, each with the range
    /// of its own tokens.
    ///
    /// # Errors
    /// [`Error::Format`] where an index contradicts itself.
    pub(crate) fn stretches(&self, tokens: Range<u64>) -> Result<Vec<(u64, Range<u64>)>> {
        let (mut at, end) = (self.tokens.start + tokens.start, self.tokens.start + tokens.end);
        let mut found = Vec::new();
        let mut document = if at < end { self.store.document_at(at)? } else { return Ok(found) };
        while at < end {
            let range = self.store.document(document)?;
            let stop = range.end.min(end);
            if stop > at {
                found.push((document, at - range.start..stop - range.start));
            }
            at = stop.max(at);
            document += 1;
        }
        Ok(found)
    }

    /// Returns the document that holds a token, both counted from the part's first, and its tokens.
    pub(crate) fn document_at(&self, token: u64) -> Result<(u64, Range<u64>)> {
        let document = self.store.document_at(self.tokens.start + token)?;
        let range = self.store.document(document)?;
        Ok((document - self.documents.start, range.start - self.tokens.start..range.end - self.tokens.start))
    }

    /// Refuses ids in memory that a vocabulary does not hold; those in files are checked as they are read.
    ///
    /// # Errors
    /// [`Error::TokenId`] for the first one.
    pub fn check(&self, vocab: usize) -> Result<()> {
        match &self.store {
            Store::Memory(tokens) => tokens.check(vocab),
            Store::Files(..) => Ok(()),
        }
    }

    /// Checks that there are `need` tokens for a sequence of `seq`.
    pub(crate) fn require(&self, seq: usize, need: usize, held_out: Option<f64>) -> Result<()> {
        if seq == 0 {
            return Err(Error::Zero { what: "train.seq" });
        }
        if self.len() < need as u64 {
            let origin = self.origin.to_string();
            return Err(Error::TooShort { origin, tokens: self.len() as usize, need, seq, held_out });
        }
        Ok(())
    }
}

impl Store {
    fn document(&self, document: u64) -> Result<Range<u64>> {
        match self {
            Store::Memory(tokens) => Ok(tokens.document(document)),
            Store::Files(files, _) => files.document(document),
        }
    }

    fn document_at(&self, token: u64) -> Result<u64> {
        match self {
            Store::Memory(tokens) => Ok(tokens.document_at(token)),
            Store::Files(files, _) => files.document_at(token),
        }
    }
}
