//! The safetensors format: a JSON header with each tensor's kind, shape and place, then the elements without gaps.
//!
//! # Source
//! huggingface/safetensors, README.md, section "Format".

use std::collections::BTreeMap;
use std::ops::Range;

use mp_runtime::Kind;
use serde::{Deserialize, Serialize};

/// The element kinds of checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// bfloat16.
    BF16,
    /// IEEE half.
    F16,
}

impl Dtype {
    /// Returns what the tensor backend calls it.
    pub const fn kind(self) -> Kind {
        match self {
            Dtype::F64 => Kind::Double,
            Dtype::F32 => Kind::Float,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
        }
    }

    /// Returns the size of one element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            Dtype::BF16 | Dtype::F16 => 2,
        }
    }
}

/// A tensor's name, kind and full shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name, unique in the file.
    pub name: String,
    /// Its element kind.
    pub dtype: Dtype,
    /// Its dims; none for a single number.
    pub shape: Vec<usize>,
}

impl Entry {
    /// Describes a tensor.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec() }
    }

    /// Returns the length of its elements in bytes, or `None` beyond what can be counted.
    pub fn bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim as u64));
        elements?.checked_mul(self.dtype.bytes() as u64)
    }
}

/// One tensor as the header has it.
#[derive(Debug, Serialize, Deserialize)]
struct Described {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// A header as long as this is a mistake or an attack; the format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// Writes a header, length included, for tensors that follow in the order given; returns it and the elements' length.
///
/// # Errors
/// What is wrong with the entries.
pub(super) fn header(entries: &[Entry]) -> Result<(Vec<u8>, u64), String> {
    let mut described = BTreeMap::new();
    let mut end = 0u64;
    for entry in entries {
        let start = end;
        let bytes = entry.bytes().ok_or_else(|| format!("tensor `{}` is too large to count", entry.name))?;
        end = start.checked_add(bytes).ok_or_else(|| format!("the tensors up to `{}` are too large", entry.name))?;
        let value = Described { dtype: entry.dtype, shape: entry.shape.clone(), data_offsets: [start, end] };
        if described.insert(entry.name.as_str(), value).is_some() {
            return Err(format!("tensor `{}` comes twice", entry.name));
        }
    }
    let mut json = serde_json::to_vec(&described).map_err(|error| error.to_string())?;
    // Spaces up to a multiple of eight, so that the elements of a mapped file are aligned.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok((bytes, end))
}

/// Reads the length of the header from a file's first eight bytes.
///
/// # Errors
/// What is wrong with it, for a file of `file_bytes`.
pub(super) fn header_bytes(first: [u8; 8], file_bytes: u64) -> Result<u64, String> {
    let length = u64::from_le_bytes(first);
    if length > LONGEST_HEADER || length + 8 > file_bytes {
        return Err(format!("is no safetensors file: a header of {length} bytes does not fit its {file_bytes}"));
    }
    Ok(length)
}

/// Reads a header without its length, for elements of `data_bytes`; returns each tensor and its place among them.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(header: &[u8], data_bytes: u64) -> Result<Vec<(Entry, Range<u64>)>, String> {
    let fields: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|error| format!("has a header that is no JSON object ({error})"))?;
    let mut tensors = Vec::new();
    for (name, value) in fields.into_iter().filter(|(name, _)| name != "__metadata__") {
        let described: Described = serde_json::from_value(value)
            .map_err(|error| format!("describes tensor `{name}` in a way that is not understood ({error})"))?;
        let [start, end] = described.data_offsets;
        tensors.push((Entry { name, dtype: described.dtype, shape: described.shape }, start..end));
    }
    tensors.sort_by_key(|(_, range)| (range.start, range.end));
    let mut reached = 0;
    for (entry, range) in &tensors {
        if range.start != reached || entry.bytes() != range.end.checked_sub(range.start) {
            let (start, end) = (range.start, range.end);
            return Err(format!("places tensor `{}` of shape {:?} at bytes {start} to {end}", entry.name, entry.shape));
        }
        reached = range.end;
    }
    if reached != data_bytes {
        return Err(format!("has {data_bytes} bytes of elements instead of {reached}"));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let dtype = prop_oneof![Just(Dtype::F64), Just(Dtype::F32), Just(Dtype::BF16), Just(Dtype::F16)];
        let entry = (dtype, prop::collection::vec(0..5usize, 0..4));
        prop::collection::btree_map("[a-z.0-9]{1,8}", entry, 0..6)
            .prop_map(|map| map.into_iter().map(|(name, (dtype, shape))| Entry { name, dtype, shape }).rev().collect())
    }

    proptest! {
        #[test]
        fn another_reader_of_the_format_agrees(entries in entries()) {
            let (mut bytes, length) = header(&entries).unwrap();
            let start = bytes.len();
            prop_assert_eq!(start % 8, 0);
            bytes.extend((0..length).map(|i| i as u8));
            let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            prop_assert_eq!(read.len(), entries.len());
            let mut at = start;
            for entry in &entries {
                let tensor = read.tensor(&entry.name).unwrap();
                prop_assert_eq!(tensor.shape(), &entry.shape[..]);
                let end = at + entry.bytes().unwrap() as usize;
                prop_assert_eq!(tensor.data(), &bytes[at..end]);
                at = end;
            }
        }

        #[test]
        fn what_is_written_is_read(entries in entries()) {
            let (bytes, length) = header(&entries).unwrap();
            let first = bytes[..8].try_into().unwrap();
            prop_assert_eq!(header_bytes(first, bytes.len() as u64 + length).unwrap() + 8, bytes.len() as u64);
            let mut read: Vec<Entry> = parse(&bytes[8..], length).unwrap().into_iter().map(|(entry, _)| entry).collect();
            let mut written = entries;
            read.sort_by(|a, b| a.name.cmp(&b.name));
            written.sort_by(|a, b| a.name.cmp(&b.name));
            prop_assert_eq!(read, written);
        }
    }

    #[test]
    fn foreign_headers_are_refused() {
        let overlap = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        assert!(parse(overlap, 8).unwrap_err().contains("places tensor `b`"));
        let gap = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        assert!(parse(gap, 8).unwrap_err().contains("places tensor `a`"));
        let short = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        assert!(parse(short, 8).unwrap_err().contains("8 bytes of elements instead of 4"));
        let backwards = br#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[8,0]}}"#;
        assert!(parse(backwards, 0).is_err());
        let kind = br#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
        assert!(parse(kind, 8).unwrap_err().contains("`a`"));
        assert!(parse(b"[]", 0).is_err());
        assert!(header_bytes(u64::MAX.to_le_bytes(), 100).is_err());
        assert!(header_bytes(93u64.to_le_bytes(), 100).is_err());
    }

    #[test]
    fn what_cannot_be_counted_is_refused() {
        let entry = Entry::new("a", Dtype::F64, &[usize::MAX, 2]);
        assert!(header(&[entry]).unwrap_err().contains("too large"));
        let twice = [Entry::new("a", Dtype::F32, &[1]), Entry::new("a", Dtype::F32, &[1])];
        assert!(header(&twice).unwrap_err().contains("twice"));
    }
}
