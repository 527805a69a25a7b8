//! Layouts beside one rank, and communicators beside what they promise.

use anyhow::{bail, Context, Result};
use serde_json::{json, Value};

use super::bench::{Bench, Finding};
use super::Device;
use crate::test::counts::{self, Counts};

/// A trial of the program takes some layouts of each size.
const FEW: [(usize, &str); 3] = [(1, "tp1 full"), (2, "tp2,dp2"), (4, "tp2dp2,tp2pp2")];

/// Verifies layouts of up to so many ranks.
///
/// # Errors
/// If no table comes of it.
pub fn verify(bench: &mut Bench, ranks: usize) -> Result<Finding> {
    let file = bench.work.join("verify.json");
    let device = format!("train.device={}", bench.device.name());
    let mut command = bench.mp(Some(ranks), &["verify", "--set", &device, "--set", "train.precision=bf16", "--json"]);
    command.arg(&file);
    if bench.device == Device::Cpu {
        command.args(FEW.iter().filter(|(size, _)| *size == ranks).flat_map(|(_, layouts)| ["--layouts", layouts]));
    }
    let heard = bench.listen(&mut command)?;
    let report = heard.explain(bench.json(&file))?;
    judged(&report)
}

/// Sums a report of `mp-cli verify` up.
fn judged(report: &Value) -> Result<Finding> {
    let layouts = report["layouts"].as_array().context("the report has no layouts")?;
    let largest = |key: &str| layouts.iter().filter_map(|layout| layout[key].as_f64()).fold(0.0, f64::max);
    let failed: Vec<&str> =
        layouts.iter().filter(|layout| layout["pass"] != true).filter_map(|layout| layout["layout"].as_str()).collect();
    let (worst, noise, count) = (largest("worst"), largest("noise"), layouts.len());
    let mut summary =
        format!("{count} layouts, fp64 differs by {worst:.1e} at most, bf16 by {noise:.1} × the rounding expected");
    if !failed.is_empty() {
        summary += &format!("; {} differ: {}", failed.len(), failed[..failed.len().min(5)].join(", "));
    }
    Ok(Finding {
        pass: report["pass"] == true && count > 0,
        summary,
        figures: json!({ "layouts": count, "worst": worst, "noise": noise, "failed": failed }),
    })
}

/// Runs the communicators' suite; `None` where the device has no such transport.
///
/// # Errors
/// If the suite does not come to its end.
pub fn conformance(bench: &mut Bench, ranks: usize, transport: &str) -> Result<Option<Finding>> {
    let device = match (bench.device, transport) {
        (Device::Cuda, _) => "cuda",
        (Device::Cpu, "staged") => "fake",
        (Device::Cpu, _) => return Ok(None),
    };
    let arguments = ["--run", "conformance", "--device", device, "--transport", transport];
    let heard = bench.listen(&mut bench.mp(Some(ranks), &arguments))?;
    let Some(Counts { passed, failed }) = counts::suite(heard.text()) else { bail!("{}", heard.complaint()) };
    let named = heard.text().lines().find(|line| failed > 0 && line.contains(": ")).unwrap_or_default();
    let separator = if named.is_empty() { "" } else { "; " };
    Ok(Some(Finding {
        pass: heard.success() && failed == 0 && passed > 0,
        summary: format!("{passed} checks passed, {failed} failed{separator}{named}"),
        figures: json!({ "passed": passed, "failed": failed }),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_summed_up_with_what_failed() {
        let layout = |name: &str, worst: f64, noise: f64, pass: bool| json!({"layout": name, "worst": worst, "noise": noise, "pass": pass});
        let good = json!({"pass": true, "layouts": [layout("tp2", 2e-15, 1.2, true), layout("dp2", 1e-15, 1.4, true)]});
        let found = judged(&good).unwrap();
        assert!(found.pass);
        assert_eq!(found.summary, "2 layouts, fp64 differs by 2.0e-15 at most, bf16 by 1.4 × the rounding expected");
        let bad = json!({"pass": false, "layouts": [layout("tp2", 0.5, 1.2, false), layout("dp2", 1e-15, 1.4, true)]});
        let found = judged(&bad).unwrap();
        assert!(!found.pass && found.summary.ends_with("; 1 differ: tp2"), "{}", found.summary);
        assert!(!judged(&json!({"pass": true, "layouts": []})).unwrap().pass);
    }
}
