//! Cutting long transfers.
//!
//! MPI counts are C `int`s, and its algorithms lose a factor of two to five once a transfer leaves the cache; both are
//! met by cutting. All ranks of a call must cut alike, so the cut depends on lengths alone.

use std::ops::Range;

/// Cuts `0..len` into runs of at most `chunk`, first to last.
///
/// Nothing is cut from nothing: a zero length gives no run.
pub(crate) fn cut(len: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    let chunk = chunk.max(1);
    (0..len.div_ceil(chunk)).map(move |i| i * chunk..len.min((i + 1).saturating_mul(chunk)))
}

/// Cuts a message of `len` bytes: what is left over comes first, then whole chunks; an empty message is one empty run.
///
/// With the remainder in front, two ends that disagree about the length differ at the first run already, unless their
/// lengths differ by a whole number of chunks.
pub(crate) fn cut_message(len: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    let first = if len == 0 { 0 } else { (len - 1) % chunk + 1 };
    std::iter::once(0..first).chain((first..len).step_by(chunk).map(move |start| start..start + chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_tile_the_length(len in 0usize..1000, chunk in 1usize..50) {
            for runs in [cut(len, chunk).collect::<Vec<_>>(), cut_message(len, chunk).collect()] {
                let mut next = 0;
                for run in runs {
                    prop_assert_eq!(run.start, next);
                    prop_assert!(run.len() <= chunk && (len == 0 || !run.is_empty()));
                    next = run.end;
                }
                prop_assert_eq!(next, len);
            }
        }

        #[test]
        fn messages_of_other_lengths_differ_at_once(a in 1usize..200, b in 1usize..200) {
            let first = |len| cut_message(len, 16).next();
            prop_assert_eq!(first(a) == first(b), a % 16 == b % 16);
        }
    }

    #[test]
    fn lengths_beyond_a_c_int_stay_exact() {
        let len = 5 * (1 << 31) + 7;
        let chunk = 1 << 20;
        let runs: Vec<_> = cut(len, chunk).collect();
        assert_eq!(runs.len(), len.div_ceil(chunk));
        assert_eq!(runs.last(), Some(&(len - 7..len)));
        assert!(runs.iter().all(|run| i32::try_from(run.len()).is_ok()));
        assert_eq!(cut_message(len, chunk).map(|run| run.len()).sum::<usize>(), len);
        assert_eq!(cut_message(len, chunk).next(), Some(0..7));
    }

    #[test]
    fn the_end_of_the_number_line_does_not_overflow() {
        assert!(cut(usize::MAX, usize::MAX).eq(std::iter::once(0..usize::MAX)));
    }
}
