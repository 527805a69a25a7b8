//! What a person sees of a run: a bar where a terminal is, else a line now and then.

mod words;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mp_plan::words::{counted, grouped};
use mp_train::ledger::Ledger;
use mp_train::records::{Choice, EndReason, EvalRecord, Observer, Report, Start, StepRecord};

use crate::screen::Screen;
use crate::stop::Stop;
use crate::terminal;

/// Plain lines come at least this far apart,
const SHORTEST: Duration = Duration::from_secs(2);
/// and as soon as this much time or this part of the run has passed.
const LONGEST: Duration = Duration::from_secs(30);
const PART: f64 = 0.05;

/// How much of the mean time of a step the newest one makes.
const NEWEST: f64 = 0.1;

/// Shows a run.
pub struct Progress<'a> {
    screen: &'a Screen,
    bar: Option<ProgressBar>,
    /// Whether the run was asked to continue.
    resumes: bool,
    stop: &'a Stop,
    /// The checkpoint that was saved last.
    saved: Option<PathBuf>,
    run: PathBuf,
    ranks: usize,
    steps: u64,
    shown: Shown,
    pace: Pace,
}

/// When the last plain line was printed.
struct Shown {
    at: Instant,
    step: u64,
}

/// The mean time of a step.
#[derive(Default)]
struct Pace {
    seconds: Option<f64>,
    steps: u64,
}

impl Pace {
    /// Takes a step's time in. The first one warms caches up and says little about the others.
    fn take(&mut self, seconds: f64) {
        self.steps += 1;
        self.seconds = match self.seconds {
            Some(mean) if self.steps > 2 => Some(mean + NEWEST * (seconds - mean)),
            _ => Some(seconds),
        };
    }

    /// Estimates the time of the steps that are left.
    fn left(&self, steps: u64) -> Duration {
        Duration::try_from_secs_f64(self.seconds.unwrap_or(0.0) * steps as f64).unwrap_or(Duration::MAX)
    }
}

impl<'a> Progress<'a> {
    /// Prepares to show a run.
    pub fn new(screen: &'a Screen, resumes: bool, stop: &'a Stop) -> Self {
        let shown = Shown { at: Instant::now(), step: 0 };
        Self {
            screen,
            bar: None,
            resumes,
            stop,
            saved: None,
            run: PathBuf::new(),
            ranks: 1,
            steps: 0,
            shown,
            pace: Pace::default(),
        }
    }

    /// Prints a line above the bar.
    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.screen.line(text)),
            None => self.screen.line(text),
        }
    }

    /// Warns on standard error, and in the logs that were asked for.
    fn warn(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tracing::warn!("{text}")),
            None => tracing::warn!("{text}"),
        }
    }

    /// Says whether it is time for another plain line.
    fn is_due(&self, step: u64) -> bool {
        let (past, steps) = (self.shown.at.elapsed(), (step - self.shown.step) as f64);
        let first = self.pace.steps == 1;
        first || step == self.steps || past >= LONGEST || (past >= SHORTEST && steps >= PART * self.steps as f64)
    }
}

