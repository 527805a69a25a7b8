//! A published model as a source of weights: files are mapped, and of a tensor no more is touched than the box asked for.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use mp_data::Mapping;
use mp_model::huggingface::{Description, Inventory, Place};
use safetensors::SafeTensors;
use serde_json::Value;

use super::{CONFIG, INDEX, SINGLE, TOKENIZER};
use crate::checkpoint::{Dtype, Entry};
use crate::region;
use crate::weights::WeightSource;
use crate::{Error, Result};

/// Something of a folder, or what is wrong with it.
type Checked<T> = std::result::Result<T, String>;

/// A folder with `config.json` and `model.safetensors`, whole or in several files with their index.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    tensors: BTreeMap<String, Held>,
    files: Vec<Mapping>,
}

/// In which file each tensor lies, as an index says.
type Index = BTreeMap<String, String>;

/// One of our parameters, and where it lies.
#[derive(Debug)]
struct Held {
    entry: Entry,
    place: Place,
    file: usize,
    bytes: Range<usize>,
}

/// A tensor as a file's header has it.
#[derive(Debug)]
pub(super) struct Stored {
    /// Its kind.
    pub dtype: safetensors::Dtype,
    /// Its dims.
    pub shape: Vec<usize>,
    file: usize,
    /// Its elements in the file.
    pub bytes: Range<usize>,
}

impl Folder {
    /// Says whether a folder is one of a published model.
    pub fn is(path: &Path) -> bool {
        path.join(CONFIG).is_file()
    }

    /// Reads what a folder's `config.json` says.
    ///
    /// # Errors
    /// [`Error::Published`] for what is not computed; [`Error::Read`].
    pub fn describe(path: &Path) -> Result<Description> {
        let refused = |problem: String| Error::Published { path: path.into(), problem };
        let json = json(&path.join(CONFIG))?.map_err(refused)?;
        Description::read(&json).map_err(|refusal| refused(refusal.to_string()))
    }

    /// Returns a folder's tokenizer, if it has one that can be read.
    pub fn tokenizer(path: &Path) -> Option<PathBuf> {
        Some(path.join(TOKENIZER)).filter(|file| file.is_file())
    }

    /// Opens a folder: maps its files, and finds each parameter in them.
    ///
    /// # Errors
    /// [`Error::Published`] for what is not computed, and tensors that are missing, left over or of another shape or kind;
    /// [`Error::Read`] and [`Error::Data`] for files that cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let refused = |problem: String| Error::Published { path: path.into(), problem };
        let description = Self::describe(path)?;
        let (names, index) = files(path)?.map_err(refused)?;
        let mapped = |name: &String| Ok(Mapping::open(&path.join(name))?);
        let files = names.iter().map(mapped).collect::<Result<Vec<_>>>()?;
        let stored = stored(&names, &files, index.as_ref()).map_err(refused)?;
        let shapes: Vec<_> = stored.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect();
        let inventory = Inventory::take(description.family, &description.architecture, &shapes)
            .map_err(|refusal| refused(refusal.to_string()))?;
        for (head, table) in &inventory.same {
            let elements = |name: &str| &files[stored[name].file].bytes()[stored[name].bytes.clone()];
            if stored[head].dtype != stored[table].dtype || elements(head) != elements(table) {
                let problem =
                    format!("`{head}` and `{table}` differ, although `tie_word_embeddings` says they are one");
                return Err(refused(problem));
            }
        }
        let tensors = inventory.places.into_iter().map(|place| held(place, &stored)).collect::<Checked<_>>();
        Ok(Self { path: path.into(), tensors: tensors.map_err(refused)?, files })
    }
}

impl WeightSource for Folder {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        self.tensors.get(name).map(|held| held.entry.clone())
    }

    fn read(&self, name: &str, region: &[Range<usize>]) -> Result<Vec<u8>> {
        let refused = |problem: String| Error::Published { path: self.path.clone(), problem };
        let held = self.tensors.get(name).ok_or_else(|| refused(format!("it holds no tensor `{name}`")))?;
        let full = region::whole(&held.entry.shape);
        if region.len() != full.len() || region.iter().zip(&full).any(|(own, full)| own.end > full.end) {
            return Err(refused(format!("`{name}` of shape {:?} has no box {region:?}", held.entry.shape)));
        }
        let width = held.entry.dtype.bytes();
        let wanted = held.place.region(region);
        let mut elements = vec![0; region::volume(region) * width];
        let all = &self.files[held.file].bytes()[held.bytes.clone()];
        region::copy(all, &region::whole(&held.place.tensor_shape()), &mut elements, &wanted, width);
        Ok(match held.place.transposed {
            true => transposed(&elements, wanted[0].len(), wanted[1].len(), width),
            false => elements,
        })
    }

    fn origin(&self) -> &Path {
        &self.path
    }
}

