//! Which samples a run has read: a log beside its metrics, and the proof from it that none was skipped or repeated.
//!
//! `data.jsonl` has a line for each global batch: its step, the number of its first sample, how many there are, and a hash
//! chain over all samples so far: `chain(n + 1) = BLAKE3(chain(n), n, pieces of sample n)`, where a piece is the number of its
//! source, of its document, and the first and the last of its tokens. The chain does not know how samples are dealt into
//! batches or to ranks, so that it goes on where a run does, whatever its layout is then.
//!
//! A checkpoint holds the chain at its sample, and the log is on the disk before it. Where a run goes on from a checkpoint
//! without the log before it (one that was converted into a new folder), its first line states that place: no samples, and
//! the checkpoint's chain, which an audit computes again from sample 0 on like any other.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mp_data::SampleSource;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, About, Verify};
use crate::metrics::{self, Line, Lines};
use crate::records::Record;
use crate::run_folder::{has_checkpoint, CONFIG};
use crate::text::Text;
use crate::{Config, Error, Result};

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
    /// How many samples it took; 0 where the line states the place of a checkpoint that the log goes on from.
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
    /// Opens the log of a run that goes on from a checkpoint, or begins: drops what it says of later steps, and goes on from
    /// its last line, or from what the checkpoint states where the log lacks its step.
    ///
    /// # Errors
    /// [`Error::RunFolder`], with the log as it was, if the checkpoint is at another place than the log has for its step, or
    /// states none that can be gone on from; those of [`Lines::open`].
    pub fn open(path: &Path, resumed: Option<&About>, source: Arc<dyn SampleSource>) -> Result<Self> {
        let step = resumed.map_or(0, |about| about.step);
        let known = if path.exists() { metrics::lines_of::<Dealt>(path)? } else { Vec::new() };
        let last = known.into_iter().rfind(|line| line.step <= step);
        let begin = match resumed {
            None => None,
            Some(about) => place(path, about, last.filter(|line| line.step == step))?,
        };
        let mut lines = Lines::open(path, step)?;
        let chain = match begin {
            None => Chain::new(),
            Some(Begin { chain, stated: None }) => chain,
            Some(Begin { chain, stated: Some(line) }) => {
                lines.write(&line)?;
                chain
            }
        };
        Ok(Self { lines, source, chain })
    }

    /// Returns the chain over all samples so far, in hexadecimal digits.
    pub fn chain(&self) -> String {
        self.chain.text()
    }

    /// Returns the file, and its place.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn handle(&self) -> Result<(PathBuf, File)> {
        self.lines.handle()
    }

    /// Notes what a step has read.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Data`].
    pub fn write(&mut self, step: u64, samples: Range<u64>) -> Result<()> {
        let (first, count) = (samples.start, samples.end - samples.start);
        self.chain.extend(&*self.source, samples)?;
        self.lines.write(&Dealt { step, first, samples: count, chain: self.chain.text() })
    }
}

/// Where a log goes on.
struct Begin {
    chain: Chain,
    /// The line that says so, where the log has none.
    stated: Option<Dealt>,
}

