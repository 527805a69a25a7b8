//! Where a model's weights come from: any set of full tensors that can be read box by box, and loading from it under
//! any layout.

use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mp_model::Parameters;
use mp_plan::ParameterSpec;
use mp_runtime::{bytes, Device, Tensor};

use crate::adapted::{mark, Adapted, Adapters, Merged};
use crate::checkpoint::{self, CheckpointReader, Entry, Section, Verify};
use crate::huggingface::{Adapter, Folder};
use crate::region;
use crate::{Config, Error, Result};

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

    /// [Reads](Self::read) a box into memory of its length.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    fn read_into(&self, name: &str, region: &[Range<usize>], into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.read(name, region)?);
        Ok(())
    }

    /// Returns where it lies, for messages.
    fn origin(&self) -> &Path;

    /// Describes the adapters that it holds beside a model, if it does.
    fn adapters(&self) -> Option<&Adapters> {
        None
    }
}

/// Gives parameters their values, each rank what it keeps of them. Local to each rank.
///
/// # Errors
/// [`Error::Checkpoint`] if a tensor is missing or of another shape; what reading raises.
pub fn load(parameters: &Parameters, source: &dyn WeightSource) -> Result<()> {
    load_some(parameters, source, |_| true)
}

/// Gives a model its own values from where it comes from; adapters that are trained beside it keep theirs.
///
/// # Errors
/// As [`load`].
pub fn load_base(parameters: &Parameters, source: &dyn WeightSource) -> Result<()> {
    let adapted = parameters.partition().lora.is_some();
    load_some(parameters, source, |spec| spec.frozen || !adapted)
}

/// Gives what is trained its values, as a run's checkpoint holds them; frozen parameters keep theirs.
///
/// # Errors
/// As [`load`].
pub fn load_trained(parameters: &Parameters, source: &dyn WeightSource) -> Result<()> {
    load_some(parameters, source, |spec| !spec.frozen)
}

