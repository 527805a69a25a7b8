//! Which samples a run has read: a log beside its metrics, and the proof from it that none was skipped or repeated.
//!
//! `data.jsonl` has a line for each global batch: its step, the number of its first sample, how many there are, and a hash
//! chain over all samples so far: `chain(n + 1) = BLAKE3(chain(n), n, pieces of sample n)`, where a piece is the number of its
//! source, of its document, and the first and the last of its tokens. The chain does not know how samples are dealt into
//! batches or to ranks, so that it goes on where a run does, whatever its layout is then.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mp_data::{SampleSource, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, Verify};
use crate::metrics::{self, Line, Lines};
use crate::records::Record;
use crate::run_folder::{has_checkpoint, CONFIG};
use crate::text::Text;
use crate::{Config, Result};

/// The log's file name.
pub const LOG: &str = "data.jsonl";

/// More contradictions than these say nothing new.
const MOST: usize = 10;

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dealt {
    /// The step, from 1.
    pub step: u64,
    /// The number of its first sample.
    pub first: u64,
    /// How many samples it took.
    pub samples: u64,
    /// The chain after them, in hexadecimal digits.
    pub chain: String,
}

impl Line for Dealt {
    fn step(&self) -> u64 {
        self.step
    }
}

/// The hash chain over samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chain(blake3::Hash);

impl Chain {
    fn new() -> Self {
        Self(blake3::hash(b"mp samples, version 1"))
    }

    /// Goes on over samples.
    fn extend(&mut self, source: &dyn SampleSource, samples: Range<u64>) -> Result<()> {
        for number in samples {
            let mut hasher = blake3::Hasher::new();
            hasher.update(self.0.as_bytes());
            hasher.update(&number.to_le_bytes());
            for piece in source.pieces(number)? {
                hasher.update(&piece.source.to_le_bytes());
                for number in [piece.document, piece.tokens.start, piece.tokens.end] {
                    hasher.update(&number.to_le_bytes());
                }
            }
            self.0 = hasher.finalize();
        }
        Ok(())
    }

    fn text(&self) -> String {
        self.0.to_hex().to_string()
    }
}

/// Writes the log of a run.
pub struct DataLog {
    lines: Lines<Dealt>,
    source: Arc<dyn SampleSource>,
    chain: Chain,
}

impl DataLog {
    /// Opens a run's log, drops what it says of steps after `step`, and goes on from its last line.
    ///
    /// # Errors
    /// Those of [`Lines::open`].
    pub fn open(path: &Path, step: u64, source: Arc<dyn SampleSource>) -> Result<Self> {
        let lines = Lines::open(path, step)?;
        let last = metrics::lines_of::<Dealt>(path)?.pop();
        let chain = last.and_then(|line| blake3::Hash::from_hex(line.chain).ok()).map_or_else(Chain::new, Chain);
        Ok(Self { lines, source, chain })
    }

    /// Notes what a step has read.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write), [`Error::Data`](crate::Error::Data).
    pub fn write(&mut self, step: u64, samples: Range<u64>) -> Result<()> {
        let (first, count) = (samples.start, samples.end - samples.start);
        self.chain.extend(&*self.source, samples)?;
        self.lines.write(&Dealt { step, first, samples: count, chain: self.chain.text() })
    }
}

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// The run's folder.
    pub run: PathBuf,
    /// Steps in the log.
    pub steps: u64,
    /// Samples that they read.
    pub samples: u64,
    /// Samples after which all data have been read once.
    pub samples_per_epoch: u64,
    /// The chain at the end.
    pub chain: String,
    /// What contradicts the order; nothing, where the run read every sample in its turn and once.
    pub contradictions: Vec<String>,
}

/// Computes from a run's configuration and data which samples its steps had to read, and holds its log against it: the log must
/// name every step of the metrics once, its samples must follow each other without gap, its chain must be theirs, and the
/// newest checkpoint must go on where they end.
///
/// # Errors
/// What is wrong with the folder, the configuration or the data; a contradiction is no error.
pub fn audit(run: &Path) -> Result<Audit> {
    let config = Config::load(Some(&run.join(CONFIG)), None, &[])?;
    let tokenizer = Tokenizer::load(&config.data.tokenizer)?;
    let lines = metrics::lines_of::<Dealt>(&run.join(LOG))?;
    // Which ids there are does not matter here; where they lie does.
    let text = Text::open(&config, &tokenizer, usize::MAX)?;
    let mut book = Book { source: &*text.source, step: 0, next: 0, chain: Chain::new(), found: Vec::new() };
    for line in &lines {
        book.enter(line)?;
    }
    let steps = |record: &Record| matches!(record, Record::Step(_)).then(|| record.step());
    let metrics = metrics::read(&run.join("metrics.jsonl"))?;
    let made = metrics.iter().filter_map(steps).max().unwrap_or(0);
    if made != book.step {
        book.found.push(format!("the log ends with step {}, and the metrics with step {made}", book.step));
    }
    if has_checkpoint(run) {
        book.compare(&lines, checkpoint::open(run, Verify::Lengths)?.manifest());
    }
    book.found.truncate(MOST);
    Ok(Audit {
        run: run.into(),
        steps: book.step,
        samples: book.next,
        samples_per_epoch: text.source.samples_per_epoch(),
        chain: book.chain.text(),
        contradictions: book.found,
    })
}

/// What must come next, and what did not.
struct Book<'a> {
    source: &'a dyn SampleSource,
    step: u64,
    next: u64,
    chain: Chain,
    found: Vec<String>,
}

impl Book<'_> {
    /// Holds a line against what must come next; after a contradiction, the line is believed.
    fn enter(&mut self, line: &Dealt) -> Result<()> {
        let Dealt { step, first, samples, .. } = *line;
        if step != self.step + 1 {
            self.found.push(format!("step {step} follows step {}", self.step));
        }
        if first > self.next {
            self.found.push(format!("samples {} to {} were skipped before step {step}", self.next, first - 1));
        } else if first < self.next {
            self.found.push(format!("step {step} read samples {first} to {} again", self.next - 1));
        }
        let end = first.saturating_add(samples);
        self.chain.extend(self.source, first..end)?;
        if self.chain.text() != line.chain {
            self.found.push(format!(
                "the documents of step {step} (samples {first} to {}) are not those of the log: it, the data or the \
                 configuration was changed",
                end.saturating_sub(1)
            ));
            self.chain = blake3::Hash::from_hex(&line.chain).map_or(self.chain, Chain);
        }
        (self.step, self.next) = (step, end);
        Ok(())
    }

    /// Holds a checkpoint's place in the order against the log's.
    fn compare(&mut self, lines: &[Dealt], manifest: &checkpoint::Manifest) {
        let about = &manifest.about;
        let logged = lines.iter().find(|line| line.step == about.step).map(|line| line.first + line.samples);
        if logged != Some(about.samples) {
            let (step, samples) = (about.step, about.samples);
            let logged = logged.map_or("says nothing of it".into(), |end| format!("has {end} by then"));
            self.found.push(format!("the checkpoint of step {step} goes on at sample {samples}, and the log {logged}"));
        }
    }
}
