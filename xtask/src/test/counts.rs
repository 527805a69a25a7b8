//! Reading what test runners print into how many passed and failed.

use std::fmt;
use std::ops::AddAssign;

/// How many passed and failed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, hung or crashed.
    pub failed: u64,
}

impl Counts {
    /// A single check.
    pub fn one(passed: bool) -> Self {
        Self { passed: passed.into(), failed: (!passed).into() }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// What a run counts for. One that failed without a failed test has failed once: it did not compile, hung or crashed.
/// So has one without a summary: nobody knows what it ran.
pub fn settled(summary: Option<Counts>, success: bool) -> Counts {
    match summary {
        Some(counts) => Counts { failed: counts.failed.max((!success).into()), ..counts },
        None => Counts::one(false),
    }
}

/// Reads nextest's summary: `Summary [   0.010s] 5 tests run: 3 passed (1 slow), 1 failed, 1 timed out, 2 skipped`.
pub fn nextest(text: &str) -> Option<Counts> {
    let summary = text.lines().rev().find(|line| line.trim_start().starts_with("Summary ["));
    let (_, results) = summary?.split_once(" run:")?;
    let mut counts = Counts::default();
    for (number, word) in numbered(&without_brackets(results)) {
        match word {
            "passed" => counts.passed += number,
            "failed" | "timed out" | "exec failed" => counts.failed += number,
            _ => {}
        }
    }
    Some(counts)
}

/// Adds up the lines `test result: ok. 3 passed; 0 failed; …` of each target.
pub fn libtest(text: &str) -> Option<Counts> {
    let mut sum = None;
    for line in text.lines().filter(|line| line.starts_with("test result: ")) {
        let counts = sum.get_or_insert_with(Counts::default);
        let results = line.split_once(". ").map_or("", |(_, results)| results).replace(';', ",");
        for (number, word) in numbered(&results) {
            match word {
                "passed" => counts.passed += number,
                "failed" => counts.failed += number,
                _ => {}
            }
        }
    }
    sum
}

/// Reads the last line `N passed, N failed` that an MPI suite prints.
pub fn suite(text: &str) -> Option<Counts> {
    text.lines().rev().find_map(suite_line)
}

/// Counts the layouts in the JSON that `mp-cli verify` leaves.
pub fn layouts(json: &str) -> Option<Counts> {
    let report: serde_json::Value = serde_json::from_str(json).ok()?;
    let mut counts = Counts::default();
    for layout in report["layouts"].as_array()? {
        counts += Counts::one(layout["pass"] == true);
    }
    Some(counts)
}

fn suite_line(line: &str) -> Option<Counts> {
    let (passed, failed) = line.trim().split_once(" passed, ")?;
    Some(Counts { passed: passed.parse().ok()?, failed: failed.strip_suffix(" failed")?.parse().ok()? })
}

fn without_brackets(text: &str) -> String {
    let mut depth = 0;
    let outside = text.chars().filter(|c| {
        depth += i32::from(*c == '(');
        let outside = depth == 0;
        depth -= i32::from(*c == ')');
        outside
    });
    outside.collect()
}

/// The pairs of `3 passed, 1 timed out`.
fn numbered(text: &str) -> Vec<(u64, &str)> {
    let parts = text.split(',').filter_map(|part| part.trim().split_once(' '));
    parts.filter_map(|(number, word)| Some((number.parse().ok()?, word.trim()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64) -> Counts {
        Counts { passed, failed }
    }

    #[test]
    fn nextest_summaries_are_read_in_all_their_forms() {
        let green = "    Summary [   5.459s] 45 tests run: 45 passed, 0 skipped\n";
        assert_eq!(nextest(green), Some(counts(45, 0)));
        let red = "     Summary [ 0.1s] 7 tests run: 3 passed (1 slow, 1 leaky), 2 failed, 1 timed out, 1 exec failed, 4 skipped\n        FAIL x\n";
        assert_eq!(nextest(red), Some(counts(3, 4)));
        assert_eq!(nextest("    Summary [   0.0s] 1 test run: 1 passed, 0 skipped"), Some(counts(1, 0)));
    }

    #[test]
    fn a_run_without_a_summary_counts_as_one_failure() {
        assert_eq!(settled(nextest("error: could not compile"), false), counts(0, 1));
        assert_eq!(settled(nextest(""), true), counts(0, 1));
        assert_eq!(settled(libtest("all is well\n"), true), counts(0, 1));
        assert_eq!(settled(Some(counts(5, 2)), false), counts(5, 2));
        assert_eq!(settled(Some(counts(5, 0)), false), counts(5, 1));
    }

    #[test]
    fn documentation_tests_add_up() {
        let text = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored\n";
        assert_eq!(libtest(text), Some(counts(4, 2)));
    }

    #[test]
    fn a_suite_speaks_last_or_has_failed() {
        assert_eq!(suite("ring: ok\n12 passed, 1 failed\n"), Some(counts(12, 1)));
        assert_eq!(settled(suite("12 passed, 0 failed\nclosing words\n"), false), counts(12, 1));
        assert_eq!(suite("a rank died\n"), None);
    }

    #[test]
    fn layouts_count_one_each() {
        let json = r#"{"layouts": [{"pass": true}, {"pass": false}, {"pass": true}], "pass": false}"#;
        assert_eq!(layouts(json), Some(counts(2, 1)));
        assert_eq!(settled(layouts(""), true), counts(0, 1));
    }

    #[test]
    fn the_closing_line_is_plain() {
        assert_eq!(counts(7, 0).to_string(), "7 passed, 0 failed");
    }
}
