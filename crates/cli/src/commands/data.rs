//! `mp-cli data`: files of tokens made and looked into, and what a run has read of them. No rank and no tensor takes part.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mp_data::{tokenize, train_tokenizer, Documents, Indexed, Input, Job, Progress, Tokenizer};
use mp_plan::words::counted;
use mp_train::audit;
use serde::Serialize;

use crate::args::{Audit, Data, DataInspect, Tokenize, TrainTokenizer};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::terminal;
use crate::wire;

/// Plain lines come at least this far apart.
const PAUSE: Duration = Duration::from_secs(10);

/// Does what the subcommand says, without meeting other ranks: under a launcher, once.
pub fn alone(args: &Data) -> ExitCode {
    if wire::launched_rank().is_some_and(|rank| rank > 0) {
        return ExitCode::SUCCESS;
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if failure.speaks() {
                failure.print();
            }
            ExitCode::from(failure.code())
        }
    }
}

fn run(args: &Data) -> Result<(), Failure> {
    match args {
        Data::Tokenize(args) => into_tokens(args),
        Data::TrainTokenizer(args) => learn(args),
        Data::Inspect(args) => inspect(args),
        Data::Audit(args) => prove(args),
    }
}

/// What was tokenized.
#[derive(Serialize)]
struct Made {
    prefix: String,
    element: &'static str,
    end_of_document: Option<u32>,
    #[serde(flatten)]
    progress: Progress,
    seconds: f64,
}

fn into_tokens(args: &Tokenize) -> Result<(), Failure> {
    let tokenizer = Tokenizer::load(&args.tokenizer).map_err(mp_train::Error::from)?;
    let end = match args.no_eod {
        true => None,
        false => Some(tokenizer.end_named(args.eod.as_deref()).map_err(mp_train::Error::from)?),
    };
    let inputs = Input::find(&args.inputs).map_err(mp_train::Error::from)?;
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let mut screen = Screen::open(&args.output, true)?;
    let begun = Instant::now();
    let mut shown = Shown::new(&screen, &inputs, begun);
    let job = Job { inputs, field: args.field.as_deref(), tokenizer: &tokenizer, end, threads };
    let done = tokenize(&job, &args.out, &mut |progress| shown.tell(progress)).map_err(mp_train::Error::from);
    shown.clear();
    let (progress, seconds) = (done?, begun.elapsed().as_secs_f64());
    let prefix = args.out.display().to_string();
    screen.line(&format!(
        "{prefix}.bin and .idx: {}, {}, {:.1} MB of text in {seconds:.1} s ({:.1} MB/s)",
        counted(progress.documents, "document"),
        counted(progress.tokens, "token"),
        megabytes(progress.text_bytes),
        megabytes(progress.text_bytes) / seconds
    ));
    if progress.empty > 0 {
        screen.line(&format!("{} empty documents were left out", progress.empty));
    }
    let element = mp_data::Element::of_vocabulary(tokenizer.vocab_size()).name();
    Ok(screen.result(&Made { prefix, element, end_of_document: end, progress, seconds })?)
}

/// Shows how far it is: a bar where a terminal is, else a line now and then.
struct Shown<'a> {
    screen: &'a Screen,
    bar: Option<ProgressBar>,
    begun: Instant,
    last: Instant,
}

