//! Several sources as one, each with its weight.

use crate::permutation::splitmix;
use crate::{Error, Piece, Result, Sample, SampleSource, Targets};

/// One source of a blend.
pub struct Ingredient {
    /// What messages call it.
    pub name: String,
    /// Its samples.
    pub source: Box<dyn SampleSource>,
    /// Its share, against the sum of all weights.
    pub weight: f64,
    /// How often it may be read at most.
    pub epochs: Option<f64>,
}

/// Samples of several sources in the proportion of their weights.
///
/// Which source a sample is from, and which of that source's samples it is, follows from its number alone. A block of
/// `2^32` numbers is dealt to the sources in whole shares; within it, number `j` is drawn by lot `j · a mod 2^32`, where `a`
/// is odd and close to `2^32` over the golden ratio, and each source owns as many consecutive lots as its share. Every lot is
/// drawn once a block, and any stretch of numbers meets a source nearly as often as its weight says: off by the logarithm of
/// the stretch's length at most. A source's own number is how often its lots were drawn before, which a sum of whole parts
/// of a line counts in some 46 steps of Euclid's.
///
/// # Source
/// The sequence: H. Weyl, "Über die Gleichverteilung von Zahlen mod. Eins", Math. Ann. 77, 1916. The sum: R. Graham,
/// D. Knuth and O. Patashnik, "Concrete Mathematics", §3.5.
pub struct Blend {
    ingredients: Vec<Ingredient>,
    /// The first lot of each source, and the end.
    lots: Vec<u64>,
    seq: usize,
}

/// Numbers in a block.
const BLOCK: u64 = 1 << 32;
/// `2^32` over the golden ratio, odd.
const STEP: u64 = 0x9e37_79b9;

impl Blend {
    /// Mixes sources.
    ///
    /// # Errors
    /// [`Error::Blend`] for no sources, weights that are no finite numbers above 0 or too far apart, epochs that are not
    /// above 0, and sequences of unequal lengths.
    pub fn new(ingredients: Vec<Ingredient>) -> Result<Self> {
        let Some(seq) = ingredients.first().map(|first| first.source.seq()) else {
            return Err(refuse("has no sources; list at least one"));
        };
        for (index, Ingredient { name, source, weight, epochs }) in ingredients.iter().enumerate() {
            if !(weight.is_finite() && *weight > 0.0) {
                return Err(refuse(format!(
                    "[{index}] (`{name}`) has weight {weight}, but must have a finite one above 0"
                )));
            }
            if epochs.is_some_and(|epochs| !(epochs.is_finite() && epochs > 0.0)) {
                return Err(refuse(format!("[{index}] (`{name}`) has no finite number of epochs above 0")));
            }
            if source.seq() != seq {
                let other = source.seq();
                return Err(refuse(format!(
                    "[{index}] (`{name}`) has sequences of {other}, and the first source of {seq}"
                )));
            }
        }
        let weights: Vec<f64> = ingredients.iter().map(|ingredient| ingredient.weight).collect();
        let lots = deal(&weights);
        match lots.windows(2).position(|pair| pair[0] == pair[1]) {
            Some(index) => {
                let (name, weight) = (&ingredients[index].name, weights[index]);
                Err(refuse(format!(
                    "[{index}] (`{name}`) has weight {weight}, less than a billionth of all; leave it out"
                )))
            }
            None => Ok(Self { ingredients, lots, seq }),
        }
    }

    /// Refuses a run of so many samples that would read a source more often than it may be.
    ///
    /// # Errors
    /// [`Error::Blend`] for the first such source.
    pub fn check(&self, samples: u64) -> Result<()> {
        for (index, ingredient) in self.ingredients.iter().enumerate() {
            let (drawn, epoch) = (self.drawn(index, samples), ingredient.source.samples_per_epoch());
            let Some(limit) = ingredient.epochs else { continue };
            if drawn as f64 > limit * epoch as f64 {
                let (name, epochs) = (&ingredient.name, drawn as f64 / epoch as f64);
                return Err(refuse(format!(
                    "[{index}] (`{name}`) would be read {epochs:.3} times by {samples} samples, and at most {limit} are \
                     allowed; lower its weight, train fewer steps, or raise its epochs"
                )));
            }
        }
        Ok(())
    }

    /// Returns which source a sample is from, and its number there.
    pub fn locate(&self, number: u64) -> (usize, u64) {
        let lot = (u128::from(number % BLOCK) * u128::from(STEP) % u128::from(BLOCK)) as u64;
        let index = self.lots.partition_point(|&first| first <= lot) - 1;
        (index, self.drawn(index, number))
    }

