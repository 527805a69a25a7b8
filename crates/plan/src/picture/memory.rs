//! What ranks of a pipeline keep, as bars by component, with the line that none may pass.

use super::{
    axis,
    parts::{legend, paragraph, Table},
    svg::{Anchor, Svg},
    COMPONENTS,
};
use crate::words::{runs, span, Unit};
use crate::RankMemory;

const WIDTH: f64 = 480.0;
/// Where bars begin and end.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 404.0;
const TOP: f64 = 26.0;
const ROW: f64 = 24.0;
const BAR: f64 = 17.0;
/// The most bars: beyond, the first, the last and the fullest.
const MOST_BARS: usize = 48;
/// A limit so many times the fullest rank is said, not drawn: bars would vanish beside it.
const FAR: f64 = 6.0;

/// By component.
const CLASSES: [&str; COMPONENTS] = ["m1", "m2", "m3", "m4", "m8", "m5", "m6", "m7"];

/// Writes the section's picture and table.
pub(super) fn html(memory: &[RankMemory], limit: Option<usize>, counted: &[bool; COMPONENTS]) -> String {
    let mut bars = runs(memory);
    let all = bars.len();
    if all > MOST_BARS {
        let fullest = (0..all).max_by_key(|&run| memory[bars[run].start].total()).unwrap_or(0);
        let keep = |run: &usize| *run < MOST_BARS / 2 || *run > all - MOST_BARS / 2 || *run == fullest;
        bars = (0..all).filter(keep).map(|run| bars[run].clone()).collect();
    }
    let largest = memory.iter().map(RankMemory::total).max().unwrap_or(0);
    let unit = Unit::of(largest);
    let scale = Scale::new(largest, limit);
    let mut text = String::new();
    let names: Vec<(&str, &str)> = CLASSES.into_iter().zip(RankMemory::NAMES).collect();
    let keys: Vec<(&str, &str)> =
        names.iter().zip(counted).filter(|(_, counted)| **counted).map(|(key, _)| *key).collect();
    text += &picture(memory, &bars, &scale, unit);
    text += &legend(&keys);
    text += &match limit {
        Some(limit) if scale.limit.is_none() => paragraph(&format!(
            "The limit of {:.1} {} lies far to the right of this picture.",
            unit.count(limit),
            unit.name()
        )),
        _ => String::new(),
    };
    if bars.len() < all {
        text += &paragraph(&format!("{} of {all} bars are shown, the fullest among them.", bars.len()));
    }
    text + &table(memory, &bars, limit, unit, counted)
}

/// From bytes to places.
struct Scale {
    bytes: f64,
    /// The limit, where it is drawn.
    limit: Option<usize>,
}

impl Scale {
    fn new(largest: usize, limit: Option<usize>) -> Self {
        let limit = limit.filter(|&limit| (limit as f64) < FAR * largest.max(1) as f64);
        Self { bytes: 1.02 * largest.max(limit.unwrap_or(0)).max(1) as f64, limit }
    }

    fn width(&self, bytes: usize) -> f64 {
        bytes as f64 / self.bytes * (RIGHT - LEFT)
    }
}

fn picture(memory: &[RankMemory], bars: &[std::ops::Range<usize>], scale: &Scale, unit: Unit) -> String {
    let bottom = TOP + ROW * bars.len() as f64;
    let description = "One bar a rank of the pipeline, by component; the table below has the numbers.";
    let mut svg = Svg::new("memory", [WIDTH, bottom + 34.0], "Memory of each rank", description);
    let ticks = axis::ticks(scale.bytes / unit.bytes(), 5);
    for (&tick, label) in ticks.iter().zip(axis::labels(&ticks)) {
        let x = LEFT + tick * unit.bytes() / scale.bytes * (RIGHT - LEFT);
        svg.line("grid", [x, TOP - 2.0], [x, bottom]);
        svg.text("small", [x, bottom + 13.0], Anchor::Middle, label);
    }
    svg.text("small", [RIGHT, bottom + 28.0], Anchor::End, unit.name());
    svg.text("small", [LEFT - 8.0, TOP - 10.0], Anchor::End, "pp rank");
    for (row, ranks) in bars.iter().enumerate() {
        let y = TOP + ROW * row as f64 + (ROW - BAR) / 2.0;
        let kept = &memory[ranks.start];
        let mut x = LEFT;
        for ((part, class), name) in kept.parts().into_iter().zip(CLASSES).zip(RankMemory::NAMES) {
            if part > 0 {
                let title = format!("pp rank {}: {name} {:.2} {}", span(ranks), unit.count(part), unit.name());
                svg.rect(class, [x, y, scale.width(part), BAR], &title);
                x += scale.width(part);
            }
        }
        svg.text("label", [LEFT - 8.0, y + 13.0], Anchor::End, span(ranks));
        let total = format!("{:.1} {}", unit.count(kept.total()), unit.name());
        svg.text("label", [WIDTH - 2.0, y + 13.0], Anchor::End, total);
    }
    if let Some(limit) = scale.limit {
        let x = LEFT + scale.width(limit);
        svg.line("limit", [x, TOP - 6.0], [x, bottom]);
        let words = format!("limit {:.1} {}", unit.count(limit), unit.name());
        // Short of the edge, whichever side the line stands on.
        let anchor = if x > (LEFT + RIGHT) / 2.0 { Anchor::End } else { Anchor::Start };
        svg.text("strong", [x, TOP - 10.0], anchor, words);
    }
    svg.finish()
}

fn table(
    memory: &[RankMemory],
    bars: &[std::ops::Range<usize>],
    limit: Option<usize>,
    unit: Unit,
    counted: &[bool; COMPONENTS],
) -> String {
    let mut table = Table::new(&format!("{} of each rank of the pipeline", unit.name()), ["pp rank"]);
    for (name, _) in RankMemory::NAMES.iter().zip(counted).filter(|(_, counted)| **counted) {
        table.column(name);
    }
    table.column("total");
    if limit.is_some() {
        table.column("left");
    }
    for ranks in bars {
        let kept = &memory[ranks.start];
        let parts = kept.parts().into_iter().zip(counted).filter(|(_, counted)| **counted).map(|(part, _)| part);
        let mut cells = vec![span(ranks)];
        cells.extend(parts.chain([kept.total()]).map(|bytes| format!("{:.2}", unit.count(bytes))));
        if let Some(limit) = limit {
            cells.push(match limit.checked_sub(kept.total()) {
                Some(left) => format!("{:.2}", unit.count(left)),
                None => format!("−{:.2}", unit.count(kept.total() - limit)),
            });
        }
        table.row(cells);
    }
    table.html()
}
