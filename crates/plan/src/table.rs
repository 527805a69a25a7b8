//! A plan as text: the parameters, columns as wide as their widest cell; what single ranks hold; then the sums.

mod ranks;

use std::fmt::Write;

use crate::words::{aligned, counted, grouped, span};
use crate::{plan::PlannedWork, Axis, ContextForm, Plan, PlannedParameter, RecomputeName, Traffic, Zero};

/// With more tensor ranks than this, the middle ones are left out.
const MOST_RANKS: usize = 4;

const HEADER: [&str; 5] = ["name", "shape", "dim", "range of each tensor rank", "bytes/rank"];
/// The columns that are words.
const NAME: usize = 0;
const RANGES: usize = 3;

/// Writes the table of a plan.
pub(crate) fn table(plan: &Plan) -> String {
    let head = HEADER.map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(shown(plan).into_iter().map(row)).collect();
    let mut text = aligned(&rows, &[NAME, RANGES]);
    if plan.mesh.degree(Axis::Tp) > MOST_RANKS {
        text += &ranks::tensor(plan);
    }
    text += &ranks::pipeline(plan);
    write_sums(&mut text, plan);
    text
}

/// Lists the parameters to show, with their names: where all layers are alike, `layers.*` stands for each of them.
fn shown(plan: &Plan) -> Vec<(String, &PlannedParameter)> {
    let inside = |parameter: &PlannedParameter| -> Option<(String, String)> {
        let (layer, inside) = parameter.name.strip_prefix("layers.")?.split_once('.')?;
        Some((layer.to_owned(), inside.to_owned()))
    };
    let mut all: Vec<(String, &PlannedParameter)> = Vec::new();
    for parameter in &plan.parameters {
        match inside(parameter) {
            Some((_, inside)) if plan.architecture.layers > 1 => {
                let name = format!("layers.*.{inside}");
                let alike = |(known, other): &(String, &PlannedParameter)| {
                    *known == name && other.shape == parameter.shape && other.ranges == parameter.ranges
                };
                if !all.iter().any(alike) {
                    all.push((name, parameter));
                }
            }
            _ => all.push((parameter.name.clone(), parameter)),
        }
    }
    all
}

fn row((name, parameter): (String, &PlannedParameter)) -> Vec<String> {
    let PlannedParameter { shape, dim, bytes, .. } = parameter;
    let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
    let dim = dim.map_or("-".to_owned(), |dim| dim.to_string());
    vec![name, shape.join("×"), dim, ranges(parameter), grouped(*bytes)]
}

/// Writes `0–9 10–19 … 90–99`, with how often each element is held where it is more than once.
fn ranges(parameter: &PlannedParameter) -> String {
    let word = |&[start, end]: &[usize; 2]| span(&(start..end));
    let words: Vec<String> = match parameter.ranges.as_slice() {
        [] => return "whole".to_owned(),
        [first, second, .., last] if parameter.ranges.len() > MOST_RANKS => {
            vec![word(first), word(second), "…".to_owned(), word(last)]
        }
        all => all.iter().map(word).collect(),
    };
    match parameter.replicas {
        1 => words.join(" "),
        replicas => format!("{} (each on {replicas})", words.join(" ")),
    }
}

fn write_sums(text: &mut String, plan: &Plan) {
    let bytes = &plan.rank_bytes;
    let ranks = plan.mesh.size();
    let mut parts = format!("parameters {}, gradients {}", grouped(bytes.parameters), grouped(bytes.gradients));
    for (name, part) in [("master weights", bytes.master), ("moments", bytes.moments)] {
        if part > 0 {
            let _ = write!(parts, ", {name} {}", grouped(part));
        }
    }
    let _ = writeln!(text, "\nmesh            {} on {}", plan.mesh, counted(ranks, "rank"));
    let _ = writeln!(text, "vocabulary      {} padded to {}", plan.architecture.vocab, plan.vocab_padded);
    let _ = writeln!(text, "elements        {}, {}", grouped(plan.elements), held(plan));
    if plan.zero > Zero::Replicated {
        let _ = writeln!(text, "shared out      by the data ranks, ZeRO stage {}: {}", plan.zero, shared(plan));
    }
    // Where their memory was counted they have a table.
    let untold = if plan.memory.is_empty() { plan.stages.as_slice() } else { &[] };
    for stages in untold {
        let layers: Vec<String> = stages.layers.iter().map(|&[start, end]| span(&(start..end))).collect();
        let (elements, bytes) = (grouped(stages.elements), grouped(stages.bytes.total()));
        let _ = writeln!(
            text,
            "pp rank {:<7} layers {}: {elements} elements, {bytes} bytes",
            stages.rank,
            layers.join(" ")
        );
    }
    if let Some(work) = &plan.work {
        let _ = writeln!(text, "work of a step  {}", words(plan, work));
        let _ = writeln!(text, "sent in a step  {}", sent(&work.traffic));
    }
    if let Some(schedule) = plan.schedule {
        let _ = writeln!(text, "schedule        {schedule}; the largest rank follows");
    }
    let _ = writeln!(text, "bytes per rank  {} ({parts})", grouped(bytes.total()));
}

