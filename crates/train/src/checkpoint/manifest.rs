//! `manifest.json`: what a checkpoint holds, where each element of each tensor lies, and how to tell that it still does.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Dtype, Entry, Section};
use crate::config::Precision;
use crate::region::{self, Region};
use crate::standing::Standing;
use crate::Config;

/// The manifest's file name. It is written last.
pub(super) const NAME: &str = "manifest.json";

/// The word that tells our manifests from others.
pub(super) const FORMAT: &str = "mp-checkpoint";

/// The version of the layout that this code writes and reads.
pub(super) const VERSION: u32 = 3;

/// What a checkpoint says of its run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Finished updates.
    pub step: u64,
    /// Target tokens trained on so far.
    pub tokens: u64,
    /// Samples trained on so far: where the order of samples goes on.
    pub samples: u64,
    /// The run's seed, the key of every random number.
    pub seed: u64,
    /// The validation loss at this step, where it was measured.
    pub validation_loss: Option<f64>,
    /// How the run's evaluations stand.
    pub standing: Standing,
    /// The hash chain over those samples, as the [log](crate::audit) has it: what a log that begins here goes on from.
    /// `None` where nobody kept one.
    pub chain: Option<String>,
    /// What tells the model under adapters from others; see [`mark`](crate::adapted::mark).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The whole configuration, as JSON.
    pub config: serde_json::Value,
    /// The [code](crate::code) that wrote it.
    pub code_version: String,
}

impl About {
    /// Describes a run after `step` updates; nothing has been evaluated.
    pub fn new(step: u64, config: &Config) -> Self {
        let samples = step * config.train.global_batch as u64;
        Self {
            step,
            tokens: samples * config.train.seq as u64,
            samples,
            seed: config.train.seed,
            validation_loss: None,
            standing: Standing::default(),
            chain: None,
            base: None,
            config: serde_json::to_value(config).expect("a tree of plain values is JSON"),
            code_version: crate::code::version().into(),
        }
    }

    /// Returns the numbers that the run was trained in, where its configuration says so.
    pub fn precision(&self) -> Option<Precision> {
        serde_json::from_value(self.config.pointer("/train/precision")?.clone()).ok()
    }
}

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `mp-checkpoint`.
    pub format: String,
    /// The version of the layout.
    pub version: u32,
    /// What it says of its run.
    #[serde(flatten)]
    pub about: About,
    /// The files beside the manifest.
    pub files: Vec<FileRecord>,
    /// The masters, by parameter.
    pub model: BTreeMap<String, TensorRecord>,
    /// The optimizer's state, `first_moment.<parameter>` for instance.
    pub optimizer: BTreeMap<String, TensorRecord>,
}

/// A file of tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The BLAKE3 checksum of all its bytes, in hexadecimal digits.
    pub blake3: String,
}

/// A full tensor, and where its elements lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Its element kind.
    pub dtype: Dtype,
    /// Its dims.
    pub shape: Vec<usize>,
    /// Boxes that together are the tensor, each element in one of them.
    pub slices: Vec<SliceRecord>,
}

/// A box of a tensor that lies in one run in a file, row-major.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceRecord {
    /// The file, counted from 0 in the manifest's list.
    pub file: usize,
    /// The first byte.
    pub start: u64,
    /// Start and end in each dim.
    pub region: Vec<[usize; 2]>,
}

impl SliceRecord {
    /// Returns the box.
    pub fn region(&self) -> Region {
        self.region.iter().map(|&[start, end]| start..end).collect()
    }
}

/// Writes a box as a manifest does.
pub(super) fn bounds(region: &[Range<usize>]) -> Vec<[usize; 2]> {
    region.iter().map(|range| [range.start, range.end]).collect()
}

impl Manifest {
    /// Returns the tensors of a section.
    pub fn section(&self, section: Section) -> &BTreeMap<String, TensorRecord> {
        match section {
            Section::Model => &self.model,
            Section::Optimizer => &self.optimizer,
        }
    }

    /// Returns the tensors of a section, to add to.
    pub(super) fn section_mut(&mut self, section: Section) -> &mut BTreeMap<String, TensorRecord> {
        match section {
            Section::Model => &mut self.model,
            Section::Optimizer => &mut self.optimizer,
        }
    }

    /// Describes a tensor, if there is one of that name.
    pub fn entry(&self, section: Section, name: &str) -> Option<Entry> {
        self.section(section).get(name).map(|record| Entry::new(name, record.dtype, &record.shape))
    }

    /// Returns the length of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Names the first tensor that its slices do not make up, or make up twice, or whose slices do not lie in their files.
    ///
    /// A manifest without a fault has no number that overflows: every box lies in its tensor, every slice in its file.
    pub(super) fn fault(&self) -> Option<String> {
        let all = self.model.iter().chain(&self.optimizer);
        all.into_iter().find_map(|(name, record)| match self.places(record) {
            None => Some(format!("its slices of `{name}` are not all of {:?} once", record.shape)),
            Some(false) => Some(format!("its slices of `{name}` lie beyond their files")),
            Some(true) => None,
        })
    }

