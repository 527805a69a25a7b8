//! What a search has found, as programs read it and as people do.
//!
//! The text says of the best layouts what each takes and keeps, why each beats the next, and what would be faster if it had
//! room.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::words::{aligned, runs, scaled, seconds, size, span, Unit};
use crate::{
    cluster::Room, Architecture, Candidate, Cluster, Estimate, Found, Job, RankMemory, RecomputeName, StepTime, Terms,
};

/// More ranks of a pipeline than this are not shown one by one.
const MOST_RANKS: usize = 8;

/// The best layouts of a model on a machine, as `mp-cli plan --json` writes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranking {
    /// The model.
    pub model: Architecture,
    /// The machine.
    pub cluster: Cluster,
    /// What becomes of a rank's memory there.
    pub room: Room,
    /// The layouts, best first; behind those that fit, those that would be better and do not, and where nothing fits those
    /// that lack least.
    pub layouts: Vec<Ranked>,
}

/// One layout. What has no number without the device's peak is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// The layout, whose keys stand beside these.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Whether every rank has room.
    pub fits: bool,
    /// The time of a step, in seconds.
    pub step_seconds: Option<f64>,
    /// Tokens a second and device.
    pub tokens_per_second_per_device: Option<f64>,
    /// Model FLOPs a second and device, in 10¹².
    pub tflops_per_device: Option<f64>,
    /// The same with what is computed again.
    pub hardware_tflops_per_device: Option<f64>,
    /// Model FLOPs over the device's peak.
    pub mfu: Option<f64>,
    /// The idle share of the pipeline in its passes, as [`StepTime::bubble`].
    pub bubble: Option<f64>,
    /// What the fullest rank keeps.
    pub memory_bytes_per_rank: usize,
    /// The same by component, in bytes.
    pub memory: RankMemory,
    /// The step by what the busiest rank spends it on, in seconds; the parts sum to `step_seconds`.
    pub terms: Option<Terms>,
}

impl Ranked {
    /// Takes the numbers of an estimate.
    pub fn new(estimate: &Estimate) -> Self {
        let number = |of: fn(&StepTime) -> f64| estimate.time.as_ref().map(of);
        Self {
            candidate: estimate.candidate,
            fits: estimate.fits(),
            step_seconds: number(|time| time.seconds),
            tokens_per_second_per_device: number(|time| time.tokens),
            tflops_per_device: number(|time| time.model_flops / 1e12),
            hardware_tflops_per_device: number(|time| time.hardware_flops / 1e12),
            mfu: number(|time| time.mfu),
            bubble: number(|time| time.bubble),
            memory_bytes_per_rank: estimate.largest().total(),
            memory: *estimate.largest(),
            terms: estimate.time.map(|time| time.terms),
        }
    }
}

impl Ranking {
    /// Writes down what a search has found.
    pub fn new(job: &Job, cluster: &Cluster, found: &Found) -> Self {
        Self {
            model: job.architecture.clone(),
            cluster: cluster.clone(),
            room: cluster.room(),
            layouts: found.layouts.iter().chain(&found.misses).map(Ranked::new).collect(),
        }
    }
}

