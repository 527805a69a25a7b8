//! Samples whose tokens are hidden in part, and what was hidden is to be told: masked language modelling.
//!
//! Which tokens are hidden, and by what, is a function of (seed, sample number, position) alone: it does not depend on how
//! many ranks read, nor on what was read before.
//!
//! # Source
//! Devlin et al. 2019, arXiv:1810.04805, §3.1 and appendix A.1.

use std::sync::Arc;

use crate::permutation::{below, splitmix};
use crate::sample::PADDING;
use crate::{Error, Piece, Result, Sample, SampleSource, Targets, Tokenizer, IGNORED};

/// The chance that a token is to be told, of 2³²: 15 %.
const CHOSEN: u64 = 644_245_094;

/// Which draws a hash is for; the numbers are part of what a seed means.
const CHOICE: u64 = 2;
const DISGUISE: u64 = 3;
const OTHER: u64 = 4;
const PARTNER: u64 = 5;
const FOLLOWS: u64 = 6;

/// How tokens are hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masking {
    /// Ids below this may stand in for a hidden token.
    ordinary: u32,
    mask: u32,
    begin: u32,
    separator: u32,
    seed: u64,
}

impl Masking {
    /// Hides tokens of a tokenizer with its `[MASK]`, and frames sequences with its `[CLS]` and `[SEP]`; those that it lacks
    /// are ids behind its own.
    pub fn new(tokenizer: &Tokenizer, seed: u64) -> Self {
        Self::among(tokenizer.vocab_size() as u32, |token| tokenizer.id(token), seed)
    }

    /// Hides tokens of a vocabulary of `ordinary` ids without special ones.
    pub fn plain(ordinary: usize, seed: u64) -> Self {
        Self::among(ordinary as u32, |_| None, seed)
    }

    fn among(ordinary: u32, id: impl Fn(&str) -> Option<u32>, seed: u64) -> Self {
        let mut behind = ordinary..;
        let mut special = |token: &str| id(token).or_else(|| behind.next()).expect("ids are below 2³²");
        let (mask, begin, separator) = (special("[MASK]"), special("[CLS]"), special("[SEP]"));
        Self { ordinary, mask, begin, separator, seed }
    }

    /// Returns the least vocabulary that holds every id.
    pub fn vocab_size(&self) -> usize {
        [self.ordinary, self.mask + 1, self.begin + 1, self.separator + 1].into_iter().max().unwrap_or(0) as usize
    }

    /// Frames consecutive tokens, `[CLS] … [SEP]`: the last two make room. Padding stays at the end, a segment of its own.
    fn frame(&self, sample: &mut Sample, real: usize) {
        let seq = sample.tokens.len();
        let kept = real.min(seq - 2);
        sample.tokens.truncate(kept);
        sample.tokens.insert(0, i64::from(self.begin));
        sample.tokens.push(i64::from(self.separator));
        sample.tokens.resize(seq, 0);
        if let Some(segments) = &mut sample.segments {
            segments.truncate(kept);
            let ends = segments.first().zip(segments.last()).map_or((0, 0), |(first, last)| (*first, *last));
            segments.insert(0, ends.0);
            segments.push(ends.1);
            segments.resize(seq, PADDING);
        } else if kept + 2 < seq {
            let mut segments = vec![0; kept + 2];
            segments.resize(seq, PADDING);
            sample.segments = Some(segments);
        }
    }

    /// Chooses tokens to be told: of those, eight in ten become the mask, one another token, one stays.
    fn hide(&self, sample: &mut Sample, number: u64) {
        let draw =
            |purpose: u64, position: usize| splitmix(splitmix(splitmix(self.seed, purpose), number), position as u64);
        let framing = [i64::from(self.begin), i64::from(self.separator)];
        let segments = sample.segments.as_deref();
        let ordinary = |position: &usize| {
            let padding = segments.is_some_and(|segments| segments[*position] == PADDING);
            !padding && !framing.contains(&sample.tokens[*position])
        };
        let open: Vec<usize> = (0..sample.tokens.len()).filter(ordinary).collect();
        let mut chosen: Vec<usize> =
            open.iter().copied().filter(|&position| draw(CHOICE, position) >> 32 < CHOSEN).collect();
        if chosen.is_empty() {
            // A short sample would teach nothing.
            chosen.extend(open.into_iter().min_by_key(|&position| draw(CHOICE, position)));
        }
        sample.targets.clear();
        sample.targets.resize(sample.tokens.len(), IGNORED);
        for position in chosen {
            sample.targets[position] = sample.tokens[position];
            match below(10, draw(DISGUISE, position)) {
                0..8 => sample.tokens[position] = i64::from(self.mask),
                8 => sample.tokens[position] = below(u64::from(self.ordinary), draw(OTHER, position)) as i64,
                _ => {}
            }
        }
    }

