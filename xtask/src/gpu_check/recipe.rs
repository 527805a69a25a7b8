//! A whole training: nanoGPT's GPU recipe on Shakespeare's plays.

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::bench::{Bench, Finding};
use super::Device;
use crate::bundle::TEXT;

/// The validation loss that must be reached, in nats a byte; nanoGPT's README names 1.4697.
const LIMIT: f64 = 1.50;
/// What makes a trial small.
const TINY: [&str; 10] = [
    "model.hidden=32",
    "model.layers=1",
    "model.heads=2",
    "model.max_seq=32",
    "train.seq=32",
    "train.global_batch=4",
    "train.steps=4",
    "optimizer.warmup=1",
    "eval.batches=1",
    "eval.every=2",
];

/// Trains; `None` without a text. What was reached when the time was over counts as far as it goes.
///
/// # Errors
/// If it fails before it has measured anything.
pub fn train(bench: &mut Bench) -> Result<Option<Finding>> {
    let text = bench.bundle.join(TEXT);
    if !text.exists() {
        return Ok(None);
    }
    let trial = bench.device == Device::Cpu;
    let sets = [
        format!("data.path={}", text.display()),
        format!("train.device={}", bench.device.name()),
        "train.out=.".into(),
        "train.name=shakespeare".into(),
    ];
    let mut command = bench.mp(None, &["train", "--config"]);
    command.arg(bench.bundle.join("configs/shakespeare-gpu.toml"));
    let tiny = TINY.iter().filter(|_| trial).copied();
    command.args(sets.iter().map(String::as_str).chain(tiny).flat_map(|set| ["--set", set]));
    let heard = bench.listen(&mut command)?;
    let metrics = heard.explain(bench.lines(&bench.work.join("shakespeare/metrics.jsonl")))?;
    let reached = reached(&metrics)?;
    let complete = heard.success() && !bench.was_cut();
    let told = if complete || bench.was_cut() { String::new() } else { format!("; {}", heard.complaint()) };
    Ok(Some(Finding {
        pass: complete && (trial || reached.best <= LIMIT),
        summary: format!("{}{told}", reached.words()),
        figures: json!({
            "best_loss": reached.best,
            "best_step": reached.at,
            "limit": LIMIT,
            "steps": reached.steps,
            "step_seconds": reached.step_seconds,
        }),
    }))
}

/// How far a run came.
struct Reached {
    best: f64,
    at: u64,
    steps: u64,
    /// Of all steps together.
    step_seconds: f64,
}

impl Reached {
    fn words(&self) -> String {
        let Self { best, at, steps, step_seconds } = self;
        format!("validation loss {best:.4} after {at} steps; {steps} steps in {step_seconds:.0} s")
    }
}

/// Reads a run's metrics: the best evaluation, and the time of the steps.
fn reached(metrics: &[Value]) -> Result<Reached> {
    let of_kind = |kind: &'static str| metrics.iter().filter(move |line| line["kind"] == kind);
    let evaluations = of_kind("eval").filter_map(|line| Some((line["loss"].as_f64()?, line["step"].as_u64()?)));
    let best = evaluations.min_by(|(one, _), (other, _)| one.total_cmp(other));
    let (best, at) = best.context("the run ended before its first evaluation")?;
    let step_seconds = of_kind("step").filter_map(|line| line["step_seconds"].as_f64()).sum();
    let steps = of_kind("step").filter_map(|line| line["step"].as_u64()).max().unwrap_or(0);
    Ok(Reached { best, at, steps, step_seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_evaluation_counts() {
        let step = |step: u64| json!({"kind": "step", "step": step, "step_seconds": 0.5});
        let eval = |step: u64, loss: f64| json!({"kind": "eval", "step": step, "loss": loss});
        let metrics = [step(1), eval(1, 1.9), step(2), eval(2, 1.47), step(3), eval(3, 1.6), json!({"kind": "end"})];
        assert_eq!(reached(&metrics).unwrap().words(), "validation loss 1.4700 after 2 steps; 3 steps in 2 s");
        assert!(reached(&metrics[..1]).is_err());
    }
}
