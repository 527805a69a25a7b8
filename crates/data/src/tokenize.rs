//! Text files into token files, on all cores, in memory that does not grow with them and in the order of the input.

use std::path::Path;
use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::inputs::Piece;
use crate::work;
use crate::{Documents, Element, Error, IndexedWriter, Input, Result, Tokenizer};

/// What is to be tokenized, and how.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// Where documents come from.
    pub inputs: Vec<Input>,
    /// Which field of JSON lines holds the document; `None`: `text`.
    pub field: Option<&'a str>,
    /// Turns them into tokens.
    pub tokenizer: &'a Tokenizer,
    /// What is appended to each.
    pub end: Option<u32>,
    /// How many threads tokenize.
    pub threads: usize,
}

/// How far a job has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Documents written.
    pub documents: u64,
    /// Documents of no text, which are left out.
    pub empty: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Bytes of their text.
    pub text_bytes: u64,
    /// Bytes read from the inputs, as they lie on disk.
    pub read_bytes: u64,
}

/// A piece's sequences.
struct Tokenized {
    sequences: Vec<Sequence>,
    text_bytes: u64,
}

struct Sequence {
    ids: Vec<u32>,
    ends: bool,
}

/// Tokenizes documents into `PREFIX.bin` and `PREFIX.idx`, which appear when all is done or not at all. `tell` hears now and
/// then how far it is.
///
/// A text beyond some megabytes becomes several sequences of one document, each from one line to another.
///
/// # Errors
/// Those of [`IndexedWriter`], [`Documents`] and [`Tokenizer::encode`]; [`Error::Zero`] for no threads.
pub fn tokenize(job: &Job<'_>, prefix: &Path, tell: &mut dyn FnMut(&Progress)) -> Result<Progress> {
    if job.threads == 0 {
        return Err(Error::Zero { what: "--threads" });
    }
    let mut writer = IndexedWriter::create(prefix, Element::of_vocabulary(job.tokenizer.vocab_size()))?;
    let documents = Documents::new(job.inputs.clone(), job.field);
    let read = documents.counter();
    let (tokenizer, end) = (job.tokenizer.clone(), job.end);
    let mut progress = Progress::default();
    let mut begun = false;
    let work = move |piece| encode(piece, &tokenizer, end);
    work::in_order(documents, job.threads, work, |tokenized: Tokenized| {
        write(tokenized, &mut writer, &mut begun, &mut progress)?;
        progress.read_bytes = read.load(Ordering::Relaxed);
        tell(&progress);
        Ok(())
    })?;
    progress.read_bytes = read.load(Ordering::Relaxed);
    tell(&progress);
    writer.finish()?;
    Ok(progress)
}

fn encode(piece: Piece, tokenizer: &Tokenizer, end: Option<u32>) -> Result<Tokenized> {
    let stretches = piece.stretches()?;
    let text_bytes = stretches.iter().map(|stretch| stretch.text.len() as u64).sum();
    let mut sequences = Vec::with_capacity(stretches.len());
    for stretch in stretches {
        let mut ids = tokenizer.encode(&stretch.text)?;
        if stretch.ends && !ids.is_empty() {
            ids.extend(end);
        }
        sequences.push(Sequence { ids, ends: stretch.ends });
    }
    Ok(Tokenized { sequences, text_bytes })
}

/// Writes a piece's sequences; `begun` says whether a document is under way, before and after.
fn write(tokenized: Tokenized, writer: &mut IndexedWriter, begun: &mut bool, progress: &mut Progress) -> Result<()> {
    for Sequence { ids, ends } in tokenized.sequences {
        if !ids.is_empty() {
            writer.sequence(&ids)?;
            *begun = true;
        }
        match (ends, *begun) {
            (true, true) => writer.end_document()?,
            (true, false) => progress.empty += 1,
            (false, _) => continue,
        }
        *begun = false;
    }
    progress.text_bytes += tokenized.text_bytes;
    (progress.documents, progress.tokens) = (writer.documents(), writer.tokens());
    Ok(())
}
