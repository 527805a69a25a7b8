//! The `.idx` file: its numbers, each read where it lies and checked on the way.

use std::path::{Path, PathBuf};

use super::Element;
use crate::{Error, Mapping, Result};

pub(super) const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
pub(super) const VERSION: u64 = 1;
/// What comes before the first length.
const HEADER: u64 = 34;
/// What an older format of the same project begins with.
const UNMAPPED: &[u8; 8] = b"TNTIDX\0\0";

/// A mapped index.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    map: Mapping,
    element: Element,
    sequences: u64,
    bounds: u64,
}

impl Index {
    /// Maps an index and checks its head, its size and its outermost numbers.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapping::open(path)?;
        let format = |offset, problem: String| Error::Format { path: path.into(), offset, problem };
        check_head(map.bytes()).map_err(|(offset, problem)| format(offset, problem))?;
        let code = map.bytes()[17];
        let element = Element::from_code(code).ok_or_else(|| format(17, foreign_element(code)))?;
        let (sequences, bounds) = (number(map.bytes(), 18), number(map.bytes(), 26));
        let index = Self { path: path.into(), map, element, sequences, bounds };
        index.check_size()?;
        index.check_ends()?;
        Ok(index)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn element(&self) -> Element {
        self.element
    }

    pub fn sequences(&self) -> u64 {
        self.sequences
    }

    pub fn documents(&self) -> u64 {
        self.bounds - 1
    }

    /// Returns how many bytes of tokens there must be.
    pub fn data_bytes(&self) -> Result<u64> {
        let Some(last) = self.sequences.checked_sub(1) else { return Ok(0) };
        let start = self.start(last, u64::MAX / self.element.bytes())?;
        let end = start.checked_add(self.length(last)?).and_then(|end| end.checked_mul(self.element.bytes()));
        end.ok_or_else(|| self.unordered_pointer(last))
    }

