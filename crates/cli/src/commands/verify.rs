//! `mp-cli verify`: layouts against one rank, in a table that grows as they are done.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use mp_plan::words::counted;
use mp_train::agree::agree;
use mp_train::config::Precision;
use mp_train::verify::{self, Case, Listener, Outline, Report, Verdict, Which, LIMIT, NOISE_LIMIT};

use crate::args::Verify;
use crate::failure::{refused, Failure};
use crate::screen::Screen;
use crate::wire::{equip, Equipment, World};

/// A layout of the small model trains in seconds; one that takes this long waits for something that never comes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Verifies layouts, and says of each how it compares.
///
/// # Errors
/// What the input refuses; [`Failure::Diverged`] if a layout differs, after the table has said so.
pub fn run(args: &Verify, world: &World) -> Result<(), Failure> {
    let communicator = world.communicator();
    let opened = || {
        let config = args.configuration.load()?;
        if config.train.tf32 {
            let rule = "layouts are compared to the rounding of their precision, which TF32 is not; leave it out";
            return Err(refused("train.tf32", true, rule));
        }
        let which: Which = args.layouts.parse()?;
        Ok((config, which, Screen::open(&args.output, world.is_first())?))
    };
    let (config, which, mut screen) = agree(&**communicator, opened())?;
    // Tensors of the small model are not worth a second thread.
    mp_runtime::device::prepare(1);
    let Equipment { device, communicator, .. } = equip(communicator, &config)?.tell(&screen);
    let begun = Instant::now();
    let report = {
        let (ranks, watch) = (communicator.size(), Watch::default());
        let mut table = Table { screen: &screen, ranks, watch, done: 0, layouts: 0 };
        verify::verify(&config, &communicator, device, &which, &mut table)?
    };
    screen.line(&outcome(&report, begun.elapsed().as_secs_f64()));
    screen.result(&report)?;
    match report.pass {
        true => Ok(()),
        false => Err(Failure::Diverged),
    }
}

/// Says in one line how it went.
fn outcome(report: &Report, seconds: f64) -> String {
    let count = report.layouts.len();
    let failed = report.layouts.iter().filter(|verdict| !verdict.pass).count();
    let words = match (failed, count) {
        (0, 1) => "the layout computes what one rank computes".into(),
        (0, _) => format!("all {count} layouts compute what one rank computes"),
        (1, 1) => "the layout DIFFERS from one rank".into(),
        (1, _) => format!("1 of {count} layouts DIFFERS from one rank"),
        (failed, _) => format!("{failed} of {count} layouts DIFFER from one rank"),
    };
    let without = if report.not_run.is_some() { "; the configured layout was not run" } else { "" };
    format!("{words} ({seconds:.0} s){without}")
}

/// The table under way.
struct Table<'a> {
    screen: &'a Screen,
    ranks: usize,
    watch: Watch,
    /// Rows that are done, and rows that there will be.
    done: usize,
    layouts: usize,
}

impl Table<'_> {
    /// Writes how far the table is, `3 of 75`, as wide in each row.
    fn count(&self) -> String {
        let width = self.layouts.to_string().len();
        format!("{:>width$} of {}", self.done, self.layouts)
    }
}

impl Listener for Table<'_> {
    fn start(&mut self, outline: &Outline<'_>) {
        self.layouts = outline.layouts;
        self.screen.line(&format!("model     {}", outline.model));
        self.screen.line(&format!("layouts   {}, of up to {}", outline.layouts, counted(self.ranks, "rank")));
        if let Some(why) = outline.not_run {
            self.screen.line(&format!("          the configured layout is none of them: {why}"));
        }
        if self.ranks == 1 {
            self.screen.line("          one rank can show little: start several, for example with mpirun -n 4");
        }
        self.screen.line(&format!("limits    {LIMIT:.0e} relative in fp64{}", noise_limit(outline.precision)));
        let count = " ".repeat(self.count().len());
        self.screen.line(&row(
            [&count, "layout", "ranks"],
            ["loss", "norm", "gradient", "value"],
            "noise",
            "",
            "tensor",
        ));
    }

    fn begin(&mut self, case: &Case) {
        self.watch.expect(case);
    }

    fn end(&mut self, verdict: &Verdict) {
        self.watch.stop();
        let worst = &verdict.differences;
        let numbers = match &verdict.error {
            Some(_) => ["-"; 4].map(String::from),
            None => [worst.loss, worst.norm, worst.gradient, worst.value].map(|by| format!("{by:.1e}")),
        };
        let noise = verdict.noise.map_or_else(|| "-".into(), |noise| format!("{noise:.1} ×"));
        let word = if verdict.pass { "ok" } else { "FAIL" };
        self.done += 1;
        let layout = match verdict.configured {
            true => format!("configured ({})", verdict.layout),
            false => verdict.layout.clone(),
        };
        let ranks = verdict.ranks.to_string();
        let tensor = verdict.tensor.as_deref().unwrap_or("-");
        self.screen.line(&row(
            [&self.count(), &layout, &ranks],
            numbers.each_ref().map(String::as_str),
            &noise,
            word,
            tensor,
        ));
        if let Some(complaint) = verdict.complaint() {
            self.screen.line(&format!("    {complaint}"));
        }
    }
}

fn noise_limit(precision: Precision) -> String {
    match precision {
        Precision::Fp64 => String::new(),
        other => format!("; noise in {} up to {NOISE_LIMIT} × the rounding expected", other.name()),
    }
}

fn row(
    [count, layout, ranks]: [&str; 3],
    [loss, norm, gradient, value]: [&str; 4],
    noise: &str,
    word: &str,
    tensor: &str,
) -> String {
    format!("{count}  {layout:<28} {ranks:>5}  {loss:>8} {norm:>8} {gradient:>8} {value:>8}  {noise:>7}  {word:<4}  {tensor}")
        .trim_end()
        .to_string()
}

/// Ends the process where a layout never ends: its peers are in the same layout, and nobody would say which.
#[derive(Default)]
struct Watch {
    /// Hangs up when the layout is over.
    over: Option<Sender<()>>,
}

impl Watch {
    fn expect(&mut self, case: &Case) {
        let (sender, receiver) = mpsc::channel::<()>();
        let layout = case.to_string();
        self.over = Some(sender);
        std::thread::spawn(move || {
            if receiver.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("error: the layout {layout} has not ended within {} s: it hangs", PATIENCE.as_secs());
                std::process::exit(1);
            }
        });
    }

    fn stop(&mut self) {
        self.over = None;
    }
}