    /// Counts a source's samples among the first `samples`.
    fn drawn(&self, index: usize, samples: u64) -> u64 {
        let (first, end) = (self.lots[index], self.lots[index + 1]);
        let (blocks, rest) = (samples / BLOCK, samples % BLOCK);
        // A run never gets as far as this saturates.
        blocks.saturating_mul(end - first).saturating_add(drawn_below(end, rest) - drawn_below(first, rest))
    }
}

impl SampleSource for Blend {
    fn seq(&self) -> usize {
        self.seq
    }

    fn len_tokens(&self) -> u64 {
        self.ingredients.iter().map(|ingredient| ingredient.source.len_tokens()).sum()
    }

    /// As many samples as it takes until every source has been read once.
    fn samples_per_epoch(&self) -> u64 {
        let samples = |(ingredient, pair): (&Ingredient, &[u64])| {
            let epoch = u128::from(ingredient.source.samples_per_epoch());
            (epoch * u128::from(BLOCK)).div_ceil(u128::from(pair[1] - pair[0]))
        };
        let all = self.ingredients.iter().zip(self.lots.windows(2)).map(samples).max().unwrap_or(0);
        u64::try_from(all).unwrap_or(u64::MAX)
    }

    fn targets(&self) -> Targets {
        let counted = self.ingredients.iter().any(|ingredient| ingredient.source.targets() == Targets::Counted);
        if counted {
            Targets::Counted
        } else {
            Targets::Every
        }
    }

    fn sample(&self, number: u64, into: &mut Sample) -> Result<()> {
        let (index, own) = self.locate(number);
        self.ingredients[index].source.sample(own, into)?;
        into.number = number;
        Ok(())
    }

    fn pieces(&self, number: u64) -> Result<Vec<Piece>> {
        let (index, number) = self.locate(number);
        let pieces = self.ingredients[index].source.pieces(number)?;
        Ok(pieces.into_iter().map(|piece| Piece { source: index as u32, ..piece }).collect())
    }
}

/// Returns the seed of one of several sources, so that equal data are not read in equal order.
pub fn seed_of(seed: u64, index: usize) -> u64 {
    splitmix(seed, index as u64)
}

/// Deals the lots of a block in proportion: whole numbers, of which the largest remainders get the rest.
fn deal(weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| weight / sum * BLOCK as f64).collect();
    let mut shares: Vec<u64> = exact.iter().map(|share| *share as u64).collect();
    let mut by_remainder: Vec<usize> = (0..shares.len()).collect();
    by_remainder.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let rest = BLOCK.saturating_sub(shares.iter().sum());
    for &index in by_remainder.iter().cycle().take(rest as usize) {
        shares[index] += 1;
    }
    let mut lots = vec![0];
    for share in shares {
        // Rounding of the sum may not push the end beyond the block.
        lots.push((lots[lots.len() - 1] + share).min(BLOCK));
    }
    lots
}

/// Counts the `j` below `count` whose lot `j · STEP mod BLOCK` is below `lot`.
fn drawn_below(lot: u64, count: u64) -> u64 {
    // ⌊(x + B)/B⌋ − ⌊(x + B − lot)/B⌋ is 1 exactly where x mod B is below the lot.
    let whole = |offset: u64| sum_of_line(count.into(), BLOCK.into(), STEP.into(), offset.into());
    (whole(BLOCK) - whole(BLOCK - lot)) as u64
}

/// Sums `⌊(a·j + b)/m⌋` over the `j` below `n`.
fn sum_of_line(mut n: u128, mut m: u128, mut a: u128, mut b: u128) -> u128 {
    let mut sum = 0;
    while n > 0 {
        sum += n * (n - 1) / 2 * (a / m) + n * (b / m);
        (a, b) = (a % m, b % m);
        let top = a * n + b;
        // What is left is counted along the other axis.
        (n, b) = (top / m, top % m);
        (a, m) = (m, a);
        if m == 0 {
            break;
        }
    }
    sum
}

