//! Round numbers along an axis.

/// Returns round values from 0 to `end`: at most `most` steps of 1, 2 or 5 times a power of ten.
pub(super) fn ticks(end: f64, most: usize) -> Vec<f64> {
    let rough = end / most as f64;
    if !(rough > 0.0 && rough.is_finite()) {
        return vec![0.0];
    }
    let power = 10.0_f64.powi(rough.log10().floor() as i32);
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|&step| step >= rough * (1.0 - 1e-9));
    let step = step.unwrap_or(10.0 * power);
    let count = (end / step * (1.0 + 1e-9)).floor() as usize;
    (0..=count).map(|index| index as f64 * step).collect()
}

/// Writes the values of an axis with as many digits behind the point as tell them apart.
pub(super) fn labels(ticks: &[f64]) -> Vec<String> {
    let step = ticks.get(1).copied().unwrap_or(1.0);
    let digits = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    ticks.iter().map(|tick| format!("{tick:.digits$}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_few() {
        assert_eq!(ticks(11.2, 6), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(labels(&ticks(0.11, 6)), ["0.00", "0.02", "0.04", "0.06", "0.08", "0.10"]);
        assert_eq!(labels(&ticks(3.0, 3)), ["0", "1", "2", "3"]);
        assert_eq!(ticks(0.0, 6), [0.0]);
        for end in [1e-7, 0.3, 1.0, 7.7, 99.0, 1e9] {
            let ticks = ticks(end, 8);
            assert!((3..=9).contains(&ticks.len()) && *ticks.last().unwrap() <= end * (1.0 + 1e-9), "{end}: {ticks:?}");
        }
    }
}
