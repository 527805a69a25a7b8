//! A step in time: one row a rank of the pipeline, one lane a virtual stage, every computation a block.
//!
//! Where there are too many blocks for a page of bounded size, the step is drawn in columns: each shows by height what shares of
//! its time a rank spends on what, so that areas stay to scale; and beside it the beginning, block by block.

mod columns;

use super::{
    axis,
    parts::{legend, paragraph, wide, Table},
    rows::{note, shown},
    svg::{Anchor, Svg},
    Clock,
};
use crate::words::span;
use crate::{Activity, ActivityKind, StepTimeline};

const WIDTH: f64 = 960.0;
/// Where time begins and ends.
const LEFT: f64 = 96.0;
const RIGHT: f64 = 950.0;
const TOP: f64 = 6.0;
const GAP: f64 = 7.0;
/// The most blocks that are drawn one by one.
const MOST_BLOCKS: usize = 2_000;

/// By kind, in the order of [`ActivityKind::ALL`].
const CLASSES: [&str; 7] = ["forward", "backward", "input", "weight", "wait", "reduce", "update"];

/// Writes the section's pictures and table.
pub(super) fn html(timeline: &StepTimeline, clock: Clock) -> String {
    let ranks: Vec<usize> = shown(timeline.ranks.len()).into_iter().flatten().collect();
    let frame = Frame { timeline, clock, ranks: &ranks, end: timeline.seconds };
    let blocks = frame.blocks();
    let mut text = legend(&frame.keys());
    let lanes = "Each rank has a lane for each of its virtual stages; their layers stand beside them.";
    text += &wide(&frame.whole(), "timeline");
    if blocks <= MOST_BLOCKS {
        text += &paragraph(&format!("{lanes} Numbers in blocks are micro-batches."));
    } else {
        text += &paragraph(&format!(
            "There are {blocks} blocks: too many to draw. A column shows by its height what shares of its time a rank spends on what."
        ));
        let beginning = Frame { end: frame.cut(), ..frame };
        let title = format!("The beginning, up to {}", clock.write(beginning.end));
        text += &format!("<h3>{title}</h3>\n");
        text += &wide(&beginning.picture("beginning", &title), "beginning of the timeline");
        text += &paragraph(&format!("{lanes} Numbers in blocks are micro-batches."));
    }
    text += &note(timeline.ranks.len()).map_or(String::new(), |note| paragraph(&note));
    text + &table(&frame)
}

/// Draws the first picture alone.
pub(super) fn svg(timeline: &StepTimeline, clock: Clock) -> String {
    let ranks: Vec<usize> = shown(timeline.ranks.len()).into_iter().flatten().collect();
    Frame { timeline, clock, ranks: &ranks, end: timeline.seconds }.whole()
}

/// What is drawn of a timeline.
#[derive(Clone, Copy)]
struct Frame<'a> {
    timeline: &'a StepTimeline,
    clock: Clock,
    ranks: &'a [usize],
    /// Up to when.
    end: f64,
}

