//! What a run tells while it goes: the lines of `metrics.jsonl`, and the observer that hears them live.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Precision;
use crate::ledger::Ledger;

/// One finished optimizer update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Finished updates, this one included: the first is 1.
    pub step: u64,
    /// Mean over the global batch's target tokens, in nats.
    pub loss: f64,
    /// The learning rate of this update.
    pub learning_rate: f64,
    /// Norm of the whole gradient before clipping.
    pub gradient_norm: f64,
    /// Target tokens since the run began.
    pub tokens: u64,
    /// Target tokens of this step over its seconds.
    pub tokens_per_second: f64,
    /// Wall time of this step.
    pub step_seconds: f64,
    /// The most memory that the rank that wrote the record has held: the resident set's peak on a host, what tensors held on a
    /// device.
    pub memory_bytes: u64,
    /// The most that its allocator has taken from a device, for tensors and between them; `None` on a host.
    pub memory_reserved_bytes: Option<u64>,
    /// Model FLOPs of this step over its seconds, the ranks, and the peak of one's device in the run's precision, of the
    /// machine that `parallel.cluster` names, or that was measured to choose the run's layout; `None` where neither is known,
    /// and with adapters. [`Architecture::flops_per_token`] has what counts.
    ///
    /// [`Architecture::flops_per_token`]: mp_plan::Architecture::flops_per_token
    pub mfu: Option<f64>,
}

/// One pass over the validation part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Finished updates.
    pub step: u64,
    /// Mean over the target tokens, in nats.
    pub loss: f64,
}

/// Why a run ended in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EndReason {
    /// All steps are done.
    Finished,
    /// SIGTERM, SIGINT or SIGUSR1 asked for the end.
    Signal,
    /// As many evaluations as are put up with brought no lower loss.
    Patience,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndRecord {
    /// Finished updates.
    pub step: u64,
    /// Why.
    pub reason: EndReason,
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Record {
    /// An update.
    Step(StepRecord),
    /// An evaluation.
    Eval(EvalRecord),
    /// The end.
    End(EndRecord),
}

impl Record {
    /// Returns the number of finished updates that the record speaks of.
    pub fn step(&self) -> u64 {
        match self {
            Record::Step(record) => record.step,
            Record::Eval(record) => record.step,
            Record::End(record) => record.step,
        }
    }
}

/// What the planner has chosen for a run, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The layout, as [`Start`] has it.
    pub layout: String,
    /// What its ranks compute on.
    pub machine: String,
    /// The seconds of a step that it predicts; `None` where the machine's rate in the run's precision is unknown: the layout
    /// is then the one that keeps least.
    pub step_seconds: Option<f64>,
    /// The bytes that its fullest rank keeps.
    pub memory_bytes: u64,
    /// The bytes that a rank may keep.
    pub room_bytes: u64,
    /// The best layout of other degrees, or where all are fixed the next one.
    pub next: Option<RunnerUp>,
}

/// A layout that was not chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct RunnerUp {
    /// The layout.
    pub layout: String,
    /// The seconds of a step that are predicted.
    pub step_seconds: Option<f64>,
    /// What of its step grows most over the one that was chosen.
    pub why: String,
}

/// What is known once a run is about to make its first step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The world size.
    pub ranks: usize,
    /// The degrees, and the options in use, in words: `dp=2 × tp=2, sequence parallel` for instance.
    pub layout: String,
    /// Elements of the full model.
    pub parameters: u64,
    /// How many of them adapters have, which alone are trained; `None`: all are.
    pub adapters: Option<u64>,
    /// The last step.
    pub steps: u64,
    /// The step that comes first: 1, or one after the checkpoint's.
    pub first_step: u64,
    /// The numbers it is trained in.
    pub precision: Precision,
    /// The numbers that the checkpoint's run was trained in, where it continues one.
    pub precision_before: Option<Precision>,
    /// The run's folder.
    pub run_dir: PathBuf,
    /// Tokens to train on.
    pub train_tokens: u64,
    /// Tokens held out.
    pub validation_tokens: u64,
}

/// What a run leaves to say at its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The run's folder.
    pub run_dir: PathBuf,
    /// Finished updates.
    pub step: u64,
    /// Mean loss over the whole validation part in nats, where there is one.
    pub validation_loss: Option<f64>,
    /// Text that the model wrote.
    pub sample: Option<String>,
    /// Why it ended.
    pub reason: EndReason,
}

/// Hears what happens in a run, on rank 0. Every method may be left out.
pub trait Observer {
    /// The planner has chosen the layout.
    fn chosen(&mut self, _choice: &Choice) {}
    /// The first step is about to begin.
    fn start(&mut self, _start: &Start) {}
    /// An update is done.
    fn step(&mut self, _record: &StepRecord) {}
    /// An evaluation is done.
    fn eval(&mut self, _record: &EvalRecord) {}
    /// A checkpoint is complete on disk.
    fn checkpoint(&mut self, _step: u64, _path: &Path) {}
    /// The run's ledger is written.
    fn ledger(&mut self, _ledger: &Ledger) {}
    /// The run is over.
    fn end(&mut self, _report: &Report) {}
}

/// Hears nothing.
impl Observer for () {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_documented() {
        let step = StepRecord {
            step: 1,
            loss: 5.5,
            learning_rate: 0.001,
            gradient_norm: 2.25,
            tokens: 4096,
            tokens_per_second: 1024.0,
            step_seconds: 4.0,
            memory_bytes: 1 << 20,
            memory_reserved_bytes: None,
            mfu: None,
        };
        assert_eq!(
            serde_json::to_string(&Record::Step(step)).unwrap(),
            "{\"kind\":\"step\",\"step\":1,\"loss\":5.5,\"learning_rate\":0.001,\"gradient_norm\":2.25,\"tokens\":4096,\
             \"tokens_per_second\":1024.0,\"step_seconds\":4.0,\"memory_bytes\":1048576,\
             \"memory_reserved_bytes\":null,\"mfu\":null}"
        );
        let eval = Record::Eval(EvalRecord { step: 2, loss: 1.5 });
        assert_eq!(serde_json::to_string(&eval).unwrap(), r#"{"kind":"eval","step":2,"loss":1.5}"#);
        let end = Record::End(EndRecord { step: 3, reason: EndReason::Signal });
        assert_eq!(serde_json::to_string(&end).unwrap(), r#"{"kind":"end","step":3,"reason":"signal"}"#);
    }

    #[test]
    fn an_observer_is_a_trait_object() {
        let observer: &mut dyn Observer = &mut ();
        observer.eval(&EvalRecord { step: 1, loss: 0.0 });
    }
}
