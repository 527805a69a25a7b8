//! The learning rate's course.
//!
//! With `k` the step counted from 1, `w` the warm-up, `d` the decay, `T` all steps, `η` the highest and `μ` the lowest
//! rate:
//!
//! | part | rate |
//! |---|---|
//! | warm-up, `k ≤ w` | `η · k / w` |
//! | constant | `η` |
//! | linear | `η − (η − μ) · p` with `p = (k − 1 − w) / d` |
//! | cosine | `μ + (η − μ) · ½ (1 + cos π p)` with the same `p` |
//! | wsd | `η` up to step `T − d`, then linear with `p = (k − 1 − (T − d)) / d` |
//!
//! `p` is cut to `[0, 1]`. It counts the updates made before this one, as nanoGPT does, so that no update is made at
//! the lowest rate itself (with `μ = 0` it would be lost), and the first step after the warm-up still has `η`.
//!
//! # Source
//! Cosine: karpathy/nanoGPT, `train.py`, `get_lr`, whose `lr_decay_iters` is `w + d` (its warm-up rises in `w + 1`
//! parts since 2024, here in `w`). Warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395, §4, with the linear decay
//! of Hägele et al. 2024, arXiv:2405.18392.

use crate::config::{OptimizerConfig, ScheduleName};

/// The learning rate as a function of the step.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    schedule: ScheduleName,
    high: f64,
    low: f64,
    warmup: u64,
    /// Updates before the first that is below the highest rate.
    fall_from: u64,
    decay: u64,
}

impl Rates {
    /// Fills in what the configuration leaves open, for a run of `steps`.
    pub fn new(optimizer: &OptimizerConfig, steps: u64) -> Self {
        let warmup = optimizer.warmup.unwrap_or((steps / 10).min(100));
        let (fall_from, decay) = match (optimizer.schedule, optimizer.decay) {
            (ScheduleName::Wsd, decay) => {
                let decay = if decay == 0 { (steps / 10).max(1) } else { decay };
                (steps.saturating_sub(decay), decay)
            }
            (_, 0) => (warmup, steps.saturating_sub(warmup)),
            (_, decay) => (warmup, decay),
        };
        Self {
            schedule: optimizer.schedule,
            high: optimizer.lr,
            low: optimizer.min_lr.unwrap_or(optimizer.lr / 10.0),
            warmup,
            fall_from,
            // A run that is all warm-up never falls; one keeps the division defined.
            decay: decay.max(1),
        }
    }

    /// Returns the rate of the update that makes `step` finished ones; the first is 1.
    pub fn at(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.high * step as f64 / self.warmup as f64;
        }
        let before = (step - 1).saturating_sub(self.fall_from);
        let progress = (before as f64 / self.decay as f64).min(1.0);
        let fall = self.high - self.low;
        match self.schedule {
            ScheduleName::Constant => self.high,
            ScheduleName::Linear | ScheduleName::Wsd => self.high - fall * progress,
            ScheduleName::Cosine => self.low + fall * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: ScheduleName, warmup: u64, decay: u64, steps: u64) -> Rates {
        let optimizer =
            OptimizerConfig { schedule, lr: 1.0, min_lr: Some(0.1), warmup: Some(warmup), decay, ..Default::default() };
        Rates::new(&optimizer, steps)
    }

    /// Values that differ by a few roundings of numbers below 1: 2⁻⁵² each.
    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 8.0 * f64::EPSILON
    }

    #[test]
    fn warm_up_rises_along_a_line_to_the_highest_rate() {
        for schedule in [ScheduleName::Constant, ScheduleName::Linear, ScheduleName::Cosine, ScheduleName::Wsd] {
            let rates = rates(schedule, 4, 0, 104);
            assert_eq!([1, 2, 3, 4, 5].map(|step| rates.at(step)), [0.25, 0.5, 0.75, 1.0, 1.0], "{schedule:?}");
        }
    }

    #[test]
    fn without_a_warm_up_the_first_rate_is_the_highest() {
        assert_eq!(rates(ScheduleName::Cosine, 0, 0, 10).at(1), 1.0);
    }

    #[test]
    fn constant_stays() {
        let rates = rates(ScheduleName::Constant, 0, 0, 10);
        assert!((1..=20).all(|step| rates.at(step) == 1.0));
    }

    #[test]
    fn linear_falls_by_equal_parts() {
        let rates = rates(ScheduleName::Linear, 10, 0, 110);
        assert!(close(rates.at(61), 0.55));
        assert!(close(rates.at(110), 1.0 - 0.9 * 0.99));
        assert!(close(rates.at(111), 0.1) && close(rates.at(500), 0.1));
    }

    #[test]
    fn cosine_is_nanogpts() {
        // get_lr(it) for it = 100, 1050 and 1999 with learning_rate 1, min_lr 0.1, warmup 100, lr_decay_iters 2000.
        let rates = rates(ScheduleName::Cosine, 100, 0, 2000);
        assert_eq!(rates.at(101), 1.0);
        assert!(close(rates.at(1051), 0.55));
        let last = 0.1 + 0.45 * (1.0 + (std::f64::consts::PI * 1899.0 / 1900.0).cos());
        assert!(close(rates.at(2000), last));
        assert!(close(rates.at(2001), 0.1));
    }

    #[test]
    fn a_given_decay_ends_before_the_run() {
        let rates = rates(ScheduleName::Cosine, 0, 50, 100);
        assert!(close(rates.at(26), 0.55));
        assert!(close(rates.at(51), 0.1) && close(rates.at(100), 0.1));
    }

    #[test]
    fn wsd_stays_then_falls_over_the_last_steps() {
        let rates = rates(ScheduleName::Wsd, 5, 20, 100);
        assert!((5..=81).all(|step| rates.at(step) == 1.0));
        assert!(close(rates.at(91), 0.55));
        assert!(close(rates.at(100), 1.0 - 0.9 * 0.95));
    }

    #[test]
    fn what_is_left_open_follows_the_run() {
        let rates = Rates::new(&OptimizerConfig { lr: 1.0, ..Default::default() }, 50);
        assert_eq!((rates.warmup, rates.decay, rates.low), (5, 45, 0.1));
        assert_eq!(Rates::new(&OptimizerConfig::default(), 5000).warmup, 100);
        let all_warmup = rates_of_one_step();
        assert_eq!(all_warmup.at(1), 1.0);
    }

    fn rates_of_one_step() -> Rates {
        rates(ScheduleName::Linear, 1, 0, 1)
    }
}
