//! Checkpoints made from checkpoints: other files, another precision, the mean of several. A block of rows of one tensor
//! is in memory at a time.

use std::ops::Range;
use std::path::PathBuf;

use mp_runtime::{bytes, Kind, Tensor};

use super::{About, CheckpointReader, CheckpointStore, Dtype, Entry, Section, ShardWriter, Slice};
use crate::region::{self, Region};
use crate::{Error, Result};

/// Tensors are read in blocks of rows of at most so many bytes, or of one row.
const BLOCK_BYTES: usize = 64 << 20;

/// What the new checkpoint is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewrite {
    /// How many files each section is written in, at least 1; fewer where there are fewer tensors.
    pub files: usize,
    /// The kind of the model's elements; unset: as they are.
    pub dtype: Option<Dtype>,
    /// Whether the optimizer's state is left out.
    pub model_only: bool,
}

/// Writes a checkpoint anew; returns its folder. What cannot be written whole leaves nothing.
///
/// # Errors
/// What reading and writing raise.
pub fn convert(from: &dyn CheckpointReader, into: &dyn CheckpointStore, how: &Rewrite) -> Result<PathBuf> {
    write(&[from], into, how, &from.manifest().about)
}

/// Writes the mean of several checkpoints' weights, computed in double precision; returns its folder. The optimizer's
/// state is left out, and what is said of the run is what the last one says.
///
/// # Errors
/// [`Error::Checkpoint`] if there are none, or one holds other tensors than the first; what reading and writing raise.
pub fn average(from: &[&dyn CheckpointReader], into: &dyn CheckpointStore, how: &Rewrite) -> Result<PathBuf> {
    let none = || Error::Checkpoint { path: PathBuf::new(), problem: "there is none to average".into() };
    let (first, last) = from.first().zip(from.last()).ok_or_else(none)?;
    let shapes = |reader: &dyn CheckpointReader| -> Vec<(String, Vec<usize>)> {
        reader.manifest().model.iter().map(|(name, record)| (name.clone(), record.shape.clone())).collect()
    };
    let expected = shapes(*first);
    for reader in from {
        if shapes(*reader) != expected {
            let problem = format!("its tensors are not those of `{}`", first.path().display());
            return Err(Error::Checkpoint { path: reader.path().into(), problem });
        }
    }
    let about = About { validation_loss: None, ..last.manifest().about.clone() };
    write(from, into, &Rewrite { model_only: true, ..*how }, &about)
}

/// Writes the mean of what `from` hold: where that is one, its tensors.
fn write(from: &[&dyn CheckpointReader], into: &dyn CheckpointStore, how: &Rewrite, about: &About) -> Result<PathBuf> {
    let written = write_shards(from, into, how, about.step).and_then(|writers| into.commit(writers, about));
    // A disk that took no more is not to stay full of it.
    written.inspect_err(|_| into.abandon(about.step))
}

/// Writes all shards; returns how many there are.
fn write_shards(from: &[&dyn CheckpointReader], into: &dyn CheckpointStore, how: &Rewrite, step: u64) -> Result<usize> {
    let sections = if how.model_only { &Section::ALL[..1] } else { &Section::ALL[..] };
    let shares: Vec<(Section, Vec<Vec<Entry>>)> =
        sections.iter().map(|&section| (section, shares(from[0], section, how.files))).collect();
    let writers = shares.iter().map(|(_, shares)| shares.len()).max().unwrap_or(0).max(1);
    for writer in 0..writers {
        let mut shard = into.shard(step, writer)?;
        for (section, shares) in &shares {
            let Some(entries) = shares.get(writer) else { continue };
            let dtype = how.dtype.filter(|_| *section == Section::Model);
            let slice = |entry: &Entry| Slice::whole(Entry { dtype: dtype.unwrap_or(entry.dtype), ..entry.clone() });
            shard.file(*section, &entries.iter().map(slice).collect::<Vec<_>>())?;
            for entry in entries {
                append(from, *section, entry, dtype, &mut *shard)?;
            }
        }
        shard.finish()?;
    }
    Ok(writers)
}

/// Shares a section's tensors out, in their order, in runs of nearly the same bytes; none is empty.
fn shares(from: &dyn CheckpointReader, section: Section, files: usize) -> Vec<Vec<Entry>> {
    let tensors = from.manifest().section(section);
    let entries = tensors.iter().map(|(name, record)| Entry::new(name, record.dtype, &record.shape));
    let total: u64 = entries.clone().filter_map(|entry| entry.bytes()).sum();
    let mut shares: Vec<Vec<Entry>> = Vec::new();
    let mut before = 0u64;
    let mut share = 0;
    for entry in entries {
        // Where the tensor begins in the whole decides its file.
        let next = (u128::from(before) * files as u128 / u128::from(total.max(1))) as u64;
        if shares.is_empty() || next > share {
            shares.push(Vec::new());
            share = next;
        }
        before += entry.bytes().unwrap_or(0);
        shares.last_mut().expect("there is one").push(entry);
    }
    shares
}

/// Appends a tensor, block after block.
fn append(
    from: &[&dyn CheckpointReader],
    section: Section,
    entry: &Entry,
    dtype: Option<Dtype>,
    into: &mut dyn ShardWriter,
) -> Result<()> {
    for block in blocks(entry) {
        if let ([one], None) = (from, dtype) {
            into.append(&one.read(section, &entry.name, &block)?)?;
            continue;
        }
        let mean = mean(from, section, entry, &block)?;
        let cast = mean.f_to_kind(dtype.unwrap_or(entry.dtype).kind()).map_err(mp_runtime::Error::from)?;
        into.append(bytes::view(&cast)?)?;
    }
    Ok(())
}

/// Computes the mean of a box: in double precision where there are several.
fn mean(from: &[&dyn CheckpointReader], section: Section, entry: &Entry, block: &[Range<usize>]) -> Result<Tensor> {
    let read = |reader: &&dyn CheckpointReader| -> Result<Tensor> {
        let kind = reader.manifest().entry(section, &entry.name).map_or(entry.dtype, |entry| entry.dtype).kind();
        let elements = reader.read(section, &entry.name, block)?;
        Ok(bytes::tensor(&elements, &[region::volume(block) as i64], kind)?)
    };
    let [first, others @ ..] = from else { unreachable!("there is at least one") };
    if others.is_empty() {
        return read(first);
    }
    let torch = mp_runtime::Error::from;
    let mut sum = read(first)?.f_to_kind(Kind::Double).map_err(torch)?;
    for other in others {
        let _ = sum.f_add_(&read(other)?.f_to_kind(Kind::Double).map_err(torch)?).map_err(torch)?;
    }
    Ok(sum.f_div_scalar_(from.len() as f64).map_err(torch)?)
}

/// Cuts a tensor in blocks of rows.
fn blocks(entry: &Entry) -> Vec<Region> {
    let full = region::whole(&entry.shape);
    let Some((rows, inner)) = full.split_first() else { return vec![full] };
    let row_bytes = region::volume(inner) * entry.dtype.bytes();
    let step = (BLOCK_BYTES / row_bytes.max(1)).max(1);
    let block = |start: usize| {
        let mut block = full.clone();
        block[0] = start..(start + step).min(rows.end);
        block
    };
    (0..rows.end).step_by(step).map(block).collect()
}
