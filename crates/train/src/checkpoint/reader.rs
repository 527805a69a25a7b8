//! Reading one checkpoint: what it says of itself is compared with what is there before anything is used.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use mp_data::Mapping;

use super::manifest::{self, FileRecord, Manifest};
use super::{tensor_file, CheckpointReader, Entry, Section, Slice, Verify};
use crate::region;
use crate::{Error, Result};

/// Something that was checked, or what is wrong with it.
type Checked<T> = std::result::Result<T, String>;

/// A checkpoint that was believed.
#[derive(Debug)]
pub(super) struct DirectoryReader {
    path: PathBuf,
    manifest: Manifest,
    /// The files as memory, each from when it is first read.
    mapped: Vec<OnceLock<Mapping>>,
}

impl DirectoryReader {
    /// Opens and checks a folder.
    ///
    /// # Errors
    /// Which file differs in what.
    pub(super) fn open(path: PathBuf, step: u64, verify: Verify) -> Checked<Self> {
        let manifest = read_manifest(&path)?;
        if manifest.about.step != step {
            let name = manifest::NAME;
            return Err(format!("`{name}` is of step {} in a folder of step {step}", manifest.about.step));
        }
        for record in &manifest.files {
            check_length(&path, record).map_err(|problem| format!("`{}` {problem}", record.name))?;
        }
        manifest.fault().map_or(Ok(()), Err)?;
        let mapped = manifest.files.iter().map(|_| OnceLock::new()).collect();
        let reader = Self { path, manifest, mapped };
        let (first, of) = match verify {
            Verify::Checksums => (0, 1),
            Verify::Share { rank, of } => (rank, of),
            Verify::Lengths => return Ok(reader),
        };
        for index in (first..reader.manifest.files.len()).step_by(of) {
            reader.check_file(index).map_err(|problem| format!("`{}` {problem}", reader.manifest.files[index].name))?;
        }
        Ok(reader)
    }

    /// Compares a file's bytes and header with what the manifest says of them.
    fn check_file(&self, index: usize) -> Checked<()> {
        let record = &self.manifest.files[index];
        let bytes = self.mapped(index).map_err(|error| format!("cannot be read: {error}"))?;
        let found = blake3::hash(bytes).to_hex();
        if *found != *record.blake3 {
            return Err(format!("has the checksum {} instead of {}", short(&found), short(&record.blake3)));
        }
        let mut expected = Vec::new();
        for section in Section::ALL {
            for (name, tensor) in self.manifest.section(section) {
                for slice in tensor.slices.iter().filter(|slice| slice.file == index) {
                    let entry = Entry::new(name, tensor.dtype, &tensor.shape);
                    expected.push((Slice { entry, region: slice.region() }.stored(), slice.start));
                }
            }
        }
        let mut held = header(bytes)?;
        // Tensors without elements share a place, so the file's order says nothing about them.
        held.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        expected.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        match held == expected {
            true => Ok(()),
            false => Err(format!("holds other tensors than the {} of the manifest", expected.len())),
        }
    }

    /// Returns a file as memory.
    fn mapped(&self, index: usize) -> mp_data::Result<&[u8]> {
        let cell = &self.mapped[index];
        if let Some(mapping) = cell.get() {
            return Ok(mapping.bytes());
        }
        let mapping = Mapping::open(&self.path.join(&self.manifest.files[index].name))?;
        Ok(cell.get_or_init(|| mapping).bytes())
    }

    /// Returns the elements of a slice.
    fn elements(&self, index: usize, range: Range<u64>) -> Checked<&[u8]> {
        let name = |index: usize| self.manifest.files.get(index).map_or("?", |file| file.name.as_str());
        if index >= self.mapped.len() {
            return Err(format!("`{}` has no file {index}", manifest::NAME));
        }
        let bytes = self.mapped(index).map_err(|error| format!("`{}` cannot be read: {error}", name(index)))?;
        let cut = || format!("`{}` has no bytes {} to {}", name(index), range.start, range.end);
        bytes.get(range.start as usize..range.end as usize).ok_or_else(cut)
    }