    /// Says whether a tensor's slices lie in their files; `None` where they are not the tensor once.
    fn places(&self, record: &TensorRecord) -> Option<bool> {
        let full = region::whole(&record.shape);
        // Also where a dim of 0 hides that the others' product cannot be counted.
        let extent = |bytes: usize, dim: &usize| bytes.checked_mul((*dim).max(1));
        record.shape.iter().try_fold(record.dtype.bytes(), extent).filter(|&bytes| isize::try_from(bytes).is_ok())?;
        let regions: Vec<Region> = record.slices.iter().map(SliceRecord::region).collect();
        let inside = |region: &Region| {
            let fits = |(part, all): (&Range<usize>, &Range<usize>)| part.start <= part.end && part.end <= all.end;
            region.len() == full.len() && region.iter().zip(&full).all(fits)
        };
        if !regions.iter().all(inside) {
            return None;
        }
        // Of boxes that are inside, none has more elements than can be counted.
        let covered = regions.iter().try_fold(0usize, |sum, region| sum.checked_add(region::volume(region)))?;
        if covered != region::volume(&full) || overlapping(&regions) {
            return None;
        }
        let in_file = |(slice, region): (&SliceRecord, &Region)| {
            let end = slice.start.checked_add((region::volume(region) * record.dtype.bytes()) as u64);
            self.files.get(slice.file).zip(end).is_some_and(|(file, end)| end <= file.bytes)
        };
        Some(record.slices.iter().zip(&regions).all(in_file))
    }

    /// Writes it as the text of `manifest.json`: one JSON object, whose last field is the checksum of what precedes it.
    pub(super) fn sealed(&self) -> Vec<u8> {
        let mut text = serde_json::to_string(self).expect("a manifest is JSON");
        // The closing brace comes after the checksum.
        text.pop();
        text.push_str(&seal(&text));
        text.into_bytes()
    }
}

/// Returns what ends the text of a manifest: the checksum of all bytes before it, as the object's last field.
fn seal(body: &str) -> String {
    format!(",\"blake3\":\"{}\"}}", blake3::hash(body.as_bytes()).to_hex())
}

/// Says whether a manifest's text ends with the checksum of what precedes it.
pub(super) fn is_sealed(text: &str) -> bool {
    let start = text.len().saturating_sub(seal("").len());
    text.split_at_checked(start).is_some_and(|(body, end)| end == seal(body))
}

/// Says whether two of some boxes share elements. Most tensors are cut along one dim, so neighbours in order are compared.
fn overlapping(regions: &[Region]) -> bool {
    let mut sorted: Vec<&Region> = regions.iter().filter(|region| region::volume(region) > 0).collect();
    sorted.sort_by(|a, b| a.iter().map(|range| range.start).cmp(b.iter().map(|range| range.start)));
    sorted.iter().enumerate().any(|(index, region)| {
        // Once the first dim has ended no later box can share anything.
        let later = sorted[index + 1..].iter();
        let reached = |other: &&&Region| match (region.first(), other.first()) {
            (Some(own), Some(other)) => other.start < own.end,
            _ => true,
        };
        later.take_while(reached).any(|other| region::common(region, other).is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checkpoint of one tensor in one file.
    fn holding(record: TensorRecord) -> Manifest {
        Manifest {
            format: FORMAT.into(),
            version: VERSION,
            about: About::new(1, &Config::default()),
            files: vec![FileRecord { name: "a".into(), bytes: 48, blake3: String::new() }],
            model: BTreeMap::from([("a".to_string(), record)]),
            optimizer: BTreeMap::new(),
        }
    }

    #[test]
    fn slices_must_make_up_the_tensor_once() {
        let fault = |slices: &[&[[usize; 2]]]| {
            let slice = |region: &&[[usize; 2]]| SliceRecord { file: 0, start: 0, region: region.to_vec() };
            let record =
                TensorRecord { dtype: Dtype::F32, shape: vec![4, 3], slices: slices.iter().map(slice).collect() };
            holding(record).fault().is_some()
        };
        assert!(!fault(&[&[[0, 4], [0, 3]]]));
        assert!(!fault(&[&[[2, 4], [0, 3]], &[[0, 2], [0, 1]], &[[0, 2], [1, 3]]]));
        assert!(fault(&[]));
        assert!(fault(&[&[[0, 3], [0, 3]]]));
        assert!(fault(&[&[[0, 2], [0, 3]], &[[1, 3], [0, 3]]]));
        assert!(fault(&[&[[0, 2], [0, 3]], &[[2, 5], [0, 2]]]));
        assert!(fault(&[&[[0, 4]]]));
        // A box whose dims' product is beyond all numbers, and one that ends before it begins.
        assert!(fault(&[&[[0, usize::MAX], [0, usize::MAX]]]));
        assert!(fault(&[&[[0, 4], [0, 3]], &[[3, 1], [0, 3]]]));
    }

    #[test]
    fn what_cannot_be_counted_or_lies_beyond_its_file_is_a_fault() {
        let fault = |shape: &[usize], region: &[[usize; 2]], file: usize, start: u64| {
            let slices = vec![SliceRecord { file, start, region: region.to_vec() }];
            let record = TensorRecord { dtype: Dtype::F32, shape: shape.to_vec(), slices };
            holding(record).fault()
        };
        assert_eq!(fault(&[4, 2], &[[0, 4], [0, 2]], 0, 16), None);
        for (file, start) in [(0, 17), (1, 16), (0, u64::MAX)] {
            assert!(fault(&[4, 2], &[[0, 4], [0, 2]], file, start).unwrap().contains("beyond their files"));
        }
        let large = 1 << 62;
        assert!(fault(&[large, 4], &[[0, large], [0, 4]], 0, 0).unwrap().contains("are not all of"));
        assert!(fault(&[0, large, 8], &[[0, 0], [0, large], [0, 8]], 0, 0).unwrap().contains("are not all of"));
    }

    #[test]
    fn a_seal_is_of_every_byte() {
        let manifest = Manifest {
            format: FORMAT.into(),
            version: VERSION,
            about: About::new(1, &Config::default()),
            files: Vec::new(),
            model: BTreeMap::new(),
            optimizer: BTreeMap::new(),
        };
        let text = String::from_utf8(manifest.sealed()).unwrap();
        assert!(is_sealed(&text));
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
        assert!(!is_sealed(&format!("{text}\n")) && !is_sealed("") && !is_sealed(&text[1..]));
    }
}
