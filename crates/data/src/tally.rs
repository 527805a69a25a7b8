//! Which samples were read, by any number of ranks, in two numbers that add up.

use std::iter::Sum;

use crate::permutation::splitmix;

/// How many samples there are, and the sum of a hash of their numbers, modulo 2^64: of two sets of as many samples that
/// differ, the sums are the same with a chance of one in 2^64.
///
/// # Examples
/// ```
/// use mp_data::Tally;
///
/// // Whoever reads what, in whatever order.
/// let read: Tally = [Tally::of([3, 0]), Tally::of([2, 1])].into_iter().sum();
/// assert_eq!(read, Tally::of(0..4));
/// assert_ne!(read, Tally::of([0, 1, 2, 2]));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// The sum of their hashes.
    pub sum: u64,
}

impl Tally {
    /// Counts samples by their numbers.
    pub fn of(numbers: impl IntoIterator<Item = u64>) -> Self {
        numbers.into_iter().map(|number| Self { count: 1, sum: splitmix(0, number) }).sum()
    }

    /// Returns the tally where each sample was read so often.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { count: self.count.wrapping_mul(times), sum: self.sum.wrapping_mul(times) }
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self { count: a.count.wrapping_add(b.count), sum: a.sum.wrapping_add(b.sum) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_often_is_so_often_what_is_read_once() {
        let thrice: Tally = [Tally::of(5..9), Tally::of(5..9), Tally::of(5..9)].into_iter().sum();
        assert_eq!(thrice, Tally::of(5..9).times(3));
    }

    #[test]
    fn a_sample_in_the_place_of_another_shows() {
        // Neighbours, and pairs with the same sum.
        assert_ne!(Tally::of([4]), Tally::of([5]));
        assert_ne!(Tally::of([1, 4]), Tally::of([2, 3]));
        assert_ne!(Tally::of(0..4), Tally::of(0..3));
    }
}
