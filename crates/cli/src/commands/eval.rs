//! `mp-cli eval`: how well a model predicts a text.

use mp_train::agree::agree;
use mp_train::evaluate::measure;

use crate::args::Eval;
use crate::failure::{refused, Failure};
use crate::screen::Screen;
use crate::threads;
use crate::wire::{equip, Equipment, World};

/// Measures a model as the command line says.
///
/// # Errors
/// What the input or the model refuses.
pub fn run(args: &Eval, world: &World) -> Result<(), Failure> {
    let communicator = world.communicator();
    let opened = || {
        if args.batch == 0 {
            return Err(refused("--batch", 0, "must be at least 1"));
        }
        let config = args.configuration.load()?;
        threads::check(config.train.threads)?;
        Ok((config, Screen::open(&args.output, world.is_first())?))
    };
    let (config, mut screen) = agree(&**communicator, opened())?;
    threads::prepare(&**communicator, config.train.threads)?;
    let Equipment { device, communicator, .. } = equip(communicator, &config)?.tell(&screen);
    let measured = measure(&config, &communicator, device, args.batch)?;
    screen.line(&format!("loss           {:.6} nats per token, of {} tokens", measured.loss, measured.tokens));
    screen.line(&format!("perplexity     {:.4}", measured.perplexity()));
    screen.line(&format!("bits per byte  {:.6}", measured.bits_per_byte));
    Ok(screen.object(&measured)?)
}
