//! The map of the matrices: each with its shape and the rows or columns of every tensor rank, and the layers of every stage.

use super::{
    parts::{paragraph, wide, Table},
    rows::shown,
    svg::{Anchor, Svg},
};
use crate::words::{runs, span};
use crate::{Axis, Plan, PlannedParameter, Stages};

/// The longest side of a matrix, and the shortest that is still seen.
const LONGEST: f64 = 148.0;
const SHORTEST: f64 = 4.0;
/// The most slices that are drawn apart.
const MOST_SLICES: usize = 64;

/// Writes the section's pictures and tables.
pub(super) fn html(plan: &Plan, stages: &Stages) -> String {
    let distinct = distinct(plan);
    let matrices: Vec<&Distinct<'_>> = distinct.iter().filter(|one| one.parameter.shape.len() == 2).collect();
    let side = |layer: bool| {
        let alike = matrices.iter().filter(|one| one.layer == layer);
        alike.flat_map(|one| one.parameter.shape.iter().copied()).max().unwrap_or(1) as f64
    };
    let (inside, outside) = (side(true), side(false));
    let tp = plan.mesh.degree(Axis::Tp);
    let mut text = paragraph(
        "Matrices are stored as [out, in]: rows from top to bottom, columns from left to right. Those of a layer are drawn to one \
         scale, those outside to another. The strong part is that of tensor rank 0.",
    );
    text += "<div class=\"matrices\">\n";
    for (index, one) in matrices.iter().enumerate() {
        text += &figure(index, one, tp, LONGEST / if one.layer { inside } else { outside });
    }
    text += "</div>\n";
    text += &table(&distinct, tp);
    text += "<h3>Layers of each stage</h3>\n";
    text += &wide(&strip(stages), "layers of each stage");
    text + &ranks(plan, stages)
}

/// A parameter, as it is in every layer or outside.
struct Distinct<'a> {
    name: String,
    parameter: &'a PlannedParameter,
    layer: bool,
}

/// Lists the parameters of one layer and those outside, in order.
fn distinct<'a>(plan: &'a Plan) -> Vec<Distinct<'a>> {
    let of = |parameter: &'a PlannedParameter| {
        let PlannedParameter { name, .. } = parameter;
        match name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
            Some(("0", inside)) => Some(Distinct { name: inside.to_owned(), parameter, layer: true }),
            Some(_) => None,
            None => Some(Distinct { name: name.clone(), parameter, layer: false }),
        }
    };
    plan.parameters.iter().filter_map(of).collect()
}

/// Names the dim that is cut.
fn cut(parameter: &PlannedParameter) -> &'static str {
    match parameter.dim {
        None => "whole on every tensor rank",
        Some(0) => "rows",
        Some(_) => "columns",
    }
}

fn shape(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ")
}

fn figure(index: usize, one: &Distinct<'_>, tp: usize, scale: f64) -> String {
    let parameter = one.parameter;
    let (rows, columns) = (parameter.shape[0] as f64, parameter.shape[1] as f64);
    let (width, height) = ((columns * scale).max(SHORTEST), (rows * scale).max(SHORTEST));
    let caption = format!("{} [{}], {}", one.name, shape(&parameter.shape), cut(parameter));
    let mut svg =
        Svg::new(&format!("a{index}"), [width + 2.0, height + 2.0], &caption, "The slices of the tensor ranks.");
    match parameter.dim {
        None => svg.rect("whole", [1.0, 1.0, width, height], &format!("all of it on each of {tp} tensor ranks")),
        Some(dim) => slices(&mut svg, parameter, dim, [width, height]),
    }
    svg.rect("frame", [1.0, 1.0, width, height], "");
    let picture = svg.finish().replacen("<svg ", &format!("<svg style=\"width:{}px\" ", (width + 2.0).ceil()), 1);
    format!(
        "<figure>\n{picture}<figcaption><b>{}</b><br />{}<br />{}</figcaption>\n</figure>\n",
        super::svg::escape(&one.name),
        shape(&parameter.shape),
        cut(parameter)
    )
}

/// Draws the slices along `dim`; ranks that hold the same are one slice.
fn slices(svg: &mut Svg, parameter: &PlannedParameter, dim: usize, [width, height]: [f64; 2]) {
    let groups = runs(&parameter.ranges);
    // Of very many slices several are one stripe.
    let stripe = groups.len().div_ceil(MOST_SLICES);
    let length = parameter.shape[dim].max(1) as f64;
    let what = cut(parameter);
    for (index, stripes) in groups.chunks(stripe).enumerate() {
        let (first, last) = (&stripes[0], &stripes[stripes.len() - 1]);
        let [start, end] = [parameter.ranges[first.start][0], parameter.ranges[last.start][1]];
        let (from, to) = (start as f64 / length, end as f64 / length);
        let ranks = span(&(first.start..last.end));
        let class = match index {
            0 => "own",
            odd if odd % 2 == 1 => "odd",
            _ => "even",
        };
        let place = match dim {
            0 => [1.0, 1.0 + from * height, width, (to - from) * height],
            _ => [1.0 + from * width, 1.0, (to - from) * width, height],
        };
        svg.rect(class, place, &format!("tensor rank {ranks}: {what} {start} to {end}"));
        if place[3] >= 11.0 && place[2] >= 6.5 * ranks.chars().count() as f64 + 3.0 {
            let middle = [place[0] + place[2] / 2.0, place[1] + place[3] / 2.0 + 3.5];
            svg.text(if index == 0 { "inside" } else { "small" }, middle, Anchor::Middle, ranks);
        }
    }
}

