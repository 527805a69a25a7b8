//! A trainer's state into a checkpoint, and back, whatever the layouts of the two. Frozen parameters are no part of it.
//!
//! Of every element that several ranks hold, one writes it: of a tied table the first stage's rank; of what data ranks
//! share out its owner; of what they and tensor ranks all hold, each its part of a matrix, and small tensors in turn.

use std::ops::Range;
use std::sync::Arc;

use mp_model::Parameters;
use mp_plan::{PartitionedParameter, Tie, Zero};
use mp_runtime::flat::Flat;
use mp_runtime::{bytes, Device, Kind};

use crate::checkpoint::{CheckpointReader, Dtype, Entry, Section, ShardWriter, Slice};
use crate::optimizer::Optimizer;
use crate::region::{self, Piece};
use crate::step::Trainer;
use crate::weights::{self, Stored, WeightSource};
use crate::{Error, Result};

/// Elements from which a tensor that several ranks hold is written in parts.
const SPLIT_ELEMENTS: usize = 4096;

/// One flat buffer with the section and the prefix that its tensors are saved under.
struct Part<'a> {
    section: Section,
    prefix: String,
    flat: &'a Flat,
}

fn parts<'a>(parameters: &'a Parameters, optimizer: &'a dyn Optimizer) -> Vec<Part<'a>> {
    let mut parts = vec![Part { section: Section::Model, prefix: String::new(), flat: parameters.masters() }];
    for (name, flat) in optimizer.state() {
        parts.push(Part { section: Section::Optimizer, prefix: format!("{name}."), flat });
    }
    parts
}

/// What one rank writes of a checkpoint: its slices, and where they lie in its flat buffers. The same in every save.
#[derive(Debug)]
pub struct Shard {
    files: Vec<ShardFile>,
    bytes: usize,
}

/// One file of it.
#[derive(Debug)]
struct ShardFile {
    section: Section,
    slices: Vec<Slice>,
    /// Each slice's buffer, counted as [`parts`] lists them, and elements.
    places: Vec<(usize, Range<usize>)>,
}

impl Shard {
    /// Finds what this rank writes. Local to each rank.
    ///
    /// # Errors
    /// [`Error::Model`] for buffers of a kind that is not saved.
    pub fn new(trainer: &Trainer) -> Result<Self> {
        let (parameters, data) = (trainer.parameters(), &trainer.groups().data);
        let mut files: Vec<ShardFile> = Vec::new();
        let mut bytes = 0;
        for (index, part) in parts(parameters, trainer.optimizer()).iter().enumerate() {
            let dtype = dtype(part.flat.all().kind())?;
            let mut slices = Vec::new();
            let mut places = Vec::new();
            for (piece, name, shape, start) in own(parameters, data.rank().0, data.size()) {
                let entry = Entry::new(format!("{}{name}", part.prefix), dtype, &shape);
                bytes += piece.local.len() * dtype.bytes();
                slices.push(Slice { entry, region: piece.region });
                places.push((index, start + piece.local.start..start + piece.local.end));
            }
            match files.last_mut().filter(|file| file.section == part.section) {
                Some(file) => {
                    file.slices.append(&mut slices);
                    file.places.append(&mut places);
                }
                None => files.push(ShardFile { section: part.section, slices, places }),
            }
        }
        files.retain(|file| !file.slices.is_empty());
        Ok(Self { files, bytes })
    }

    /// Returns the bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies the elements, so that the trainer may go on; `into` is overwritten, and keeps its memory from save to save.
    ///
    /// # Errors
    /// [`Error::Runtime`] where a device does not give its tensors.
    pub fn copy(&self, trainer: &Trainer, into: &mut Vec<u8>) -> Result<()> {
        into.clear();
        into.reserve_exact(self.bytes);
        self.each(trainer, &mut |_, elements| {
            into.extend_from_slice(elements);
            Ok(())
        })
    }

    /// Writes the elements straight from the trainer.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write(&self, trainer: &Trainer, mut writer: Box<dyn ShardWriter>) -> Result<()> {
        self.each(trainer, &mut |begins, elements| {
            if let Some(file) = begins {
                writer.file(file.section, &file.slices)?;
            }
            writer.append(elements)
        })?;
        writer.finish()
    }

    /// Writes what was [copied](Self::copy).
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write_copy(&self, mut copied: &[u8], mut writer: Box<dyn ShardWriter>) -> Result<()> {
        for file in &self.files {
            writer.file(file.section, &file.slices)?;
            let elements = file.slices.iter().map(|slice| region::volume(&slice.region) * slice.entry.dtype.bytes());
            let (own, rest) = copied.split_at(elements.sum());
            writer.append(own)?;
            copied = rest;
        }
        writer.finish()
    }

    /// Visits the elements of all slices in order.
    fn each(&self, trainer: &Trainer, visit: &mut Visit<'_>) -> Result<()> {
        let parts = parts(trainer.parameters(), trainer.optimizer());
        for file in &self.files {
            let mut begins = Some(file);
            for (part, elements) in &file.places {
                let tensor = parts[*part].flat.range(elements.clone())?;
                // A copy of what lies on a device, another handle to what does not.
                let tensor = tensor.f_to_device(Device::Cpu).map_err(mp_runtime::Error::from)?;
                visit(begins.take(), bytes::view(&tensor)?)?;
            }
        }
        Ok(())
    }
}

