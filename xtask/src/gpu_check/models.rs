//! Published models write the same on the host and on the device, and checkpoints move between the two.

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use std::fs;
use std::path::{Path, PathBuf};

use super::bench::{Bench, Finding};

/// Steps of the run that moves: as many on the host, on the device and on the host again.
const LEG: usize = 4;
/// By how much losses in fp64 may differ, relative: as layouts may.
const LIMIT: f64 = 1e-10;

/// Lets every model of the bundle write on the host and on the device.
///
/// # Errors
/// If one does not write.
pub fn published(bench: &mut Bench) -> Result<Finding> {
    let mut names = Vec::new();
    for entry in fs::read_dir(bench.bundle.join("models")).context("the bundle has no models")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    let [tokenizer, prompts] = words(bench)?;
    let (mut same, mut tokens, mut other) = (Vec::new(), 0, Vec::new());
    for name in &names {
        let host = write(bench, name, &tokenizer, &prompts, "cpu")?;
        let device = write(bench, name, &tokenizer, &prompts, bench.device.name())?;
        tokens += host.iter().map(|line| line.as_array().map_or(0, Vec::len)).sum::<usize>();
        if host == device { &mut same } else { &mut other }.push(name.clone());
    }
    let mut summary = format!("{} models, {tokens} greedy tokens each on host and device", names.len());
    if !other.is_empty() {
        summary += &format!("; other tokens from {}", other.join(", "));
    }
    let pass = other.is_empty() && tokens > 0;
    Ok(Finding { pass, summary, figures: json!({ "same": same, "other": other, "tokens": tokens }) })
}

/// A tokenizer whose words are the models' 37 ids, and prompts made of them.
fn words(bench: &Bench) -> Result<[PathBuf; 2]> {
    let vocabulary: serde_json::Map<String, Value> = (0..37).map(|id| (format!("w{id}"), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" },
    });
    let paths = [bench.work.join("tokenizer.json"), bench.work.join("prompts.txt")];
    fs::write(&paths[0], tokenizer.to_string())?;
    fs::write(&paths[1], "w1 w5 w7\nw36\nw3 w3 w11 w20 w8\nw30 w2\n")?;
    Ok(paths)
}

/// The tokens of each continuation.
fn write(bench: &mut Bench, model: &str, tokenizer: &Path, prompts: &Path, device: &str) -> Result<Vec<Value>> {
    let file = bench.work.join(format!("{model}-{device}.jsonl"));
    let sets = [
        format!("model.from={}", bench.bundle.join("models").join(model).display()),
        format!("data.tokenizer={}", tokenizer.display()),
        format!("train.device={device}"),
        "train.precision=fp32".into(),
    ];
    let mut command = bench.mp(None, &["generate", "--temperature", "0", "--max-new-tokens", "11"]);
    command.args(sets.iter().flat_map(|set| ["--set", set])).arg("--prompts").arg(prompts).arg("--json").arg(&file);
    bench.succeed(&mut command).with_context(|| format!("{model} on {device}"))?;
    Ok(bench.lines(&file)?.into_iter().map(|mut line| line["tokens"].take()).collect())
}

/// Trains a run that never moves, and one that goes from the host to the device and back.
///
/// # Errors
/// If one of them ends early.
pub fn checkpoints(bench: &mut Bench) -> Result<Finding> {
    let device = bench.device.name();
    leg(bench, "stays", 3 * LEG, "cpu")?;
    for (number, device) in (1..).zip(["cpu", device, "cpu"]) {
        leg(bench, "moves", number * LEG, device).with_context(|| format!("leg {number} on {device}"))?;
    }
    let mut check = bench.mp(None, &["checkpoint", "verify", "moves"]);
    bench.succeed(&mut check)?;
    let [stays, moves] =
        ["stays", "moves"].map(|run| losses(&bench.lines(&bench.work.join(run).join("metrics.jsonl"))?));
    compared(&stays?, &moves?)
}

/// Trains up to so many steps; a run that is there goes on.
fn leg(bench: &mut Bench, name: &str, steps: usize, device: &str) -> Result<()> {
    let mut sets: Vec<String> = [
        // As in a verification: an update in proportion to its gradient, whose rounding no small denominator makes large.
        "optimizer.eps=0.25",
        "train.clip_norm=0.25",
        "optimizer.schedule=constant",
        "train.precision=fp64",
        "model.hidden=64",
        "model.layers=2",
        "train.seq=64",
        "train.global_batch=8",
        "train.threads=1",
        "data.validation=0.0",
        "checkpoint.every=0",
        "train.out=.",
    ]
    .map(String::from)
    .into();
    sets.extend([format!("train.steps={steps}"), format!("train.name={name}"), format!("train.device={device}")]);
    if bench.work.join(name).exists() {
        sets.push("checkpoint.resume=true".into());
    }
    let mut command = bench.mp(None, &["train"]);
    bench.succeed(command.args(sets.iter().flat_map(|set| ["--set", set]))).map(drop)
}

/// The losses of all steps, in order.
fn losses(metrics: &[Value]) -> Result<Vec<f64>> {
    let steps = metrics.iter().filter(|line| line["kind"] == "step");
    steps.map(|line| line["loss"].as_f64().context("a step without a loss")).collect()
}

fn compared(stays: &[f64], moves: &[f64]) -> Result<Finding> {
    let steps = 3 * LEG;
    ensure!(
        stays.len() == steps && moves.len() == steps,
        "{} and {} of {steps} steps were made",
        stays.len(),
        moves.len()
    );
    let worst = stays.iter().zip(moves).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max);
    Ok(Finding {
        // Written so that a loss that is no number does not pass.
        pass: worst <= LIMIT && moves.iter().all(|loss| loss.is_finite()),
        summary: format!(
            "{LEG} steps on the host, {LEG} on the device, {LEG} on the host: losses differ by {worst:.1e} at most"
        ),
        figures: json!({ "worst": worst, "stays": stays, "moves": moves }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_moves_must_have_the_losses_of_one_that_stays() {
        let stays: Vec<f64> = (0..12).map(|step| 5.0 - 0.1 * f64::from(step)).collect();
        let found = compared(&stays, &stays).unwrap();
        assert!(found.pass && found.summary.ends_with("losses differ by 0.0e0 at most"), "{}", found.summary);
        let mut moves = stays.clone();
        moves[7] *= 1.0 + 1e-9;
        assert!(!compared(&stays, &moves).unwrap().pass);
        moves[7] = f64::NAN;
        assert!(!compared(&stays, &moves).unwrap().pass);
        assert!(compared(&stays, &stays[..8]).is_err());
    }

    #[test]
    fn losses_are_those_of_steps() {
        let lines = [
            json!({"kind": "step", "loss": 2.0}),
            json!({"kind": "eval", "loss": 9.0}),
            json!({"kind": "step", "loss": 1.0}),
        ];
        assert_eq!(losses(&lines).unwrap(), [2.0, 1.0]);
    }
}