    fn gather(&self, section: Section, name: &str, region: &[Range<usize>], into: &mut [u8]) -> Checked<()> {
        let tensor = self.manifest.section(section).get(name);
        let tensor = tensor.ok_or_else(|| format!("its {} part holds no tensor `{name}`", section.word()))?;
        let width = tensor.dtype.bytes();
        if into.len() != region::volume(region) * width {
            return Err(format!("a box {region:?} of `{name}` does not take {} bytes", into.len()));
        }
        let mut found = 0;
        for slice in &tensor.slices {
            let held = slice.region();
            let shared = if held.len() == region.len() { region::common(&held, region) } else { None };
            let Some(shared) = shared else { continue };
            // No sum here overflows: the manifest has no fault.
            let end = slice.start + (region::volume(&held) * width) as u64;
            region::copy(self.elements(slice.file, slice.start..end)?, &held, into, region, width);
            found += region::volume(&shared);
        }
        match found == region::volume(region) {
            true => Ok(()),
            false => Err(format!("`{name}` of shape {:?} has no box {region:?}", tensor.shape)),
        }
    }
}

impl CheckpointReader for DirectoryReader {
    fn path(&self) -> &Path {
        &self.path
    }

    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn read_into(&self, section: Section, name: &str, region: &[Range<usize>], into: &mut [u8]) -> Result<()> {
        let refused = |problem| Error::Checkpoint { path: self.path.clone(), problem };
        self.gather(section, name, region, into).map_err(refused)
    }
}

/// Reads what a checkpoint says of itself.
pub(super) fn read_manifest(folder: &Path) -> Checked<Manifest> {
    let name = manifest::NAME;
    let text = fs::read_to_string(folder.join(name)).map_err(|error| format!("`{name}` cannot be read: {error}"))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("`{name}` is no JSON ({error})"))?;
    // Format and version first: what another version calls its fields is not known.
    if json["format"] != manifest::FORMAT {
        return Err(format!("`{name}` is of the format {} instead of \"{}\"", json["format"], manifest::FORMAT));
    }
    if json["version"] != manifest::VERSION {
        let (found, read) = (&json["version"], manifest::VERSION);
        let way_out = "go on with the program that wrote it";
        return Err(format!("`{name}` is of version {found}, this program reads {read}; {way_out}"));
    }
    if !manifest::is_sealed(&text) {
        return Err(format!("`{name}` was changed: it does not end with the checksum of what precedes it"));
    }
    serde_json::from_value(json).map_err(|error| format!("`{name}` is not understood ({error})"))
}

/// Compares a file's length with what the manifest says of it.
fn check_length(folder: &Path, record: &FileRecord) -> Checked<()> {
    if !is_plain(&record.name) {
        return Err("is no file's name".into());
    }
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let file = File::open(folder.join(&record.name)).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    match bytes == record.bytes {
        true => Ok(()),
        false => Err(format!("has {bytes} bytes instead of {}", record.bytes)),
    }
}

/// Says whether a name stays in its folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\'])
}

/// Reads which tensors a file holds, and where each begins.
fn header(bytes: &[u8]) -> Checked<Vec<(Entry, u64)>> {
    let first = bytes.get(..8).and_then(|first| first.try_into().ok());
    let first = first.ok_or_else(|| format!("is no safetensors file: it has {} bytes", bytes.len()))?;
    let length = tensor_file::header_bytes(first, bytes.len() as u64)?;
    let start = 8 + length;
    let tensors = tensor_file::parse(&bytes[8..start as usize], bytes.len() as u64 - start)?;
    Ok(tensors.into_iter().map(|(entry, range)| (entry, start + range.start)).collect())
}

/// Returns the first digits of a checksum, enough to tell two apart.
fn short(checksum: &str) -> &str {
    checksum.get(..16).unwrap_or(checksum)
}
