//! Who hears the spans and events of the lower floors: standard error on rank 0, and files for each rank on request.

mod filter;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::args::Train;
use crate::failure::refused;
use crate::terminal::takes_colours;
use crate::trace::{Closing, Trace};

/// What is heard when nothing is said about it: on the screen what may need a person, in files the course of the run.
const ON_SCREEN: &str = "warn";
const IN_FILES: &str = "info";

/// What begins the targets of our crates' spans.
const OURS: &str = "mp_";

/// Starts listening, once in a process. What is returned completes the trace when it is dropped.
///
/// # Errors
/// An input error for a filter that does not parse, or a folder that cannot be written.
pub fn start(train: &Train, rank: usize) -> mp_train::Result<Option<Closing>> {
    let filter = |default: &str| filter::read(train.log.as_deref().unwrap_or(default));
    let screen = match rank {
        0 => Some(
            fmt::layer()
                .with_writer(io::stderr)
                .with_ansi(takes_colours())
                .with_target(false)
                .with_filter(filter(ON_SCREEN)?),
        ),
        _ => None,
    };
    let file = match &train.log_dir {
        Some(folder) => {
            let writer = Mutex::new(create(folder, rank)?);
            Some(
                fmt::layer()
                    .json()
                    .with_span_events(fmt::format::FmtSpan::CLOSE)
                    .with_writer(writer)
                    .with_filter(filter(IN_FILES)?),
            )
        }
        None => None,
    };
    let (trace, closing) = match &train.trace {
        Some(folder) => {
            let made = Trace::create(folder, rank).map_err(|error| cannot("--trace", folder, &error))?;
            let ours = Targets::new().with_target(OURS, LevelFilter::TRACE);
            (Some(made.0.with_filter(ours)), Some(made.1))
        }
        None => (None, None),
    };
    // A second subscriber of the process would be a mistake of ours, and would only leave it silent.
    let _ = tracing_subscriber::registry().with(screen).with(file).with(trace).try_init();
    Ok(closing)
}

/// Makes a rank's file.
fn create(folder: &Path, rank: usize) -> mp_train::Result<File> {
    let path = folder.join(format!("rank-{rank}.jsonl"));
    std::fs::create_dir_all(folder)
        .and_then(|()| File::create(&path))
        .map_err(|error| cannot("--log-dir", folder, &error))
}

/// Words a folder that cannot be written.
fn cannot(flag: &'static str, folder: &Path, error: &io::Error) -> mp_train::Error {
    refused(flag, format!("\"{}\"", folder.display()), format!("it cannot be written: {error}"))
}
