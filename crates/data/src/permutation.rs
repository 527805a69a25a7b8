//! A pseudorandom permutation of `0..len` that is computed point by point: no table, constant time and memory.

/// A keyed bijection of `0..len`.
///
/// The numbers below `len` are written as pairs `(left, right)` in `a × b` with `a ≈ b ≈ √len`; eight Feistel rounds
/// add to one half, modulo its size, a hash of the other. A result that is not below `len` (fewer than `a` of the
/// `a · b` pairs are not) goes through the rounds again until one is.
///
/// # Source
/// The generalised Feistel cipher and the cycle walk: J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains",
/// CT-RSA 2002, methods 3 and 2. The round function is SplitMix64: G. Steele, D. Lea and C. Flood, "Fast Splittable
/// Pseudorandom Number Generators", OOPSLA 2014. It serves statistics, not secrecy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permutation {
    len: u64,
    a: u64,
    b: u64,
    key: u64,
}

/// Luby and Rackoff need four rounds of ideal functions; twice as many cost nanoseconds.
const ROUNDS: u64 = 8;

impl Permutation {
    /// Returns the permutation of `0..len` that `key` chooses.
    ///
    /// # Panics
    /// If `len` is 0: there is nothing to permute.
    pub fn new(len: u64, key: u64) -> Self {
        assert!(len > 0, "a permutation of nothing");
        let a = (len - 1).isqrt() + 1;
        Self { len, a, b: len.div_ceil(a), key }
    }

    /// Returns where `index` goes.
    ///
    /// # Panics
    /// If `index` is not below the length.
    pub fn apply(&self, index: u64) -> u64 {
        assert!(index < self.len, "index {index} in a permutation of {}", self.len);
        let mut at = index;
        loop {
            at = self.rounds(at);
            if at < self.len {
                return at;
            }
        }
    }

    fn rounds(&self, at: u64) -> u64 {
        let (mut left, mut right) = (at / self.b, at % self.b);
        for round in 0..ROUNDS {
            let key = splitmix(self.key, round);
            if round % 2 == 0 {
                left = (left + below(self.a, splitmix(key, right))) % self.a;
            } else {
                right = (right + below(self.b, splitmix(key, left))) % self.b;
            }
        }
        left * self.b + right
    }
}

/// Returns number `index` of the SplitMix64 sequence that starts at `seed`.
pub(crate) fn splitmix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Scales 64 random bits to `0..bound`; the bias is at most `bound / 2^64`.
pub(crate) fn below(bound: u64, bits: u64) -> u64 {
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn splitmix_gives_the_published_numbers() {
        assert_eq!(
            [0, 1, 2].map(|i| splitmix(0, i)),
            [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]
        );
        assert_eq!([0, 1].map(|i| splitmix(1_234_567, i)), [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn the_largest_domains_do_not_overflow() {
        for len in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 32) + 1] {
            let permutation = Permutation::new(len, 9);
            for index in [0, 1, len / 2, len - 1] {
                assert!(permutation.apply(index) < len);
            }
        }
    }

    /// Every arrangement of four things turns up, about equally often: chi-squared over the 24 of them.
    #[test]
    fn small_permutations_are_uniform() {
        let keys = 24_000;
        let mut counts: HashMap<Vec<u64>, u64> = HashMap::new();
        for key in 0..keys {
            let permutation = Permutation::new(4, splitmix(77, key));
            *counts.entry((0..4).map(|i| permutation.apply(i)).collect()).or_default() += 1;
        }
        assert_eq!(counts.len(), 24);
        let expected = keys as f64 / 24.0;
        let chi: f64 = counts.values().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
        // 23 degrees of freedom: mean 23, and 62 is passed once in 10^5 draws; the keys are fixed.
        assert!(chi < 62.0, "{chi}");
    }

    proptest! {
        #[test]
        fn every_number_is_reached_once(len in 1u64..3000, key: u64) {
            let permutation = Permutation::new(len, key);
            let mut seen = vec![false; len as usize];
            for index in 0..len {
                let to = permutation.apply(index) as usize;
                prop_assert!(!std::mem::replace(&mut seen[to], true), "{} is reached twice", to);
            }
        }
    }
}
