//! Where samples come from: the trait, and its implementation over one text in memory.

use crate::{Order, Piece, Result, Sample, Targets, Tokens};

/// Hands out training samples by number.
///
/// Numbers run from 0 without end, epoch after epoch. What a number gives is fixed by the source and its seed alone.
pub trait SampleSource: Send + Sync {
    /// Returns the number of inputs in a sample.
    fn seq(&self) -> usize;

    /// Returns the number of tokens that samples are drawn from.
    fn len_tokens(&self) -> u64;

    /// Returns the number of samples after which every part of the data has been read once.
    fn samples_per_epoch(&self) -> u64;

    /// Says which targets of its samples count.
    fn targets(&self) -> Targets {
        Targets::Every
    }

    /// Makes `into` sample `number`, whatever it held before: all its lists are `seq` long.
    ///
    /// # Errors
    /// What the source's files fail with.
    fn sample(&self, number: u64, into: &mut Sample) -> Result<()>;

    /// Lists what sample `number` is made of, in its order.
    ///
    /// # Errors
    /// What the source's files fail with.
    fn pieces(&self, number: u64) -> Result<Vec<Piece>>;
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

    fn sample(&self, number: u64, into: &mut Sample) -> Result<()> {
        let from = &self.tokens.ids()[self.order.start(number)..][..self.seq + 1];
        into.follow(from.iter().map(|&id| i64::from(id)));
        Ok(())
    }

    fn pieces(&self, number: u64) -> Result<Vec<Piece>> {
        let start = self.order.start(number) as u64;
        Ok(vec![Piece { source: 0, document: 0, tokens: start..start + self.seq as u64 + 1 }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_the_text_from_its_start() {
        let source = TextSource::new(Tokens::new("`x`", (0..500).collect()), 7, 3).unwrap();
        let mut sample = Sample::default();
        source.sample(1000, &mut sample).unwrap();
        let start = source.order().start(1000) as i64;
        assert_eq!(sample.tokens, (start..start + 7).collect::<Vec<i64>>());
        assert_eq!(sample.targets, (start + 1..start + 8).collect::<Vec<i64>>());
        assert_eq!(source.pieces(1000).unwrap()[0].tokens, start as u64..start as u64 + 8);
    }
}
