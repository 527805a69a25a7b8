//! A run that is told to end (Ctrl-C, `timeout`): the programs of its check end with it, and it says where its results are.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::process;

static TOLD: AtomicBool = AtomicBool::new(false);

/// Ends this process, with all that it started and the folder `work`, when a signal says so.
///
/// # Errors
/// If the system takes no more signals.
pub fn heed(out: &Path, work: &Path) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen to signals")?;
    let (out, work) = (out.to_owned(), work.to_owned());
    std::thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        // Before the check's programs end: that they were ended is no result.
        TOLD.store(true, Ordering::SeqCst);
        process::end_descendants();
        let _ = fs::remove_dir_all(work);
        eprintln!("gpu-check: ended; what was over is in {}, and a later run adds to it", out.display());
        std::process::exit(128 + signal);
    });
    Ok(())
}

/// Waits for the end, where a signal has said so: the check that it cut short has no outcome.
pub fn rest() {
    while TOLD.load(Ordering::SeqCst) {
        std::thread::park();
    }
}
