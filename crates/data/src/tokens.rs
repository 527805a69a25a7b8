//! Documents as token ids in memory, shared without copying.

use std::ops::Range;
use std::sync::Arc;

use crate::{Error, Result};

/// Token ids in the order of the text. Clones share the ids.
#[derive(Debug, Clone)]
pub struct Tokens {
    origin: Arc<str>,
    ids: Arc<Vec<u32>>,
    /// The token after each document.
    ends: Arc<Vec<u64>>,
}

impl Tokens {
    /// Wraps the ids of one document; `origin` names them in messages.
    pub fn new(origin: impl Into<Arc<str>>, ids: Vec<u32>) -> Self {
        let ends = vec![ids.len() as u64];
        Self::of_documents(origin, ids, ends)
    }

    /// Wraps the ids of several documents, each of which ends before one of `ends`.
    ///
    /// # Panics
    /// If the ends are out of order, or the last is not the number of ids.
    pub fn of_documents(origin: impl Into<Arc<str>>, ids: Vec<u32>, ends: Vec<u64>) -> Self {
        assert!(ends.is_sorted() && ends.last().copied().unwrap_or(0) == ids.len() as u64, "documents tile the tokens");
        Self { origin: origin.into(), ids: Arc::new(ids), ends: Arc::new(ends) }
    }

    /// Returns the number of documents.
    pub fn documents(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Returns which tokens a document has.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn document(&self, document: u64) -> Range<u64> {
        let document = document as usize;
        document.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[document]
    }

    /// Returns the document that holds a token, of those that there are.
    pub(crate) fn document_at(&self, token: u64) -> u64 {
        self.ends.partition_point(|&end| end <= token) as u64
    }

    /// Returns the number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the ids.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Returns where the tokens come from, as messages name it.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Checks that a vocabulary of `vocab` ids holds every token.
    ///
    /// # Errors
    /// [`Error::TokenId`] for the first one that it does not.
    pub fn check(&self, vocab: usize) -> Result<()> {
        match self.ids.iter().position(|&id| id as usize >= vocab) {
            None => Ok(()),
            Some(position) => {
                Err(Error::TokenId { origin: self.origin.to_string(), id: self.ids[position], position, vocab })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_beyond_the_vocabulary_is_named_with_its_position() {
        let tokens = Tokens::new("`x`", vec![3, 9, 10, 11]);
        tokens.check(12).unwrap();
        let error = tokens.check(10).unwrap_err();
        assert!(matches!(error, Error::TokenId { id: 10, position: 2, vocab: 10, .. }));
        assert!(error.to_string().starts_with("token 2 of `x` is id 10, beyond the vocabulary of 10; raise"));
    }
}
