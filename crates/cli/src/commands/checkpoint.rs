//! `mp-cli checkpoint`: what lies in checkpoints. One rank does all of it.

use mp_train::checkpoint::{self, Verify};
use mp_train::{huggingface, Config};

use crate::args::{Checkpoint, Export, Import, Inspect};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::wire::World;

/// Does what the subcommand says.
///
/// # Errors
/// An input error for what is no checkpoint, or not intact.
pub fn run(args: &Checkpoint, world: &World) -> Result<(), Failure> {
    if !world.is_first() {
        return Ok(());
    }
    match args {
        Checkpoint::Inspect(args) => inspect(args),
        Checkpoint::Import(args) => import(args),
        Checkpoint::Export(args) => export(args),
    }
}

fn inspect(args: &Inspect) -> Result<(), Failure> {
    let reader = checkpoint::open(&args.checkpoint, Verify::Lengths)?;
    let mut screen = Screen::open(&args.output, true)?;
    let manifest = reader.manifest();
    screen.line(&format!(
        "{}: step {}, {} tokens",
        reader.path().display(),
        manifest.about.step,
        manifest.about.tokens
    ));
    Ok(screen.result(manifest)?)
}

fn import(args: &Import) -> Result<(), Failure> {
    let mut sets = args.sets.clone();
    // In quotes: a folder may be called like a number.
    sets.push(format!("model.from={}", serde_json::Value::from(args.model.to_string_lossy())));
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
    let export = huggingface::export(&args.checkpoint, &args.out, args.shard_bytes, &change)?;
    screen.line(&format!("{}: {} in {}", export.path.display(), export.model_type, export.files.join(", ")));
    Ok(screen.result(&export)?)
}
