//! How the next token is chosen from the scores of a vocabulary.

use mp_runtime::rng::{unit, Stream};

use crate::{Error, Result};

/// The rules of a choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the scores; 0 takes the most likely token, whatever the other rules say beside the penalty.
    pub temperature: f64,
    /// Only so many of the most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the fewest most likely tokens whose probabilities sum to at least this; 1: all.
    pub top_p: f64,
    /// Only tokens at least this many times as likely as the most likely one; 0: all.
    pub min_p: f64,
    /// Divides positive scores of tokens that the text already holds, and multiplies negative ones; 1: none.
    pub repetition_penalty: f64,
    /// Decides the choices.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 1 }
    }
}

/// A token with its weight: the exponential of its score less the highest.
type Weighted = (u32, f64);

impl Sampling {
    /// Refuses what is no rule.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        let rules = [
            ("temperature", self.temperature, (0.0..f64::INFINITY).contains(&self.temperature), "finite and from 0"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1; 1 keeps all tokens"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1; 0 keeps all tokens"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "finite and above 0; 1 changes nothing",
            ),
        ];
        match rules.into_iter().find(|(_, _, holds, _)| !holds) {
            None => Ok(()),
            Some((key, value, _, rule)) => {
                Err(Error::Config { key, value: value.to_string(), rule: format!("must be {rule}") })
            }
        }
    }

    /// Chooses a token, or none where the scores are no numbers.
    ///
    /// The choice is a function of the scores, of `seen` (the text so far), and of seed, prompt and position alone: not of
    /// what else is written beside it, or on how many ranks.
    ///
    /// # Source
    /// Fan et al. 2018, arXiv:1805.04833, §5.4 (top-k); Holtzman et al. 2019, arXiv:1904.09751, §3.1 (top-p); Nguyen et al.
    /// 2024, arXiv:2407.01082, §3 (min-p); Keskar et al. 2019, arXiv:1909.05858, §4.1 (penalty, here as it is customary:
    /// negative scores are multiplied).
    pub fn choose(&self, scores: Vec<f64>, seen: &[u32], prompt: u64, position: usize) -> Option<u32> {
        let weighed = self.weigh(scores, seen)?;
        let word = Stream::new(self.seed, "generate", prompt).block(position as u64)[0];
        Some(draw(&weighed, unit(word)))
    }

    /// Returns the tokens that can be chosen, by their ids, with positive weights that are as their probabilities, or none where
    /// the scores are no numbers.
    pub fn weigh(&self, mut scores: Vec<f64>, seen: &[u32]) -> Option<Vec<(u32, f64)>> {
        self.penalize(&mut scores, seen);
        let highest = highest(&scores)?;
        if self.temperature == 0.0 {
            return Some(vec![(highest as u32, 1.0)]);
        }
        let most = scores[highest];
        let weight = |score: f64| ((score - most) / self.temperature).exp();
        let weighted = scores.iter().enumerate().map(|(id, &score)| (id as u32, weight(score)));
        Some(self.kept(weighted.filter(|(_, weight)| *weight > 0.0).collect()))
    }

    fn penalize(&self, scores: &mut [f64], seen: &[u32]) {
        if self.repetition_penalty == 1.0 {
            return;
        }
        let mut seen: Vec<usize> = seen.iter().map(|&id| id as usize).filter(|&id| id < scores.len()).collect();
        // Once for each token, however often it came.
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            let score = &mut scores[id];
            *score = if *score > 0.0 { *score / self.repetition_penalty } else { *score * self.repetition_penalty };
        }
    }

    /// Leaves the tokens that each rule in turn lets pass, in the order of their ids.
    fn kept(&self, mut tokens: Vec<Weighted>) -> Vec<Weighted> {
        // The most likely first, of equals the lower id.
        let order = |a: &Weighted, b: &Weighted| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if self.top_k > 0 && self.top_k < tokens.len() {
            tokens.select_nth_unstable_by(self.top_k - 1, order);
            tokens.truncate(self.top_k);
        }
        if self.top_p < 1.0 {
            let sum: f64 = tokens.iter().map(|(_, weight)| weight).sum();
            // What lies below sums to less than is left out, so that the nucleus ends before it.
            let floor = (1.0 - self.top_p) * sum / tokens.len() as f64;
            tokens.retain(|(_, weight)| *weight >= floor);
            tokens.sort_unstable_by(order);
            let mut before = 0.0;
            let inside = tokens.iter().take_while(|(_, weight)| {
                let inside = before < self.top_p * sum;
                before += weight;
                inside
            });
            let inside = inside.count().max(1);
            tokens.truncate(inside);
        }
        if self.min_p > 0.0 {
            // The most likely one weighs 1.
            tokens.retain(|(_, weight)| *weight >= self.min_p);
        }
        tokens.sort_unstable_by_key(|(id, _)| *id);
        tokens
    }
}

/// Finds the first of the highest scores, if it is a number.
fn highest(scores: &[f64]) -> Option<usize> {
    if scores.iter().any(|score| score.is_nan()) {
        return None;
    }
    let best = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a));
    (0..scores.len()).max_by(best).filter(|&best| scores[best].is_finite())
}