/// Transposes a row-major matrix of elements of `width` bytes.
pub(super) fn transposed(elements: &[u8], rows: usize, columns: usize, width: usize) -> Vec<u8> {
    let mut turned = vec![0; elements.len()];
    for row in 0..rows {
        for column in 0..columns {
            let (from, into) = ((row * columns + column) * width, (column * rows + row) * width);
            turned[into..into + width].copy_from_slice(&elements[from..from + width]);
        }
    }
    turned
}

/// Reads a file as JSON.
pub(super) fn json(path: &Path) -> Result<Checked<Value>> {
    let text = fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(serde_json::from_slice(&text).map_err(|error| format!("`{name}` is no JSON ({error})")))
}

/// Lists the files of tensors, and what the index says of each tensor where there is one.
fn files(path: &Path) -> Result<Checked<(Vec<String>, Option<Index>)>> {
    if path.join(SINGLE).is_file() {
        return Ok(Ok((vec![SINGLE.into()], None)));
    }
    if !path.join(INDEX).is_file() {
        return Ok(Err(format!(
            "it has neither `{SINGLE}` nor `{INDEX}`; pickled weights are not read, so save it with safetensors"
        )));
    }
    Ok(json(&path.join(INDEX))?.and_then(|index| {
        let map = index["weight_map"].as_object().ok_or_else(|| format!("`{INDEX}` has no `weight_map`"))?;
        let mut places = BTreeMap::new();
        for (name, file) in map {
            let plain = |file: &&str| !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\\']);
            let file = file.as_str().filter(plain).ok_or_else(|| format!("`{INDEX}` places `{name}` in {file}"))?;
            places.insert(name.clone(), file.to_owned());
        }
        let mut names: Vec<String> = places.values().cloned().collect();
        names.sort_unstable();
        names.dedup();
        Ok((names, Some(places)))
    }))
}

/// Reads the headers of all files, and holds them against the index.
pub(super) fn stored(names: &[String], files: &[Mapping], index: Option<&Index>) -> Checked<BTreeMap<String, Stored>> {
    let mut all: BTreeMap<String, Stored> = BTreeMap::new();
    for (file, (name, mapping)) in names.iter().zip(files).enumerate() {
        let unread = |error: safetensors::SafeTensorError| format!("`{name}` is no safetensors file: {error}");
        let (header, metadata) = SafeTensors::read_metadata(mapping.bytes()).map_err(unread)?;
        // The length of the header comes before it.
        let start = header + 8;
        for (tensor, info) in metadata.tensors() {
            if index.is_some_and(|index| index.get(&tensor) != Some(name)) {
                return Err(format!("`{name}` holds `{tensor}`, which `{INDEX}` does not place there"));
            }
            let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
            if bytes.end > mapping.bytes().len() {
                return Err(format!("`{name}` ends before the tensor `{tensor}` does"));
            }
            all.insert(tensor, Stored { dtype: info.dtype, shape: info.shape.clone(), file, bytes });
        }
    }
    let lost = index.and_then(|index| index.iter().find(|(tensor, _)| !all.contains_key(*tensor)));
    match lost {
        Some((tensor, file)) => Err(format!("`{file}` lacks the tensor `{tensor}` that `{INDEX}` places there")),
        None => Ok(all),
    }
}

/// Makes one parameter of the tensor that it lies in.
fn held(place: Place, stored: &BTreeMap<String, Stored>) -> Checked<(String, Held)> {
    let Stored { dtype: kind, file, bytes, .. } = &stored[&place.tensor];
    let entry = Entry::new(&place.parameter, dtype(&place.tensor, *kind)?, &place.shape);
    Ok((place.parameter.clone(), Held { entry, place, file: *file, bytes: bytes.clone() }))
}

/// Returns the kind of a tensor of weights.
pub(super) fn dtype(tensor: &str, kind: safetensors::Dtype) -> Checked<Dtype> {
    match kind {
        safetensors::Dtype::F64 => Ok(Dtype::F64),
        safetensors::Dtype::F32 => Ok(Dtype::F32),
        safetensors::Dtype::BF16 => Ok(Dtype::BF16),
        safetensors::Dtype::F16 => Ok(Dtype::F16),
        other => Err(format!("the tensor `{tensor}` is of kind {other:?}, which no weight is")),
    }
}
