//! A folder of adapters as PEFT saves it, as a source of their factors: `adapter_config.json` and
//! `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use mp_data::Mapping;
use mp_model::huggingface::adapter::{self, AdapterConfig, Factor};
use mp_plan::LoraConfig;
use safetensors::SafeTensors;

use super::folder::{self, json};
use super::{ADAPTER, ADAPTER_CONFIG, INDEX, SINGLE};
use crate::adapted::{Adapted, Adapters};
use crate::checkpoint::{Entry, Verify};
use crate::config::described;
use crate::region;
use crate::weights::{adapters_under, Under, WeightSource};
use crate::{Error, Result};

/// The adapters of a folder, without the model under them.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    lora: LoraConfig,
    base: PathBuf,
    file: Mapping,
    factors: BTreeMap<String, Held>,
}

/// One of our factors, and where it lies.
#[derive(Debug)]
struct Held {
    entry: Entry,
    factor: Factor,
    bytes: Range<usize>,
}

impl Adapter {
    /// Says whether a folder is one of adapters.
    pub fn is(path: &Path) -> bool {
        path.join(ADAPTER_CONFIG).is_file()
    }

    /// Returns the folder of the model under those of a folder, as [`open`](Self::open) finds it; none where there are no
    /// adapters, or no model that is found.
    pub fn under(path: &Path, base: Option<&Path>) -> Option<PathBuf> {
        let keys = Self::is(path).then(|| json(&path.join(ADAPTER_CONFIG)).ok()?.ok())??;
        let said = keys["base_model_name_or_path"].as_str().map(Path::new);
        Under { adapters: path, said, base, verify: Verify::Lengths }.path().ok()
    }

    /// Opens a folder: maps its file, and finds each factor in it. The model that they belong to lies at `base`, where it is not
    /// where `adapter_config.json` says.
    ///
    /// # Errors
    /// [`Error::Published`] for what is not computed, and tensors that are missing, left over or of another shape or kind;
    /// [`Error::Checkpoint`] if the model is not there; [`Error::Read`] and [`Error::Data`] for files that cannot be read.
    pub fn open(path: &Path, base: Option<&Path>) -> Result<Self> {
        let refused = |problem: String| Error::Published { path: path.into(), problem };
        if [SINGLE, INDEX].iter().any(|file| path.join(file).is_file()) {
            let problem = "it holds both a model and adapters; keep the two in folders of their own";
            return Err(refused(problem.into()));
        }
        let config = json(&path.join(ADAPTER_CONFIG))?.map_err(refused)?;
        let config = AdapterConfig::read(&config).map_err(|refusal| refused(refusal.to_string()))?;
        if !path.join(ADAPTER).is_file() {
            let problem = "pickled adapters are not read, so save them with safetensors";
            return Err(refused(format!("it has no `{ADAPTER}`; {problem}")));
        }
        let under =
            Under { adapters: path, said: config.base.as_deref().map(Path::new), base, verify: Verify::Lengths };
        let base = under.path()?;
        if Self::is(&base) {
            return Err(adapters_under(base));
        }
        let architecture = described(&base)?;
        let file = Mapping::open(&path.join(ADAPTER))?;
        let unread =
            |error: safetensors::SafeTensorError| refused(format!("`{ADAPTER}` is no safetensors file: {error}"));
        let (_, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(unread)?;
        let note = metadata.metadata().as_ref().and_then(|notes| notes.get(adapter::NOTE)).cloned();
        let stored = folder::stored(&[ADAPTER.into()], std::slice::from_ref(&file), None).map_err(refused)?;
        let shapes: Vec<_> = stored.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect();
        let taken = adapter::Adapters::take(&config, note.as_deref(), &architecture, &shapes)
            .map_err(|refusal| refused(format!("`{ADAPTER}`: {refusal}")))?;
        let held = |factor: Factor| -> Result<(String, Held)> {
            let tensor = &stored[&factor.tensor];
            let dtype = folder::dtype(&factor.tensor, tensor.dtype).map_err(refused)?;
            let entry = Entry::new(&factor.parameter, dtype, &factor.shape);
            Ok((factor.parameter.clone(), Held { entry, factor, bytes: tensor.bytes.clone() }))
        };
        let factors = taken.factors.into_iter().map(held).collect::<Result<_>>()?;
        Ok(Self { path: path.into(), lora: taken.lora, base, file, factors })
    }

    /// Returns what the adapters are.
    pub fn lora(&self) -> &LoraConfig {
        &self.lora
    }

    /// Returns the folder of the model that they belong to.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Puts them beside their model.
    ///
    /// # Errors
    /// What opening it raises; [`Error::Checkpoint`] if that has adapters itself.
    pub(crate) fn beside_model(self, verify: Verify) -> Result<Adapted> {
        let (base, model) = Under { adapters: &self.path, said: None, base: Some(&self.base), verify }.open()?;
        let lora = self.lora.clone();
        Ok(Adapted::new(model, Box::new(self), Adapters { lora, base }))
    }
}

impl WeightSource for Adapter {
    fn names(&self) -> Vec<String> {
        self.factors.keys().cloned().collect()
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        self.factors.get(name).map(|held| held.entry.clone())
    }

    fn read(&self, name: &str, region: &[Range<usize>]) -> Result<Vec<u8>> {
        let refused = |problem: String| Error::Published { path: self.path.clone(), problem };
        let held = self.factors.get(name).ok_or_else(|| refused(format!("it holds no tensor `{name}`")))?;
        let Held { entry, factor, bytes } = held;
        let full = region::whole(&entry.shape);
        if region.len() != full.len() || region.iter().zip(&full).any(|(own, full)| own.end > full.end) {
            return Err(refused(format!("`{name}` of shape {:?} has no box {region:?}", entry.shape)));
        }
        let width = entry.dtype.bytes();
        let mut elements = vec![0; region::volume(region) * width];
        let all = &self.file.bytes()[bytes.clone()];
        region::copy(all, &region::whole(&factor.tensor_shape), &mut elements, &factor.region(region), width);
        Ok(elements)
    }

    fn origin(&self) -> &Path {
        &self.path
    }
}
