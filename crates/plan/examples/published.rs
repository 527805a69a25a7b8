//! The planner beside published training runs, as Markdown: what it predicts of each, and where it ranks the layout that was
//! run. `docs/results/planner.md` is what this prints:
//!
//! ```text
//! cargo run --release -p mp-plan --example published > docs/results/planner.md
//! ```

use std::fmt::Write;

use mp_plan::published::{rows, Measured, Row, Source};
use mp_plan::ranking::why;
use mp_plan::{Analytic, Candidate, Cluster, Estimate, Estimator, Executor, Result, StepTime};

/// So many sets of degrees are ranked.
const RANKED: usize = 12;
/// As many are near the best.
const NEAR: usize = 5;

const SOURCES: [(Source, &str, &str); 5] = [
    (Source::Narayanan, "Narayanan et al. 2021, table 1", "TFLOP/s, recomputed ones among them"),
    (Source::Korthikanti, "Korthikanti et al. 2022, table 5", "MFU, %"),
    (Source::NarayananScaled, "Narayanan et al. 2021, table 2", "TFLOP/s, recomputed ones among them"),
    (Source::KorthikantiFull, "Korthikanti et al. 2022, table 5, full recompute", "seconds a step"),
    (Source::Llama3, "Dubey et al. 2024, table 4", "MFU, %"),
];

fn main() -> Result<()> {
    print!("{}", report()?);
    Ok(())
}

/// Writes the whole page.
fn report() -> Result<String> {
    let mut text = String::from(HEAD);
    text += &constants()?;
    for (source, name, unit) in SOURCES {
        text += &section(source, name, unit)?;
    }
    text += RANKS;
    text += &ranks()?;
    Ok(text)
}

const HEAD: &str = "\
# The planner beside published runs

Made by `cargo run --release -p mp-plan --example published`; a test compares this page with what that prints. The rows
are in `mp_plan::published`, with their sources. [Choosing a layout](../planning.md) says how times come about.

The shares of `[efficiency]` but `attention`, and how often layers pass over memory, are fitted on the first two tables
together: one set for all fourteen rows, no number for any of them. The next two tables moved nothing. The last was in view when
H100 was described: its shares `matrix`, for its clock falls under load, and `attention`. All other constants of H100 are carried
over, or from its data sheet.

Two sources do not state how many chunks a rank had. For table 2 of 2021 they are a guess: those that table 1 has for models of that
depth. Llama 3 is planned with four, set with its two rows in view.

16-bit floats are planned as bfloat16, and attention keeps its weights, as it did in the models of 2021 and 2022, which
dropped some of them: the share `attention` of a fused kernel, which is not fitted, moves none of their rows. What the
programs of that time did not yet do behind the computation is waited for (`mp_plan::Executor`): messages between stages in
both, reductions over tensor and data ranks in the first.
";

const RANKS: &str = "
## Where the published layouts rank

Searched with what each paper had: its recompute and its cut of the sequence, no ZeRO, 1F1B with or without chunks; any
degrees and micro-batch, and up to four chunks, which hold equally many layers each, as the papers' program demands. A rank
counts sets of degrees, each with its best micro-batch and chunks; behind is by how much longer a step takes than with the
best. The plan is for this workspace's engine; the last two columns are rank and distance where messages and reductions are
waited for as the paper's program did.

| model, B | devices | tp · pp · dp | rank | behind (%) | best tp · pp · dp | what grows from the best to the published degrees | as run | behind (%) |
|---:|---:|---|---:|---:|---|---|---:|---:|
";

const LATE: &str = "
As run, these are not among the first five:

| model, B | tp · pp · dp | before it | what grows from the best to the published degrees |
|---:|---|---|---|
";

const REASON: &str = "
What is before them has fewer tensor ranks, or as many and more stages: a program that waits for every collective of a
tensor group, and again where layers are computed again, gains more by smaller groups than it loses to the bubble and the
data ranks. The authors did not search: by their rule (§3.2) tensor ranks come first, up to the devices of a node, and
stages only then. Up to the worst error of their table, a distance is within that of the model; beyond it the model says that
fewer tensor ranks would have been faster, which no published run shows or refutes.
";

/// Lists the fitted constants.
fn constants() -> Result<String> {
    let (a100, h100) = (Cluster::preset("a100-80")?.efficiency, Cluster::preset("h100")?.efficiency);
    let lines = [
        ("matrix", a100.matrix.to_string(), h100.matrix.to_string()),
        ("matrix_half", a100.matrix_half.to_string(), h100.matrix_half.to_string()),
        ("attention", a100.attention.to_string(), h100.attention.to_string()),
        ("memory", a100.memory.to_string(), h100.memory.to_string()),
        ("node", a100.node.to_string(), h100.node.to_string()),
        ("network", a100.network.to_string(), h100.network.to_string()),
        ("launch", format!("{:.0e}", a100.launch), format!("{:.0e}", h100.launch)),
    ];
    let mut text = String::from("\n| `efficiency.` | a100-80 | h100 |\n|---|---:|---:|\n");
    for (name, a100, h100) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| `{name}` | {a100} | {h100} |");
    }
    Ok(text)
}