    /// Makes a sample of consecutive tokens one of hidden tokens.
    pub(crate) fn apply(&self, sample: &mut Sample, number: u64) {
        let real = match &sample.segments {
            Some(segments) => segments.iter().filter(|&&segment| segment != PADDING).count(),
            None => sample.targets.iter().rposition(|&target| target != IGNORED).map_or(0, |last| last + 1),
        };
        self.frame(sample, real);
        self.hide(sample, number);
    }
}

/// Another source's samples with hidden tokens.
pub struct MaskedSource {
    inner: Arc<dyn SampleSource>,
    masking: Masking,
    pairs: bool,
}

impl std::fmt::Debug for MaskedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MaskedSource").field("masking", &self.masking).field("pairs", &self.pairs).finish()
    }
}

impl MaskedSource {
    /// Hides tokens of `inner`'s samples; with `pairs` a sample is two stretches, `[CLS] A [SEP] B [SEP]`, of which the second
    /// follows the first in half the samples and is another sample's in the others.
    ///
    /// # Errors
    /// [`Error::MaskedLength`] if samples are too short to be framed.
    pub fn new(inner: Arc<dyn SampleSource>, masking: Masking, pairs: bool) -> Result<Self> {
        let (seq, least) = (inner.seq(), if pairs { 5 } else { 3 });
        if seq < least {
            return Err(Error::MaskedLength { seq, least });
        }
        Ok(Self { inner, masking, pairs })
    }

    /// Says which other sample gives the second stretch, if one does.
    fn partner(&self, number: u64) -> Option<u64> {
        let draw = |purpose: u64| splitmix(splitmix(self.masking.seed, purpose), number);
        (below(2, draw(FOLLOWS)) == 1).then(|| below(self.inner.samples_per_epoch().max(1), draw(PARTNER)))
    }

    /// Joins two stretches.
    fn pair(&self, number: u64, into: &mut Sample) -> Result<()> {
        self.inner.sample(number, into)?;
        let seq = self.inner.seq();
        let (first, second) = ((seq - 3) / 2, (seq - 3).div_ceil(2));
        let partner = self.partner(number);
        let mut tail: Vec<i64> = into.tokens[first..first + second].to_vec();
        if let Some(other) = partner {
            let mut sample = Sample::default();
            self.inner.sample(other, &mut sample)?;
            tail.copy_from_slice(&sample.tokens[first..first + second]);
        }
        let (begin, separator) = (i64::from(self.masking.begin), i64::from(self.masking.separator));
        into.tokens.truncate(first);
        into.tokens.insert(0, begin);
        into.tokens.push(separator);
        let mut types = vec![0; into.tokens.len()];
        into.tokens.extend(tail);
        into.tokens.push(separator);
        types.resize(seq, 1);
        into.token_types = Some(types);
        (into.segments, into.positions) = (None, None);
        into.label = Some(i64::from(partner.is_some()));
        self.masking.hide(into, number);
        Ok(())
    }
}

impl SampleSource for MaskedSource {
    fn seq(&self) -> usize {
        self.inner.seq()
    }

    fn len_tokens(&self) -> u64 {
        self.inner.len_tokens()
    }

    fn samples_per_epoch(&self) -> u64 {
        self.inner.samples_per_epoch()
    }

    fn targets(&self) -> Targets {
        Targets::Counted
    }

    fn sample(&self, number: u64, into: &mut Sample) -> Result<()> {
        if self.pairs {
            return self.pair(number, into);
        }
        self.inner.sample(number, into)?;
        self.masking.apply(into, number);
        Ok(())
    }

