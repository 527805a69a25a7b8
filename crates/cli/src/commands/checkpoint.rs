//! `mp-cli checkpoint`: what lies in checkpoints, and checkpoints made of others. One rank does all of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mp_plan::words::counted;
use mp_train::checkpoint::{
    self, CheckpointReader, CheckpointStore, DirectoryStore, Dtype, Manifest, Rewrite, Section,
};
use mp_train::checkpoint::{TensorRecord, Verify};
use mp_train::run_folder::{self, CHECKPOINTS};
use mp_train::{huggingface, Config, Error};
use serde::Serialize;

use crate::args::{Average, Checkpoint, Convert, Export, Import, Inspect, Made, VerifyCheckpoints};
use crate::failure::{refused, Failure};
use crate::screen::Screen;
use crate::wire::World;

/// Does what the subcommand says.
///
/// # Errors
/// An input error for what is no checkpoint, or not intact, and for a folder that cannot be made.
pub fn run(args: &Checkpoint, world: &World) -> Result<(), Failure> {
    if !world.is_first() {
        return Ok(());
    }
    match args {
        Checkpoint::Inspect(args) => inspect(args),
        Checkpoint::Verify(args) => verify(args),
        Checkpoint::Convert(args) => convert(args),
        Checkpoint::Average(args) => average(args),
        Checkpoint::Import(args) => import(args),
        Checkpoint::Export(args) => export(args),
    }
}

fn inspect(args: &Inspect) -> Result<(), Failure> {
    let reader = checkpoint::open(&args.checkpoint, Verify::Lengths)?;
    let mut screen = Screen::open(&args.output, true)?;
    let (manifest, about) = (reader.manifest(), &reader.manifest().about);
    screen.line(&format!("{}", reader.path().display()));
    screen.line(&format!(
        "  after step {}: {}, {}; seed {}; written by version {}",
        about.step,
        counted(about.samples, "sample"),
        counted(about.tokens, "token"),
        about.seed,
        about.code_version
    ));
    if let Some(loss) = about.validation_loss {
        screen.line(&format!("  validation loss {loss:.4} nats per token"));
    }
    screen.line(&format!("  {}, {:.1} MB", counted(manifest.files.len(), "file"), manifest.bytes() as f64 / 1e6));
    for section in Section::ALL {
        screen.line(&format!("  {}: {}", section.word(), sum(manifest.section(section))));
        for (name, record) in manifest.section(section).iter().filter(|_| args.tensors) {
            let slices = record.slices.len();
            let more = if slices > 1 { format!(" in {slices} slices") } else { String::new() };
            screen.line(&format!("    {name} {:?} {:?}{more}", record.dtype, record.shape));
        }
    }
    Ok(screen.result(manifest)?)
}

/// Says how many tensors, elements and kinds there are.
fn sum(tensors: &BTreeMap<String, TensorRecord>) -> String {
    if tensors.is_empty() {
        return "nothing".into();
    }
    // One tensor's elements can be counted, or it was refused; those of all of them may share their bytes.
    let count = |record: &TensorRecord| record.shape.iter().product::<usize>() as u128;
    let elements: u128 = tensors.values().map(count).sum();
    let mut kinds: Vec<String> = tensors.values().map(|record| format!("{:?}", record.dtype)).collect();
    kinds.sort();
    kinds.dedup();
    let (tensors, elements) = (counted(tensors.len(), "tensor"), counted(elements, "element"));
    format!("{tensors}, {elements} in {}", kinds.join(", "))
}

/// What became of checking one checkpoint.
#[derive(Debug, Serialize)]
struct Verdict {
    path: PathBuf,
    bytes: Option<u64>,
    problem: Option<String>,
}

fn verify(args: &VerifyCheckpoints) -> Result<(), Failure> {
    let mut screen = Screen::open(&args.output, true)?;
    let mut verdicts = Vec::new();
    let mut first = None;
    for path in meant(&args.checkpoints)? {
        let verdict = match checkpoint::open(&path, Verify::Checksums) {
            Ok(reader) => Verdict { path, bytes: Some(reader.manifest().bytes()), problem: None },
            Err(error) => {
                let problem = Some(error.to_string());
                first = first.or(Some(error));
                Verdict { path, bytes: None, problem }
            }
        };
        let word = match verdict.bytes {
            Some(bytes) => format!("intact, {:.1} MB", bytes as f64 / 1e6),
            None => "damaged".into(),
        };
        screen.line(&format!("{}: {word}", verdict.path.display()));
        verdicts.push(verdict);
    }
    screen.result(&verdicts)?;
    first.map_or(Ok(()), |error| Err(error.into()))
}

