//! Text from a model, one token after the other.

use mp_comm::{BufferMut, Rank};
use mp_data::Tokenizer;
use mp_model::Pass;
use mp_plan::Axis;
use mp_runtime::rng::{unit, Stream};
use mp_runtime::{Kind, Tensor};

use crate::pipeline::forward_only;
use crate::step::Trainer;
use crate::Result;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Tokens to write.
    pub tokens: usize,
    /// Divides the scores; 0 takes the most likely token.
    pub temperature: f64,
    /// Decides the choices.
    pub seed: u64,
}

/// Continues `prompt`. Collective over the ranks of one model, its tensor and pipeline groups; every rank gets the same
/// text, prompt included.
///
/// Each choice is a function of seed and position alone, so that ranks agree without talking.
///
/// # Errors
/// [`Error::Data`](crate::Error::Data) if the prompt cannot be tokenized, whatever a layer or a collective raises.
pub fn generate(trainer: &Trainer, tokenizer: &Tokenizer, prompt: &str, sampling: &Sampling) -> Result<String> {
    let mut ids = tokenizer.encode(prompt)?;
    if ids.is_empty() {
        // A tokenizer may drop all of a prompt; a model needs something to go on from.
        ids.push(0);
    }
    let stream = Stream::new(sampling.seed, "generate", 0);
    for position in 0..sampling.tokens {
        let mut scores = next_scores(trainer, &ids)?;
        // Beyond lies what no text contains: a vocabulary larger than the tokenizer's.
        scores.truncate(tokenizer.vocab_size());
        let word = stream.block(position as u64)[0];
        ids.push(choose(&scores, sampling.temperature, unit(word)));
    }
    Ok(tokenizer.decode(&ids)?)
}

/// Computes the scores of the token that follows, from as many tokens as the model has positions.
///
/// The sequence is filled up to a multiple of the tensor degree, so that it can be cut where activations are; what comes
/// later does not change what a causal model says of a position.
fn next_scores(trainer: &Trainer, ids: &[u32]) -> Result<Vec<f64>> {
    let parameters = trainer.parameters();
    let partition = parameters.partition();
    let tp = partition.mesh.degree(Axis::Tp);
    let longest = (partition.architecture.max_seq / tp * tp).max(1);
    let mut seen: Vec<i64> = ids[ids.len().saturating_sub(longest)..].iter().map(|&id| i64::from(id)).collect();
    let length = seen.len() as i64;
    seen.resize(seen.len().next_multiple_of(tp), 0);
    let tokens = Tensor::f_from_slice(&seen).and_then(|tokens| tokens.f_unsqueeze(0)?.f_to_device(parameters.device()));
    let tokens = tokens.map_err(mp_runtime::Error::from)?;
    let shape = trainer.activation_shape(1, seen.len());
    let (line, pass) = (trainer.line(), Pass::evaluation(&tokens));
    let scores = forward_only(line, trainer.model(), &pass, shape, |last, hidden| {
        let scores = last.logits(hidden)?.f_select(1, length - 1)?.f_view([-1])?;
        let scores = scores.f_to_kind(Kind::Double)?.f_to_device(mp_runtime::Device::Cpu)?;
        Ok(Vec::<f64>::try_from(&scores)?)
    })?;
    let mut scores = scores.unwrap_or_else(|| vec![0.0; partition.architecture.vocab]);
    let last = Rank(line.stages.rank_of(line.stages.count() - 1));
    line.group.broadcast(BufferMut::new(&mut scores), last)?;
    Ok(scores)
}

/// Chooses the token at which the cumulative probability passes `point`.
fn choose(scores: &[f64], temperature: f64, point: f64) -> u32 {
    let best = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a));
    let highest = (0..scores.len()).max_by(best).unwrap_or(0);
    if temperature == 0.0 {
        return highest as u32;
    }
    let weight = |score: f64| ((score - scores[highest]) / temperature).exp();
    let mut left = point * scores.iter().map(|&score| weight(score)).sum::<f64>();
    for (id, &score) in scores.iter().enumerate() {
        left -= weight(score);
        if left < 0.0 {
            return id as u32;
        }
    }
    highest as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_follow_the_cumulative_probability() {
        // Probabilities 1/4, 1/2, 1/4.
        let scores = [0.0, 2.0f64.ln(), 0.0];
        let chosen: Vec<u32> = [0.1, 0.24, 0.26, 0.74, 0.76, 0.99].iter().map(|&p| choose(&scores, 1.0, p)).collect();
        assert_eq!(chosen, [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn temperature_0_takes_the_first_of_the_most_likely() {
        assert_eq!(choose(&[1.0, 3.0, 3.0], 0.0, 0.9), 1);
    }
}