fn refuse(problem: impl Into<String>) -> Error {
    Error::Blend { problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TextSource, Tokens};
    use proptest::prelude::*;

    /// Sources of so many tokens each, all of which are its index.
    fn blend(parts: &[(u32, f64, Option<f64>)]) -> Result<Blend> {
        let ingredient = |(index, &(tokens, weight, epochs)): (usize, &(u32, f64, Option<f64>))| {
            let ids = Tokens::new(format!("source {index}"), vec![index as u32; tokens as usize]);
            let source = Box::new(TextSource::new(ids, 4, seed_of(7, index))?);
            Ok(Ingredient { name: index.to_string(), source, weight, epochs })
        };
        Blend::new(parts.iter().enumerate().map(ingredient).collect::<Result<_>>()?)
    }

    /// The definition, one number after the other.
    fn slowly(blend: &Blend, samples: u64) -> Vec<(usize, u64)> {
        let mut drawn = vec![0; blend.ingredients.len()];
        let one = |number: u64| {
            let lot = number.wrapping_mul(STEP) % BLOCK;
            let index = (0..drawn.len()).find(|&index| lot < blend.lots[index + 1]).unwrap();
            drawn[index] += 1;
            (index, drawn[index] - 1)
        };
        (0..samples).map(one).collect()
    }

    #[test]
    fn each_source_is_read_in_its_own_order_without_gap() {
        let blend = blend(&[(99, 0.7, None), (50, 0.2, None), (20, 0.1, None)]).unwrap();
        let located: Vec<(usize, u64)> = (0..5000).map(|number| blend.locate(number)).collect();
        assert_eq!(located, slowly(&blend, 5000));
        let mut sample = Sample::default();
        for number in 0..50 {
            blend.sample(number, &mut sample).unwrap();
            assert_eq!(sample.tokens, [located[number as usize].0 as i64; 4]);
            assert_eq!(blend.pieces(number).unwrap()[0].source as usize, located[number as usize].0);
        }
    }

    #[test]
    fn numbers_go_on_from_one_block_to_the_next() {
        let blend = blend(&[(99, 1.0, None), (50, 3.0, None)]).unwrap();
        assert_eq!(blend.lots, [0, 1 << 30, 1 << 32]);
        let (first, second) = (blend.locate(BLOCK - 1), blend.locate(BLOCK));
        assert!(first.1 < blend.lots[first.0 + 1] - blend.lots[first.0]);
        // The first lot of a block is lot 0.
        assert_eq!(second, (0, 1 << 30));
        // Far away it is as quick, and nothing overflows.
        blend.locate(u64::MAX);
    }

    #[test]
    fn a_source_is_not_read_more_often_than_it_may_be() {
        // 20 tokens are 4 samples of 4; of the first 16 samples 7 are from there.
        let parts = |epochs| [(99, 0.5, None), (20, 0.5, Some(epochs))];
        blend(&parts(2.0)).unwrap().check(16).unwrap();
        let error = blend(&parts(1.5)).unwrap().check(16).unwrap_err().to_string();
        assert!(
            error.contains("`data.blend` [1] (`1`) would be read 1.750 times by 16 samples, and at most 1.5"),
            "{error}"
        );
    }

    #[test]
    fn blends_that_cannot_be_are_refused() {
        for (parts, word) in [
            (&[][..], "no sources"),
            (&[(9, 0.0, None)], "weight 0"),
            (&[(9, f64::NAN, None)], "weight NaN"),
            (&[(9, -1.0, None)], "weight -1"),
            (&[(9, 1.0, Some(0.0))], "epochs above 0"),
            (&[(9, 1.0, None), (9, 1e-12, None)], "less than a billionth"),
        ] {
            let error = blend(parts).err().unwrap().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_stretch_has_nearly_its_share(weights in prop::collection::vec(0.01..1.0f64, 1..6), from in 0u64..1 << 40, length in 1u64..100_000) {
            let parts: Vec<_> = weights.iter().map(|&weight| (9, weight, None)).collect();
            let blend = blend(&parts).unwrap();
            let sum: f64 = weights.iter().sum();
            let mut all = 0;
            for (index, weight) in weights.iter().enumerate() {
                let drawn = blend.drawn(index, from + length) - blend.drawn(index, from);
                let expected = weight / sum * length as f64;
                // The golden ratio's partial quotients are ones: each of log_φ(n) of them adds less than one to either
                // end's error, and all of them together far less in practice.
                let allowed = 2.0 * (length as f64).ln() / 1.618f64.ln() + 2.0;
                prop_assert!((drawn as f64 - expected).abs() < allowed.min(12.0), "{} for {}", drawn, expected);
                all += drawn;
            }
            prop_assert_eq!(all, length);
        }

        #[test]
        fn sums_of_lines_are_what_they_are_summed_up_to(n in 0u128..200, m in 1u128..300, a in 0u128..900, b in 0u128..900) {
            prop_assert_eq!(sum_of_line(n, m, a, b), (0..n).map(|j| (a * j + b) / m).sum::<u128>());
        }
    }
}
