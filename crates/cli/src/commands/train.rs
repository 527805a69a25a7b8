//! `mp-cli train`.

use mp_train::agree::agree;
use mp_train::records::Observer;

use crate::args::Train;
use crate::failure::{refused, Failure};
use crate::listen;
use crate::progress::Progress;
use crate::screen::Screen;
use crate::stop::Stop;
use crate::threads;
use crate::wire::{equip, Equipment, World};

/// Trains as the command line says, until `stop` asks for an end.
///
/// # Errors
/// What the input or the run refuses.
pub fn run(args: &Train, world: &World, stop: &Stop) -> Result<(), Failure> {
    let communicator = world.communicator();
    let opened = || {
        let trace = listen::start(args, communicator.rank().0)?;
        let config = args.configuration.load()?;
        if config.lora.rank > 0 && config.model.from.is_none() {
            let rule =
                "needs `model.from`: adapters stand on a model that was trained; of a new one train all parameters";
            return Err(refused("lora.rank", config.lora.rank, rule));
        }
        threads::check(config.train.threads)?;
        Ok((config, Screen::open(&args.output, world.is_first())?, trace))
    };
    let (config, mut screen, _trace) = agree(&**communicator, opened())?;
    threads::prepare(&**communicator, config.train.threads)?;
    let Equipment { device, communicator, .. } = equip(communicator, &config)?.tell(&screen);
    if screen.speaks() {
        stop.speak();
    }
    let trained = {
        let mut progress = Progress::new(&screen, config.checkpoint.resume, stop);
        let observer: &mut dyn Observer = if screen.speaks() { &mut progress } else { &mut () };
        mp_train::run::train(&config, communicator, device, stop.asked(), observer)
    };
    // A run that failed says why.
    stop.is_over();
    Ok(screen.result(&trained?)?)
}