/// Writes `0–31, 32–63, … 224–255`.
fn ranges(parameter: &PlannedParameter) -> String {
    let word = |range: &[usize; 2]| span(&(range[0]..range[1]));
    let words = match parameter.ranges.as_slice() {
        [] => "all".to_owned(),
        [first, second, .., last] if parameter.ranges.len() > 4 => {
            format!("{}, {}, … {}", word(first), word(second), word(last))
        }
        all => all.iter().map(word).collect::<Vec<_>>().join(", "),
    };
    match parameter.replicas {
        many if many > 1 && parameter.dim.is_some() => format!("{words} (each on {many})"),
        _ => words,
    }
}

fn table(distinct: &[Distinct<'_>], tp: usize) -> String {
    let caption = format!("Parameters of a layer and outside, over {tp} tensor ranks");
    let mut table = Table::new(&caption, ["parameter", "in", "shape", "cut", "of each tensor rank", "each holds"]);
    for one in distinct {
        let parameter = one.parameter;
        table.row(vec![
            one.name.clone(),
            if one.layer { "each layer" } else { "the model" }.to_owned(),
            shape(&parameter.shape),
            parameter.dim.map_or("-", |_| cut(parameter)).to_owned(),
            ranges(parameter),
            shape(&parameter.local_shape),
        ]);
    }
    table.html()
}

/// Draws which layers the stages have: a row a rank, a place along it for each layer.
fn strip(stages: &Stages) -> String {
    const LEFT: f64 = 62.0;
    const WIDTH: f64 = 560.0;
    const ROW: f64 = 18.0;
    let ranks: Vec<usize> = shown(stages.pp()).into_iter().flatten().collect();
    let bottom = 4.0 + ROW * ranks.len() as f64;
    let mut svg = Svg::new(
        "layers",
        [WIDTH, bottom + 20.0],
        "Layers of each stage",
        "One row a rank of the pipeline, layers from left to right; the table below has the numbers.",
    );
    let width = (WIDTH - LEFT - 6.0) / stages.total().max(1) as f64;
    for (place, &rank) in ranks.iter().enumerate() {
        let y = 4.0 + ROW * place as f64;
        svg.text("strong", [2.0, y + 12.0], Anchor::Start, format!("pp {rank}"));
        svg.rect("empty", [LEFT, y + 1.0, width * stages.total() as f64, ROW - 3.0], "");
        for (chunk, layers) in stages.rank_layers(rank).iter().enumerate() {
            let stage = stages.stage_of(rank, chunk);
            let ends = match (stages.is_first(stage), stages.is_last(stage)) {
                (true, true) => ", embedding and head",
                (true, false) => ", embedding",
                (false, true) => ", head",
                (false, false) => "",
            };
            let words = span(layers);
            let area = [LEFT + width * layers.start as f64, y + 1.0, width * layers.len() as f64, ROW - 3.0];
            svg.rect("own", area, &format!("pp {rank}, stage {stage}: layers {words}{ends}"));
            if area[2] > 6.5 * words.chars().count() as f64 + 3.0 {
                svg.text("inside", [area[0] + area[2] / 2.0, y + 12.0], Anchor::Middle, words);
            }
        }
    }
    svg.text("small", [LEFT, bottom + 13.0], Anchor::Start, "layer 0");
    svg.text("small", [WIDTH - 6.0, bottom + 13.0], Anchor::End, stages.total().saturating_sub(1));
    svg.finish()
}

/// Says what each rank of the pipeline holds, and which ranks of the world those are.
fn ranks(plan: &Plan, stages: &Stages) -> String {
    let each = plan.mesh.size() / stages.pp().max(1);
    let mut table = Table::new("What each rank of the pipeline holds", ["pp rank", "ranks", "layers", "and"]);
    let ends = |rank: usize| {
        let first = stages.rank_of(0) == rank;
        let last = stages.rank_of(stages.count() - 1) == rank;
        [("embedding", first), ("head", last)].into_iter().filter(|(_, there)| *there).map(|(name, _)| name)
    };
    for rank in shown(stages.pp()).into_iter().flatten() {
        let layers: Vec<String> = stages.rank_layers(rank).iter().map(span).collect();
        let ends: Vec<&str> = ends(rank).collect();
        table.row(vec![
            rank.to_string(),
            span(&(rank * each..(rank + 1) * each)),
            layers.join(", "),
            if ends.is_empty() { "-".to_owned() } else { ends.join(", ") },
        ]);
    }
    table.html()
}
