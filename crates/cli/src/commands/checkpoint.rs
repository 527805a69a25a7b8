//! `mp-cli checkpoint`: what lies in checkpoints. One rank does all of it.

use mp_train::checkpoint::{self, Verify};

use crate::args::{Checkpoint, Inspect};
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
