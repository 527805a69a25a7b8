//! From a checkpoint to a published model: `config.json`, `model.safetensors`, and the tokenizer where it is known.

use std::fs;
use std::path::{Path, PathBuf};

use mp_model::huggingface::{self, Family, Place, Published};
use mp_plan::Architecture;

use super::folder::transposed;
use super::import::runs;
use super::shards::Shards;
use super::{tokens, CONFIG};
use crate::adapted::Merged;
use crate::checkpoint::{self, CheckpointReader, Dtype, Entry, Section, Verify};
use crate::weights::{Opened, Stored, WeightSource};
use crate::{durable, region, Config, Error, Result};

/// The tensor that every model has.
const TABLE: &str = "embedding.weight";

/// What was written.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Export {
    /// The folder.
    pub path: PathBuf,
    /// The `model_type` that transformers takes it for.
    pub model_type: &'static str,
    /// The files of tensors.
    pub files: Vec<String>,
}

/// Writes the newest checkpoint of a run folder, or one checkpoint, as a folder that transformers loads, in files of at
/// most `shard_bytes`. `change` may alter the configuration before, its dropout for instance.
///
/// # Errors
/// [`Error::Checkpoint`] for what is none; [`Error::Published`] for a model that transformers does not compute, or a
/// folder that exists; [`Error::Write`].
pub fn export(run: &Path, out: &Path, shard_bytes: u64, change: &dyn Fn(&mut Config)) -> Result<Export> {
    let reader = checkpoint::open(run, Verify::Checksums)?;
    let mut config = config(&*reader)?;
    if config.lora.rank > 0 {
        let problem =
            "it holds adapters alone; say `--merged` to fold them into their model, or `--adapter` to write them \
                       as PEFT does";
        return Err(Error::Checkpoint { path: reader.path().into(), problem: problem.into() });
    }
    change(&mut config);
    publish(&Stored::new(reader.into(), Section::Model, String::new()), &config, run, out, shard_bytes)
}

/// Writes the model of a run that trained adapters as [`export`] does, with the adapters folded in, in the kind of the model
/// under them; that lies at `base`, where it is not where the run says.
///
/// # Errors
/// As [`export`]; [`Error::Checkpoint`] if there are no adapters, or the model under them is not there or another.
pub fn export_merged(
    run: &Path,
    base: Option<&Path>,
    out: &Path,
    shard_bytes: u64,
    change: &dyn Fn(&mut Config),
) -> Result<Export> {
    let reader = checkpoint::open(run, Verify::Checksums)?;
    let mut config = config(&*reader)?;
    change(&mut config);
    match Opened::run(reader, base, Verify::Checksums)? {
        Opened::Plain(plain) => Err(no_adapters(&*plain, "--merged")),
        Opened::Adapted(adapted) => {
            let dtype = adapted.entry(TABLE).map(|table| table.dtype);
            publish(&Merged::new(adapted, dtype), &config, run, out, shard_bytes)
        }
    }
}

/// Says that a run has no adapters to publish.
pub(super) fn no_adapters(source: &dyn WeightSource, flag: &str) -> Error {
    let problem = format!("it holds a model without adapters; leave `{flag}` out");
    Error::Checkpoint { path: source.origin().into(), problem }
}

/// Reads the configuration that a checkpoint was made under.
pub(super) fn config(reader: &dyn CheckpointReader) -> Result<Config> {
    serde_json::from_value(reader.manifest().about.config.clone()).map_err(|error| Error::Checkpoint {
        path: reader.path().into(),
        problem: format!("its configuration is not understood ({error})"),
    })
}

/// Refuses a folder that holds something.
pub(super) fn check_new(out: &Path) -> Result<()> {
    match fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) || out.is_file() {
        true => Err(Error::Published { path: out.into(), problem: "it exists; give a folder that does not".into() }),
        false => Ok(()),
    }
}

fn publish(source: &dyn WeightSource, config: &Config, run: &Path, out: &Path, shard_bytes: u64) -> Result<Export> {
    let refused = |problem: String| Error::Published { path: out.into(), problem };
    let refusal = |refusal: huggingface::Refusal| refused(refusal.to_string());
    let lacks = || Error::Checkpoint { path: source.origin().into(), problem: format!("it holds no tensor `{TABLE}`") };
    let table = source.entry(TABLE).ok_or_else(lacks)?;
    let (dtype, architecture) = (table.dtype, Architecture::resolve(&config.model, table.shape[0], config.train.seq)?);
    let family = Family::of(&architecture).map_err(refusal)?;
    let mut keys = huggingface::config(&architecture, word(dtype)).map_err(refusal)?;
    check_new(out)?;
    let tensors = Published::gather(family.places(&architecture));
    for part in tensors.iter().flat_map(|tensor| &tensor.parts) {
        let entry = crate::weights::expect(source, &part.parameter, &part.shape)?;
        if entry.dtype != dtype {
            return Err(refused(format!("`{}` is not of the kind {}", part.parameter, word(dtype))));
        }
    }
    let entries = tensors.iter().map(|tensor| Entry::new(&tensor.name, dtype, &tensor.shape)).collect();
    let shards = Shards::new(entries, shard_bytes);
    let written = |source| Error::Write { path: out.into(), source };
    fs::create_dir_all(out).map_err(written)?;
    shards.write(out, &mut |entry, file| {
        let tensor = tensors.iter().find(|tensor| tensor.name == entry.name).expect("each entry is a tensor's");
        put(source, tensor, dtype.bytes(), &mut |elements| file.write_all(elements).map_err(written))
    })?;
    keys.append(&mut tokens::write(config, Some(run), out)?);
    // Last, for it is what makes the folder a model.
    durable::write(&out.join(CONFIG), format!("{:#}\n", serde_json::Value::Object(keys)).as_bytes())?;
    let files = shards.files.into_iter().map(|(name, _)| name).collect();
    Ok(Export { path: out.into(), model_type: family.model_type(), files })
}

/// Returns what transformers calls a kind.
fn word(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "float64",
        Dtype::F32 => "float32",
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
    }
}

/// Writes a tensor's elements, a few rows at a time.
fn put(
    source: &dyn WeightSource,
    tensor: &Published,
    width: usize,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    if !tensor.parts[0].transposed {
        for Place { parameter, shape, .. } in &tensor.parts {
            let mut region = region::whole(shape);
            for rows in runs(shape, width) {
                region[0] = rows;
                write(&source.read(parameter, &region)?)?;
            }
        }
        return Ok(());
    }
    let full = region::whole(&tensor.shape);
    for rows in runs(&tensor.shape, width) {
        let target = [rows.clone(), full[1].clone()];
        let mut elements = vec![0; region::volume(&target) * width];
        for part in &tensor.parts {
            let own = [0..part.shape[0], rows.clone()];
            let turned = transposed(&source.read(&part.parameter, &own)?, own[0].len(), own[1].len(), width);
            region::copy(&turned, &part.region(&own), &mut elements, &target, width);
        }
        write(&elements)?;
    }
    Ok(())
}
