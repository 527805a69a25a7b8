//! Running one closure as every rank of a group of threads.

use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use super::Threads;
use crate::Communicator;

/// How a rank failed.
#[derive(Debug)]
pub enum Failure<E> {
    /// Its closure returned an error.
    Error(E),
    /// Its closure panicked with this message.
    Panic(String),
}

impl<E: fmt::Display> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Error(error) => write!(f, "{error}"),
            Failure::Panic(message) => write!(f, "panicked: {message}"),
        }
    }
}

/// Runs `body` as each rank of a group of `n` named `"world"`; returns what the ranks returned, in rank order.
///
/// # Panics
/// If any rank fails, with one line a failed rank that names the rank and its error or panic.
pub fn run<T: Send, E: fmt::Display + Send>(
    n: usize,
    body: impl Fn(Arc<dyn Communicator>) -> Result<T, E> + Sync,
) -> Vec<T> {
    let mut results = Vec::with_capacity(n);
    let mut failures = String::new();
    for (rank, outcome) in try_run(n, body).into_iter().enumerate() {
        match outcome {
            Ok(result) => results.push(result),
            Err(failure) => failures += &format!("\n  rank {rank} of {n}: {failure}"),
        }
    }
    assert!(failures.is_empty(), "ranks failed:{failures}");
    results
}

/// Runs `body` as each rank of a group of `n` named `"world"`; returns how each rank ended.
///
/// A rank that fails drops its handle, so that peers that wait for it fail too, with
/// [`PeerGone`](crate::Error::PeerGone).
pub fn try_run<T: Send, E: Send>(
    n: usize,
    body: impl Fn(Arc<dyn Communicator>) -> Result<T, E> + Sync,
) -> Vec<Result<T, Failure<E>>> {
    let body = &body;
    let scope = crossbeam::thread::scope(|scope| {
        let ranks: Vec<_> = Threads::group(n, "world")
            .into_iter()
            .map(|comm| {
                let name = format!("rank {}", comm.rank().0);
                scope.builder().name(name).spawn(move |_| guarded(|| body(comm)))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.map_err(|e| Failure::Panic(e.to_string())).and_then(joined)).collect()
    });
    scope.unwrap_or_else(|cause| vec![Err(Failure::Panic(message(cause.as_ref())))])
}

fn joined<T, E>(thread: crossbeam::thread::ScopedJoinHandle<'_, Result<T, Failure<E>>>) -> Result<T, Failure<E>> {
    thread.join().unwrap_or_else(|cause| Err(Failure::Panic(message(cause.as_ref()))))
}

/// Runs one rank; its closure, and with it the handle, is dropped before the outcome is reported.
fn guarded<T, E>(body: impl FnOnce() -> Result<T, E>) -> Result<T, Failure<E>> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(outcome) => outcome.map_err(Failure::Error),
        Err(cause) => Err(Failure::Panic(message(cause.as_ref()))),
    }
}

fn message(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| cause.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
