//! How signals stop a run: what they ask of it, and what is said at once when there may be no time to say more.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::terminal;
use crate::wire::launched;

/// Whether a signal asked the run to save and end. The default hears no signal.
#[derive(Debug, Default)]
pub struct Stop {
    /// Any of the signals came.
    asked: Arc<AtomicBool>,
    /// One came that mpirun sends while it ends.
    ending: Arc<AtomicBool>,
    /// What is left of the run if it ends at once; `None` while there is nothing to lose.
    left: Left,
}

type Left = Arc<Mutex<Option<String>>>;

impl Stop {
    /// Lets SIGTERM, SIGINT and SIGUSR1 ask the run to save and end, from now on; a second SIGINT ends the process at once.
    ///
    /// Open MPI's mpirun hands SIGUSR1 on and waits. SIGINT and SIGTERM end it, and so does a rank that dies: it sends its
    /// ranks SIGTERM, and a moment later SIGKILL, which may be too short to save.
    pub fn on_signals() -> Self {
        let stop = Self::default();
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

    /// Says on a signal that ends the launcher what is left if it ends the run too.
    pub fn speak(&self) {
        if launched() {
            warn_of_the_end(Arc::clone(&self.left));
        }
    }

    /// Returns what is set once a signal came.
    pub fn asked(&self) -> &AtomicBool {
        &self.asked
    }

    /// Says whether a launcher may be ending, and no longer forward what is printed.
    pub fn may_end_the_launcher(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Notes that a run is under way, and its newest checkpoint.
    pub fn would_leave(&self, run: &Path, checkpoint: Option<&Path>) {
        let left = match checkpoint {
            Some(checkpoint) => format!("the run goes on from {}", checkpoint.display()),
            None => format!("nothing new of {} is saved", run.display()),
        };
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
    }

    /// Notes that nothing can be lost any more.
    pub fn is_over(&self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Waits for a signal beside the run.
fn warn_of_the_end(left: Left) {
    // Only a signal number that does not exist can be refused, and without a thread only the warning is missing.
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    let _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            if let Some(left) = left.lock().unwrap_or_else(PoisonError::into_inner).as_deref() {
                terminal::past_the_launcher(&haste(left));
            }
        }
    });
}

/// Words what is said at once.
fn haste(left: &str) -> String {
    format!(
        "mpirun ends, for a signal came or a rank died, and leaves its ranks a moment to save; if no line about it follows, \
         {left}. `kill -USR1` on mpirun leaves all the time that is needed"
    )
}