/// Says how many elements ranks multiply by: the same everywhere but for stages.
fn held(plan: &Plan) -> String {
    let counts = plan.stages.iter().map(|stages| stages.elements);
    match (counts.clone().min(), counts.max()) {
        (Some(least), Some(most)) if least < most => format!("{} to {} on a rank", grouped(least), grouped(most)),
        _ => format!("{} on each rank", grouped(plan.rank_elements)),
    }
}

/// Says what of it each data rank keeps a part of.
fn shared(plan: &Plan) -> String {
    let what = match plan.zero {
        Zero::Replicated => "nothing",
        Zero::Optimizer => "optimizer state",
        Zero::Gradients => "optimizer state and gradients",
        Zero::Parameters => "optimizer state, gradients and parameters",
    };
    let parts = plan.mesh.degree(Axis::Dp) * plan.mesh.degree(Axis::Cp);
    format!("each keeps 1/{parts} of {what}")
}

/// Says in which pieces and order a step is done, and what is done twice.
fn words(plan: &Plan, work: &PlannedWork) -> String {
    let mut words =
        vec![format!("{} of {}", counted(work.micro_batches, "micro-batch"), counted(work.micro_batch, "sequence"))];
    if plan.mesh.degree(Axis::Pp) > 1 {
        words.push(format!("{} over {} of each rank", work.schedule, counted(work.chunks, "stage")));
    }
    if work.sequence_parallel {
        words.push("activations cut along the sequence".to_owned());
    }
    match (plan.mesh.degree(Axis::Cp), work.context) {
        (1, _) => {}
        (_, ContextForm::Ring) => words.push("keys and values around a ring".to_owned()),
        (_, ContextForm::AllToAll) => words.push("positions exchanged for heads".to_owned()),
    }
    match (work.recompute, work.recompute_every) {
        (RecomputeName::None, _) => words.push("nothing computed again".to_owned()),
        (RecomputeName::Selective, _) => words.push("the attention's core computed again".to_owned()),
        (RecomputeName::Full, 0 | 1) => words.push("every layer computed again".to_owned()),
        (RecomputeName::Full, every) => words.push(format!("one layer in {every} computed again")),
    }
    words.join(", ")
}

/// Says what a rank hands over, by group, and where ranks of the pipeline differ the most that one does.
fn sent(traffic: &[Traffic]) -> String {
    let largest = |of: fn(&Traffic) -> u64| traffic.iter().map(of).max().unwrap_or(0);
    let groups = [
        ("tp", largest(|traffic| traffic.tp)),
        ("cp", largest(|traffic| traffic.cp)),
        ("data", largest(|traffic| traffic.data)),
        ("pp", largest(|traffic| traffic.pp)),
        ("ends", largest(|traffic| traffic.ends)),
    ];
    let named = groups.into_iter().filter(|(_, bytes)| *bytes > 0);
    let words: Vec<String> = named.map(|(name, bytes)| format!("{name} {} bytes", grouped(bytes as usize))).collect();
    match (words.is_empty(), traffic.len()) {
        (true, _) => "nothing: there is one rank".to_owned(),
        (false, 1) => format!("{} by a rank", words.join(", ")),
        (false, _) => format!("{} by a rank at most", words.join(", ")),
    }
}