    /// Returns how many tokens a sequence has.
    pub fn length(&self, sequence: u64) -> Result<u64> {
        let offset = self.length_offset(sequence);
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.map.bytes()[offset as usize..][..4]);
        let length = i32::from_le_bytes(bytes);
        u64::try_from(length).map_err(|_| self.format(offset, format!("sequence {sequence} has {length} tokens")))
    }

    /// Returns the first token of a sequence, of `tokens` tokens in all.
    pub fn start(&self, sequence: u64, tokens: u64) -> Result<u64> {
        let (offset, size) = (self.pointer_offset(sequence), self.element.bytes());
        let at = number(self.map.bytes(), offset);
        if !at.is_multiple_of(size) {
            let problem = format!("sequence {sequence} starts at byte {at}, within a token of {size}");
            return Err(self.format(offset, problem));
        }
        match at / size <= tokens {
            true => Ok(at / size),
            false => {
                let at = at as i64;
                Err(self.format(offset, format!("sequence {sequence} starts at byte {at}, outside the data")))
            }
        }
    }

    /// Returns the sequence that document `bound` starts with; that after the last document, the number of sequences.
    pub fn bound(&self, bound: u64) -> Result<u64> {
        let offset = self.bound_offset(bound);
        let sequence = number(self.map.bytes(), offset);
        match sequence <= self.sequences {
            true => Ok(sequence),
            false => {
                let (sequence, count) = (sequence as i64, self.sequences);
                Err(self.format(offset, format!("document {bound} starts with sequence {sequence} of {count}")))
            }
        }
    }

    /// Words a length that does not reach to the next start.
    pub fn at_odds(&self, sequence: u64) -> Error {
        let problem =
            format!("the length of sequence {sequence} does not reach to the start of the next; the index is damaged");
        self.format(self.length_offset(sequence), problem)
    }

    /// Words a start before its predecessor's.
    pub fn unordered_pointer(&self, sequence: u64) -> Error {
        self.format(self.pointer_offset(sequence), format!("sequence {sequence} is out of order; the index is damaged"))
    }

    /// Words a document that ends before it starts.
    pub fn unordered_bound(&self, bound: u64) -> Error {
        let problem = format!("the end of document {} is out of order; the index is damaged", bound.saturating_sub(1));
        self.format(self.bound_offset(bound), problem)
    }

    /// Checks that the file is as long as its counts make it.
    fn check_size(&self) -> Result<()> {
        if self.bounds == 0 {
            return Err(self.format(26, "it has no document bounds; an empty dataset has one".into()));
        }
        let size = u128::from(HEADER) + 12 * u128::from(self.sequences) + 8 * u128::from(self.bounds);
        let length = self.map.len();
        if u128::from(length) == size {
            return Ok(());
        }
        let counts = format!("{} sequences and {} document bounds take {size} bytes", self.sequences, self.bounds);
        if u128::from(length) == size + u128::from(self.sequences) {
            let problem = "a kind is given for each sequence: the data is multimodal, and only text is read";
            return Err(self.format(size as u64, problem.into()));
        }
        let problem = match u128::from(length) < size {
            true => format!("{counts}, and the file ends here; copy it again"),
            false => format!("{counts}, and the file goes on to {length}; it is no index, or a damaged one"),
        };
        Err(self.format(size.min(u128::from(length)) as u64, problem))
    }

    /// Checks the outermost of the numbers that must agree.
    fn check_ends(&self) -> Result<()> {
        if self.sequences > 0 && number(self.map.bytes(), self.pointer_offset(0)) != 0 {
            return Err(self.format(self.pointer_offset(0), "the first sequence does not start at byte 0".into()));
        }
        let last = self.bounds - 1;
        if self.bound(0)? != 0 {
            return Err(self.format(self.bound_offset(0), "the first document does not start with sequence 0".into()));
        }
        if self.bound(last)? != self.sequences {
            let problem = format!("the last document does not end with the last of {} sequences", self.sequences);
            return Err(self.format(self.bound_offset(last), problem));
        }
        Ok(())
    }

    fn length_offset(&self, sequence: u64) -> u64 {
        HEADER + 4 * sequence
    }

    fn pointer_offset(&self, sequence: u64) -> u64 {
        HEADER + 4 * self.sequences + 8 * sequence
    }

    fn bound_offset(&self, bound: u64) -> u64 {
        HEADER + 12 * self.sequences + 8 * bound
    }

    fn format(&self, offset: u64, problem: String) -> Error {
        Error::Format { path: self.path.clone(), offset, problem }
    }
}

/// Checks magic and version; says where and what is wrong.
fn check_head(bytes: &[u8]) -> std::result::Result<(), (u64, String)> {
    let shared = bytes.iter().zip(MAGIC).take_while(|(a, b)| a == b).count();
    if bytes.starts_with(UNMAPPED) {
        return Err((
            0,
            "it is an index of the older, unmapped format; convert it to `MMIDIDX` with the tools of its maker".into(),
        ));
    }
    if shared < MAGIC.len() && shared < bytes.len() {
        return Err((shared as u64, "it is no index of a tokenized dataset, which begins with `MMIDIDX`".into()));
    }
    if bytes.len() < HEADER as usize {
        return Err((
            bytes.len() as u64,
            format!("the head of an index is {HEADER} bytes, and the file ends here; copy it again"),
        ));
    }
    match number(bytes, 9) {
        VERSION => Ok(()),
        swapped if swapped.swap_bytes() == VERSION => {
            Err((9, "its numbers are big-endian; write it again on a little-endian machine".into()))
        }
        other => Err((9, format!("it has version {other}, and {VERSION} is read"))),
    }
}

fn foreign_element(code: u8) -> String {
    match code {
        6 | 7 => format!("the data is of floating-point numbers (code {code}), not of tokens"),
        _ => format!("there is no kind of number with the code {code}"),
    }
}

/// Reads the eight bytes at an offset.
fn number(bytes: &[u8], offset: u64) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[offset as usize..][..8]);
    u64::from_le_bytes(eight)
}
