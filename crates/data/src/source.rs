//! Where samples come from: the trait, and its implementation over consecutive documents.

use std::ops::Range;

use crate::{Attend, Order, Part, Piece, Result, Sample, Targets};

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

    /// Makes `into` sample `number`, whatever it held before: all its lists are `seq` long, and it bears that number.
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

/// The samples of consecutive documents, cut from their tokens as if they were one text.
#[derive(Debug, Clone)]
pub struct TextSource {
    part: Part,
    seq: usize,
    order: Order,
    attend: Attend,
}

impl TextSource {
    /// Returns the samples of `seq` targets in `part`, in the order that `seed` chooses.
    ///
    /// # Errors
    /// [`Error::Zero`](crate::Error::Zero) if `seq` is 0, [`Error::TooShort`](crate::Error::TooShort) if there are fewer
    /// than `seq + 1` tokens.
    pub fn new(part: impl Into<Part>, seq: usize, seed: u64) -> Result<Self> {
        let part = part.into();
        part.require(seq, seq.saturating_add(1), None)?;
        let order = Order::new(part.len() as usize, seq, seed)?;
        Ok(Self { part, seq, order, attend: Attend::Across })
    }

    /// Sets how far attention reaches.
    pub fn attending(self, attend: Attend) -> Self {
        Self { attend, ..self }
    }

    /// Returns the order in which the text is read.
    pub fn order(&self) -> &Order {
        &self.order
    }

    fn range(&self, number: u64) -> Range<u64> {
        let start = self.order.start(number) as u64;
        start..start + self.seq as u64 + 1
    }
}

impl SampleSource for TextSource {
    fn seq(&self) -> usize {
        self.seq
    }

    fn len_tokens(&self) -> u64 {
        self.part.len()
    }

    fn samples_per_epoch(&self) -> u64 {
        self.order.samples_per_epoch()
    }

    fn targets(&self) -> Targets {
        match self.attend {
            Attend::Across => Targets::Every,
            Attend::Within => Targets::Counted,
        }
    }

    fn sample(&self, number: u64, into: &mut Sample) -> Result<()> {
        into.number = number;
        into.cut(&self.part, self.range(number), self.seq, self.attend)
    }

    fn pieces(&self, number: u64) -> Result<Vec<Piece>> {
        let stretches = self.part.stretches(self.range(number))?;
        Ok(stretches.into_iter().map(|(document, tokens)| Piece { source: 0, document, tokens }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tokens, IGNORED};

    #[test]
    fn a_sample_is_the_text_from_its_start() {
        let source = TextSource::new(Tokens::new("`x`", (0..500).collect()), 7, 3).unwrap();
        let mut sample = Sample::default();
        source.sample(1000, &mut sample).unwrap();
        let start = source.order().start(1000) as i64;
        assert_eq!(sample.tokens, (start..start + 7).collect::<Vec<i64>>());
        assert_eq!(sample.targets, (start + 1..start + 8).collect::<Vec<i64>>());
        assert_eq!(sample.number, 1000);
        assert_eq!(source.pieces(1000).unwrap()[0].tokens, start as u64..start as u64 + 8);
    }

    /// Documents of 3, 0, 4, 1 and 6 tokens, each token its own position.
    fn packed() -> TextSource {
        let tokens = Tokens::of_documents("`x`", (0..14).collect(), vec![3, 3, 7, 8, 14]);
        TextSource::new(tokens, 13, 1).unwrap()
    }

    #[test]
    fn documents_are_segments_where_attention_stays_within_them() {
        let mut sample = Sample::default();
        packed().sample(0, &mut sample).unwrap();
        assert_eq!((&sample.segments, sample.targets.contains(&IGNORED)), (&None, false));
        let within = packed().attending(Attend::Within);
        assert_eq!((packed().targets(), within.targets()), (Targets::Every, Targets::Counted));
        within.sample(0, &mut sample).unwrap();
        assert_eq!(sample.tokens, (0..13).collect::<Vec<i64>>());
        assert_eq!(sample.segments.unwrap(), [0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3]);
        let ignored: Vec<usize> = (0..13).filter(|&at| sample.targets[at] == IGNORED).collect();
        assert_eq!(ignored, [2, 6, 7]);
        assert!(sample.targets.iter().zip(1..).all(|(&target, next)| target == IGNORED || target == next));
    }

    #[test]
    fn pieces_are_the_documents_own_tokens() {
        let pieces: Vec<(u64, Range<u64>)> =
            packed().pieces(0).unwrap().into_iter().map(|piece| (piece.document, piece.tokens)).collect();
        assert_eq!(pieces, [(0, 0..3), (2, 0..4), (3, 0..1), (4, 0..6)]);
    }
}