    fn pieces(&self, number: u64) -> Result<Vec<Piece>> {
        let mut pieces = self.inner.pieces(number)?;
        if let Some(other) = self.partner(number).filter(|_| self.pairs) {
            pieces.extend(self.inner.pieces(other)?);
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TextSource, Tokens};

    const WORDS: usize = 90;

    fn source(seq: usize, pairs: bool) -> MaskedSource {
        let tokens = Tokens::new("`x`", (0..9000).map(|place| place % WORDS as u32).collect());
        let inner = Arc::new(TextSource::new(tokens, seq, 3).unwrap());
        MaskedSource::new(inner, Masking::plain(WORDS, 5), pairs).unwrap()
    }

    #[test]
    fn shares_are_those_of_the_paper_and_nothing_else_changes() {
        let source = source(64, false);
        let (mut plain, mut sample) = (Sample::default(), Sample::default());
        let [mut all, mut chosen, mut masked, mut kept] = [0.0f64; 4];
        for number in 0..2000 {
            source.inner.sample(number, &mut plain).unwrap();
            source.sample(number, &mut sample).unwrap();
            let special = [sample.tokens[0], sample.tokens[63]];
            assert_eq!(special, [91, 92]);
            for place in 1..63 {
                let (before, now, target) = (plain.tokens[place - 1], sample.tokens[place], sample.targets[place]);
                all += 1.0;
                match target {
                    IGNORED => assert_eq!(now, before),
                    target => {
                        assert_eq!(target, before);
                        chosen += 1.0;
                        masked += f64::from(u8::from(now == 90));
                        kept += f64::from(u8::from(now == before));
                    }
                }
            }
            assert_eq!((sample.targets[0], sample.targets[63]), (IGNORED, IGNORED));
        }
        // Five standard deviations of binomial counts of 124,000 and of about 18,600.
        let near = |got: f64, of: f64, p: f64| (got - of * p).abs() < 5.0 * (of * p * (1.0 - p)).sqrt();
        assert!(near(chosen, all, 0.15), "{chosen} of {all}");
        assert!(near(masked, chosen, 0.8), "{masked} of {chosen}");
        // One in ten, and where another token is drawn the same by chance.
        assert!(near(kept, chosen, 0.1 + 0.1 / WORDS as f64), "{kept} of {chosen}");
    }

    #[test]
    fn a_sample_is_a_function_of_its_number() {
        let (mut once, mut again) = (Sample::default(), Sample::default());
        for pairs in [false, true] {
            let source = source(32, pairs);
            source.sample(7, &mut once).unwrap();
            source.sample(8, &mut again).unwrap();
            assert_ne!(once, again);
            source.sample(7, &mut again).unwrap();
            assert_eq!(once, again);
        }
    }

    #[test]
    fn half_of_the_pairs_follow() {
        let source = source(33, true);
        let mut sample = Sample::default();
        let mut follow = 0.0f64;
        for number in 0..1000 {
            source.sample(number, &mut sample).unwrap();
            assert_eq!([sample.tokens[0], sample.tokens[16], sample.tokens[32]], [91, 92, 92]);
            assert_eq!(sample.token_types.as_ref().unwrap().iter().sum::<i64>(), 16);
            let word = |place: usize| match sample.targets[place] {
                IGNORED => sample.tokens[place],
                target => target,
            };
            if sample.label == Some(0) {
                follow += 1.0;
                assert_eq!(word(17), (word(15) + 1) % WORDS as i64);
            }
            assert_eq!(source.pieces(number).unwrap().len(), 1 + sample.label.unwrap() as usize);
        }
        // Five standard deviations of a fair coin's 1000 throws.
        assert!((follow - 500.0).abs() < 5.0 * 250.0f64.sqrt(), "{follow}");
    }

    #[test]
    fn a_sample_teaches_something_however_short() {
        let source = source(3, false);
        let mut sample = Sample::default();
        for number in 0..100 {
            source.sample(number, &mut sample).unwrap();
            assert_eq!(sample.targets.iter().filter(|&&target| target != IGNORED).count(), 1);
        }
        let tokens = Tokens::new("`x`", (0..100).collect());
        let inner = Arc::new(TextSource::new(tokens, 3, 3).unwrap());
        let refused = MaskedSource::new(inner, Masking::plain(WORDS, 5), true);
        assert!(matches!(refused, Err(Error::MaskedLength { seq: 3, least: 5 })));
    }
}
