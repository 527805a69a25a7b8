//! The file of results: what came of each check, when, and on what machine.

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::checks;
use super::machine::Machine;
use crate::process;

const FORMAT: &str = "mp-gpu-check";

/// What came of all checks.
#[derive(Clone, Serialize, Deserialize)]
pub struct Results {
    format: String,
    /// When the page was written; empty in what a run leaves.
    #[serde(default)]
    pub written: String,
    /// Whether this is no more than the trial of the program on a host.
    #[serde(default)]
    pub trial: bool,
    /// What they ran on.
    pub machines: Vec<Machine>,
    /// By check.
    pub checks: Vec<Outcome>,
}

/// What came of a check.
#[derive(Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// The check.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// In a line what was seen, or why not.
    pub summary: String,
    /// When it began, in UTC.
    pub date: String,
    /// How long it took.
    pub seconds: f64,
    /// The device's name.
    pub device: String,
    /// The release of mp, with its commit.
    pub program: String,
    /// All that was measured.
    pub figures: Value,
}

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// What must be seen was seen.
    Passed,
    /// It was not.
    Failed,
    /// Its time was over.
    TimedOut,
    /// It was not begun.
    NotRun,
}

impl Verdict {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::TimedOut => "timed out",
            Self::NotRun => "not run",
        }
    }
}

impl Default for Results {
    fn default() -> Self {
        Self { format: FORMAT.into(), written: String::new(), trial: false, machines: Vec::new(), checks: Vec::new() }
    }
}

/// The file's place in a folder of results.
pub fn path(folder: &Path) -> PathBuf {
    folder.join("gpu-check.json")
}

impl Results {
    /// Reads what a run left.
    ///
    /// # Errors
    /// If there is no such file, or it is another's.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = path(folder);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let results: Self =
            serde_json::from_str(&text).with_context(|| format!("{} holds no results", path.display()))?;
        ensure!(results.format == FORMAT, "{} holds no results", path.display());
        Ok(results)
    }

    /// Goes on with what an earlier run left, where there is one.
    ///
    /// # Errors
    /// If there is another's file.
    pub fn read_or_new(folder: &Path) -> Result<Self> {
        match path(folder).exists() {
            true => Self::read(folder),
            false => Ok(Self::default()),
        }
    }

    /// Writes the file, whole.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_as(self, &path(folder))
    }

    /// Adds an outcome in the place of an earlier one; one that was not run replaces nothing.
    pub fn add(&mut self, outcome: Outcome, machine: &Machine) {
        self.know(machine.clone());
        self.take(outcome);
    }

    fn know(&mut self, machine: Machine) {
        if !self.machines.contains(&machine) {
            self.machines.push(machine);
        }
    }

    fn take(&mut self, outcome: Outcome) {
        match self.checks.iter_mut().find(|known| known.name == outcome.name) {
            Some(_) if outcome.verdict == Verdict::NotRun => {}
            Some(known) => *known = outcome,
            None => self.checks.push(outcome),
        }
    }

    /// Takes over another run's outcomes.
    pub fn merge(&mut self, other: Self) {
        other.machines.into_iter().for_each(|machine| self.know(machine));
        other.checks.into_iter().for_each(|outcome| self.take(outcome));
    }

    /// Puts the outcomes in the order of the checks, and says of those without one that they were not run.
    pub fn complete(&mut self, today: &str) {
        let known = std::mem::take(&mut self.checks);
        self.checks = checks::all()
            .into_iter()
            .map(|check| match known.iter().find(|outcome| outcome.name == check.name) {
                Some(outcome) => outcome.clone(),
                None => Outcome::not_run(&check.name, "not run yet"),
            })
            .collect();
        self.written = today.into();
    }
}

impl Outcome {
    /// A check that was not begun.
    pub fn not_run(name: &str, why: &str) -> Self {
        let empty = String::new;
        Self {
            name: name.into(),
            verdict: Verdict::NotRun,
            summary: why.into(),
            date: empty(),
            seconds: 0.0,
            device: empty(),
            program: empty(),
            figures: Value::Null,
        }
    }
}

/// Writes results to a file, whole: a run may be ended at any moment.
///
/// # Errors
/// If the disk refuses.
pub fn write_as(results: &Results, path: &Path) -> Result<()> {
    let partial = path.with_extension("partial");
    let text = serde_json::to_string_pretty(results)? + "\n";
    fs::write(&partial, text).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

/// The date in UTC.
///
/// # Errors
/// If the system does not tell.
pub fn today() -> Result<String> {
    Ok(process::stdout_of(Command::new("date").args(["-u", "+%Y-%m-%d"]))?.trim().into())
}
