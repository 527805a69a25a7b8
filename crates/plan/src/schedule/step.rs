//! One step of a rank's list.

use serde::{Deserialize, Serialize};

use crate::Stages;

/// What a message carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// The output of a stage's forward, for the next stage.
    Activation,
    /// The gradient of a stage's input, for the stage before.
    Gradient,
}

/// One step of a rank's list. What each means to an executor is said at [`crate::schedule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step", deny_unknown_fields)]
pub enum Step {
    /// The forward of one of the rank's stages.
    Forward {
        /// The stage's number on this rank.
        chunk: usize,
        /// The micro-batch.
        micro_batch: usize,
    },
    /// Backward, with the gradients of the input and of the weights.
    Backward {
        /// The stage's number on this rank.
        chunk: usize,
        /// The micro-batch.
        micro_batch: usize,
    },
    /// The first part of backward: the gradient of the input, which the stage before waits for.
    BackwardInput {
        /// The stage's number on this rank.
        chunk: usize,
        /// The micro-batch.
        micro_batch: usize,
    },
    /// The second part of backward: the gradients of the weights, which nobody waits for.
    BackwardWeight {
        /// The stage's number on this rank.
        chunk: usize,
        /// The micro-batch.
        micro_batch: usize,
    },
    /// Starts sending; blocks nothing before [`Step::Reduce`].
    Send {
        /// What is sent.
        payload: Payload,
        /// The virtual stage that made it.
        stage: usize,
        /// The micro-batch.
        micro_batch: usize,
        /// The pipeline rank that takes it.
        to: usize,
    },
    /// Waits for a message.
    Receive {
        /// What is received.
        payload: Payload,
        /// The virtual stage that made it.
        stage: usize,
        /// The micro-batch.
        micro_batch: usize,
        /// The pipeline rank that sends it.
        from: usize,
    },
    /// Sums the gradient of the table that is both embedding and head over the two ranks that hold it.
    SumTied,
    /// Waits for the rank's sends, and completes its gradients over the ranks that read other data.
    Reduce,
    /// Updates the parameters.
    Update,
}

impl Step {
    /// Returns the channel of a message: `2·stage`, and one more for a gradient. Messages between two ranks on one
    /// channel keep their order.
    pub fn channel(&self) -> Option<usize> {
        match *self {
            Step::Send { payload, stage, .. } | Step::Receive { payload, stage, .. } => {
                Some(2 * stage + usize::from(payload == Payload::Gradient))
            }
            _ => None,
        }
    }

    /// Returns the chunk and micro-batch of a computation.
    pub fn computes(&self) -> Option<(usize, usize)> {
        match *self {
            Step::Forward { chunk, micro_batch }
            | Step::Backward { chunk, micro_batch }
            | Step::BackwardInput { chunk, micro_batch }
            | Step::BackwardWeight { chunk, micro_batch } => Some((chunk, micro_batch)),
            _ => None,
        }
    }

    /// Says for people what the step of a rank is, with the layers it concerns.
    ///
    /// # Examples
    ///
    /// ```
    /// use mp_plan::{Folding, Stages, Step};
    ///
    /// let stages = Stages::with_layers(2, 1, Folding::Loop, &[3, 2])?;
    /// let step = Step::Forward { chunk: 0, micro_batch: 5 };
    /// assert_eq!(step.describe(1, &stages), "forward of micro-batch 5 through stage 1 (layers 3..5)");
    /// # Ok::<(), mp_plan::Error>(())
    /// ```
    pub fn describe(&self, rank: usize, stages: &Stages) -> String {
        let layers = |stage: usize| match stage < stages.count() {
            true => format!("stage {stage} (layers {:?})", stages.layers(stage)),
            false => format!("stage {stage}, which does not exist"),
        };
        let own = |chunk: usize| match rank < stages.pp() && chunk < stages.chunks() {
            true => layers(stages.stage_of(rank, chunk)),
            false => format!("chunk {chunk}, which does not exist"),
        };
        let word = |payload| match payload {
            Payload::Activation => "output",
            Payload::Gradient => "input gradient",
        };
        match *self {
            Step::Forward { chunk, micro_batch } => {
                format!("forward of micro-batch {micro_batch} through {}", own(chunk))
            }
            Step::Backward { chunk, micro_batch } => {
                format!("backward of micro-batch {micro_batch} through {}", own(chunk))
            }
            Step::BackwardInput { chunk, micro_batch } => {
                format!("input gradient of micro-batch {micro_batch} through {}", own(chunk))
            }
            Step::BackwardWeight { chunk, micro_batch } => {
                format!("weight gradient of micro-batch {micro_batch} in {}", own(chunk))
            }
            Step::Send { payload, stage, micro_batch, to } => {
                format!("send of the {} of {} for micro-batch {micro_batch} to rank {to}", word(payload), layers(stage))
            }
            Step::Receive { payload, stage, micro_batch, from } => format!(
                "receive of the {} of {} for micro-batch {micro_batch} from rank {from}",
                word(payload),
                layers(stage)
            ),
            Step::SumTied => "sum of the tied table's gradient".into(),
            Step::Reduce => "reduce".into(),
            Step::Update => "update".into(),
        }
    }
}
