//! Which ranks of a pipeline have a row: all, or of very many the first and the last.

use std::ops::Range;

use crate::words::span;

/// The most rows of a picture.
const MOST_ROWS: usize = 96;

/// Lists the ranks that are drawn, in runs without gaps.
pub(super) fn shown(ranks: usize) -> Vec<Range<usize>> {
    match ranks {
        few if few <= MOST_ROWS => std::iter::once(0..few).collect(),
        many => vec![0..MOST_ROWS / 2, many - MOST_ROWS / 2..many],
    }
}

/// Says which ranks are left out.
pub(super) fn note(ranks: usize) -> Option<String> {
    match shown(ranks).as_slice() {
        [first, last] => Some(format!("Ranks {} of the pipeline are left out.", span(&(first.end..last.start)))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_ranks_are_cut_in_the_middle() {
        let whole: Vec<Range<usize>> = std::iter::once(0..96).collect();
        assert_eq!((shown(96), note(96)), (whole, None));
        assert_eq!(shown(200), [0..48, 152..200]);
        assert_eq!(note(200).unwrap(), "Ranks 48–151 of the pipeline are left out.");
    }
}
