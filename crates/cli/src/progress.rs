//! What a person sees of a run: a bar where a terminal is, else a line now and then.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mp_train::counted::counted;
use mp_train::ledger::{Deviation, Ledger, Seconds, TimeDeviation};
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

    /// Says whether it is time for another plain line.
    fn is_due(&self, step: u64) -> bool {
        let (past, steps) = (self.shown.at.elapsed(), (step - self.shown.step) as f64);
        let first = self.pace.steps == 1;
        first || step == self.steps || past >= LONGEST || (past >= SHORTEST && steps >= PART * self.steps as f64)
    }
}

impl Observer for Progress<'_> {
    fn chosen(&mut self, choice: &Choice) {
        self.line(&chosen(choice));
    }

    fn start(&mut self, start: &Start) {
        self.steps = start.steps;
        self.ranks = start.ranks;
        self.run = start.run_dir.clone();
        self.stop.would_leave(&self.run, None);
        self.shown.step = start.first_step - 1;
        let (parameters, ranks, layout) = (grouped(start.parameters), counted(start.ranks, "rank"), &start.layout);
        let adapters = start.adapters.map(|count| format!(", of which {} in adapters are trained,", grouped(count)));
        self.line(&format!("model     {parameters} parameters{} on {ranks}: {layout}", adapters.unwrap_or_default()));
        let (train, held_out) = (counted(grouped(start.train_tokens), "token"), grouped(start.validation_tokens));
        self.line(&format!("data      {train} to train on, {held_out} held out"));
        self.line(&format!("folder    {}", start.run_dir.display()));
        if start.first_step > start.steps {
            self.line(&format!("{} done: nothing is left to train", all(start.steps)));
        } else if start.first_step > 1 {
            self.line(&format!("continues after step {}{}", start.first_step - 1, other_precision(start)));
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
            format!("loss {:.4}  {} tokens/s  {left} left", record.loss, grouped(record.tokens_per_second as u64));
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
            let words = off(&deviation);
            match &self.bar {
                Some(bar) => bar.suspend(|| tracing::warn!("{words}")),
                None => tracing::warn!("{words}"),
            }
        }
        if let Some(deviation) = ledger.time.deviation() {
            self.line(&format!("warning: {}", late(&deviation)));
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
                let words = stopped(report, self.saved.as_deref(), self.ranks);
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

/// Says in one line what the planner has chosen, and why.
fn chosen(choice: &Choice) -> String {
    let step = |seconds: Option<f64>| seconds.map_or("unknown".into(), |seconds| format!("{:.3} s", seconds));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (memory, room) = (mib(choice.memory_bytes), mib(choice.room_bytes));
    let next =
        choice.next.as_ref().map(|next| format!("; next {}: {}, {}", next.layout, step(next.step_seconds), next.why));
    format!(
        "planner   {}: {} a step, {memory:.0} of {room:.0} MiB a rank on {}{}",
        choice.layout,
        step(choice.step_seconds),
        choice.machine,
        next.unwrap_or_default()
    )
}

/// Says where an interrupted run is saved and how it goes on.
fn stopped(report: &Report, saved: Option<&Path>, ranks: usize) -> String {
    // A run that was resumed and stopped at once is saved where it was.
    let place = saved.map(|path| format!(", saved in {}", path.display())).unwrap_or_default();
    let config = report.run_dir.join("config.toml");
    let launcher = if ranks > 1 { format!("mpirun -n {ranks} ") } else { String::new() };
    format!(
        "stopped by a signal after step {}{place}; continue with: {launcher}mp-cli train --config {} --set \
         checkpoint.resume=true",
        report.step,
        config.display()
    )
}

/// Says what was predicted wrongly.
fn off(deviation: &Deviation) -> String {
    let Deviation { what, predicted_bytes, measured_bytes } = deviation;
    let [predicted, measured] = [predicted_bytes, measured_bytes].map(|&bytes| grouped(bytes));
    let share = 100.0 * (*predicted_bytes as f64 / *measured_bytes as f64 - 1.0);
    format!("{what}: {predicted} bytes were predicted, {measured} measured ({share:+.0} %); see ledger.json")
}

/// Says which time was predicted worst, and what that makes of the step.
fn late(deviation: &TimeDeviation) -> String {
    let TimeDeviation { rank, part, seconds, step } = deviation;
    let said = |seconds: &Seconds| {
        let predicted = 1e3 * seconds.predicted_seconds.unwrap_or(0.0);
        let share = seconds.error.map(|error| format!(" ({:+.0} %)", 100.0 * error)).unwrap_or_default();
        format!("{predicted:.2} ms were predicted, {:.2} measured{share}", 1e3 * seconds.measured_seconds)
    };
    format!("time of rank {rank}, {part}: {}; of the whole step {}; see ledger.json", said(seconds), said(step))
}

/// Says that a run goes on in other numbers, where it does. What is kept of it is converted; a loss may leap a little.
fn other_precision(start: &Start) -> String {
    match start.precision_before {
        Some(before) if before != start.precision => format!(
            ", in {} where it was {}: weights and optimizer state are converted, and the loss may leap by the rounding",
            start.precision.name(),
            before.name()
        ),
        _ => String::new(),
    }
}

/// Says of all steps what one more word ends.
fn all(steps: u64) -> String {
    match steps {
        1 => "the one step is".into(),
        _ => format!("all {steps} steps are"),
    }
}

/// Draws a bar for a plain line.
fn drawn(step: u64, steps: u64) -> String {
    const CELLS: u64 = 20;
    let full = (CELLS * step / steps.max(1)).min(CELLS) as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(CELLS as usize - full))
}

/// Writes a number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
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
    use mp_train::config::Precision;

    use super::*;

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1 000", "1 234 567"]);
        assert_eq!([59, 60, 3723].map(|s| clock(Duration::from_secs(s))), ["0:59", "1:00", "1:02:03"]);
        assert_eq!(
            [0, 50, 100].map(|step| drawn(step, 100)),
            ["[....................]", "[##########..........]", "[####################]"]
        );
    }

    #[test]
    fn one_is_no_plural_and_other_numbers_are_spoken_of() {
        assert_eq!([all(1), all(2)], ["the one step is", "all 2 steps are"]);
        let start = |precision_before| Start {
            ranks: 1,
            layout: String::new(),
            adapters: None,
            parameters: 1,
            steps: 1,
            first_step: 2,
            precision: Precision::Bf16,
            precision_before,
            run_dir: PathBuf::new(),
            train_tokens: 1,
            validation_tokens: 1,
        };
        assert_eq!([None, Some(Precision::Bf16)].map(|before| other_precision(&start(before))), ["", ""]);
        assert!(other_precision(&start(Some(Precision::Fp32))).starts_with(", in bf16 where it was fp32: "));
    }

    #[test]
    fn the_first_step_does_not_set_the_pace() {
        let mut pace = Pace::default();
        [10.0, 1.0, 1.0, 1.0].into_iter().for_each(|seconds| pace.take(seconds));
        assert_eq!(pace.left(7), Duration::from_secs(7));
    }
}
