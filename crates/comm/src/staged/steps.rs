//! What goes down, through and up in each step of a call: pure arithmetic, in bytes.

use std::ops::Range;

use crate::chunks::{cut, cut_message};

/// Which ways a buffer's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To the host.
    Down,
    /// From the host.
    Up,
    /// To the host, and back.
    Both,
}

/// One step of a call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Step {
    /// Runs of the device's send buffer, with their places in the host's.
    pub(super) down: Vec<(Range<usize>, usize)>,
    /// Length of the host's buffer that is sent; of the only one, where a call has one.
    pub(super) send: usize,
    /// Length of the host's buffer that is received into; 0 where a call has one.
    pub(super) receive: usize,
    /// Places in the host's receive buffer, with their runs of the device's.
    pub(super) up: Vec<(usize, Range<usize>)>,
    /// Elements for and from each rank, in an uneven exchange.
    pub(super) counts: (Vec<usize>, Vec<usize>),
}

fn one(run: Range<usize>, way: Way) -> Step {
    let down = if way == Way::Up { Vec::new() } else { vec![(run.clone(), 0)] };
    let up = if way == Way::Down { Vec::new() } else { vec![(0, run.clone())] };
    Step { down, send: run.len(), up, ..Step::default() }
}

/// One buffer of `len` elements.
pub(super) fn in_place(len: usize, width: usize, chunk: usize, way: Way) -> Vec<Step> {
    cut(len, chunk).map(|run| one(run.start * width..run.end * width, way)).collect()
}

/// A message of `bytes`; one of nothing is one step all the same.
pub(super) fn message(bytes: usize, chunk_bytes: usize, way: Way) -> Vec<Step> {
    cut_message(bytes, chunk_bytes).map(|run| one(run, way)).collect()
}

/// The runs of one step in a buffer of one part a rank, with their places when they are packed.
fn packed(part: usize, size: usize, run: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
    (0..size).map(move |rank| (rank * part + run.start..rank * part + run.end, rank * run.len()))
}

fn runs(part: usize, width: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    cut(part, chunk).map(move |run| run.start * width..run.end * width)
}

/// One part for each rank in, one part out; `part` in elements.
pub(super) fn scatter(part: usize, size: usize, width: usize, chunk: usize) -> Vec<Step> {
    let step = |run: Range<usize>| Step {
        down: packed(part * width, size, run.clone()).collect(),
        send: size * run.len(),
        receive: run.len(),
        up: vec![(0, run)],
        ..Step::default()
    };
    runs(part, width, chunk).map(step).collect()
}

/// One part in, one part of each rank out; `part` in elements.
pub(super) fn gather(part: usize, size: usize, width: usize, chunk: usize) -> Vec<Step> {
    let step = |run: Range<usize>| Step {
        send: run.len(),
        receive: size * run.len(),
        up: packed(part * width, size, run.clone()).map(|(run, at)| (at, run)).collect(),
        down: vec![(run, 0)],
        ..Step::default()
    };
    runs(part, width, chunk).map(step).collect()
}

/// One part for each rank in, one part of each rank out; `part` in elements.
pub(super) fn transpose(part: usize, size: usize, width: usize, chunk: usize) -> Vec<Step> {
    let step = |run: Range<usize>| Step {
        send: size * run.len(),
        receive: size * run.len(),
        down: packed(part * width, size, run.clone()).collect(),
        up: packed(part * width, size, run).map(|(run, at)| (at, run)).collect(),
        ..Step::default()
    };
    runs(part, width, chunk).map(step).collect()
}

/// What one step takes of runs of these lengths: the elements, their runs in bytes, and their places when packed.
fn slice(counts: &[usize], width: usize, taken: Range<usize>) -> (Vec<usize>, Vec<(Range<usize>, usize)>) {
    let (mut start, mut at, mut lengths, mut moves) = (0, 0, Vec::new(), Vec::new());
    for count in counts {
        let run = taken.start.min(*count)..taken.end.min(*count);
        lengths.push(run.len());
        if !run.is_empty() {
            moves.push(((start + run.start) * width..(start + run.end) * width, at));
        }
        (start, at) = (start + count, at + run.len() * width);
    }
    (lengths, moves)
}

/// Runs of these lengths in elements, at most `chunk` of each in a step; all ranks take the same number of steps.
pub(super) fn uneven(sent: &[usize], received: &[usize], width: usize, chunk: usize, count: usize) -> Vec<Step> {
    let step = |i: usize| {
        let taken = i * chunk..(i + 1) * chunk;
        let (send_counts, down) = slice(sent, width, taken.clone());
        let (receive_counts, up) = slice(received, width, taken);
        Step {
            down,
            send: send_counts.iter().sum::<usize>() * width,
            receive: receive_counts.iter().sum::<usize>() * width,
            up: up.into_iter().map(|(run, at)| (at, run)).collect(),
            counts: (send_counts, receive_counts),
        }
    };
    (0..count).map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Checks that copies down read each byte of the device's buffer once, and fill each step's host buffer.
    fn tiles(steps: &[Step], bytes: usize) -> std::result::Result<(), TestCaseError> {
        let mut seen = vec![0; bytes];
        for step in steps {
            let mut filled = vec![0; step.send];
            for (run, at) in &step.down {
                seen[run.clone()].iter_mut().for_each(|times| *times += 1);
                filled[*at..at + run.len()].iter_mut().for_each(|times| *times += 1);
            }
            prop_assert!(filled.iter().all(|times| *times == 1));
        }
        prop_assert!(seen.iter().all(|times| *times == 1));
        Ok(())
    }

    /// The same steps with the ways exchanged.
    fn mirrored(steps: &[Step]) -> Vec<Step> {
        let turn = |step: &Step| Step {
            down: step.up.iter().cloned().map(|(at, run)| (run, at)).collect(),
            send: step.receive,
            ..Step::default()
        };
        steps.iter().map(turn).collect()
    }

    proptest! {
        #[test]
        fn every_byte_goes_once(part in 0usize..40, size in 1usize..5, width in 1usize..9, chunk in 1usize..17) {
            let whole = in_place(part, width, chunk, Way::Both);
            tiles(&whole, part * width)?;
            tiles(&message(part * width, chunk * width, Way::Down), part * width)?;
            let (all, one) = (size * part * width, part * width);
            for (steps, sent, received) in [
                (scatter(part, size, width, chunk), all, one),
                (gather(part, size, width, chunk), one, all),
                (transpose(part, size, width, chunk), all, all),
            ] {
                tiles(&steps, sent)?;
                tiles(&mirrored(&steps), received)?;
            }
        }

        #[test]
        fn uneven_runs_go_once(sent in prop::collection::vec(0usize..30, 3), received in prop::collection::vec(0usize..30, 3),
                               width in 1usize..9, chunk in 1usize..17) {
            let count = sent.iter().chain(&received).map(|count| count.div_ceil(chunk)).max().unwrap_or(0);
            let steps = uneven(&sent, &received, width, chunk, count);
            tiles(&steps, sent.iter().sum::<usize>() * width)?;
            tiles(&mirrored(&steps), received.iter().sum::<usize>() * width)?;
        }
    }

    #[test]
    fn a_message_of_nothing_is_one_step() {
        assert_eq!(message(0, 8, Way::Up), [Step { up: vec![(0, 0..0)], ..Step::default() }]);
        assert_eq!(in_place(0, 4, 8, Way::Both), []);
    }
}
