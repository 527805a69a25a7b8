//! What the planner must meet beside runs: their memory, and the order of their steps' times.

/// By how much of it the measured memory of a layout's fullest rank may be off.
pub const MEMORY: f64 = 0.05;
/// The least rank correlation of predicted and measured steps.
pub const CORRELATION: f64 = 0.9;
/// The most ranks on which times are judged. Where more share two cores, the system's turns decide as much as the layout.
pub const TIMED_RANKS: usize = 2;

/// A layout and the bytes of its fullest rank, predicted and measured.
pub type Memory = (String, [Option<u64>; 2]);

/// Lists, a line each, what layouts of so many ranks fall short of; what is not known falls short, too.
pub fn shortfalls(ranks: usize, memory: &[Memory], correlation: Option<f64>) -> Vec<String> {
    let mut lines: Vec<String> = memory.iter().filter_map(short_of_memory).collect();
    if memory.is_empty() {
        lines.push("no layout was run".into());
    }
    if ranks <= TIMED_RANKS {
        match correlation {
            Some(correlation) if correlation >= CORRELATION => {}
            Some(correlation) => {
                lines
                    .push(format!("the rank correlation of the steps' times is {correlation:.4}, below {CORRELATION}"));
            }
            None => lines.push("the steps' times have no rank correlation: fewer than two are predicted".into()),
        }
    }
    let counted = mp_plan::words::counted(ranks, "rank");
    lines.into_iter().map(|line| format!("{counted}: {line}")).collect()
}

fn short_of_memory((layout, bytes): &Memory) -> Option<String> {
    let &[Some(predicted), Some(measured @ 1..)] = bytes else {
        return Some(format!("memory of `{layout}` was not predicted, or not measured"));
    };
    let (off, allowed) = (predicted as f64 / measured as f64 - 1.0, 100.0 * MEMORY);
    (predicted.abs_diff(measured) as f64 > MEMORY * measured as f64)
        .then(|| format!("memory of `{layout}` is off by {:+.1} %, by more than {allowed} %", 100.0 * off))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layouts(predicted: &[u64]) -> Vec<Memory> {
        predicted.iter().map(|&bytes| (format!("p={bytes}"), [Some(bytes), Some(1000)])).collect()
    }

    #[test]
    fn what_is_within_its_bounds_is_not_told() {
        assert_eq!(shortfalls(1, &layouts(&[950, 1000, 1050]), Some(0.9)), [""; 0]);
        assert_eq!(shortfalls(4, &layouts(&[1000]), Some(-1.0)), [""; 0]);
        assert_eq!(shortfalls(4, &layouts(&[1000]), None), [""; 0]);
    }

    #[test]
    fn each_shortfall_is_a_line() {
        assert_eq!(
            shortfalls(2, &layouts(&[949, 1000, 1051]), Some(0.8996)),
            [
                "2 ranks: memory of `p=949` is off by -5.1 %, by more than 5 %",
                "2 ranks: memory of `p=1051` is off by +5.1 %, by more than 5 %",
                "2 ranks: the rank correlation of the steps' times is 0.8996, below 0.9",
            ]
        );
    }

    #[test]
    fn what_is_not_known_falls_short() {
        let unknown =
            [("a".to_owned(), [None, Some(1)]), ("b".to_owned(), [Some(1), None]), ("c".to_owned(), [Some(0); 2])];
        assert_eq!(shortfalls(1, &unknown, None).len(), 4);
        assert_eq!(shortfalls(4, &[], None), ["4 ranks: no layout was run"]);
    }
}
