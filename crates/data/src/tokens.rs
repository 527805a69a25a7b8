//! A text as token ids, shared without copying.

use std::sync::Arc;

use crate::{Error, Result};

/// Token ids in the order of the text. Clones share the ids.
#[derive(Debug, Clone)]
pub struct Tokens {
    origin: Arc<str>,
    ids: Arc<Vec<u32>>,
}

impl Tokens {
    /// Wraps ids; `origin` names them in messages.
    pub fn new(origin: impl Into<Arc<str>>, ids: Vec<u32>) -> Self {
        Self { origin: origin.into(), ids: Arc::new(ids) }
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

    /// Checks that at least one sequence of `seq` targets fits.
    ///
    /// # Errors
    /// [`Error::Zero`] if `seq` is 0, [`Error::TooShort`] if there are fewer than `seq + 1` tokens.
    pub fn check_len(&self, seq: usize) -> Result<()> {
        self.require(seq, seq.saturating_add(1), None)
    }

    /// Checks that there are `need` tokens for a sequence of `seq`.
    pub(crate) fn require(&self, seq: usize, need: usize, held_out: Option<f64>) -> Result<()> {
        if seq == 0 {
            return Err(Error::Zero { what: "train.seq" });
        }
        if self.len() < need {
            let origin = self.origin.to_string();
            return Err(Error::TooShort { origin, tokens: self.len(), need, seq, held_out });
        }
        Ok(())
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
