//! How far two lists of numbers order the same things alike.

/// Returns Spearman's rank correlation of two equally long lists: Pearson's of their ranks, equal values with the mean of
/// theirs. `None` where one of them has but one value.
///
/// # Source
/// Spearman 1904, <https://doi.org/10.2307/1412159>.
pub fn of_ranks(one: &[f64], other: &[f64]) -> Option<f64> {
    let [one, other] = [one, other].map(centred);
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let spread = (product(&one, &one) * product(&other, &other)).sqrt();
    (spread > 0.0).then(|| product(&one, &other) / spread)
}

/// Returns the ranks of values, less their mean.
fn centred(values: &[f64]) -> Vec<f64> {
    let below = |value: &f64| values.iter().filter(|other| *other < value).count() as f64;
    let equal = |value: &f64| values.iter().filter(|other| *other == value).count() as f64;
    // Equal values share the mean of their ranks; the mean of all ranks is half of the last.
    let rank = |value: &f64| below(value) + (equal(value) - 1.0) / 2.0;
    values.iter().map(|value| rank(value) - (values.len() as f64 - 1.0) / 2.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_agree_contradict_or_share_a_part() {
        assert_eq!(of_ranks(&[1.0, 5.0, 9.0], &[2.0, 3.0, 1e9]), Some(1.0));
        assert_eq!(of_ranks(&[1.0, 5.0, 9.0], &[7.0, 3.0, 1.0]), Some(-1.0));
        // One of two neighbours is out of place: 1 − 6·2 / (4·15).
        assert!((of_ranks(&[1.0, 2.0, 3.0, 4.0], &[1.0, 3.0, 2.0, 4.0]).unwrap() - 0.8).abs() < 1e-12);
        // Ranks 0.5, 0.5, 2 and 0, 1, 2.
        assert!((of_ranks(&[1.0, 1.0, 2.0], &[1.0, 2.0, 3.0]).unwrap() - 0.75f64.sqrt()).abs() < 1e-12);
        assert_eq!(of_ranks(&[1.0, 1.0], &[1.0, 2.0]), None);
    }
}