fn load_some(parameters: &Parameters, source: &dyn WeightSource, takes: impl Fn(&ParameterSpec) -> bool) -> Result<()> {
    let _span = tracing::info_span!("load", from = %source.origin().display()).entered();
    if source.adapters().is_some() && parameters.partition().lora.is_none() {
        let problem = "it holds adapters, which this model lacks: fold them in".into();
        return Err(Error::Checkpoint { path: source.origin().into(), problem });
    }
    let layout = parameters.masters().layout();
    for (index, parameter) in parameters.partition().parameters.iter().enumerate() {
        if !takes(&parameter.spec) {
            continue;
        }
        let entry = expect(source, &parameter.spec.name, &parameter.spec.shape)?;
        let range = layout.range(index);
        let shard = Tensor::f_zeros([range.len() as i64], (entry.dtype.kind(), parameters.device()));
        let shard = shard.map_err(mp_runtime::Error::from)?;
        for kept in parameters.kept_of(range.clone())? {
            let within = kept.start - range.start..kept.end - range.start;
            for piece in region::pieces(parameter, parameters.tp_rank(), within) {
                let (start, length) = (piece.local.start as i64, piece.local.len() as i64);
                let place = shard.f_narrow(0, start, length).map_err(mp_runtime::Error::from)?;
                fill(source, &entry, &piece.region, place)?;
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

/// Reads a box into a tensor of as many elements, which may be of another kind.
///
/// # Errors
/// What reading raises.
pub fn fill(source: &dyn WeightSource, entry: &Entry, region: &[Range<usize>], mut place: Tensor) -> Result<()> {
    if place.kind() == entry.dtype.kind() && place.device() == Device::Cpu {
        return source.read_into(&entry.name, region, bytes::view_mut(&mut place)?);
    }
    place.f_copy_(&tensor(source, entry, region)?).map_err(mp_runtime::Error::from)?;
    Ok(())
}

/// Reads a box as a tensor of one dim, in host memory.
///
/// # Errors
/// What reading raises.
pub fn tensor(source: &dyn WeightSource, entry: &Entry, region: &[Range<usize>]) -> Result<Tensor> {
    let elements = source.read(&entry.name, region)?;
    Ok(bytes::tensor(&elements, &[region::volume(region) as i64], entry.dtype.kind())?)
}

/// Opens the weights that lie at a path: a published model, the newest checkpoint of a run folder, or one checkpoint's own
/// folder. Of a run that trained adapters, they and the model under them, which lies at `base` where it is not where the run
/// says. The bytes of runs are compared with their checksums as `verify` says; published models have none.
///
/// # Errors
/// [`Error::Published`] for what of a published model is not computed; [`Error::Checkpoint`] if there is none, or it is
/// not intact; either if the model under adapters is not there or another.
pub fn open(path: &Path, base: Option<&Path>, verify: Verify) -> Result<Box<dyn WeightSource>> {
    Ok(match Opened::at(path, base, verify)? {
        Opened::Plain(plain) => plain,
        Opened::Adapted(adapted) => Box::new(adapted),
    })
}

/// Opens the weights that lie at a path as one model, with adapters folded in.
///
/// # Errors
/// As [`open`].
pub fn open_merged(path: &Path, base: Option<&Path>, verify: Verify) -> Result<Box<dyn WeightSource>> {
    Ok(match Opened::at(path, base, verify)? {
        Opened::Plain(plain) => plain,
        Opened::Adapted(adapted) => Box::new(Merged::new(adapted, None)),
    })
}

/// What lies at a path.
pub(crate) enum Opened {
    /// A model.
    Plain(Box<dyn WeightSource>),
    /// One with adapters.
    Adapted(Adapted),
}

impl Opened {
    /// Opens it, a checkpoint after so much of a proof.
    pub(crate) fn at(path: &Path, base: Option<&Path>, verify: Verify) -> Result<Self> {
        if Adapter::is(path) {
            return Ok(Opened::Adapted(Adapter::open(path, base)?.beside_model(verify)?));
        }
        if Folder::is(path) {
            return Ok(Opened::Plain(Box::new(Folder::open(path)?)));
        }
        Self::run(checkpoint::open(path, verify)?, base, verify)
    }

    /// Takes what a checkpoint holds.
    pub(crate) fn run(reader: Box<dyn CheckpointReader>, base: Option<&Path>, verify: Verify) -> Result<Self> {
        let (path, about) = (reader.path().to_path_buf(), reader.manifest().about.clone());
        let stored: Box<dyn WeightSource> = Box::new(Stored::new(reader.into(), Section::Model, String::new()));
        if about.config["lora"]["rank"].as_u64().unwrap_or(0) == 0 {
            return Ok(Opened::Plain(stored));
        }
        let refused = |problem: String| Error::Checkpoint { path: path.clone(), problem };
        let config: Config = serde_json::from_value(about.config)
            .map_err(|error| refused(format!("its configuration is not understood ({error})")))?;
        let base = base.or(config.model.base.as_deref());
        let (base, model) = Under { adapters: &path, said: config.model.from.as_deref(), base, verify }.open()?;
        match about.base {
            Some(then) if mark(&*model)? != then => Err(refused(changed(&base))),
            _ => Ok(Opened::Adapted(Adapted::new(model, stored, Adapters { lora: config.lora, base }))),
        }
    }
}

/// Says that adapters were trained on another model.
pub(crate) fn changed(base: &Path) -> String {
    format!(
        "its adapters were trained on another model than `{}` holds now; put that one back, or name its folder as \
         `model.base`",
        base.display()
    )
}

/// Refuses adapters where the model under adapters is looked for.
pub(crate) fn adapters_under(path: PathBuf) -> Error {
    let problem = "it holds adapters itself; name the folder of the model under them as `model.base`";
    Error::Checkpoint { path, problem: problem.into() }
}

/// The model under adapters, still to be found.
pub(crate) struct Under<'a> {
    /// Where the adapters lie.
    pub adapters: &'a Path,
    /// Where they say that it is.
    pub said: Option<&'a Path>,
    /// Where the user says that it is.
    pub base: Option<&'a Path>,
    /// How much of it is proven, if it is a run's.
    pub verify: Verify,
}

impl Under<'_> {
    /// Returns its folder. A relative path starts at the working directory, or else at the adapters' folder.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is none.
    pub fn path(&self) -> Result<PathBuf> {
        let Self { adapters, said, base, .. } = self;
        let way_out = "name its folder as `model.base`";
        let refused = |problem: String| Error::Checkpoint { path: adapters.to_path_buf(), problem };
        let none = || refused(format!("its adapters stand on a model that lies in no folder known here; {way_out}"));
        // Beside an empty name lie the adapters themselves.
        let named = base.or(*said).filter(|named| !named.as_os_str().is_empty()).ok_or_else(none)?;
        let places = [std::path::absolute(named).unwrap_or_else(|_| named.into()), adapters.join(named)];
        let found = places.into_iter().find(|place| place.is_dir());
        found.ok_or_else(|| {
            let problem = format!("its adapters stand on the model `{}`, which is no folder here", named.display());
            refused(format!("{problem}; put it back, or {way_out}"))
        })
    }

    /// Opens it.
    ///
    /// # Errors
    /// As [`path`](Self::path) and [`open`]; [`Error::Checkpoint`] if the user names what has adapters itself.
    pub fn open(&self) -> Result<(PathBuf, Box<dyn WeightSource>)> {
        let path = self.path()?;
        match Opened::at(&path, None, self.verify)? {
            Opened::Plain(plain) => Ok((path, plain)),
            // A run that went on with another's adapters.
            Opened::Adapted(adapted) if self.base.is_none() => {
                let base = adapted.adapters().map_or(path, |adapters| adapters.base.clone());
                Ok((base, adapted.into_base()))
            }
            Opened::Adapted(_) => Err(adapters_under(path)),
        }
    }
}

/// The tensors of a checkpoint whose names start alike: the model, or one part of the optimizer's state.
#[derive(Debug)]
pub struct Stored {
    origin: PathBuf,
    reader: Arc<dyn CheckpointReader>,
    section: Section,
    prefix: String,
}

impl Stored {
    /// Takes the tensors of a section whose names start with `prefix`, under what follows it.
    pub fn new(reader: Arc<dyn CheckpointReader>, section: Section, prefix: String) -> Self {
        Self { origin: reader.path().into(), reader, section, prefix }
    }
}

impl WeightSource for Stored {
    fn names(&self) -> Vec<String> {
        let all = self.reader.manifest().section(self.section).keys();
        all.filter_map(|name| name.strip_prefix(&self.prefix).map(str::to_string)).collect()
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        let entry = self.reader.manifest().entry(self.section, &format!("{}{name}", self.prefix))?;
        Some(Entry { name: name.into(), ..entry })
    }

    fn read(&self, name: &str, region: &[Range<usize>]) -> Result<Vec<u8>> {
        self.reader.read(self.section, &format!("{}{name}", self.prefix), region)
    }

    fn read_into(&self, name: &str, region: &[Range<usize>], into: &mut [u8]) -> Result<()> {
        self.reader.read_into(self.section, &format!("{}{name}", self.prefix), region, into)
    }

    fn origin(&self) -> &Path {
        &self.origin
    }
}