/// Takes the elements of a slice; the first of a file comes with that file.
type Visit<'a> = dyn FnMut(Option<&ShardFile>, &[u8]) -> Result<()> + 'a;

/// A piece of a parameter that this rank writes, with the parameter's name and shape and where it begins in flat buffers.
type Own = (Piece, String, Vec<usize>, usize);

/// Lists what this rank writes of every flat buffer.
fn own(parameters: &Parameters, data_rank: usize, data_size: usize) -> Vec<Own> {
    let mut own = Vec::new();
    let layout = parameters.masters().layout();
    for (index, parameter) in parameters.partition().parameters.iter().enumerate() {
        if parameter.tie == Tie::Copy {
            continue;
        }
        let range = layout.range(index);
        // Ranks of one tensor group hold the same where it is replicated, those of the data group where all is.
        let replicas = parameter.replicas();
        let (mut holder, mut holders) = (parameters.tp_rank() % replicas, replicas);
        if parameters.sharing().zero == Zero::Replicated {
            (holder, holders) = (data_rank * replicas + holder, data_size * replicas);
        }
        for owned in parameters.owned_of(range.clone()) {
            let within = owned.start - range.start..owned.end - range.start;
            let Some(within) = written(parameter, within, index, holder, holders) else { continue };
            for piece in region::pieces(parameter, parameters.tp_rank(), within) {
                own.push((piece, parameter.spec.name.clone(), parameter.spec.shape.clone(), range.start));
            }
        }
    }
    own
}

/// Chooses what one of several holders of the same elements writes: large tensors in parts that begin with rows, small ones
/// in turn.
fn written(
    parameter: &PartitionedParameter,
    within: Range<usize>,
    index: usize,
    holder: usize,
    holders: usize,
) -> Option<Range<usize>> {
    if within.len() < SPLIT_ELEMENTS {
        return (index % holders == holder).then_some(within);
    }
    let shape = parameter.local_shape();
    let row: usize = shape.iter().skip(1).product();
    let bound = |part: usize| match part {
        0 => within.start,
        part if part == holders => within.end,
        part => (within.start + within.len() * part / holders).next_multiple_of(row.max(1)).min(within.end),
    };
    let own = bound(holder)..bound(holder + 1);
    (!own.is_empty()).then_some(own)
}

fn dtype(kind: Kind) -> Result<Dtype> {
    match kind {
        Kind::Double => Ok(Dtype::F64),
        Kind::Float => Ok(Dtype::F32),
        other => Err(mp_model::Error::Kind(other).into()),
    }
}

/// Puts a checkpoint's tensors into a trainer's buffers, each rank what it keeps of them. Local to each rank.
///
/// # Errors
/// [`Error::Checkpoint`] if a tensor is missing or of another shape.
pub fn restore(trainer: &Trainer, reader: Box<dyn CheckpointReader>) -> Result<()> {
    let _span = tracing::info_span!("restore").entered();
    let parameters = trainer.parameters();
    let reader: Arc<dyn CheckpointReader> = reader.into();
    // A model that was imported has not been trained yet: there is nothing to restore, and zeros are where it begins.
    let untrained = reader.manifest().about.step == 0 && reader.manifest().optimizer.is_empty();
    let state = |part: &Part<'_>| part.section == Section::Optimizer && !untrained;
    let held = |part: &Part<'_>| reader.manifest().optimizer.keys().any(|name| name.starts_with(&part.prefix));
    if let Some(missing) = parts(parameters, trainer.optimizer()).iter().find(|part| state(part) && !held(part)) {
        let problem = format!(
            "it holds no `{}…` of `optimizer.name`: it is a model alone, or another optimizer's; begin a new run from its \
             weights with `model.from`",
            missing.prefix
        );
        return Err(Error::Checkpoint { path: reader.path().into(), problem });
    }
    for part in parts(parameters, trainer.optimizer()).into_iter().filter(state) {
        let source = Stored::new(Arc::clone(&reader), Section::Optimizer, part.prefix);
        scatter(parameters, &source, part.flat)?;
    }
    weights::load_trained(parameters, &Stored::new(reader, Section::Model, String::new()))
}

/// Fills what a flat buffer holds of every parameter.
fn scatter(parameters: &Parameters, source: &dyn WeightSource, into: &Flat) -> Result<()> {
    for (index, parameter) in parameters.partition().parameters.iter().enumerate() {
        if parameter.spec.frozen {
            continue;
        }
        let range = into.layout().range(index);
        let entry = weights::expect(source, &parameter.spec.name, &parameter.spec.shape)?;
        for (held, place) in into.pieces(range.clone())? {
            let within = held.start - range.start..held.end - range.start;
            for piece in region::pieces(parameter, parameters.tp_rank(), within.clone()) {
                let start = (piece.local.start - within.start) as i64;
                let narrowed = place.f_narrow(0, start, piece.local.len() as i64).map_err(mp_runtime::Error::from)?;
                weights::fill(source, &entry, &piece.region, narrowed)?;
            }
        }
    }
    Ok(())
}