/// Chooses the token at which the cumulative probability passes `point`.
fn draw(tokens: &[Weighted], point: f64) -> u32 {
    let mut left = point * tokens.iter().map(|(_, weight)| weight).sum::<f64>();
    for &(id, weight) in tokens {
        left -= weight;
        if left < 0.0 {
            return id;
        }
    }
    tokens.last().map_or(0, |(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(sampling: Sampling, probabilities: &[f64]) -> Vec<u32> {
        let tokens = probabilities.iter().enumerate().map(|(id, &p)| (id as u32, p / 0.4)).collect();
        sampling.kept(tokens).into_iter().map(|(id, _)| id).collect()
    }

    /// The most likely weighs 1 after division by 0.4.
    const PROBABILITIES: [f64; 5] = [0.05, 0.4, 0.2, 0.25, 0.1];

    #[test]
    fn choices_follow_the_cumulative_probability() {
        let tokens = [(3, 1.0), (5, 2.0), (9, 1.0)];
        let chosen: Vec<u32> = [0.1, 0.24, 0.26, 0.74, 0.76, 0.99].iter().map(|&p| draw(&tokens, p)).collect();
        assert_eq!(chosen, [3, 3, 5, 5, 9, 9]);
    }

    #[test]
    fn temperature_0_takes_the_first_of_the_most_likely() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(greedy.choose(vec![1.0, 3.0, 3.0], &[], 0, 0), Some(1));
    }

    #[test]
    fn scores_that_are_no_numbers_choose_nothing() {
        for bad in [f64::NAN, f64::INFINITY] {
            assert_eq!(Sampling::default().choose(vec![1.0, bad], &[], 0, 0), None);
        }
        let hidden = vec![f64::NEG_INFINITY, 0.0, f64::NEG_INFINITY];
        assert_eq!(Sampling::default().choose(hidden, &[], 0, 0), Some(1));
    }

    #[test]
    fn top_k_keeps_the_most_likely_and_of_equals_the_lower_ids() {
        let top = |top_k| Sampling { top_k, ..Sampling::default() };
        assert_eq!(ids(top(2), &PROBABILITIES), [1, 3]);
        assert_eq!(ids(top(0), &PROBABILITIES), [0, 1, 2, 3, 4]);
        assert_eq!(ids(top(9), &PROBABILITIES), [0, 1, 2, 3, 4]);
        assert_eq!(ids(top(2), &[0.2, 0.4, 0.2, 0.2]), [0, 1]);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        let top = |top_p| Sampling { top_p, ..Sampling::default() };
        assert_eq!(ids(top(0.3), &PROBABILITIES), [1]);
        assert_eq!(ids(top(0.6), &PROBABILITIES), [1, 3]);
        assert_eq!(ids(top(0.7), &PROBABILITIES), [1, 2, 3]);
        assert_eq!(ids(top(0.96), &PROBABILITIES), [0, 1, 2, 3, 4]);
        assert_eq!(ids(top(1e-9), &PROBABILITIES), [1]);
    }

    #[test]
    fn min_p_is_relative_to_the_most_likely() {
        let least = |min_p| Sampling { min_p, ..Sampling::default() };
        assert_eq!(ids(least(0.5), &PROBABILITIES), [1, 2, 3]);
        assert_eq!(ids(least(1.0), &PROBABILITIES), [1]);
    }

    #[test]
    fn rules_apply_in_turn() {
        // Of the three most likely, 0.85 in all, 0.65 is three quarters; the third is left out.
        let both = Sampling { top_k: 3, top_p: 0.75, ..Sampling::default() };
        assert_eq!(ids(both, &PROBABILITIES), [1, 3]);
    }

    #[test]
    fn the_penalty_lowers_what_the_text_holds_once() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let mut scores = [4.0, -1.0, 3.0, -1.0];
        sampling.penalize(&mut scores, &[0, 1, 0, 99]);
        assert_eq!(scores, [2.0, -2.0, 3.0, -1.0]);
        let greedy = Sampling { temperature: 0.0, ..sampling };
        assert_eq!(greedy.choose(vec![4.0, 0.0, 3.0], &[0], 0, 0), Some(2));
    }

    #[test]
    fn a_choice_depends_on_seed_prompt_and_position_alone() {
        let scores = vec![0.0; 1000];
        let chosen = |seed, prompt, position| {
            Sampling { seed, ..Sampling::default() }.choose(scores.clone(), &[], prompt, position)
        };
        assert_eq!(chosen(1, 2, 3), chosen(1, 2, 3));
        assert!(chosen(1, 2, 3) != chosen(2, 2, 3));
        assert!(chosen(1, 2, 3) != chosen(1, 3, 3));
        assert!(chosen(1, 2, 3) != chosen(1, 2, 4));
    }

    #[test]
    fn frequencies_are_the_probabilities() {
        let scores: Vec<f64> = PROBABILITIES.iter().map(|p: &f64| 2.0 * p.ln()).collect();
        let sampling = Sampling { temperature: 2.0, ..Sampling::default() };
        let mut counts = [0.0; 5];
        const DRAWS: usize = 20_000;
        for position in 0..DRAWS {
            counts[sampling.choose(scores.clone(), &[], 0, position).unwrap() as usize] += 1.0;
        }
        for (count, probability) in counts.into_iter().zip(PROBABILITIES) {
            // Five standard deviations of a binomial share.
            let limit = 5.0 * (probability * (1.0 - probability) / DRAWS as f64).sqrt();
            assert!((count / DRAWS as f64 - probability).abs() < limit, "{count} of {DRAWS} for {probability}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_by_name() {
        Sampling::default().check().unwrap();
        for (sampling, key) in [
            (Sampling { temperature: -1.0, ..Sampling::default() }, "temperature"),
            (Sampling { temperature: f64::NAN, ..Sampling::default() }, "temperature"),
            (Sampling { top_p: 0.0, ..Sampling::default() }, "top_p"),
            (Sampling { min_p: 1.5, ..Sampling::default() }, "min_p"),
            (Sampling { repetition_penalty: 0.0, ..Sampling::default() }, "repetition_penalty"),
        ] {
            let error = sampling.check().unwrap_err();
            assert!(error.is_input() && error.to_string().contains(key), "{error}");
        }
    }
}
