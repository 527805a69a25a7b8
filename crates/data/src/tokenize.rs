//! Text files into token files, on all cores, in memory that does not grow with them and in the order of the input.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;

use crossbeam::channel::{self, Receiver, Sender};
use serde::Serialize;

use crate::inputs::Piece;
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

/// A piece, and where its tokens are to go.
type Errand = (Piece, Sender<Result<Tokenized>>);

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
    let done = thread::scope(|scope| {
        // As many pieces are under way as keep every thread busy; the reader waits for room.
        let (errands, waiting) = channel::bounded::<Errand>(job.threads);
        let (order, answers) = channel::bounded(2 * job.threads);
        scope.spawn(move || hand_out(documents, &errands, &order));
        for _ in 0..job.threads {
            let (waiting, tokenizer) = (waiting.clone(), job.tokenizer.clone());
            scope.spawn(move || {
                for (piece, answer) in waiting {
                    // Nobody waits for it where an earlier one failed.
                    let _ = answer.send(encode(piece, &tokenizer, job.end));
                }
            });
        }
        drop(waiting);
        collect(answers, &mut writer, &mut |progress| {
            progress.read_bytes = read.load(Ordering::Relaxed);
            tell(progress);
        })
    })?;
    writer.finish()?;
    Ok(done)
}

/// Reads pieces and hands each to the next free thread; their answers are asked for in order.
fn hand_out(mut documents: Documents, errands: &Sender<Errand>, order: &Sender<Receiver<Result<Tokenized>>>) {
    loop {
        let (answer, asked) = channel::bounded(1);
        match documents.next_piece() {
            Ok(None) => return,
            Ok(Some(piece)) => {
                if order.send(asked).is_err() || errands.send((piece, answer)).is_err() {
                    return;
                }
            }
            Err(error) => {
                // There is room for one, and the collector may be gone.
                let _ = answer.send(Err(error));
                let _ = order.send(asked);
                return;
            }
        }
    }
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

/// Writes what comes, in order.
fn collect(
    answers: Receiver<Receiver<Result<Tokenized>>>,
    writer: &mut IndexedWriter,
    tell: &mut dyn FnMut(&mut Progress),
) -> Result<Progress> {
    let mut progress = Progress::default();
    let mut begun = false;
    for answer in answers {
        // A thread that panicked leaves none; the scope passes its panic on.
        let Ok(tokenized) = answer.recv() else { break };
        let Tokenized { sequences, text_bytes } = tokenized?;
        for Sequence { ids, ends } in sequences {
            if !ids.is_empty() {
                writer.sequence(&ids)?;
                begun = true;
            }
            match (ends, begun) {
                (true, true) => writer.end_document()?,
                (true, false) => progress.empty += 1,
                (false, _) => continue,
            }
            begun = false;
        }
        progress.text_bytes += text_bytes;
        (progress.documents, progress.tokens) = (writer.documents(), writer.tokens());
        tell(&mut progress);
    }
    tell(&mut progress);
    Ok(progress)
}
