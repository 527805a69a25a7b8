//! The page that is made of results: what was seen on a GPU, and what was not.

use std::fmt::Write;

use super::checks::{self, Check, Kind, SECTIONS};
use super::results::{Outcome, Results, Verdict};
use super::speed::{gibibytes, Program, GPT2, LLAMA};

/// FLOP/s of bf16 products in the data sheets of [`HOPPER`] (SXM).
const PEAK: f64 = 989e12;
const HOPPER: [&str; 3] = ["H100", "H200", "GH200"];

/// What no check covers.
const BEYOND: [&str; 6] = [
    "`train.deterministic` and `train.tf32`: that they reach libtorch is tested, and not what its kernels make of them.",
    "A device that is full: what is told of it is tested on words of libtorch's allocator.",
    "`plan --measure` and `plan --simulate` on a device, and a layout that is chosen there.",
    "NCCL between several GPUs: with one, the suite runs over NCCL at one rank. On fakes it runs at 1, 2 and 4.",
    "An MPI library that takes device pointers (`parallel.transport=mpi` with CUDA-aware MPI): the bundle's does not.",
    "Several GPUs or machines in one run.",
];

/// Writes the page.
pub fn page(results: &Results) -> String {
    let checks = checks::all();
    let of = |check: &Check| results.checks.iter().find(|outcome| outcome.name == check.name);
    let mut text = head(results);
    for section in SECTIONS {
        let mut own = checks.iter().filter(|check| check.kind.section() == section).peekable();
        text += &format!("\n## {section}\n\n");
        if own.peek().is_some_and(|check| matches!(check.kind, Kind::Throughput(..))) {
            text += &throughput(results);
            continue;
        }
        text += "| check | must be seen | outcome |\n|---|---|---|\n";
        for check in own {
            text += &format!("| `{}` | {} | {} |\n", check.name, check.what, outcome(of(check)));
        }
    }
    text += "\n## Not run\n\n";
    for check in &checks {
        let why = match of(check) {
            Some(outcome) if outcome.verdict != Verdict::NotRun => continue,
            Some(outcome) => &outcome.summary,
            None => "not chosen",
        };
        text += &format!("- `{}`: {why}\n", check.name);
    }
    text += "\nNo check covers:\n\n";
    BEYOND.iter().for_each(|line| text += &format!("- {line}\n"));
    text
}

fn head(results: &Results) -> String {
    let run: Vec<&Outcome> = results.checks.iter().filter(|outcome| outcome.verdict != Verdict::NotRun).collect();
    let passed = run.iter().filter(|outcome| outcome.verdict == Verdict::Passed).count();
    let mut text = String::from("# On a GPU\n\n");
    if results.trial {
        return text + "A trial of the program on a host, with tiny models: no result of a GPU.\n";
    }
    let _ = write!(text, "Written by `cargo xtask gpu-check`");
    if !results.written.is_empty() {
        let _ = write!(text, " on {}; `gpu.json` beside it has all figures", results.written);
    }
    text += ".\n\n";
    if run.is_empty() {
        return text
            + "**Nothing has run on a GPU yet.** The code for devices is built and tested on the host, on fakes, and with PyTorch's CUDA library \
               over a CUDA runtime without a GPU; the lists below say what must be seen on one GPU of the Hopper kind. [Set-up](../setup.md#a-machine-with-a-gpu-and-no-more) \
               says how to run them.\n";
    }
    let _ = writeln!(text, "{} of {} checks have run, {passed} of them passed.\n", run.len(), checks::all().len());
    if let Some(names) = failures(results) {
        let _ = writeln!(text, "**Not passed: {names}.**\n");
    }
    for machine in &results.machines {
        let of_it = || run.iter().filter(|outcome| outcome.device == machine.device);
        let mut programs: Vec<&str> = of_it().map(|outcome| outcome.program.as_str()).collect();
        programs.sort_unstable();
        programs.dedup();
        let (first, last) = (of_it().map(|outcome| &outcome.date).min(), of_it().map(|outcome| &outcome.date).max());
        if let (Some(first), Some(last)) = (first, last) {
            let _ = writeln!(text, "- {}; mp {}; {first} to {last} UTC", machine.words(), programs.join(", "));
        }
    }
    text
}

/// Names the checks that have run and not passed.
pub fn failures(results: &Results) -> Option<String> {
    let failed = results.checks.iter().filter(|outcome| !matches!(outcome.verdict, Verdict::Passed | Verdict::NotRun));
    let names: Vec<&str> = failed.map(|outcome| outcome.name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn outcome(outcome: Option<&Outcome>) -> String {
    match outcome {
        Some(outcome) if outcome.verdict != Verdict::NotRun => {
            // A bar ends a column.
            let summary = outcome.summary.replace('|', "/").replace('\n', " ");
            format!("{} ({:.0} s): {summary}", outcome.verdict.words(), outcome.seconds)
        }
        _ => Verdict::NotRun.words().into(),
    }
}

/// The table of throughput, of all models and programs.
fn throughput(results: &Results) -> String {
    let of = |name: &str| results.checks.iter().find(|outcome| outcome.name == name);
    let mut text = String::from(
        "Context 2048; random tokens, batch and micro-batch alike for all programs of a model; medians of 20 steps. mp has weights and \
         activations in bf16 with fp32 masters, PyTorch runs under autocast to bf16. MFU is model FLOPs, attention over the full \
         square among them, over the 989 TFLOP/s of an H100 or H200; of other devices it is left out. Memory is what tensors held at most in a step, as libtorch's allocator counts it; \
         predicted is what the planner says.\n\n\
         | model | program | tokens/s | ms a step | MFU | memory (GiB) | predicted (GiB) |\n|---|---|---:|---:|---:|---:|---:|\n",
    );
    for model in [&GPT2, &LLAMA] {
        // The model is one: our count of its FLOPs serves the others.
        let ours = of(&format!("throughput-{}-mp", model.name));
        let flop = ours.and_then(|outcome| outcome.figures["flop_per_token"].as_f64());
        for program in Program::ALL {
            let found = of(&format!("throughput-{}-{}", model.name, program.name()));
            text += &format!("| {} | {} | {} |\n", model.title, program.words(), columns(found, flop));
        }
    }
    text
}

fn columns(found: Option<&Outcome>, flop: Option<f64>) -> String {
    let Some(found) = found.filter(|outcome| outcome.verdict == Verdict::Passed) else {
        return format!("{} | | | |", found.map_or(Verdict::NotRun, |outcome| outcome.verdict).words());
    };
    let number = |key: &str| found.figures[key].as_f64();
    let shown = |value: Option<f64>, digits: usize| value.map_or("–".into(), |value| format!("{value:.digits$}"));
    let tokens = number("tokens_per_second");
    let is_hopper = HOPPER.iter().any(|name| found.device.contains(name));
    let mfu =
        tokens.zip(flop).filter(|_| is_hopper).map(|(tokens, flop)| format!("{:.1} %", 100.0 * tokens * flop / PEAK));
    [
        shown(tokens, 0),
        shown(number("step_seconds").map(|seconds| seconds * 1e3), 1),
        mfu.unwrap_or("–".into()),
        shown(number("peak_bytes").map(gibibytes), 2),
        shown(number("predicted_bytes").map(gibibytes), 2),
    ]
    .join(" | ")
}