/// Predicts the rows of a source.
fn section(source: Source, name: &str, unit: &str) -> Result<String> {
    let mut text = format!(
        "\n## {name}\n\n| model, B | devices | tp · pp · dp | micro | chunks | measured ({unit}) | predicted | off by |\n\
         |---:|---:|---|---:|---:|---:|---:|---:|\n"
    );
    let mut errors = Vec::new();
    for row in rows().into_iter().filter(|row| row.source == source) {
        let time = predict(&row)?;
        let ((measured, predicted), error) = (compared(&row, &time), row.error(&time));
        errors.push(error.abs());
        let digits = if matches!(row.measured, Measured::Seconds(_)) { 2 } else { 1 };
        let Candidate { tp, pp, dp, micro_batch, chunks, .. } = row.candidate();
        let _ = writeln!(
            text,
            "| {} | {} | {tp} · {pp} · {dp} | {micro_batch} | {chunks} | {measured:.digits$} | {predicted:.digits$} | {:+.1} % |",
            row.billions,
            row.devices,
            100.0 * error,
        );
    }
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    let worst = errors.iter().copied().fold(0.0, f64::max);
    let _ = writeln!(text, "\nOff by {:.1} % on average and {:.1} % at worst.", 100.0 * mean, 100.0 * worst);
    Ok(text)
}

fn predict(row: &Row) -> Result<StepTime> {
    let (job, cluster) = (row.job()?, row.cluster()?);
    let estimate = Estimator::new(&job, &cluster, &Analytic::new(&cluster)).estimate(&row.candidate())?;
    Ok(estimate.time.expect("the presets of devices know their peak"))
}

/// Returns what was measured and the same as predicted, in the table's unit.
fn compared(row: &Row, time: &StepTime) -> (f64, f64) {
    match row.measured {
        Measured::HardwareFlops(flops) => (flops / 1e12, time.hardware_flops / 1e12),
        Measured::Utilisation(share) => (100.0 * share, 100.0 * time.mfu),
        Measured::Seconds(seconds) => (seconds, time.seconds),
    }
}

/// A published layout among all.
struct Place {
    /// How many sets of degrees are better; `None` beyond those that were ranked.
    better: Option<usize>,
    /// What its degrees take more than the best, in parts of it.
    behind: Option<f64>,
    /// The degrees of those that are better, best first.
    before: Vec<String>,
    /// What grows from the best to it.
    reason: String,
}

impl Place {
    fn of(row: &Row, best: &[Estimate]) -> Self {
        let degrees = row.candidate().degrees();
        let better = best.iter().position(|layout| layout.candidate.degrees() == degrees);
        let own = better.map(|place| &best[place]);
        let seconds = |estimate: &Estimate| estimate.time.map_or(f64::NAN, |time| time.seconds);
        let before = &best[..better.unwrap_or(best.len())];
        let best = &best[0];
        Self {
            better,
            behind: own.map(|own| seconds(own) / seconds(best) - 1.0),
            before: before.iter().map(|layout| words(&layout.candidate)).collect(),
            reason: own.filter(|_| better > Some(0)).map_or(String::new(), |own| why(best, own)),
        }
    }

    /// Returns rank and distance as the table has them.
    fn numbers(&self) -> [String; 2] {
        let rank = self.better.map_or(format!("> {RANKED}"), |better| (better + 1).to_string());
        [rank, self.behind.map_or(String::new(), |behind| format!("{:.1}", 100.0 * behind))]
    }
}

fn words(candidate: &Candidate) -> String {
    format!("{} · {} · {}", candidate.tp, candidate.pp, candidate.dp)
}

/// Ranks the published degrees among all.
fn ranks() -> Result<String> {
    let (mut text, mut late) = (String::new(), String::new());
    for row in rows().into_iter().filter(|row| matches!(row.source, Source::Narayanan | Source::Korthikanti)) {
        let planned = row.best(Executor::ENGINE, RANKED)?;
        let (own, best) = (Place::of(&row, &planned), words(&planned[0].candidate));
        let run = Place::of(&row, &row.best(row.job()?.executor, RANKED)?);
        let (billions, devices, degrees) = (row.billions, row.devices, words(&row.candidate()));
        let ([rank, behind], [rank_run, behind_run]) = (own.numbers(), run.numbers());
        let _ = writeln!(
            text,
            "| {billions} | {devices} | {degrees} | {rank} | {behind} | {best} | {} | {rank_run} | {behind_run} |",
            own.reason
        );
        if run.better.is_none_or(|better| better >= NEAR) {
            let _ = writeln!(late, "| {billions} | {degrees} | {} | {} |", run.before.join(", "), run.reason);
        }
    }
    if !late.is_empty() {
        text += &format!("{LATE}{late}{REASON}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_is_what_is_printed() {
        let page = include_str!("../../../docs/results/planner.md");
        assert!(super::report().unwrap() == page, "docs/results/planner.md is of another time; see the example's head");
    }
}