impl<'a> Shown<'a> {
    fn new(screen: &'a Screen, inputs: &[Input], begun: Instant) -> Self {
        let bar = terminal::draw_target().map(|target| {
            let all = inputs.iter().map(Input::bytes).sum::<Option<u64>>();
            let style = match all {
                Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg} {eta} left",
                None => "{spinner} {bytes} {bytes_per_sec} {msg}",
            };
            let bar = ProgressBar::with_draw_target(all, target);
            bar.with_style(ProgressStyle::with_template(style).expect("the template is one"))
        });
        Self { screen, bar, begun, last: begun }
    }

    fn tell(&mut self, progress: &Progress) {
        let words = format!("{}, {}", counted(progress.documents, "document"), counted(progress.tokens, "token"));
        match &self.bar {
            Some(bar) => {
                bar.set_position(progress.read_bytes);
                bar.set_message(words);
            }
            None if self.last.elapsed() >= PAUSE => {
                self.last = Instant::now();
                let seconds = self.begun.elapsed().as_secs();
                self.screen.line(&format!("{words} after {seconds} s"));
            }
            None => {}
        }
    }

    fn clear(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// What was learned.
#[derive(Serialize)]
struct Learned {
    tokenizer: String,
    vocab: usize,
    end_of_document: Option<u32>,
}

fn learn(args: &TrainTokenizer) -> Result<(), Failure> {
    let inputs = Input::find(&args.inputs).map_err(mp_train::Error::from)?;
    let mut screen = Screen::open(&args.output, true)?;
    let documents = Documents::new(inputs, args.field.as_deref());
    let learned = train_tokenizer(documents, args.vocab, &args.out).map_err(mp_train::Error::from)?;
    let (path, vocab) = (args.out.display().to_string(), learned.vocab_size());
    screen.line(&format!("{path}: {vocab} tokens"));
    if vocab < args.vocab {
        screen.line(&format!("the text has no more pairs that come twice; {} were asked for", args.vocab));
    }
    Ok(screen.result(&Learned { tokenizer: path, vocab, end_of_document: learned.end_of_document() })?)
}

/// What token files hold.
#[derive(Serialize)]
struct Held {
    prefix: String,
    documents: u64,
    sequences: u64,
    tokens: u64,
    element: &'static str,
    bin_bytes: u64,
    /// The largest id, where all were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    largest_id: Option<i64>,
}

fn inspect(args: &DataInspect) -> Result<(), Failure> {
    let data = Indexed::open(files(&args.prefix)).map_err(mp_train::Error::from)?;
    let largest_id = match args.verify {
        true => data.verify(None).map_err(mp_train::Error::from)?,
        false => None,
    };
    let held = Held {
        prefix: data.prefix().display().to_string(),
        documents: data.documents(),
        sequences: data.sequences(),
        tokens: data.tokens(),
        element: data.element().name(),
        bin_bytes: data.tokens() * data.element().bytes(),
        largest_id,
    };
    let mut screen = Screen::open(&args.output, true)?;
    let Held { prefix, documents, sequences, tokens, element, .. } = &held;
    let (documents, sequences) = (counted(documents, "document"), counted(sequences, "sequence"));
    screen.line(&format!("{prefix}: {documents} in {sequences}, {} as {element}", counted(tokens, "token")));
    if let Some(largest) = largest_id {
        screen.line(&format!("all of it was read, and agrees with itself; the largest id is {largest}"));
    }
    Ok(screen.result(&held)?)
}

/// Takes either file's name for the common one.
fn files(path: &Path) -> std::path::PathBuf {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("bin" | "idx") => path.with_extension(""),
        _ => path.into(),
    }
}

fn prove(args: &Audit) -> Result<(), Failure> {
    let audit = audit::audit(&args.run)?;
    let mut screen = Screen::open(&args.output, true)?;
    let (run, samples) = (audit.run.display(), audit.samples);
    screen.result(&audit)?;
    if audit.contradictions.is_empty() {
        let epochs = samples as f64 / audit.samples_per_epoch.max(1) as f64;
        screen.line(&format!(
            "{run}: {} read samples 0 to {} ({epochs:.3} epochs), each in its turn and once; chain {}",
            counted(audit.steps, "step"),
            samples.saturating_sub(1),
            audit.chain
        ));
        if audit.stated > 0 {
            let stated = audit.stated;
            screen.line(&format!("  {stated} of them before a checkpoint that the log begins at, by its chain alone"));
        }
        return Ok(());
    }
    screen.line(&format!("{run}: the log contradicts the order of samples:"));
    audit.contradictions.iter().for_each(|contradiction| screen.line(&format!("  {contradiction}")));
    Err(Failure::Diverged)
}
