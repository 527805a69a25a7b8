//! Counter-based random numbers: each value is a function of (seed, stream, index) and of nothing else.
//!
//! A parameter's element, or an activation's, draws by its *global* index in the full tensor, so every layout starts
//! from the same weights and drops the same elements.
//!
//! # Source
//! Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3": Philox4x32-10.

use std::ops::Range;

/// What the two products of a round multiply by.
pub(crate) const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What each round adds to the key.
pub(crate) const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// How often the counter is mixed.
pub(crate) const ROUNDS: usize = 10;

/// Computes one block of Philox4x32-10.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let low = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let high = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// A sequence of random words, addressed by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    high: [u32; 2],
}

impl Stream {
    /// Names a stream by seed, a name (a parameter's, a layer's) and a number (the step's, 0 where there is none).
    pub fn new(seed: u64, name: &str, number: u64) -> Self {
        let key = seed ^ fnv1a(name);
        Self { key: [key as u32, (key >> 32) as u32], high: [number as u32, (number >> 32) as u32] }
    }

    /// Returns the key of all blocks.
    pub(crate) fn key(&self) -> [u32; 2] {
        self.key
    }

    /// Returns the upper half of the counter of all blocks.
    pub(crate) fn high(&self) -> [u32; 2] {
        self.high
    }

    /// Returns words `4·block` to `4·block + 3`.
    pub fn block(&self, block: u64) -> [u32; 4] {
        philox([block as u32, (block >> 32) as u32, self.high[0], self.high[1]], self.key)
    }

    /// Fills `out` with the words from index `first` on.
    pub fn words(&self, first: u64, out: &mut [u32]) {
        let mut index = first;
        let mut rest = out;
        while !rest.is_empty() {
            let skip = (index % 4) as usize;
            let take = rest.len().min(4 - skip);
            let (now, later) = rest.split_at_mut(take);
            now.copy_from_slice(&self.block(index / 4)[skip..skip + take]);
            index += take as u64;
            rest = later;
        }
    }

    /// Returns standard normal values for the elements with indices in `range`.
    ///
    /// Words are paired within their block, so that a value does not depend on where a range starts.
    ///
    /// # Source
    /// Box and Muller 1958.
    pub fn normals(&self, range: Range<u64>) -> Vec<f64> {
        let mut values = Vec::with_capacity((range.end - range.start) as usize);
        let mut index = range.start;
        while index < range.end {
            let quad = box_muller(self.block(index / 4));
            let skip = (index % 4) as usize;
            let take = ((range.end - index) as usize).min(4 - skip);
            values.extend_from_slice(&quad[skip..skip + take]);
            index += take as u64;
        }
        values
    }
}

/// Turns four uniform words into four standard normal values.
fn box_muller(words: [u32; 4]) -> [f64; 4] {
    let pair = |a: u32, b: u32| {
        let radius = (-2.0 * unit(a).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * unit(b)).sin_cos();
        (radius * cosine, radius * sine)
    };
    let (first, second) = (pair(words[0], words[1]), pair(words[2], words[3]));
    [first.0, first.1, second.0, second.1]
}

/// Maps a word to the middle of its cell of (0, 1): never 0, never 1.
pub fn unit(word: u32) -> f64 {
    (f64::from(word) + 0.5) * (1.0 / 4_294_967_296.0)
}

/// Hashes a name to 64 bits.
///
/// # Source
/// Fowler, Noll, Vo: FNV-1a with the published 64-bit constants.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The known-answer vectors published with Random123 (`kat_vectors`).
    #[test]
    fn published_vectors() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn normals_have_mean_0_and_variance_1() {
        let n = 100_000;
        let values = Stream::new(7, "w", 0).normals(0..n);
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
        // Five standard errors: 1/√n for the mean, √(2/n) for the variance.
        assert!(mean.abs() < 5.0 / (n as f64).sqrt(), "{mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / n as f64).sqrt(), "{variance}");
    }

    #[test]
    fn streams_differ_by_seed_name_and_number() {
        let first = Stream::new(1, "a", 0).block(0);
        for other in [Stream::new(2, "a", 0), Stream::new(1, "b", 0), Stream::new(1, "a", 1)] {
            assert_ne!(first, other.block(0));
        }
    }

    proptest! {
        #[test]
        fn a_value_does_not_depend_on_the_range_it_is_drawn_in(start in 0u64..1000, length in 1u64..50, cut in 0u64..50) {
            let stream = Stream::new(3, "w", 5);
            let whole = stream.normals(start..start + length);
            let cut = start + cut.min(length);
            let mut parts = stream.normals(start..cut);
            parts.extend(stream.normals(cut..start + length));
            prop_assert_eq!(whole, parts);
            let mut words = vec![0; length as usize];
            stream.words(start, &mut words);
            for (offset, word) in words.iter().enumerate() {
                let index = start + offset as u64;
                prop_assert_eq!(*word, stream.block(index / 4)[(index % 4) as usize]);
            }
        }
    }
}
