//! A timeline of too many blocks, in columns: what shares of a time each rank spends on what.

use super::{Frame, CLASSES, GAP, LEFT, RIGHT, TOP};
use crate::{picture::svg::Anchor, ActivityKind};

/// The height of a rank's row.
const ROW: f64 = 26.0;
/// The most columns of all rows, and the fewest and the most of one.
const MOST: usize = 5_000;
const FEWEST: usize = 32;
const MOST_OF_ROW: usize = 300;
/// So many blocks in a column at least: with fewer, columns flicker as blocks fall into one or the next.
const BLOCKS: usize = 8;

/// Draws a row a rank.
pub(super) fn picture(frame: &Frame<'_>) -> String {
    let mut svg = frame.open("timeline", "A step, in columns", ROW);
    let rows = frame.ranks.len().max(1);
    let count = (frame.blocks() / rows / BLOCKS).min(MOST / rows).clamp(FEWEST, MOST_OF_ROW);
    let width = (RIGHT - LEFT) / count as f64;
    for (place, &rank) in frame.ranks.iter().enumerate() {
        let y = TOP + (ROW + GAP) * place as f64;
        svg.text("strong", [2.0, y + ROW / 2.0 + 4.0], Anchor::Start, format!("pp {rank}"));
        let shares = shares(frame, rank, count);
        for kind in ActivityKind::ALL {
            let column = |(index, shares): (usize, &[f64; 7])| {
                let under: f64 = shares[kind as usize + 1..].iter().sum();
                let share = shares[kind as usize];
                let top = y + ROW * (1.0 - under - share);
                [LEFT + width * index as f64, top, width, ROW * share]
            };
            let columns: Vec<[f64; 4]> =
                shares.iter().enumerate().filter(|(_, shares)| shares[kind as usize] > 0.0).map(column).collect();
            let all = frame.timeline.spent(rank)[kind as usize] / frame.end;
            let title = format!("pp {rank}: {} {:.1} % of the step", kind.name(), 100.0 * all);
            svg.rects(&format!("{} plain", CLASSES[kind as usize]), &joined(&columns), &title);
        }
    }
    svg.finish()
}

/// Returns what shares of each of `count` columns a rank spends on each kind of activity.
fn shares(frame: &Frame<'_>, rank: usize, count: usize) -> Vec<[f64; 7]> {
    let mut shares = vec![[0.0; 7]; count];
    let scale = count as f64 / frame.end;
    for activity in &frame.timeline.ranks[rank] {
        let (mut from, to) = (activity.start * scale, (activity.end * scale).min(count as f64));
        while from < to {
            let column = (from as usize).min(count - 1);
            let end = to.min((column + 1) as f64);
            shares[column][activity.kind as usize] += end - from;
            from = end;
        }
    }
    shares
}

/// Makes one rectangle of neighbours that lie side by side at one height.
fn joined(columns: &[[f64; 4]]) -> Vec<[f64; 4]> {
    let mut all: Vec<[f64; 4]> = Vec::new();
    for &[x, y, width, height] in columns {
        match all.last_mut() {
            Some(last)
                if (last[0] + last[2] - x).abs() < 1e-6
                    && (last[1] - y).abs() < 0.01
                    && (last[3] - height).abs() < 0.01 =>
            {
                last[2] += width;
            }
            _ => all.push([x, y, width, height]),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_height_are_joined() {
        let columns = [[0.0, 0.0, 1.0, 5.0], [1.0, 0.0, 1.0, 5.0], [2.0, 1.0, 1.0, 4.0], [4.0, 1.0, 1.0, 4.0]];
        assert_eq!(joined(&columns), [[0.0, 0.0, 2.0, 5.0], [2.0, 1.0, 1.0, 4.0], [4.0, 1.0, 1.0, 4.0]]);
    }
}
