//! `mp-cli verify`: layouts against one rank, in a table that grows as they are done.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use mp_train::agree::agree;
use mp_train::config::Precision;
use mp_train::verify::{self, Case, Listener, Verdict, Which, LIMIT, NOISE_LIMIT};

use crate::args::Verify;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::wire::{choose_device, World};

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
        let which: Which = args.layouts.parse()?;
        Ok((config, which, Screen::open(&args.output, world.is_first())?))
    };
    let (config, which, mut screen) = agree(&**communicator, opened())?;
    // Tensors of the small model are not worth a second thread.
    mp_runtime::device::prepare(1);
    let device = agree(&**communicator, choose_device(config.train.device))?;
    let begun = Instant::now();
    let report = {
        let mut table = Table { screen: &screen, ranks: communicator.size(), watch: Watch::default() };
        verify::verify(&config, communicator, device, &which, &mut table)?
    };
    let (count, seconds) = (report.layouts.len(), begun.elapsed().as_secs_f64());
    let failed = report.layouts.iter().filter(|verdict| !verdict.pass).count();
    screen.line(&match failed {
        0 => format!("all {count} layouts compute what one rank computes ({seconds:.0} s)"),
        _ => format!("{failed} of {count} layouts DIFFER from one rank ({seconds:.0} s)"),
    });
    screen.result(&report)?;
    match report.pass {
        true => Ok(()),
        false => Err(Failure::Diverged),
    }
}

/// The table under way.
struct Table<'a> {
    screen: &'a Screen,
    ranks: usize,
    watch: Watch,
}

impl Listener for Table<'_> {
    fn start(&mut self, model: &str, layouts: usize, precision: Precision) {
        let ranks = if self.ranks == 1 { "rank" } else { "ranks" };
        self.screen.line(&format!("model     {model}"));
        self.screen.line(&format!("layouts   {layouts}, of up to {} {ranks}", self.ranks));
        if self.ranks == 1 {
            self.screen.line("          one rank can show little: start several, for example with mpirun -n 4");
        }
        self.screen.line(&format!("limits    {LIMIT:.0e} relative in fp64{}", noise_limit(precision)));
        self.screen.line(&row("layout", "ranks", ["loss", "norm", "gradient", "value"], "noise", "", "tensor"));
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
        let (layout, ranks) = (&verdict.layout, verdict.ranks.to_string());
        let tensor = verdict.tensor.as_deref().unwrap_or("-");
        self.screen.line(&row(layout, &ranks, numbers.each_ref().map(String::as_str), &noise, word, tensor));
        if let Some(complaint) = verdict.complaint() {
            self.screen.line(&format!("    {complaint}"));
        }
    }
}

fn noise_limit(precision: Precision) -> String {
    let name = match precision {
        Precision::Fp64 => return String::new(),
        Precision::Fp32 => "fp32",
        Precision::Bf16 => "bf16",
    };
    format!("; noise in {name} up to {NOISE_LIMIT} × the rounding expected")
}

fn row(
    layout: &str,
    ranks: &str,
    [loss, norm, gradient, value]: [&str; 4],
    noise: &str,
    word: &str,
    tensor: &str,
) -> String {
    format!("{layout:<28} {ranks:>5}  {loss:>8} {norm:>8} {gradient:>8} {value:>8}  {noise:>7}  {word:<4}  {tensor}")
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
