//! Throughput of training, ours and PyTorch's, with the same model and batch.

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::bench::{Bench, Finding};
use super::Device;

/// A model and a batch, as both programs take them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Model {
    /// In the names of checks.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    arguments: [(&'static str, &'static str); 8],
}

/// The vocabulary is 50,257 in multiples of 64, as nanoGPT has it.
pub static GPT2: Model = Model {
    name: "gpt2",
    title: "GPT-2 124M",
    arguments: [
        ("--architecture", "gpt2"),
        ("--hidden", "768"),
        ("--layers", "12"),
        ("--heads", "12"),
        ("--vocab", "50304"),
        ("--seq", "2048"),
        ("--batch", "16"),
        ("--micro-batch", "8"),
    ],
};

/// 1.34 · 10⁹ parameters.
pub static LLAMA: Model = Model {
    name: "llama",
    title: "Llama 1.3B",
    arguments: [
        ("--architecture", "llama"),
        ("--hidden", "2048"),
        ("--layers", "24"),
        ("--heads", "16"),
        ("--vocab", "32000"),
        ("--seq", "2048"),
        ("--batch", "8"),
        ("--micro-batch", "4"),
    ],
};

/// What replaces sizes in a trial.
const TINY: [(&str, &str); 7] = [
    ("--hidden", "64"),
    ("--layers", "2"),
    ("--heads", "2"),
    ("--vocab", "256"),
    ("--seq", "64"),
    ("--batch", "2"),
    ("--micro-batch", "1"),
];

/// Who trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// We do.
    Mp,
    /// PyTorch, operation by operation.
    Eager,
    /// PyTorch with `torch.compile`.
    Compiled,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Mp, Self::Eager, Self::Compiled];

    /// In the names of checks.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mp => "mp",
            Self::Eager => "eager",
            Self::Compiled => "compiled",
        }
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Mp => "mp",
            Self::Eager => "eager PyTorch",
            Self::Compiled => "compiled PyTorch",
        }
    }
}

/// Measures a program; `None` where there is no PyTorch to measure.
///
/// # Errors
/// If it does not come to its end.
pub fn measure(bench: &mut Bench, model: &Model, program: Program) -> Result<Option<Finding>> {
    if program != Program::Mp && !bench.has_pytorch() {
        return Ok(None);
    }
    let file = bench.work.join("speed.json");
    let mut command = match program {
        Program::Mp => bench.mp(None, &["--run", "bench-train"]),
        Program::Eager | Program::Compiled => {
            let mut command = bench.python();
            command.arg(bench.bundle.join("peers/train.py"));
            command.args((program == Program::Compiled).then_some("--compile"));
            command
        }
    };
    let trial = bench.device == Device::Cpu;
    for (name, full) in model.arguments {
        let tiny = TINY.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        command.args([name, tiny.filter(|_| trial).unwrap_or(full)]);
    }
    if trial {
        command.args(["--steps", "2", "--warmup", "1"]);
    }
    command.args(["--precision", "bf16", "--device", bench.device.name(), "--json"]).arg(&file);
    bench.succeed(&mut command)?;
    measured(&bench.json(&file)?).map(Some)
}

/// What of a result goes into the table.
fn measured(result: &Value) -> Result<Finding> {
    let number = |key: &str| result[key].as_f64();
    let median = number("median_step_seconds").or(number("step_seconds")).context("the result has no step_seconds")?;
    // The mean of ours is of the same steps; the table has medians, which one slow step does not move.
    let tokens = number("tokens_per_second").context("the result has no tokens_per_second")?
        * number("step_seconds").map_or(1.0, |mean| mean / median);
    let loss = number("loss").unwrap_or(f64::NAN);
    let memory = number("peak_bytes").map(|bytes| format!(", {:.1} GiB at most", gibibytes(bytes))).unwrap_or_default();
    Ok(Finding {
        pass: tokens.is_finite() && tokens > 0.0 && loss.is_finite(),
        summary: format!("{tokens:.0} tokens/s, {:.1} ms a step{memory}", median * 1e3),
        figures: json!({
            "tokens_per_second": tokens,
            "step_seconds": median,
            "peak_bytes": result["peak_bytes"],
            "predicted_bytes": result["predicted_bytes"],
            "flop_per_token": result["flop_per_token"],
            "gemm_flop_per_second": result["gemm_flop_per_second"],
            "parameters": result["parameters"],
            "loss": loss,
        }),
    })
}

/// Bytes in units of 2³⁰.
pub fn gibibytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_step_counts_for_both() {
        let ours = json!({"tokens_per_second": 100.0, "step_seconds": 2.0, "median_step_seconds": 1.0, "loss": 3.0, "peak_bytes": 3_u64 << 30});
        let found = measured(&ours).unwrap();
        assert_eq!(found.summary, "200 tokens/s, 1000.0 ms a step, 3.0 GiB at most");
        let peer = json!({"tokens_per_second": 200.0, "step_seconds": 1.0, "loss": 3.0, "peak_bytes": null});
        assert_eq!(measured(&peer).unwrap().figures["tokens_per_second"], 200.0);
        assert!(found.pass && !measured(&json!({"tokens_per_second": 1.0, "step_seconds": 1.0})).unwrap().pass);
    }
}
