//! Text from a model, one token after the other.

use mp_comm::{BufferMut, Rank, ReduceOp};
use mp_model::Pass;
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

/// Continues a prompt, given as token ids. Collective over the ranks of one model, its tensor, context and pipeline groups
/// (and the data ranks, where they share parameters out); every rank gets the same ids, the prompt's included.
///
/// Each choice is a function of seed and position alone, so that ranks agree without talking. Ids from `vocab` on, beyond
/// the tokenizer's, are what no text contains, and never chosen.
///
/// # Errors
/// Whatever a layer or a collective raises.
pub fn generate(trainer: &Trainer, mut ids: Vec<u32>, vocab: usize, sampling: &Sampling) -> Result<Vec<u32>> {
    if ids.is_empty() {
        // A tokenizer may drop all of a prompt; a model needs something to go on from.
        ids.push(0);
    }
    let stream = Stream::new(sampling.seed, "generate", 0);
    for position in 0..sampling.tokens {
        let mut scores = next_scores(trainer, &ids)?;
        scores.truncate(vocab);
        let word = stream.block(position as u64)[0];
        ids.push(choose(&scores, sampling.temperature, unit(word)));
    }
    Ok(ids)
}

/// Computes the scores of the token that follows, from as many tokens as the model has positions.
///
/// The sequence is filled up until it can be cut wherever activations are; what comes later does not change what a causal
/// model says of a position.
fn next_scores(trainer: &Trainer, ids: &[u32]) -> Result<Vec<f64>> {
    let (parameters, context) = (trainer.parameters(), trainer.context());
    let architecture = &parameters.partition().architecture;
    let multiple = trainer.sequence_multiple();
    let longest = (architecture.max_seq / multiple * multiple).max(1);
    let mut seen: Vec<i64> = ids[ids.len().saturating_sub(longest)..].iter().map(|&id| i64::from(id)).collect();
    let length = seen.len();
    seen.resize(length.next_multiple_of(multiple), 0);
    let full = Tensor::f_from_slice(&seen).and_then(|full| full.f_unsqueeze(0)).map_err(mp_runtime::Error::from)?;
    let tokens = context.own(&full)?.f_to_device(parameters.device()).map_err(mp_runtime::Error::from)?;
    let positions = context.positions(seen.len())?;
    // Where this rank holds the last token, if it does.
    let held = positions.iter().position(|position| position + 1 == length);
    let shape = trainer.activation_shape(1, positions.count());
    let (line, pass) = (trainer.line(), Pass { positions, ..Pass::evaluation(&tokens) });
    let scores = forward_only(line, trainer.model(), &pass, shape, |last, hidden| {
        let scores = last.logits(hidden)?;
        let Some(held) = held else { return Ok(vec![0.0; architecture.vocab]) };
        let own = scores.f_select(1, held as i64)?.f_view([-1])?;
        Ok(Vec::<f64>::try_from(&own.f_to_kind(Kind::Double)?.f_to_device(mp_runtime::Device::Cpu)?)?)
    })?;
    let mut scores = scores.unwrap_or_else(|| vec![0.0; architecture.vocab]);
    // All but one have zeros.
    context.comm.all_reduce(BufferMut::new(&mut scores), ReduceOp::Sum)?;
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
