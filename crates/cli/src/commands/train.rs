//! `mp-cli train`.

use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use mp_train::agree::agree;
use mp_train::records::Observer;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::args::Train;
use crate::failure::Failure;
use crate::listen;
use crate::progress::Progress;
use crate::screen::Screen;
use crate::threads;
use crate::wire::{choose_device, World};

/// Trains as the command line says.
///
/// # Errors
/// What the input or the run refuses.
pub fn run(args: &Train, world: &World) -> Result<(), Failure> {
    let communicator = world.communicator();
    let opened = || {
        listen::start(args, communicator.rank().0)?;
        let config = args.configuration.load()?;
        threads::check(config.train.threads)?;
        Ok((config, Screen::open(&args.output, world.is_first())?))
    };
    let (config, mut screen) = agree(&**communicator, opened())?;
    let shared = threads::share(&**communicator)?;
    mp_runtime::device::prepare(if config.train.threads > 0 { config.train.threads } else { shared });
    let device = agree(&**communicator, choose_device(config.train.device))?;
    let stop = stop_on_signals();
    let report = {
        let mut progress = Progress::new(&screen, config.checkpoint.resume);
        let observer: &mut dyn Observer = if screen.speaks() { &mut progress } else { &mut () };
        mp_train::run::train(&config, Arc::clone(communicator), device, &stop, observer)?
    };
    Ok(screen.result(&report)?)
}

/// Lets SIGTERM, SIGINT and SIGUSR1 ask the run to save and end; a second SIGINT ends the process at once.
///
/// Open MPI's mpirun hands SIGUSR1 on and waits. On SIGTERM it too ends its ranks after a moment, which may be too short
/// to save.
fn stop_on_signals() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    // Only a signal number that does not exist can be refused.
    let _ = flag::register_conditional_shutdown(SIGINT, 1, Arc::clone(&stop));
    for signal in [SIGINT, SIGTERM, SIGUSR1] {
        let _ = flag::register(signal, Arc::clone(&stop));
    }
    stop
}
