//! Where checks run: the bundle, a folder to work in, and programs that are ended in time.

use anyhow::{anyhow, bail, Context, Result};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::checks::{Check, Kind};
use super::machine::Machine;
use super::results::{Outcome, Verdict};
use super::{layouts, models, recipe, speed, Device};
use crate::bundle;
use crate::process;

/// What a check saw.
pub struct Finding {
    /// Whether it is what must be seen.
    pub pass: bool,
    /// In a line.
    pub summary: String,
    /// All that was measured.
    pub figures: Value,
}

/// How a program ended, and what it printed.
pub struct Heard {
    outcome: process::Outcome,
}

/// The surroundings of all checks.
pub struct Bench {
    /// The bundle.
    pub bundle: PathBuf,
    /// What the checks run on.
    pub device: Device,
    /// A folder for what they leave; emptied before each.
    pub work: PathBuf,
    program: String,
    log: File,
    /// When the check under way is to be over, and whether it was ended.
    deadline: Instant,
    cut: bool,
}

impl Bench {
    /// Prepares to run checks of a bundle; what programs print goes to a file in `out`.
    ///
    /// # Errors
    /// If the bundle does not say what it is, or the disk refuses.
    pub fn open(bundle: &Path, out: &Path, device: Device) -> Result<Self> {
        let bundle = fs::canonicalize(bundle)?;
        let text = fs::read_to_string(bundle.join(bundle::DESCRIPTION))?;
        let description: Value = serde_json::from_str(&text).context("the bundle's description is damaged")?;
        let log = out.join("gpu-check.log");
        let log = File::options().create(true).append(true).open(&log);
        let work = std::env::temp_dir().join(format!("mp-gpu-check-{}", std::process::id()));
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        Ok(Self {
            bundle,
            device,
            work,
            program: description["program"].as_str().unwrap_or("unknown").into(),
            log: log.with_context(|| format!("cannot write into {}", out.display()))?,
            deadline: Instant::now(),
            cut: false,
        })
    }

    /// Runs a check to its end, or until its time or `left` is over.
    pub fn run(&mut self, check: &Check, left: Duration, machine: &Machine) -> Outcome {
        if left.is_zero() {
            return Outcome::not_run(&check.name, "the time for all checks was over");
        }
        let (begun, date) = (Instant::now(), date());
        (self.deadline, self.cut) = (begun + check.limit.min(left), false);
        let found = self.emptied().and_then(|()| match check.kind {
            Kind::Layouts { ranks } => layouts::verify(self, ranks).map(Some),
            Kind::Conformance { ranks, transport } => layouts::conformance(self, ranks, transport),
            Kind::Published => models::published(self).map(Some),
            Kind::Checkpoints => models::checkpoints(self).map(Some),
            Kind::Throughput(model, program) => speed::measure(self, model, program),
            Kind::Recipe => recipe::train(self),
        });
        let (verdict, summary, figures) = match found {
            Ok(Some(Finding { pass: true, summary, figures })) => (Verdict::Passed, summary, figures),
            Ok(Some(Finding { summary, figures, .. })) => (self.failure(), summary, figures),
            Ok(None) => return Outcome::not_run(&check.name, check.kind.lacking()),
            Err(error) => (self.failure(), format!("{error:#}"), Value::Null),
        };
        Outcome {
            name: check.name.clone(),
            verdict,
            summary,
            date,
            seconds: begun.elapsed().as_secs_f64(),
            device: machine.device.clone(),
            program: self.program.clone(),
            figures,
        }
    }

    fn failure(&self) -> Verdict {
        match self.cut {
            true => Verdict::TimedOut,
            false => Verdict::Failed,
        }
    }

    /// The work of an earlier check is in nobody's way.
    fn emptied(&self) -> Result<()> {
        let _ = fs::remove_dir_all(&self.work);
        fs::create_dir_all(&self.work).with_context(|| format!("cannot make {}", self.work.display()))
    }

    /// The bundle's script, on so many ranks or alone.
    pub fn mp(&self, ranks: Option<usize>, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bundle.join("mp"));
        if let Some(ranks) = ranks {
            command.arg("-n").arg(ranks.to_string());
        }
        self.surround(command.args(arguments));
        command
    }

    /// Lets a program run in the work folder, on one GPU, with what the user named where the user meant it.
    fn surround(&self, command: &mut Command) {
        command.current_dir(&self.work);
        for name in ["MP_PYTHON", "MP_TORCH"] {
            if let Some(path) = std::env::var_os(name).and_then(|own| absolute(&own)) {
                command.env(name, path);
            }
        }
        if let (Device::Cuda, Some(one)) = (self.device, one_device(std::env::var_os("CUDA_VISIBLE_DEVICES"))) {
            command.env("CUDA_VISIBLE_DEVICES", one);
        }
    }

    /// The Python whose PyTorch is used.
    pub fn python(&self) -> Command {
        let own = std::env::var_os("MP_PYTHON").filter(|own| !own.is_empty());
        let own = own.map(|own| absolute(&own).map_or(own, PathBuf::into_os_string));
        let mut command = Command::new(own.unwrap_or_else(|| "python3".into()));
        self.surround(&mut command);
        command
    }

    /// Says whether there is a Python, and whether it has PyTorch.
    pub fn has_pytorch(&self) -> bool {
        let code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)";
        process::stdout_of(self.python().args(["-c", code])).is_ok()
    }

    /// Runs a program until the check's time is over; an error if it fails or is ended.
    ///
    /// # Errors
    /// With what it complained of.
    pub fn succeed(&mut self, command: &mut Command) -> Result<Heard> {
        let heard = self.listen(command)?;
        if !heard.success() {
            bail!("{}", if self.cut { "ended when its time was over".into() } else { heard.complaint() });
        }
        Ok(heard)
    }

    /// Runs a program until the check's time is over, whatever comes of it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn listen(&mut self, command: &mut Command) -> Result<Heard> {
        let heard = self.hear(command, self.deadline.saturating_duration_since(Instant::now()))?;
        self.cut |= heard.outcome.status.is_none();
        Ok(heard)
    }

    /// Runs a program for so long at most.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn hear(&mut self, command: &mut Command, limit: Duration) -> Result<Heard> {
        writeln!(self.log, "\n{} {}", date(), process::describe(command))?;
        let outcome = process::hear(command, limit)?;
        self.log.write_all(outcome.text.as_bytes())?;
        Ok(Heard { outcome })
    }

    /// Whether the check's time was over before it was.
    pub fn was_cut(&self) -> bool {
        self.cut
    }

    /// Reads a JSON file that a program left.
    ///
    /// # Errors
    /// If it left none.
    pub fn json(&self, path: &Path) -> Result<Value> {
        let text = fs::read_to_string(path).with_context(|| format!("no {} was left", name(path)))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", name(path)))
    }

    /// Reads the JSON lines that a program left.
    ///
    /// # Errors
    /// If it left none.
    pub fn lines(&self, path: &Path) -> Result<Vec<Value>> {
        let text = fs::read_to_string(path).with_context(|| format!("no {} was left", name(path)))?;
        // Of a run that was ended the last line may be half there.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What is left in the folder for temporary files is the system's to remove.
        let _ = fs::remove_dir_all(&self.work);
    }
}