/// Finds where the log goes on from a checkpoint, given the log's line of the same step.
fn place(path: &Path, about: &About, logged: Option<Dealt>) -> Result<Option<Begin>> {
    let (step, samples) = (about.step, about.samples);
    let refused = |problem: String| {
        let way_out = "remove the checkpoint's folder to go on from an older one";
        let folder = path.parent().unwrap_or(path).into();
        Err(Error::RunFolder {
            path: folder,
            problem: format!("holds a checkpoint of step {step} {problem}; {way_out}"),
        })
    };
    let hash = |text: &str| blake3::Hash::from_hex(text).ok().map(Chain);
    let stated = about.chain.as_deref();
    match logged {
        Some(line) => {
            let end = line.first.saturating_add(line.samples);
            if end != samples {
                return refused(format!("that goes on at sample {samples}, where `{LOG}` has {end}"));
            }
            if stated.is_some_and(|stated| stated != line.chain) {
                return refused(format!("whose samples are not those of `{LOG}`"));
            }
            match hash(&line.chain) {
                Some(chain) => Ok(Some(Begin { chain, stated: None })),
                None => refused(format!("whose line in `{LOG}` has no hash chain")),
            }
        }
        None if samples == 0 => Ok(None),
        None => match stated.and_then(|text| Some((text, hash(text)?))) {
            Some((text, chain)) => {
                let stated = Dealt { step, first: samples, samples: 0, chain: text.into() };
                Ok(Some(Begin { chain, stated: Some(stated) }))
            }
            None => refused(format!("of which neither `{LOG}` nor its manifest has the hash chain")),
        },
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
    /// How many of those the log has no lines of, only a checkpoint's chain over them all.
    pub stated: u64,
    /// Samples after which all data have been read once.
    pub samples_per_epoch: u64,
    /// The chain at the end.
    pub chain: String,
    /// What contradicts the order; nothing, where the run read every sample in its turn and once.
    pub contradictions: Vec<String>,
}

/// Computes from a run's configuration and data which samples its steps had to read, and holds its log against it: the log must
/// name every step of the metrics once, its samples must follow each other without gap, its chain must be theirs, and the
/// newest checkpoint must go on where they end. Of steps after that checkpoint, which a killed run or a lost machine leaves
/// in one file and not in the other, nothing is asked: they are not part of the run that goes on.
///
/// It takes time for as many samples as metrics and checkpoint know of, whatever the log says.
///
/// # Errors
/// What is wrong with the folder, the configuration or the data; a contradiction is no error.
pub fn audit(run: &Path) -> Result<Audit> {
    let config = Config::load(Some(&run.join(CONFIG)), None, &[])?;
    let tokenizer = config.data.open_tokenizer()?;
    let lines = metrics::lines_of::<Dealt>(&run.join(LOG))?;
    // Which ids there are does not matter here; where they lie does.
    let text = Text::open(&config, &tokenizer, usize::MAX)?;
    let metrics = metrics::read(&run.join("metrics.jsonl"))?;
    let newest = if has_checkpoint(run) { Some(checkpoint::open(run, Verify::Lengths)?) } else { None };
    let about = newest.as_ref().map(|reader| &reader.manifest().about);
    let (made, tokens) = metrics.iter().fold((0, 0), |(made, tokens), record| match record {
        Record::Step(record) => (made.max(record.step), tokens.max(record.tokens)),
        _ => (made, tokens),
    });
    let known = (tokens / config.train.seq as u64).max(about.map_or(0, |about| about.samples));
    let mut book = Book {
        source: &*text.source,
        known,
        batch: config.train.global_batch as u64,
        step: 0,
        next: 0,
        stated: (0, 0),
        chain: Chain::new(),
        found: Vec::new(),
    };
    for line in &lines {
        book.enter(line)?;
    }
    let made = made.max(book.stated.0);
    let ended = matches!(metrics.last(), Some(Record::End(_)));
    if made != book.step && (ended || made.min(book.step) < about.map_or(0, |about| about.step)) {
        book.found.push(format!("the log ends with step {}, and the metrics with step {made}", book.step));
    }
    if let Some(about) = about {
        book.compare(&lines, about);
    }
    book.found.truncate(MOST);
    Ok(Audit {
        run: run.into(),
        steps: book.step,
        samples: book.next,
        stated: book.stated.1,
        samples_per_epoch: text.source.samples_per_epoch(),
        chain: book.chain.text(),
        contradictions: book.found,
    })
}

/// What must come next, and what did not.
struct Book<'a> {
    source: &'a dyn SampleSource,
    /// The samples that metrics and checkpoint know of; lines of which they do not are of global batches like the last.
    known: u64,
    batch: u64,
    step: u64,
    next: u64,
    /// The step that the log was last begun at from a checkpoint, and the samples that were read before without lines.
    stated: (u64, u64),
    chain: Chain,
    found: Vec<String>,
}

impl Book<'_> {
    /// Holds a line against what must come next; after a contradiction, the line is believed.
    fn enter(&mut self, line: &Dealt) -> Result<()> {
        let Dealt { step, first, samples, .. } = *line;
        let end = first.saturating_add(samples);
        let alone = if samples == 0 { first > self.known } else { end > self.known && samples > self.batch };
        if alone {
            self.found.push(format!(
                "step {step} read samples up to {end}, says the log, and metrics and checkpoints know of fewer"
            ));
            return Ok(());
        }
        if samples == 0 && step > self.step && first >= self.next {
            self.stated = (step, self.stated.1 + (first - self.next));
            self.chain.extend(self.source, self.next..first)?;
            self.follow(line, end);
            return Ok(());
        }
        if self.step.checked_add(1) != Some(step) {
            self.found.push(format!("step {step} follows step {}", self.step));
        }
        if first > self.next {
            self.found.push(format!("samples {} to {} were skipped before step {step}", self.next, first - 1));
        } else if first < self.next {
            self.found.push(format!("step {step} read samples {first} to {} again", self.next - 1));
        }
        self.chain.extend(self.source, first..end)?;
        self.follow(line, end);
        Ok(())
    }

    /// Holds the chain against a line's, and goes on after it.
    fn follow(&mut self, line: &Dealt, end: u64) {
        if self.chain.text() != line.chain {
            let what = match line.samples {
                0 => format!("before sample {}, where a checkpoint went on after step {},", line.first, line.step),
                _ => format!("of step {} (samples {} to {})", line.step, line.first, end.saturating_sub(1)),
            };
            self.found.push(format!(
                "the documents {what} are not those of the log: it, the data or the configuration was changed"
            ));
            self.chain = blake3::Hash::from_hex(&line.chain).map_or(self.chain, Chain);
        }
        (self.step, self.next) = (line.step, end);
    }

    /// Holds a checkpoint's place in the order against the log's.
    fn compare(&mut self, lines: &[Dealt], about: &About) {
        let logged = lines.iter().rfind(|line| line.step == about.step);
        let end = logged.map(|line| line.first.saturating_add(line.samples));
        if let (Some(line), Some(chain)) = (logged, &about.chain) {
            if end == Some(about.samples) && line.chain != *chain {
                self.found.push(format!("the checkpoint of step {} is of other samples than the log", about.step));
            }
        }
        if end != Some(about.samples) {
            let (step, samples) = (about.step, about.samples);
            let logged = end.map_or("says nothing of it".into(), |end| format!("has {end} by then"));
            self.found.push(format!("the checkpoint of step {step} goes on at sample {samples}, and the log {logged}"));
        }
    }
}