impl Found {
    /// Writes tables for people.
    pub fn table(&self, job: &Job, cluster: &Cluster, ranks: usize) -> String {
        let mut text = head(job, cluster, ranks);
        if self.layouts.is_empty() {
            text += "\nno layout fits; those that lack least:\n\n";
        } else {
            text += "\n";
            text += &rows(&self.layouts, false);
            text += &reasons(&self.layouts);
            text += &self.best();
        }
        if !self.misses.is_empty() {
            if !self.layouts.is_empty() {
                text += "\nwould be faster, and does not fit:\n\n";
            }
            text += &rows(&self.misses, true);
        }
        if self.layouts.iter().chain(&self.misses).any(|layout| layout.time.is_none()) {
            let precision = job.precision.name();
            text += &format!(
                "\ntimes are n/a, and layouts ordered by memory: the machine has no `device.peak.{precision}`, the rate of \
                 products in `train.precision` = \"{precision}\"; state or measure it, or plan for another precision\n"
            );
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n{}", aside(&cluster.room()));
        let _ = writeln!(text, "\n{} layouts considered, {} estimated in full", self.considered, self.estimated);
        text
    }

    /// Shows the best layout in parts: what a step is spent on, and what each rank of the pipeline keeps.
    fn best(&self) -> String {
        let Some(best) = self.layouts.first() else { return String::new() };
        let mut text = String::new();
        if let Some(time) = best.time {
            text += "\nthe best in parts:\n";
            for (name, part) in Terms::NAMES.iter().zip(time.terms.parts()) {
                if part > 0.0 {
                    let _ =
                        writeln!(text, "  {name:<24} {:>10}  {:>5.1} %", seconds(part), 100.0 * part / time.seconds);
                }
            }
        }
        text + &memory(best)
    }
}

/// Says what is planned.
fn head(job: &Job, cluster: &Cluster, ranks: usize) -> String {
    let elements = job.architecture.parameter_count() as f64;
    let precision = job.precision.name();
    format!(
        "{} parameters in {precision}, {} sequences of {} tokens a step, on {ranks} × {} ({} on a node), {} a rank\n",
        scaled(elements),
        job.global_batch,
        job.seq,
        cluster.device.name,
        cluster.node.devices.min(ranks),
        size(cluster.rank_memory()),
    )
}

/// Says what of a rank's memory no layout may fill.
pub(crate) fn aside(room: &Room) -> String {
    let copy = match room.set_aside_bytes {
        0 => String::new(),
        bytes => format!(", {} for the copy that checkpoints are written from", size(bytes)),
    };
    let Room { memory_bytes, reserve_bytes, .. } = *room;
    format!("of a rank's {}, {} are a reserve for gaps and libraries{copy}", size(memory_bytes), size(reserve_bytes))
}

pub(crate) const HEADER: [&str; 15] = [
    "",
    "tp",
    "pp",
    "dp",
    "cp",
    "schedule",
    "micro",
    "zero",
    "recompute",
    "seq",
    "step",
    "tokens/s",
    "MFU",
    "bubble",
    "fullest rank",
];

/// Writes a table of layouts.
fn rows(layouts: &[Estimate], misses: bool) -> String {
    let head = HEADER.map(str::to_owned).to_vec();
    let layouts = layouts.iter().enumerate().map(|(index, layout)| row(index + 1, layout, misses).to_vec());
    aligned(&std::iter::once(head).chain(layouts).collect::<Vec<_>>(), &[])
}

pub(crate) fn row(number: usize, layout: &Estimate, misses: bool) -> [String; 15] {
    let candidate = &layout.candidate;
    let total = layout.largest().total();
    let short = match total.saturating_sub(layout.limit) {
        lacking if misses && lacking > 0 => format!(" ({} too much)", size(lacking)),
        _ => String::new(),
    };
    let time = |of: &dyn Fn(&StepTime) -> String| layout.time.as_ref().map_or("n/a".to_owned(), of);
    [
        number.to_string(),
        candidate.tp.to_string(),
        candidate.pp.to_string(),
        candidate.dp.to_string(),
        candidate.cp.to_string(),
        order(candidate),
        candidate.micro_batch.to_string(),
        candidate.zero.to_string(),
        recompute(candidate),
        if candidate.sequence_parallel { "cut" } else { "-" }.to_owned(),
        time(&|time| seconds(time.seconds)),
        time(&|time| format!("{:.0}", time.tokens)),
        time(&|time| format!("{:.1} %", 100.0 * time.mfu)),
        time(&|time| format!("{:.1} %", 100.0 * time.bubble)),
        size(total) + &short,
    ]
}

pub(crate) fn order(candidate: &Candidate) -> String {
    match (candidate.pp, candidate.chunks) {
        (1, _) => "-".to_owned(),
        (_, 1) => candidate.schedule.to_string(),
        (_, chunks) => format!("{} × {chunks}", candidate.schedule),
    }
}

pub(crate) fn recompute(candidate: &Candidate) -> String {
    match (candidate.recompute, candidate.recompute_every) {
        (RecomputeName::None, _) => "-".to_owned(),
        (RecomputeName::Selective, _) => "selective".to_owned(),
        (RecomputeName::Full, 0 | 1) => "full".to_owned(),
        (RecomputeName::Full, every) => format!("full / {every}"),
    }
}

/// Says why each layout beats the next.
fn reasons(layouts: &[Estimate]) -> String {
    let pairs = layouts.windows(2).enumerate();
    let line = |(index, pair): (usize, &[Estimate])| {
        format!("  {} before {}: {}\n", index + 1, index + 2, why(&pair[0], &pair[1]))
    };
    let lines: String = pairs.map(line).collect();
    if lines.is_empty() {
        lines
    } else {
        format!("\nwhy each beats the next:\n{lines}")
    }
}

/// Says why one layout is before another: the two parts of a step that grow most, and the one that shrinks most.
///
/// # Examples
///
/// ```
/// use mp_plan::{published, ranking::why, Analytic, Estimator};
///
/// let row = published::rows()[0];
/// let (job, cluster) = (row.job()?, row.cluster()?);
/// let costs = Analytic::new(&cluster);
/// let mut estimator = Estimator::new(&job, &cluster, &costs);
/// let own = estimator.estimate(&row.candidate())?;
/// let small = estimator.estimate(&mp_plan::Candidate { micro_batch: 1, ..row.candidate() })?;
/// assert!(why(&own, &small).starts_with("element-wise operations +"));
/// # Ok::<(), mp_plan::Error>(())
/// ```
pub fn why(better: &Estimate, worse: &Estimate) -> String {
    let (Some(one), Some(other)) = (better.time, worse.time) else {
        return format!("keeps {} less", size(worse.largest().total() - better.largest().total()));
    };
    let differences = one.terms.parts().into_iter().zip(other.terms.parts()).map(|(one, other)| other - one);
    let mut named: Vec<(&str, f64)> = Terms::NAMES.into_iter().zip(differences).collect();
    named.sort_by(|a, b| b.1.total_cmp(&a.1));
    // What is less than a ten-thousandth of the step is no reason.
    let counts = |part: &&(&str, f64)| part.1.abs() > 1e-4 * one.seconds;
    let grown = named.iter().take(2).filter(|part| part.1 > 0.0).filter(counts);
    let shrunk = named.last().filter(|part| part.1 < 0.0).into_iter().filter(counts);
    let words: Vec<String> = grown.chain(shrunk).map(|(name, part)| format!("{name} {}", signed(*part))).collect();
    match words.is_empty() {
        true => "as fast, and keeps less".to_owned(),
        false => words.join(", "),
    }
}

/// Shows what the ranks of the pipeline keep, neighbours that keep the same in one line; of many lines the first two, the
/// fullest and the last.
fn memory(layout: &Estimate) -> String {
    let unit = Unit::of(layout.largest().total());
    let mut runs = runs(&layout.memory);
    if runs.len() > MOST_RANKS {
        let last = runs.len() - 1;
        let fullest = (0..runs.len()).max_by_key(|&run| layout.memory[runs[run].start].total()).unwrap_or(0);
        runs = (0..runs.len()).filter(|run| [0, 1, fullest, last].contains(run)).map(|run| runs[run].clone()).collect();
    }
    let mut text = format!("\n{} of each rank of the pipeline:\n  {:<9}", unit.name(), "rank");
    for name in RankMemory::NAMES.into_iter().chain(["total"]) {
        let _ = write!(text, "  {name:>14}");
    }
    for run in runs {
        let _ = write!(text, "\n  {:<9}", span(&run));
        let memory = &layout.memory[run.start];
        for part in memory.parts().into_iter().chain([memory.total()]) {
            let _ = write!(text, "  {:>14.2}", unit.count(part));
        }
    }
    text + "\n"
}

fn signed(difference: f64) -> String {
    let sign = if difference < 0.0 { "−" } else { "+" };
    format!("{sign}{}", seconds(difference.abs()))
}