impl Observer for Progress<'_> {
    fn chosen(&mut self, choice: &Choice) {
        self.line(&words::chosen(choice));
    }

    fn start(&mut self, start: &Start) {
        self.steps = start.steps;
        self.ranks = start.ranks;
        self.run = start.run_dir.clone();
        self.stop.would_leave(&self.run, None);
        self.shown.step = start.first_step - 1;
        let (parameters, ranks, layout) =
            (grouped(start.parameters as usize), counted(start.ranks, "rank"), &start.layout);
        let adapters =
            start.adapters.map(|count| format!(", of which {} in adapters are trained,", grouped(count as usize)));
        self.line(&format!("model     {parameters} parameters{} on {ranks}: {layout}", adapters.unwrap_or_default()));
        let (train, held_out) =
            (counted(grouped(start.train_tokens as usize), "token"), grouped(start.validation_tokens as usize));
        self.line(&format!("data      {train} to train on, {held_out} held out"));
        self.line(&format!("folder    {}", start.run_dir.display()));
        if start.first_step > start.steps {
            self.line(&format!("{} done: nothing is left to train", words::all(start.steps)));
        } else if start.first_step > 1 {
            self.line(&format!("continues after step {}{}", start.first_step - 1, words::other_precision(start)));
        } else if self.resumes {
            self.line("there is no checkpoint to continue from: this run starts at step 1");
        }
        let Some(target) = terminal::draw_target() else { return };
        let bar = ProgressBar::with_draw_target(Some(start.steps), target);
        let template = "{bar:24} {pos}/{len}  {msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("a constant template parses"));
        bar.set_position(start.first_step - 1);
        self.bar = Some(bar);
    }

    fn step(&mut self, record: &StepRecord) {
        self.pace.take(record.step_seconds);
        let left = clock(self.pace.left(self.steps.saturating_sub(record.step)));
        let words =
            format!("loss {:.4}  {} tokens/s  {left} left", record.loss, grouped(record.tokens_per_second as usize));
        if let Some(bar) = &self.bar {
            bar.set_position(record.step);
            bar.set_message(words);
        } else if self.is_due(record.step) {
            self.shown = Shown { at: Instant::now(), step: record.step };
            self.line(&format!("{} {}/{}  {words}", drawn(record.step, self.steps), record.step, self.steps));
        }
    }

    fn eval(&mut self, record: &EvalRecord) {
        self.line(&format!("step {}: validation loss {:.4}", record.step, record.loss));
    }

    fn checkpoint(&mut self, _step: u64, path: &Path) {
        self.saved = Some(path.into());
        self.stop.would_leave(&self.run, Some(path));
    }

    fn ledger(&mut self, ledger: &Ledger) {
        for deviation in ledger.deviations() {
            self.warn(&words::memory_off(&deviation));
        }
        if let Some(deviation) = ledger.time.deviation() {
            self.warn(&words::time_off(&deviation));
        }
    }

    fn end(&mut self, report: &Report) {
        self.stop.is_over();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if let Some(sample) = &report.sample {
            self.line(&format!("\nThe model writes:\n{}\n", sample.trim_end()));
        }
        if let Some(loss) = report.validation_loss {
            self.line(&format!("validation loss {loss:.4} nats per token after {}", counted(report.step, "step")));
        }
        match report.reason {
            EndReason::Signal => {
                let words = words::stopped(report, self.saved.as_deref(), self.ranks);
                if !(self.stop.may_end_the_launcher() && terminal::past_the_launcher(&words)) {
                    self.line(&words);
                }
            }
            EndReason::Patience => {
                let words = "ended early, for the last evaluations brought no lower loss (`train.patience`)";
                self.line(&format!("{words}: {}", report.run_dir.display()));
            }
            _ => self.line(&format!("done: {}", report.run_dir.display())),
        }
    }
}

/// Draws a bar for a plain line.
fn drawn(step: u64, steps: u64) -> String {
    const CELLS: u64 = 20;
    let full = (CELLS * step / steps.max(1)).min(CELLS) as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(CELLS as usize - full))
}

/// Writes a time as `1:02:03` or `2:03`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_bars_read_well() {
        assert_eq!([59, 60, 3723].map(|s| clock(Duration::from_secs(s))), ["0:59", "1:00", "1:02:03"]);
        assert_eq!(
            [0, 50, 100].map(|step| drawn(step, 100)),
            ["[....................]", "[##########..........]", "[####################]"]
        );
    }

    #[test]
    fn the_first_step_does_not_set_the_pace() {
        let mut pace = Pace::default();
        [10.0, 1.0, 1.0, 1.0].into_iter().for_each(|seconds| pace.take(seconds));
        assert_eq!(pace.left(7), Duration::from_secs(7));
    }
}
