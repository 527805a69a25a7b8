//! What a step takes behind its last backward, beside what is stored: activations are gone, and small models with large
//! vocabularies are at their fullest here.
//!
//! Gradients are summed in place, clipped in place, and updated in place. What is left are copies that travel:
//!
//! | where | what |
//! |---|---|
//! | gradients of parameters on several tensor ranks | short ones, copied together to be summed |
//! | optimizer state that is shared out | of two buckets the sums of own gradients, and later copies of own values |

use crate::{Arrangement, GradientSync, Job, PartitionedParameter, Zero};

/// Elements of a gradient from which on it is summed over tensor ranks where it lies; shorter ones are copied together until
/// they are as many. So many that the start of a call does not count, and so few that a copy is nothing beside a gradient.
pub const SUMMED_APART: usize = 1 << 16;

/// Counts the bytes of the copies that data ranks send and receive, two buckets at a time.
pub(super) fn shared(job: &Job, arrangement: &Arrangement) -> usize {
    let own: Vec<usize> = arrangement.trained().map(|(_, bucket)| bucket.range.len() / arrangement.parts()).collect();
    let pairs = own.windows(2).map(|pair| pair[0] + pair[1]);
    let most = pairs.chain(own.iter().copied()).max().unwrap_or(0);
    match arrangement.zero() {
        Zero::Replicated | Zero::Parameters => 0,
        Zero::Optimizer => most * job.precision.state_bytes(),
        Zero::Gradients => most * job.precision.parameter_bytes(),
    }
}

/// Counts the elements that are copied together to be summed over tensor ranks, at most.
pub(super) fn summed(parameters: &[PartitionedParameter], sequence_parallel: bool) -> usize {
    let partial = |parameter: &&PartitionedParameter| {
        !parameter.spec.frozen && parameter.gradient_sync(sequence_parallel) != GradientSync::None
    };
    let lengths = parameters.iter().filter(partial).map(PartitionedParameter::local_elements);
    let short: Vec<usize> = lengths.filter(|&elements| elements < SUMMED_APART).collect();
    // A single one is not copied, and no call is twice as long as it need be.
    if short.len() > 1 {
        short.iter().sum::<usize>().min(2 * SUMMED_APART)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Architecture, Candidate, ContextForm, Executor, Job, MemoryModel, ModelConfig, Precision, RankMemory, Schedule,
        Zero,
    };

    /// A wide table and sequences of two tokens.
    fn job(vocab: usize) -> Job {
        let config = ModelConfig { hidden: 64, layers: 1, ..ModelConfig::default() };
        Job {
            architecture: Architecture::resolve(&config, vocab, 2).unwrap(),
            seq: 2,
            global_batch: 2,
            precision: Precision::Fp32,
            moments: 2,
            bucket_elements: 1000,
            context: ContextForm::Ring,
            within_documents: false,
            executor: Executor::ENGINE,
            split: Vec::new(),
        }
    }

    fn kept(job: &Job, zero: Zero) -> RankMemory {
        let candidate = Candidate { dp: 2, zero, ..Candidate::default() };
        let stages = candidate.stages(job).unwrap();
        let orders = Schedule::orders(candidate.schedule, &stages, candidate.micro_batches(job)).unwrap();
        MemoryModel::new(job).ranks(&candidate, &stages, &orders).unwrap()[0]
    }

    /// Half of the head and half of what lies before it are on their way together, and hardly an activation is alive.
    #[test]
    fn with_a_large_table_the_end_of_a_step_is_the_fullest_moment() {
        let job = job(20_000);
        let head = 20_000 * 64 / 2 * 4;
        // The MLP's product down, 64 × ffn, and the last norm.
        let before = job.architecture.ffn * 64 / 2 * 4;
        let ends = kept(&job, Zero::Optimizer);
        assert!((head + before..head + 2 * before).contains(&ends.buffers), "{ends:?} {head} {before}");
        // The first norm's input, and the gradients of both its sides; two tokens and targets, of eight bytes each.
        assert_eq!((ends.activations, ends.workspace), (3 * 2 * 64 * 4 + 2 * 16, 0));
        // Copies of values are as large, and whole gradients of a bucket larger than what waits for them.
        assert!(kept(&job, Zero::Gradients).buffers > 2 * head);
        let whole = kept(&job, Zero::Replicated);
        assert!(whole.buffers == 0 && whole.activations > 2 * 16, "{whole:?}");
    }
}
