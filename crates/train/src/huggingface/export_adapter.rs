//! From a checkpoint of adapters to a folder that PEFT loads: `adapter_config.json` and `adapter_model.safetensors`.

use std::fs;
use std::path::Path;

use mp_model::huggingface::adapter::{Adapters, Factor, NOTE};
use mp_model::huggingface::Family;
use mp_plan::Architecture;

use super::export::{check_new, config, no_adapters};
use super::{shards, Export, Folder, ADAPTER, ADAPTER_CONFIG};
use crate::checkpoint::{self, Dtype, Entry, Section, Verify};
use crate::region;
use crate::weights::{self, Opened, Stored, WeightSource};
use crate::{durable, Config, Error, Result};

/// Writes the adapters of the newest checkpoint of a run folder, or of one checkpoint, as PEFT does. `base` is what the model
/// under them is called there: a folder, or a name that transformers knows; without one it is the folder that the run began
/// from.
///
/// # Errors
/// [`Error::Checkpoint`] for what is none, has no adapters, or whose model is not there or another; [`Error::Published`] for a
/// model that transformers does not compute, or a folder that exists; [`Error::Write`].
pub fn export_adapter(run: &Path, base: Option<&str>, out: &Path) -> Result<Export> {
    let refused = |problem: String| Error::Published { path: out.into(), problem };
    let reader = checkpoint::open(run, Verify::Checksums)?;
    let config = config(&*reader)?;
    let source = Stored::new(reader.into(), Section::Model, String::new());
    if config.lora.rank == 0 {
        return Err(no_adapters(&source, "--adapter"));
    }
    let base = base.map_or_else(|| named(run), |base| Ok(base.to_string()))?;
    let architecture = Architecture::resolve(&config.model, config.model.vocab, config.train.seq)?;
    let refusal = |refusal: mp_model::huggingface::Refusal| refused(refusal.to_string());
    let family = Family::of(&architecture).map_err(refusal)?;
    let keys = Adapters::config(&config.lora, &architecture, &base).map_err(refusal)?;
    let factors = Adapters::publish(&config.lora, &architecture).map_err(refusal)?.factors;
    let dtype = kind(&source, &factors)?;
    check_new(out)?;
    fs::create_dir_all(out).map_err(|source| Error::Write { path: out.into(), source })?;
    write(&source, &factors, dtype, &config, &out.join(ADAPTER))?;
    // Last, for it is what makes the folder one of adapters.
    durable::write(&out.join(ADAPTER_CONFIG), format!("{:#}\n", serde_json::Value::Object(keys)).as_bytes())?;
    Ok(Export { path: out.into(), model_type: family.model_type(), files: vec![ADAPTER.into()] })
}

/// Returns the folder of the model under a run's adapters, as PEFT can load it.
fn named(run: &Path) -> Result<String> {
    let Opened::Adapted(adapted) = Opened::at(run, None, Verify::Checksums)? else { unreachable!("it has adapters") };
    let base = adapted.adapters().map(|adapters| adapters.base.clone()).unwrap_or_default();
    if Folder::is(&base) {
        return Ok(base.to_string_lossy().into_owned());
    }
    let problem = format!(
        "its adapters stand on the run `{0}`, which PEFT does not load: export that too (`mp-cli checkpoint export {0} --out \
         DIR`), and name it as `--base DIR`",
        base.display()
    );
    Err(Error::Checkpoint { path: run.into(), problem })
}

/// Returns the kind that all factors have, and sees that they are there.
fn kind(source: &dyn WeightSource, factors: &[Factor]) -> Result<Dtype> {
    let mut first = None;
    for factor in factors {
        let own = weights::expect(source, &factor.parameter, &factor.shape)?.dtype;
        if *first.get_or_insert(own) != own {
            let problem = "its tensors are of several kinds; convert it with `--precision`".into();
            return Err(Error::Checkpoint { path: source.origin().into(), problem });
        }
    }
    Ok(first.unwrap_or(Dtype::F32))
}

fn write(source: &dyn WeightSource, factors: &[Factor], dtype: Dtype, config: &Config, path: &Path) -> Result<()> {
    let mut entries: Vec<Entry> = Vec::new();
    for factor in factors {
        if entries.iter().all(|entry| entry.name != factor.tensor) {
            entries.push(Entry::new(&factor.tensor, dtype, &factor.tensor_shape));
        }
    }
    let note = serde_json::to_string(&config.lora).expect("a section of plain values is JSON");
    shards::file(path, &entries, &[(NOTE, note)], &mut |entry, file| {
        let full = region::whole(&entry.shape);
        let mut elements = vec![0; region::volume(&full) * dtype.bytes()];
        for factor in factors.iter().filter(|factor| factor.tensor == entry.name) {
            let own = region::whole(&factor.shape);
            let read = source.read(&factor.parameter, &own)?;
            region::copy(&read, &factor.region(&own), &mut elements, &full, dtype.bytes());
        }
        file.write_all(&elements).map_err(|source| Error::Write { path: path.into(), source })
    })
}
