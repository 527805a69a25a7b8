//! `mp-cli train`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use mp_train::agree::agree;
use mp_train::records::Observer;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::args::Train;
use crate::failure::Failure;
use crate::listen;
use crate::progress::Progress;
use crate::screen::Screen;
use crate::terminal;
use crate::threads;
use crate::wire::{choose_device, launched, World};

/// Trains as the command line says.
///
/// # Errors
/// What the input or the run refuses.
pub fn run(args: &Train, world: &World) -> Result<(), Failure> {
    let communicator = world.communicator();
    let opened = || {
        let trace = listen::start(args, communicator.rank().0)?;
        let config = args.configuration.load()?;
        threads::check(config.train.threads)?;
        Ok((config, Screen::open(&args.output, world.is_first())?, trace))
    };
    let (config, mut screen, _trace) = agree(&**communicator, opened())?;
    let shared = threads::share(&**communicator)?;
    mp_runtime::device::prepare(if config.train.threads > 0 { config.train.threads } else { shared });
    let device = agree(&**communicator, choose_device(config.train.device))?;
    let stop = Stop::on_signals();
    if screen.speaks() {
        warn_of_the_end();
    }
    let report = {
        let mut progress = Progress::new(&screen, config.checkpoint.resume, &stop);
        let observer: &mut dyn Observer = if screen.speaks() { &mut progress } else { &mut () };
        mp_train::run::train(&config, Arc::clone(communicator), device, &stop.asked, observer)?
    };
    Ok(screen.result(&report)?)
}

/// Whether a signal asked the run to save and end.
#[derive(Debug)]
pub struct Stop {
    /// Any of the signals came.
    asked: Arc<AtomicBool>,
    /// One came that mpirun sends while it ends.
    ending: Arc<AtomicBool>,
}

impl Stop {
    /// Lets SIGTERM, SIGINT and SIGUSR1 ask the run to save and end; a second SIGINT ends the process at once.
    ///
    /// Open MPI's mpirun hands SIGUSR1 on and waits. SIGINT and SIGTERM end it: it sends its ranks SIGTERM, and a moment
    /// later SIGKILL, which may be too short to save.
    fn on_signals() -> Self {
        let stop = Self { asked: Arc::default(), ending: Arc::default() };
        // Only a signal number that does not exist can be refused.
        let _ = flag::register_conditional_shutdown(SIGINT, 1, Arc::clone(&stop.asked));
        for signal in [SIGINT, SIGTERM] {
            let _ = flag::register(signal, Arc::clone(&stop.ending));
        }
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            let _ = flag::register(signal, Arc::clone(&stop.asked));
        }
        stop
    }

    /// Says whether a launcher may be ending, and no longer forward what is printed.
    pub fn may_end_the_launcher(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }
}

/// What is said at once when a signal comes that ends the launcher: there may be no time to say more.
const HASTE: &str =
    "a signal ends mpirun, which leaves its ranks a moment to save; if no line about it follows, the last \
                     checkpoint in the run folder counts. `kill -USR1` on mpirun leaves all the time that is needed";

/// Has [`HASTE`] said beside the run, where a launcher is at work.
fn warn_of_the_end() {
    if !launched() {
        return;
    }
    // Only a signal number that does not exist can be refused, and without a thread only the warning is missing.
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    let _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            terminal::past_the_launcher(HASTE);
        }
    });
}