impl Frame<'_> {
    /// Draws all of it, in blocks if they are not too many.
    fn whole(&self) -> String {
        match self.blocks() {
            few if few <= MOST_BLOCKS => self.picture("timeline", "A step, block by block"),
            _ => columns::picture(self),
        }
    }

    /// Counts the blocks that begin before the end.
    fn blocks(&self) -> usize {
        let of = |&rank: &usize| self.timeline.ranks[rank].partition_point(|activity| activity.start < self.end);
        self.ranks.iter().map(of).sum()
    }

    /// Finds the time before which as many blocks begin as may be drawn.
    fn cut(&self) -> f64 {
        let mut starts: Vec<f64> = self
            .ranks
            .iter()
            .flat_map(|&rank| self.timeline.ranks[rank].iter().map(|activity| activity.start))
            .collect();
        starts.sort_by(f64::total_cmp);
        starts.get(MOST_BLOCKS).copied().unwrap_or(self.end)
    }

    /// Lists the kinds that there are, as classes and names.
    fn keys(&self) -> Vec<(&'static str, &'static str)> {
        let mut there = [false; 7];
        let ranks = self.ranks.iter().flat_map(|&rank| &self.timeline.ranks[rank]);
        ranks.for_each(|activity| there[activity.kind as usize] = true);
        let kinds = ActivityKind::ALL.into_iter().filter(|&kind| there[kind as usize]);
        kinds.map(|kind| (CLASSES[kind as usize], kind.name())).collect()
    }

    fn x(&self, time: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * if self.end > 0.0 { time.min(self.end) / self.end } else { 0.0 }
    }

    fn lane(&self) -> f64 {
        match self.timeline.stages.chunks() {
            1 => 22.0,
            2..=4 => 14.0,
            5..=8 => 10.0,
            _ => 6.0,
        }
    }

    fn row(&self) -> f64 {
        self.lane() * self.timeline.stages.chunks() as f64
    }

    /// Draws rows of blocks.
    fn picture(&self, id: &'static str, title: &str) -> String {
        let mut svg = self.open(id, title, self.row());
        for (place, &rank) in self.ranks.iter().enumerate() {
            let y = TOP + (self.row() + GAP) * place as f64;
            svg.text("strong", [2.0, y + self.row() / 2.0 + 4.0], Anchor::Start, format!("pp {rank}"));
            self.layers(&mut svg, rank, y);
            for activity in self.timeline.ranks[rank].iter().take_while(|activity| activity.start < self.end) {
                self.block(&mut svg, rank, y, activity);
            }
        }
        svg.finish()
    }

    /// Opens a picture of rows so high, with its axis.
    fn open(&self, id: &'static str, title: &str, row: f64) -> Svg {
        let bottom = TOP + (row + GAP) * self.ranks.len() as f64;
        let description = "One row a rank of the pipeline, time from left to right; the table below has the sums.";
        let mut svg = Svg::new(id, [WIDTH, bottom + 34.0], title, description);
        let (unit, name) = self.clock.unit(self.end);
        let ticks = axis::ticks(self.end / unit, 8);
        for (&tick, label) in ticks.iter().zip(axis::labels(&ticks)) {
            let x = self.x(tick * unit);
            svg.line("grid", [x, TOP - 4.0], [x, bottom]);
            svg.text("small", [x, bottom + 13.0], Anchor::Middle, label);
        }
        svg.text("small", [RIGHT, bottom + 28.0], Anchor::End, name);
        svg
    }

    /// Writes the layers of each lane beside it.
    fn layers(&self, svg: &mut Svg, rank: usize, y: f64) {
        if self.lane() < 9.0 {
            return;
        }
        for (chunk, layers) in self.timeline.stages.rank_layers(rank).iter().enumerate() {
            let middle = y + self.lane() * (chunk as f64 + 0.5);
            svg.text("small", [LEFT - 7.0, middle + 3.5], Anchor::End, span(layers));
        }
    }

    fn block(&self, svg: &mut Svg, rank: usize, y: f64, activity: &Activity) {
        let (left, right) = (self.x(activity.start), self.x(activity.end));
        let class = CLASSES[activity.kind as usize];
        let times = format!("{} to {}", self.clock.write(activity.start), self.clock.write(activity.end));
        let Some((chunk, micro_batch)) = activity.computes else {
            let title = format!("pp {rank}, {}: {times}", activity.kind.name());
            svg.rect(class, [left, y, right - left, self.row()], &title);
            return;
        };
        let (top, lane) = (y + self.lane() * chunk as f64, self.lane());
        let stages = &self.timeline.stages;
        let stage = stages.stage_of(rank, chunk);
        let layers = span(&stages.layers(stage));
        let title = format!(
            "pp {rank}, {} of micro-batch {micro_batch}, stage {stage} (layers {layers}): {times}",
            activity.kind.name()
        );
        svg.rect(class, [left, top, right - left, lane], &title);
        let digits = micro_batch.to_string();
        if lane >= 10.0 && right - left > 6.5 * digits.len() as f64 + 2.0 {
            svg.text("inside", [(left + right) / 2.0, top + lane / 2.0 + 3.5], Anchor::Middle, digits);
        }
    }
}

fn table(frame: &Frame<'_>) -> String {
    let timeline = frame.timeline;
    let keys = frame.keys();
    let (unit, name) = frame.clock.unit(timeline.seconds);
    let mut table =
        Table::new(&format!("What each rank of the pipeline does in a step, in {name}"), ["pp rank", "layers"]);
    keys.iter().for_each(|(_, name)| table.column(name));
    table.column("idle");
    // Four digits of all.
    let digits = match timeline.seconds / unit {
        all if all >= 1000.0 => 0,
        all if all >= 100.0 => 1,
        all if all >= 10.0 => 2,
        _ => 3,
    };
    for &rank in frame.ranks {
        let layers: Vec<String> = timeline.stages.rank_layers(rank).iter().map(span).collect();
        let spent = timeline.spent(rank);
        let mut cells = vec![rank.to_string(), layers.join(", ")];
        let kinds = ActivityKind::ALL.into_iter().filter(|kind| keys.iter().any(|(_, name)| *name == kind.name()));
        cells.extend(kinds.map(|kind| format!("{:.digits$}", spent[kind as usize] / unit)));
        let idle = spent[ActivityKind::Wait as usize] / timeline.seconds.max(f64::MIN_POSITIVE);
        cells.push(format!("{:.1} %", 100.0 * idle));
        table.row(cells);
    }
    table.html()
}
