//! What single ranks hold: a table of the ranks of the pipeline, with their layers and bytes by component, and one of the tensor
//! ranks, with their rows or columns of every matrix. A rank of the world is one of each.

use crate::words::{aligned, grouped, span, Unit};
use crate::{Axis, Plan, PlannedParameter, RankMemory};

/// Writes the table of the ranks of the pipeline, where their memory was counted.
pub(super) fn pipeline(plan: &Plan) -> String {
    let Some(fullest) = plan.memory.iter().map(RankMemory::total).max() else { return String::new() };
    let unit = Unit::of(fullest);
    let each = plan.mesh.size() / plan.memory.len();
    let mut rows = vec![["pp", "ranks", "layers", "elements"].map(str::to_owned).to_vec()];
    rows[0].extend(RankMemory::NAMES.into_iter().chain(["total"]).map(str::to_owned));
    for (rank, memory) in plan.memory.iter().enumerate() {
        let (layers, elements) = match plan.stages.get(rank) {
            Some(stages) => (stages.layers.clone(), stages.elements),
            None => (vec![[0, plan.architecture.layers]], plan.rank_elements),
        };
        let layers: Vec<String> = layers.iter().map(range).collect();
        let ranks = range(&[rank * each, (rank + 1) * each]);
        let mut row = vec![rank.to_string(), ranks, layers.join(" "), grouped(elements)];
        row.extend(memory.parts().into_iter().chain([memory.total()]).map(|part| format!("{:.2}", unit.count(part))));
        rows.push(row);
    }
    format!("\neach rank of the pipeline, in {}:\n{}", unit.name(), indented(&rows))
}

/// Writes the table of the tensor ranks: a column for each set of matrices that are cut alike.
pub(super) fn tensor(plan: &Plan) -> String {
    let mut columns: Vec<(Vec<String>, &PlannedParameter)> = Vec::new();
    for parameter in plan.parameters.iter().filter(|parameter| !parameter.ranges.is_empty()) {
        let name = short(&parameter.name);
        let alike = |(_, other): &&mut (Vec<String>, &PlannedParameter)| {
            other.ranges == parameter.ranges && other.dim == parameter.dim
        };
        match columns.iter_mut().find(alike) {
            Some((names, _)) if names.contains(&name) => {}
            Some((names, _)) => names.push(name),
            None => columns.push((vec![name], parameter)),
        }
    }
    let mut rows = vec![vec!["tp".to_owned()]];
    for (names, parameter) in &columns {
        let what = if parameter.dim == Some(0) { "rows" } else { "columns" };
        rows[0].push(format!("{} {what}", names.join(", ")));
    }
    for rank in 0..plan.mesh.degree(Axis::Tp) {
        let ranges = columns.iter().map(|(_, parameter)| range(&parameter.ranges[rank]));
        rows.push(std::iter::once(rank.to_string()).chain(ranges).collect());
    }
    format!("\neach tensor rank's rows or columns; every other axis repeats them:\n{}", indented(&rows))
}

/// Writes a range of the plan with its last value.
fn range(&[start, end]: &[usize; 2]) -> String {
    span(&(start..end))
}

/// Writes rows to the right of a margin.
fn indented(rows: &[Vec<String>]) -> String {
    aligned(rows, &[]).lines().map(|line| format!("  {line}\n")).collect()
}

/// Shortens `layers.3.attention.query.weight` to `query`, and `embedding.weight` to `embedding`.
fn short(name: &str) -> String {
    let path = name.rsplit_once('.').map_or(name, |(path, _)| path);
    path.rsplit('.').next().unwrap_or(path).to_owned()
}
