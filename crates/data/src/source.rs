//! Where samples come from: the trait, and its implementation over one text in memory.

use crate::{Error, Order, Result, Tokens};

/// Hands out training samples by number.
///
/// A sample is `seq + 1` consecutive tokens: `seq` inputs, and for each the token that follows as its target. Numbers
/// run from 0 without end, epoch after epoch. What a number gives is fixed by the source and its seed alone.
pub trait SampleSource: Send + Sync {
    /// Returns the number of target tokens in a sample.
    fn seq(&self) -> usize;

    /// Returns the number of tokens that samples are drawn from.
    fn len_tokens(&self) -> u64;

    /// Returns the number of samples after which every part of the data has been read once.
    fn samples_per_epoch(&self) -> u64;

    /// Writes sample `number` into a buffer of `seq + 1` tokens.
    ///
    /// # Errors
    /// [`Error::SampleLength`] if the buffer has another length; what the source's files fail with.
    fn sample(&self, number: u64, into: &mut [i64]) -> Result<()>;
}

/// The samples of one text.
#[derive(Debug, Clone)]
pub struct TextSource {
    tokens: Tokens,
    seq: usize,
    order: Order,
}

impl TextSource {
    /// Returns the samples of `seq` targets in `tokens`, in the order that `seed` chooses.
    ///
    /// # Errors
    /// [`Error::Zero`] if `seq` is 0, [`Error::TooShort`] if there are fewer than `seq + 1` tokens.
    pub fn new(tokens: Tokens, seq: usize, seed: u64) -> Result<Self> {
        tokens.check_len(seq)?;
        let order = Order::new(tokens.len(), seq, seed)?;
        Ok(Self { tokens, seq, order })
    }

    /// Returns the order in which the text is read.
    pub fn order(&self) -> &Order {
        &self.order
    }
}

impl SampleSource for TextSource {
    fn seq(&self) -> usize {
        self.seq
    }

    fn len_tokens(&self) -> u64 {
        self.tokens.len() as u64
    }

    fn samples_per_epoch(&self) -> u64 {
        self.order.samples_per_epoch()
    }

    fn sample(&self, number: u64, into: &mut [i64]) -> Result<()> {
        if into.len() != self.seq + 1 {
            return Err(Error::SampleLength { expected: self.seq + 1, found: into.len() });
        }
        let from = &self.tokens.ids()[self.order.start(number)..][..self.seq + 1];
        into.iter_mut().zip(from).for_each(|(to, &id)| *to = i64::from(id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_the_text_from_its_start() {
        let source = TextSource::new(Tokens::new("`x`", (0..500).collect()), 7, 3).unwrap();
        let mut sample = [0; 8];
        source.sample(1000, &mut sample).unwrap();
        let start = source.order().start(1000) as i64;
        assert_eq!(sample.to_vec(), (start..start + 8).collect::<Vec<i64>>());
    }

    #[test]
    fn a_buffer_of_another_length_is_refused() {
        let source = TextSource::new(Tokens::new("`x`", vec![1; 20]), 4, 0).unwrap();
        let error = source.sample(0, &mut [0; 4]).unwrap_err();
        assert!(matches!(error, Error::SampleLength { expected: 5, found: 4 }));
    }
}
