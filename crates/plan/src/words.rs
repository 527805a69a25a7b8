//! Numbers as people read them: with their nouns, bytes, times, ranges, and columns of them.

use std::{fmt::Display, ops::Range};

/// Writes a number with its noun, which gets an s, or es behind ch, unless there is one of them.
///
/// # Examples
/// ```
/// use mp_plan::words::counted;
///
/// assert_eq!([counted(1, "rank"), counted(2, "rank"), counted(3, "batch")], ["1 rank", "2 ranks", "3 batches"]);
/// ```
pub fn counted(number: impl Display, noun: &str) -> String {
    let number = number.to_string();
    let ending = match noun {
        _ if number == "1" => "",
        noun if noun.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{number} {noun}{ending}")
}

/// In what bytes are written.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    name: &'static str,
    bytes: f64,
}

impl Unit {
    /// Chooses the one in which so many bytes have digits before the point.
    pub(crate) fn of(bytes: usize) -> Self {
        match bytes {
            large if large >= 1 << 30 => Self { name: "GiB", bytes: f64::from(1 << 30) },
            medium if medium >= 1 << 20 => Self { name: "MiB", bytes: f64::from(1 << 20) },
            _ => Self { name: "KiB", bytes: 1024.0 },
        }
    }

    pub(crate) fn count(self, bytes: usize) -> f64 {
        bytes as f64 / self.bytes
    }

    /// Returns its name.
    pub(crate) fn name(self) -> &'static str {
        self.name
    }

    /// Returns its bytes.
    pub(crate) fn bytes(self) -> f64 {
        self.bytes
    }
}

/// Writes a number of bytes in the largest unit, from KiB to GiB, of which there is one.
///
/// # Examples
/// ```
/// use mp_plan::words::size;
///
/// assert_eq!([512, 3 << 20, 5 << 29].map(size), ["0.5 KiB", "3.0 MiB", "2.5 GiB"]);
/// ```
pub fn size(bytes: usize) -> String {
    let unit = Unit::of(bytes);
    format!("{:.1} {}", unit.count(bytes), unit.name)
}

/// Writes a time of so many seconds with three digits; below a second in milliseconds with a tenth, below one of those in
/// microseconds.
///
/// # Examples
/// ```
/// use mp_plan::words::seconds;
///
/// assert_eq!([0.0123, 1.234, 12.34, 123.4].map(seconds), ["12.3 ms", "1.23 s", "12.3 s", "123 s"]);
/// assert_eq!([1.2e-5, 0.99999, 9.999].map(seconds), ["12.0 µs", "1.00 s", "10.0 s"]);
/// ```
pub fn seconds(seconds: f64) -> String {
    // Bounds are where the digits that are written would carry into the next form.
    match seconds {
        s if s >= 99.95 => format!("{s:.0} s"),
        s if s >= 9.995 => format!("{s:.1} s"),
        s if s >= 0.99995 => format!("{s:.2} s"),
        s if s >= 0.99995e-3 => format!("{:.1} ms", 1e3 * s),
        s => format!("{:.1} µs", 1e6 * s),
    }
}

/// Writes a number in groups of three digits.
///
/// # Examples
/// ```
/// use mp_plan::words::grouped;
///
/// assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
/// ```
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes `1.24 × 10⁹` as `1.24 billion`.
pub(crate) fn scaled(count: f64) -> String {
    let (unit, name) = match count {
        c if c >= 1e12 => (1e12, " trillion"),
        c if c >= 1e9 => (1e9, " billion"),
        c if c >= 1e6 => (1e6, " million"),
        _ => (1.0, ""),
    };
    format!("{:.3}", count / unit).trim_end_matches('0').trim_end_matches('.').to_owned() + name
}

/// Writes a range with its last value: `3` or `3–7`.
pub(crate) fn span(range: &Range<usize>) -> String {
    match range.len() {
        0 => "none".to_owned(),
        1 => range.start.to_string(),
        _ => format!("{}–{}", range.start, range.end - 1),
    }
}

/// Groups neighbours that are alike.
pub(crate) fn runs<T: PartialEq>(all: &[T]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, one) in all.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if all[run.start] == *one => run.end = index + 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}

/// Writes rows of as many cells each in columns as wide as their widest cell: those of `left` to the left, others to the
/// right.
pub(crate) fn aligned(rows: &[Vec<String>], left: &[usize]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match left.contains(&column) {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_alike_are_a_run() {
        assert_eq!(runs(&[7, 7, 8, 7]), [0..2, 2..3, 3..4]);
        assert_eq!([span(&(0..2)), span(&(2..3)), span(&(2..2))], ["0–1", "2", "none"]);
    }

    #[test]
    fn times_carry_into_the_next_form() {
        let words = [0.0009999, 0.00099995, 0.99994, 0.99995, 9.994, 9.995, 99.94, 99.96, 0.0].map(seconds);
        let known = ["999.9 µs", "1.0 ms", "999.9 ms", "1.00 s", "9.99 s", "10.0 s", "99.9 s", "100 s", "0.0 µs"];
        assert_eq!(words, known);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "b", "c"], ["long", "×××", "1"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows, &[0]), "a       b  c\nlong  ×××  1\n");
    }
}
