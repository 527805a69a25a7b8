//! Tensors over safetensors files of at most so many bytes, and the index that says which lies where.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{json, Map, Value};

use super::{INDEX, SINGLE};
use crate::checkpoint::Entry;
use crate::{durable, Error, Result};

/// Which tensors lie in which file.
#[derive(Debug, Clone, PartialEq)]
pub struct Shards {
    /// Each file's name and tensors.
    pub files: Vec<(String, Vec<Entry>)>,
    bytes: u64,
}

impl Shards {
    /// Fills one file after the other, each with at least one tensor.
    pub fn new(entries: Vec<Entry>, most_bytes: u64) -> Self {
        let mut groups: Vec<(u64, Vec<Entry>)> = Vec::new();
        for entry in entries {
            let bytes = entry.bytes().unwrap_or(u64::MAX);
            match groups.last_mut().filter(|(held, _)| held.saturating_add(bytes) <= most_bytes) {
                Some((held, group)) => {
                    *held += bytes;
                    group.push(entry);
                }
                None => groups.push((bytes, vec![entry])),
            }
        }
        let (bytes, count) = (groups.iter().map(|(bytes, _)| bytes).sum(), groups.len());
        let name = |index: usize| match count {
            1 => SINGLE.to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let files = groups.into_iter().enumerate().map(|(index, (_, group))| (name(index), group)).collect();
        Self { files, bytes }
    }

    /// Writes all files into a folder, the index too where there are several; `put` appends a tensor's elements.
    ///
    /// # Errors
    /// [`Error::Write`]; what `put` raises.
    pub fn write(&self, folder: &Path, put: &mut Put<'_>) -> Result<()> {
        for (name, entries) in &self.files {
            file(&folder.join(name), entries, &[], put)?;
        }
        match self.files.len() {
            1 => Ok(()),
            _ => durable::write(&folder.join(INDEX), format!("{:#}\n", self.index()).as_bytes()),
        }
    }

    fn index(&self) -> Value {
        let place = |name: &String, entry: &Entry| (entry.name.clone(), Value::from(name.as_str()));
        let places = self.files.iter().flat_map(|(name, entries)| entries.iter().map(move |entry| place(name, entry)));
        json!({ "metadata": { "total_size": self.bytes }, "weight_map": places.collect::<Map<_, _>>() })
    }
}

/// What `put` is of a file: it appends a tensor's elements.
type Put<'a> = dyn FnMut(&Entry, &mut dyn Write) -> Result<()> + 'a;

/// Writes one file of tensors, with notes among its metadata.
///
/// # Errors
/// [`Error::Write`]; what `put` raises.
pub fn file(path: &Path, entries: &[Entry], notes: &[(&str, String)], put: &mut Put<'_>) -> Result<()> {
    let failed = |source| Error::Write { path: path.into(), source };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
    file.write_all(&header(entries, notes)).map_err(failed)?;
    for entry in entries {
        put(entry, &mut file)?;
    }
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)
}

/// Writes a file's header, its length included.
fn header(entries: &[Entry], notes: &[(&str, String)]) -> Vec<u8> {
    // transformers wants to know that these are tensors of PyTorch's layout.
    let mut metadata = json!({ "format": "pt" });
    for (name, note) in notes {
        metadata[*name] = Value::from(note.as_str());
    }
    let mut described = Map::from_iter([("__metadata__".to_string(), metadata)]);
    let mut end = 0;
    for entry in entries {
        let start = end;
        end += entry.bytes().expect("a tensor that was read can be counted");
        let value = json!({ "dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end] });
        described.insert(entry.name.clone(), value);
    }
    let mut json = Value::Object(described).to_string().into_bytes();
    // Spaces up to a multiple of eight, so that the elements of a mapped file are aligned.
    json.resize(json.len().next_multiple_of(8), b' ');
    [(json.len() as u64).to_le_bytes().to_vec(), json].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;

    #[test]
    fn files_are_as_few_as_their_size_allows() {
        let entries: Vec<Entry> = [2, 2, 3, 1, 9].map(|n| Entry::new(format!("t{n}"), Dtype::F32, &[n])).into();
        let shards = Shards::new(entries.clone(), 16);
        let lengths: Vec<usize> = shards.files.iter().map(|(_, group)| group.len()).collect();
        assert_eq!(lengths, [2, 2, 1]);
        assert_eq!(shards.files[2].0, "model-00003-of-00003.safetensors");
        assert_eq!(shards.index()["metadata"]["total_size"], 68);
        assert_eq!(shards.index()["weight_map"]["t3"], "model-00002-of-00003.safetensors");
        assert_eq!(Shards::new(entries, 1000).files[0].0, "model.safetensors");
    }
}
