//! Several examples in one sample, none of them cut.
//!
//! Which examples share a sample is a function of the examples' lengths alone: longest first, each goes where it leaves the
//! least room, and into a new sample where it fits into none. So samples are the same in every epoch, for every seed and on
//! every rank, in the order of their first examples; what the seed shuffles is their order.
//!
//! # Source
//! "Best fit decreasing": D. Johnson, "Near-optimal bin packing algorithms", MIT 1973: at most 11/9 of the fewest samples, and
//! four more.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::order::shuffled;
use crate::sample::PADDING;
use crate::{Batch, Error, Examples, Piece, Result, Sample, SampleSource, Targets, IGNORED};

/// Examples in rows of equal length. Clones share them.
#[derive(Debug, Clone)]
pub struct Packed {
    examples: Examples,
    /// Of each row the numbers of its examples, in order.
    rows: Arc<Vec<Vec<u64>>>,
    seq: usize,
}

impl Packed {
    /// Packs examples into rows of `seq` inputs.
    ///
    /// # Errors
    /// [`Error::Zero`] if `seq` is 0.
    pub fn new(examples: Examples, seq: usize) -> Result<Self> {
        if seq == 0 {
            return Err(Error::Zero { what: "train.seq" });
        }
        let rows = Arc::new(pack(&examples, seq));
        Ok(Self { examples, rows, seq })
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Returns the number of tokens, without padding.
    pub fn tokens(&self) -> u64 {
        self.examples.tokens()
    }

    /// Makes a sample of a row: each example is a segment with positions from 0 on, and its learned tokens are the targets.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize, into: &mut Sample) {
        into.tokens.clear();
        into.targets.clear();
        let (mut segments, mut positions) = (Vec::with_capacity(self.seq), Vec::with_capacity(self.seq));
        for (segment, &number) in self.rows[row].iter().enumerate() {
            let inputs = self.examples.example(number).len() - 1;
            into.tokens.extend(self.examples.example(number).take(inputs).map(|(id, _)| id));
            let following = self.examples.example(number).skip(1);
            into.targets.extend(following.map(|(id, counted)| if counted { id } else { IGNORED }));
            segments.resize(segments.len() + inputs, segment as i64);
            positions.extend(0..inputs as i64);
        }
        into.tokens.resize(self.seq, 0);
        into.targets.resize(self.seq, IGNORED);
        segments.resize(self.seq, PADDING);
        positions.resize(self.seq, 0);
        (into.segments, into.positions) = (Some(segments), Some(positions));
        (into.token_types, into.label) = (None, None);
    }
}

/// Deals examples to rows; an example's last token is no input and takes no room.
fn pack(examples: &Examples, seq: usize) -> Vec<Vec<u64>> {
    let length = |number: u64| examples.example(number).len() - 1;
    let mut longest_first: Vec<u64> = examples.numbers().collect();
    longest_first.sort_by_key(|&number| Reverse(length(number)));
    let mut rows: Vec<Vec<u64>> = Vec::new();
    // The room that rows have left, and which they are.
    let mut open = BTreeSet::new();
    for number in longest_first {
        let length = length(number);
        let fitting = open.range((length, 0)..).next().copied();
        let (left, row) = fitting.unwrap_or((seq, rows.len()));
        match fitting {
            Some(taken) => _ = open.remove(&taken),
            None => rows.push(Vec::new()),
        }
        rows[row].push(number);
        open.insert((left - length, row));
    }
    rows.iter_mut().for_each(|row| row.sort_unstable());
    // By their first examples, and not by length: who walks some rows alone sees examples of all lengths.
    rows.sort_unstable_by_key(|row| row[0]);
    rows
}

/// Samples of packed examples.
#[derive(Debug, Clone)]
pub struct PackedSource {
    packed: Packed,
    seed: u64,
}

impl PackedSource {
    /// Returns the rows as samples, in the order that `seed` chooses, another in every epoch.
    pub fn new(packed: Packed, seed: u64) -> Self {
        Self { packed, seed }
    }

    fn place(&self, number: u64) -> usize {
        shuffled(self.packed.rows() as u64, self.seed, number) as usize
    }
}

impl SampleSource for PackedSource {
    fn seq(&self) -> usize {
        self.packed.seq
    }

    fn len_tokens(&self) -> u64 {
        self.packed.tokens()
    }

    fn samples_per_epoch(&self) -> u64 {
        self.packed.rows() as u64
    }

    fn targets(&self) -> Targets {
        Targets::Counted
    }

    fn sample(&self, number: u64, into: &mut Sample) -> Result<()> {
        self.packed.row(self.place(number), into);
        into.number = number;
        Ok(())
    }

    fn pieces(&self, number: u64) -> Result<Vec<Piece>> {
        let piece = |&document: &u64| {
            let place = self.packed.examples.place(document);
            Piece { source: 0, document, tokens: 0..place.end - place.start }
        };
        Ok(self.packed.rows[self.place(number)].iter().map(piece).collect())
    }
}

/// Packed examples, held out, to be walked once.
#[derive(Debug, Clone)]
pub struct PackedRows {
    parts: Vec<Packed>,
    seq: usize,
}

impl PackedRows {
    /// Packs several files' examples, one file after the other.
    ///
    /// # Errors
    /// Those of [`Packed::new`].
    pub fn new(parts: Vec<Examples>, seq: usize) -> Result<Self> {
        let parts = parts.into_iter().map(|examples| Packed::new(examples, seq)).collect::<Result<_>>()?;
        Ok(Self { parts, seq })
    }

    /// Returns the number of rows.
    pub fn count(&self) -> usize {
        self.parts.iter().map(Packed::rows).sum()
    }

    /// Returns some rows as a batch.
    ///
    /// # Errors
    /// None that a row of this length could have.
    ///
    /// # Panics
    /// If the range goes beyond [`count`](Self::count).
    pub fn batch(&self, rows: Range<usize>) -> Result<Batch> {
        let mut batch = Batch::with_capacity(rows.len(), self.seq);
        let mut sample = Sample::default();
        let all = self.parts.iter().flat_map(|part| (0..part.rows()).map(move |row| (part, row)));
        for (part, row) in all.skip(rows.start).take(rows.len()) {
            part.row(row, &mut sample);
            batch.push(&sample)?;
        }
        Ok(batch)
    }
}
