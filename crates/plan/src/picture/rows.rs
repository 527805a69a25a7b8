//! Which ranks of a pipeline have a row: all, or of very many the first and the last; and how their ranges are written.

use std::ops::Range;

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

/// Writes a range with its last value: `3` or `3–7`.
pub(super) fn span(range: &Range<usize>) -> String {
    match range.len() {
        0 => "none".to_owned(),
        1 => range.start.to_string(),
        _ => format!("{}–{}", range.start, range.end - 1),
    }
}

/// Groups neighbours that are alike.
pub(super) fn runs<T: PartialEq>(all: &[T]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, one) in all.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if all[run.start] == *one => run.end = index + 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
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

    #[test]
    fn neighbours_alike_are_a_run() {
        assert_eq!(runs(&[7, 7, 8, 7]), [0..2, 2..3, 3..4]);
        assert_eq!([span(&(0..2)), span(&(2..3))], ["0–1", "2"]);
    }
}
