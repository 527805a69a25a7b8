//! Where a model's weights come from: any set of full tensors that can be read box by box, and loading from it under
//! any layout.

use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};

use mp_model::Parameters;
use mp_runtime::{bytes, Tensor};

use crate::checkpoint::{self, CheckpointReader, Entry, Verify};
use crate::region;
use crate::{state, Error, Result};

/// Full tensors under our parameters' names.
pub trait WeightSource: Send + Debug {
    /// Lists the names.
    fn names(&self) -> Vec<String>;

    /// Describes a tensor, if there is one of that name.
    fn entry(&self, name: &str) -> Option<Entry>;

    /// Reads a box of a tensor, row-major and little-endian, in the kind of its entry; no more than these bytes.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is no such tensor or box, [`Error::Read`].
    fn read(&self, name: &str, region: &[Range<usize>]) -> Result<Vec<u8>>;

    /// Returns where it lies, for messages.
    fn origin(&self) -> &Path;
}

/// Gives parameters their values, each rank what it keeps of them. Local to each rank.
///
/// # Errors
/// [`Error::Checkpoint`] if a tensor is missing or of another shape; what reading raises.
pub fn load(parameters: &Parameters, source: &dyn WeightSource) -> Result<()> {
    let _span = tracing::info_span!("load", from = %source.origin().display()).entered();
    let layout = parameters.masters().layout();
    for (index, parameter) in parameters.partition().parameters.iter().enumerate() {
        let entry = expect(source, &parameter.spec.name, &parameter.spec.shape)?;
        let range = layout.range(index);
        let shard = Tensor::f_zeros([range.len() as i64], (entry.dtype.kind(), parameters.device()));
        let shard = shard.map_err(mp_runtime::Error::from)?;
        for kept in parameters.kept_of(range.clone())? {
            let within = kept.start - range.start..kept.end - range.start;
            for piece in region::pieces(parameter, parameters.tp_rank(), within) {
                let elements = tensor(source, &entry, &piece.region)?;
                let (start, length) = (piece.local.start as i64, piece.local.len() as i64);
                let place = shard.f_narrow(0, start, length).map_err(mp_runtime::Error::from)?;
                place.shallow_clone().f_copy_(&elements).map_err(mp_runtime::Error::from)?;
            }
        }
        parameters.load(index, &shard.f_view(layout.shape(index)).map_err(mp_runtime::Error::from)?)?;
    }
    Ok(())
}

/// Describes a tensor that must be there with this shape.
///
/// # Errors
/// [`Error::Checkpoint`] if it is not.
pub fn expect(source: &dyn WeightSource, name: &str, shape: &[usize]) -> Result<Entry> {
    let refused = |problem| Error::Checkpoint { path: source.origin().into(), problem };
    let entry = source.entry(name).ok_or_else(|| refused(format!("it holds no tensor `{name}`")))?;
    match entry.shape == shape {
        true => Ok(entry),
        false => Err(refused(format!("`{name}` has shape {:?} where the model has {shape:?}", entry.shape))),
    }
}

/// Reads a box as a tensor of one dim, in host memory.
///
/// # Errors
/// What reading raises.
pub fn tensor(source: &dyn WeightSource, entry: &Entry, region: &[Range<usize>]) -> Result<Tensor> {
    let elements = source.read(&entry.name, region)?;
    Ok(bytes::tensor(&elements, &[region::volume(region) as i64], entry.dtype.kind())?)
}

/// Opens the weights that lie at a path: the newest checkpoint of a run folder, or one checkpoint's own folder.
///
/// # Errors
/// [`Error::Checkpoint`] if there is none, or it is not intact.
pub fn open(path: &Path) -> Result<Box<dyn WeightSource>> {
    Ok(Box::new(CheckpointWeights::new(checkpoint::open(path, Verify::Lengths)?)))
}

/// The model part of a checkpoint.
#[derive(Debug)]
pub struct CheckpointWeights {
    origin: PathBuf,
    reader: Box<dyn CheckpointReader>,
}

impl CheckpointWeights {
    /// Takes a checkpoint that was opened.
    pub fn new(reader: Box<dyn CheckpointReader>) -> Self {
        Self { origin: reader.path().into(), reader }
    }
}

impl WeightSource for CheckpointWeights {
    fn names(&self) -> Vec<String> {
        let model = self.reader.manifest().files.iter().filter(|file| file.name == state::MODEL);
        model.flat_map(|file| file.tensors.iter().map(|entry| entry.name.clone())).collect()
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        let model = self.reader.manifest().files.iter().find(|file| file.name == state::MODEL)?;
        model.tensors.iter().find(|entry| entry.name == name).cloned()
    }

    fn read(&self, name: &str, region: &[Range<usize>]) -> Result<Vec<u8>> {
        let stored = self.reader.read(state::MODEL, name)?;
        let full = region::whole(&stored.entry.shape);
        if region.len() != full.len() || region::common(region, &full).as_deref() != Some(region) {
            let problem = format!("`{name}` of shape {:?} has no box {region:?}", stored.entry.shape);
            return Err(Error::Checkpoint { path: self.origin.clone(), problem });
        }
        let width = stored.entry.dtype.bytes();
        let mut elements = vec![0; region::volume(region) * width];
        region::copy(&stored.bytes, &full, &mut elements, region, width);
        Ok(elements)
    }

    fn origin(&self) -> &Path {
        &self.origin
    }
}
