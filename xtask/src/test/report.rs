//! What is counted and what went wrong, up to the closing lines; and the one deadline of the whole run.

use anyhow::{ensure, Result};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use super::counts::Counts;
use crate::process::{self, Outcome};

/// The counts, and the titles of the steps that failed.
#[derive(Default)]
pub struct Report {
    total: Counts,
    faults: Vec<String>,
}

impl Report {
    /// Shows a title, runs, counts; an error counts as one failure. Returns whether nothing failed.
    pub fn step(&mut self, title: &str, work: impl FnOnce() -> Result<Counts>) -> bool {
        println!("== {title}");
        let begin = Instant::now();
        let counts = work().unwrap_or_else(|error| {
            println!("error: {error:#}");
            Counts::one(false)
        });
        println!("== {title}: {counts}, {:.1} s", begin.elapsed().as_secs_f64());
        if counts.failed > 0 {
            self.faults.push(title.to_string());
        }
        self.total += counts;
        counts.failed == 0
    }

    /// Prints the failed steps, the notes, and the counts last.
    pub fn close(self, notes: &[String]) -> ExitCode {
        for fault in &self.faults {
            println!("failed: {fault}");
        }
        for note in notes {
            println!("{note}");
        }
        println!("{}", self.total);
        self.exit_code()
    }

    fn exit_code(&self) -> ExitCode {
        match self.total.failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

/// When the whole run must be over.
#[derive(Clone, Copy)]
pub struct Deadline {
    begin: Instant,
    budget: Duration,
}

impl Deadline {
    /// Starts the clock.
    pub fn after(budget: Duration) -> Self {
        Self { begin: Instant::now(), budget }
    }

    /// What is left of the time.
    pub fn left(self) -> Duration {
        self.budget.saturating_sub(self.begin.elapsed())
    }

    /// Runs a command to its end, to `limit` or to the deadline; being ended by force is an error that says by which.
    pub fn watch(self, command: &mut Command, limit: Duration) -> Result<Outcome> {
        self.run(command, limit, process::watch)
    }

    /// As [`Deadline::watch`], without showing standard output.
    pub fn capture(self, command: &mut Command) -> Result<Outcome> {
        self.run(command, Duration::MAX, process::capture)
    }

    fn run(
        self,
        command: &mut Command,
        limit: Duration,
        how: impl FnOnce(&mut Command, Duration) -> Result<Outcome>,
    ) -> Result<Outcome> {
        let left = self.left();
        let whole = self.budget.as_secs();
        ensure!(!left.is_zero(), "not started: the {whole} s of the whole run are over");
        let outcome = how(command, limit.min(left))?;
        let ended_by_itself = outcome.status.is_some();
        ensure!(ended_by_itself || limit <= left, "ended by force: the {whole} s of the whole run are over");
        ensure!(ended_by_itself, "ended by force: no end after {} s", limit.as_secs());
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleep() -> Command {
        let mut command = Command::new("sleep");
        command.arg("600");
        command
    }

    #[test]
    fn an_error_is_one_failure_and_the_next_step_runs() {
        let mut report = Report::default();
        assert!(!report.step("set-up", || anyhow::bail!("no compiler")));
        assert!(report.step("fmt", || Ok(Counts::one(true))));
        assert_eq!((report.total, report.faults.len()), (Counts { passed: 1, failed: 1 }, 1));
        assert_eq!(report.exit_code(), ExitCode::FAILURE);
    }

    #[test]
    fn a_step_ends_with_the_whole_run_and_none_starts_after_it() {
        let deadline = Deadline::after(Duration::from_millis(200));
        let error = deadline.watch(&mut sleep(), Duration::from_secs(500)).err().unwrap().to_string();
        assert!(error.starts_with("ended by force: the"), "{error}");
        let error = deadline.capture(&mut sleep()).err().unwrap().to_string();
        assert!(error.starts_with("not started"), "{error}");
    }

    #[test]
    fn a_step_has_its_own_limit_too() {
        let deadline = Deadline::after(Duration::from_secs(500));
        let error = deadline.watch(&mut sleep(), Duration::from_millis(50)).err().unwrap().to_string();
        assert!(error.starts_with("ended by force: no end"), "{error}");
    }
}