/// A path that programs in another folder find; `None` for a name that is looked up.
fn absolute(path: &OsStr) -> Option<PathBuf> {
    let path = Path::new(path);
    // Not by its links: a Python knows its packages by where it was called.
    if path.components().count() > 1 {
        std::path::absolute(path).ok()
    } else {
        None
    }
}

/// What checks see of the GPUs: one of them, the first, where the user has not said that there is none.
pub fn one_device(chosen: Option<OsString>) -> Option<OsString> {
    let Some(chosen) = chosen else { return Some("0".into()) };
    let first = chosen.to_str()?.split(',').next()?.trim().to_string();
    Some(first.into())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Heard {
    /// Whether it ended by itself with success.
    pub fn success(&self) -> bool {
        self.outcome.success()
    }

    /// What it printed.
    pub fn text(&self) -> &str {
        &self.outcome.text
    }

    /// Puts what a program complained of in the place of what is missing, where it failed.
    ///
    /// # Errors
    /// Where something is missing.
    pub fn explain<T>(&self, left: Result<T>) -> Result<T> {
        left.map_err(|missing| if self.success() { missing } else { anyhow!("{}", self.complaint()) })
    }

    /// The line that says what went wrong: the first that calls itself an error, else the last.
    pub fn complaint(&self) -> String {
        let line = complaint(self.text());
        match self.outcome.status.and_then(|status| status.signal()) {
            // It could say nothing of that itself.
            Some(signal) => format!("it was ended by signal {signal}; its last line: {line}"),
            None => line,
        }
    }
}

fn complaint(text: &str) -> String {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    // Below a stack of Python's stands what it is about, and below that what everybody is told.
    let stack = text.rfind("Traceback (most recent call last):").map(|at| text[at..].lines().skip(1));
    let raised =
        stack.and_then(|mut lines| lines.find(|line| !line.starts_with([' ', '\t']) && !line.trim().is_empty()));
    let named = || lines().find(|line| line.starts_with("mp: ") || line.to_lowercase().contains("error"));
    let line = raised.or_else(named).or_else(|| lines().next_back()).unwrap_or("it failed and said nothing");
    line.chars().take(400).collect()
}

/// Now, in UTC.
fn date() -> String {
    let told = process::stdout_of(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M"]));
    told.map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

impl Kind {
    /// What a check lacks that cannot be run.
    fn lacking(self) -> &'static str {
        match self {
            Self::Recipe => "the bundle has no text: make it with --text FILE",
            Self::Throughput(..) => "no Python with PyTorch was found: set MP_PYTHON to one",
            _ => "it needs a GPU",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_is_one_line() {
        let python =
            "step 10  loss 3.2\nTraceback (most recent call last):\n  File \"train.py\", line 3, in <module>\n    \
                      raise error\ntorch._inductor.exc.InductorError: RuntimeError: Failed to find C compiler.\n\nSet \
                      TORCHDYNAMO_VERBOSE=1 for the internal stack trace (please do this if you report an error)\n";
        assert_eq!(complaint(python), "torch._inductor.exc.InductorError: RuntimeError: Failed to find C compiler.");
        assert_eq!(complaint("training\nerror: no room\nmore\n"), "error: no room");
        assert_eq!(complaint("one\nlast\n\n"), "last");
        assert_eq!(complaint(""), "it failed and said nothing");
    }

    #[test]
    fn programs_in_another_folder_find_what_the_user_named() {
        assert_eq!(absolute("python3.12".as_ref()), None);
        assert_eq!(absolute("/opt/python".as_ref()), Some("/opt/python".into()));
        assert_eq!(
            absolute("venv/bin/python".as_ref()),
            Some(std::env::current_dir().unwrap().join("venv/bin/python"))
        );
    }

    #[test]
    fn one_gpu_is_seen() {
        let seen = |chosen: Option<&str>| one_device(chosen.map(OsString::from)).unwrap();
        assert_eq!([None, Some("3"), Some("2,3"), Some("")].map(seen), ["0", "3", "2", ""].map(OsString::from));
    }
}