/// Lists the checkpoints of run folders beside those that are named themselves.
fn meant(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let mut all = Vec::new();
    for path in paths {
        let root = path.join(CHECKPOINTS);
        let steps = DirectoryStore::new(&root, 0).steps()?;
        match steps.is_empty() {
            true => all.push(path.clone()),
            false => all.extend(steps.into_iter().map(|step| root.join(format!("step-{step:08}")))),
        }
    }
    Ok(all)
}

fn convert(args: &Convert) -> Result<(), Failure> {
    let how = rewrite(&args.made, args.model_only)?;
    let from = checkpoint::open(&args.checkpoint, Verify::Checksums)?;
    let mut screen = Screen::open(&args.output, true)?;
    let made = |store: &DirectoryStore| checkpoint::convert(&*from, store, &how);
    let path = run_folder::around(&args.made.out, &config(&*from)?, made)?;
    tell(&mut screen, &path)
}

fn average(args: &Average) -> Result<(), Failure> {
    let how = rewrite(&args.made, true)?;
    let open = |path: &PathBuf| checkpoint::open(path, Verify::Checksums);
    let from = args.checkpoints.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let readers: Vec<&dyn CheckpointReader> = from.iter().map(|reader| &**reader).collect();
    let mut screen = Screen::open(&args.output, true)?;
    let last = readers[readers.len() - 1];
    let made = |store: &DirectoryStore| checkpoint::average(&readers, store, &how);
    let path = run_folder::around(&args.made.out, &config(last)?, made)?;
    tell(&mut screen, &path)
}

/// Reads what is typed of a new checkpoint.
fn rewrite(made: &Made, model_only: bool) -> Result<Rewrite, Error> {
    if made.files == 0 {
        return Err(refused("--files", 0, "must be at least 1"));
    }
    let dtype = match made.precision.as_deref() {
        None => None,
        Some("fp64") => Some(Dtype::F64),
        Some("fp32") => Some(Dtype::F32),
        Some("bf16") => Some(Dtype::BF16),
        Some("fp16") => Some(Dtype::F16),
        Some(other) => return Err(refused("--precision", other, "must be fp64, fp32, bf16 or fp16")),
    };
    Ok(Rewrite { files: made.files, dtype, model_only })
}

/// Returns the configuration that a checkpoint was made under.
fn config(reader: &dyn CheckpointReader) -> Result<Config, Error> {
    serde_json::from_value(reader.manifest().about.config.clone()).map_err(|error| Error::Checkpoint {
        path: reader.path().into(),
        problem: format!("its configuration is not understood ({error})"),
    })
}

/// Says what was made.
fn tell(screen: &mut Screen, path: &Path) -> Result<(), Failure> {
    let reader = checkpoint::open(path, Verify::Lengths)?;
    let manifest: &Manifest = reader.manifest();
    screen.line(&format!(
        "{}: {}, {:.1} MB",
        path.display(),
        counted(manifest.files.len(), "file"),
        manifest.bytes() as f64 / 1e6
    ));
    Ok(screen.result(&serde_json::json!({ "path": path, "bytes": manifest.bytes(), "files": manifest.files.len() }))?)
}

fn import(args: &Import) -> Result<(), Failure> {
    let mut sets = args.sets.clone();
    // In quotes: a folder may be called like a number.
    let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy());
    sets.push(format!("model.from={}", quoted(&args.model)));
    sets.extend(args.base.iter().map(|base| format!("model.base={}", quoted(base))));
    let config = Config::load(None, None, &sets)?;
    let mut screen = Screen::open(&args.output, true)?;
    let checkpoint = huggingface::import(&config, &args.out)?;
    screen.line(&format!("{} was taken into {}", args.model.display(), checkpoint.display()));
    Ok(screen.result(&serde_json::json!({ "run": args.out, "checkpoint": checkpoint }))?)
}

fn export(args: &Export) -> Result<(), Failure> {
    let mut screen = Screen::open(&args.output, true)?;
    let change = |config: &mut Config| {
        if let Some(dropout) = args.dropout {
            config.model.dropout = dropout;
        }
    };
    let (run, base, out) = (&args.checkpoint, args.base.as_deref(), &args.out);
    let export = match (args.merged, args.adapter, base) {
        (true, _, base) => huggingface::export_merged(run, base, out, args.shard_bytes, &change)?,
        (_, true, base) => huggingface::export_adapter(run, base.map(Path::to_string_lossy).as_deref(), out)?,
        (_, _, None) => huggingface::export(run, out, args.shard_bytes, &change)?,
        (_, _, Some(base)) => return Err(refused("--base", base.display(), "goes with --merged or --adapter").into()),
    };
    screen.line(&format!("{}: {} in {}", export.path.display(), export.model_type, export.files.join(", ")));
    Ok(screen.result(&export)?)
}
