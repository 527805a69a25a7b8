//! Examples to be fine-tuned on, in memory: their tokens, and which of them are to be learned.
//!
//! Such files are small beside texts to be trained on: all examples are encoded when the file is opened, by several threads,
//! and take five bytes a token.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::example::Example;
use crate::inputs::Piece;
use crate::split::cut_at;
use crate::{work, Documents, Error, Indexed, Input, Reading, Result, Tokenizer, Tokens};

/// Consecutive examples, all of a file's or a part: one at least. Clones share the tokens.
#[derive(Debug, Clone)]
pub struct Examples {
    origin: Arc<str>,
    /// A document for each of the file's examples.
    tokens: Tokens,
    /// For each token whether it is to be learned.
    counted: Arc<Vec<bool>>,
    /// Which of the file's examples.
    range: Range<u64>,
}

/// What reads files of examples.
#[derive(Debug, Clone)]
pub struct ExampleReader<'a> {
    /// Turns text into tokens.
    pub tokenizer: &'a Tokenizer,
    /// How lines are read.
    pub reading: Reading,
    /// Every id must be below.
    pub vocab: usize,
    /// Inputs of a sample, into which an example must fit.
    pub seq: usize,
    /// How many threads encode.
    pub threads: usize,
}

/// What a piece of a file holds: its examples with their lines.
type Lines = (String, Vec<(u64, Example)>);

impl ExampleReader<'_> {
    /// Reads a file of JSON lines, which may be compressed (gzip, zstd), or all files below a folder: each line that is not
    /// blank is an example.
    ///
    /// # Errors
    /// [`Error::Line`] for the first line that is none, [`Error::LongExample`] if an example does not fit into a sample,
    /// [`Error::NotLines`] for files of tokens, [`Error::TokenId`], [`Error::Empty`] where there are none, and those of finding
    /// and reading files.
    pub fn read(&self, path: &Path) -> Result<Examples> {
        let suffix = path.extension().and_then(|extension| extension.to_str());
        if matches!(suffix, Some("bin" | "idx")) || Indexed::exists(path) {
            return Err(Error::NotLines { path: path.into() });
        }
        let _span = tracing::info_span!("read_examples", path = %path.display()).entered();
        let documents = Documents::of_lines(Input::find(&[path.to_string_lossy().into_owned()])?);
        let mut gathered = Gathered::default();
        let (reading, tokenizer) = (self.reading.clone(), self.tokenizer.clone());
        let encode = move |piece: Piece| encode(&piece, &reading, &tokenizer);
        work::in_order(documents, self.threads.max(1), encode, |lines| {
            gathered.take(lines, self.seq);
            Ok(())
        })?;
        let examples = gathered.examples(path, self.seq)?;
        examples.tokens.check(self.vocab)?;
        tracing::info!(examples = examples.len(), tokens = examples.tokens(), "read");
        Ok(examples)
    }
}

fn encode(piece: &Piece, reading: &Reading, tokenizer: &Tokenizer) -> Result<Lines> {
    let read = |(number, line)| {
        let example = reading.read(line, tokenizer).map_err(|problem| piece.bad(number, problem))?;
        Ok((number, example))
    };
    Ok((piece.origin(), piece.lines().map(read).collect::<Result<_>>()?))
}

/// What was read so far.
#[derive(Default)]
struct Gathered {
    ids: Vec<u32>,
    counted: Vec<bool>,
    ends: Vec<u64>,
    /// The first example that is too long: its file, line and tokens.
    first_long: Option<(String, u64, usize)>,
    long: usize,
    longest: usize,
}

impl Gathered {
    fn take(&mut self, (origin, examples): Lines, seq: usize) {
        for (line, Example { ids, counted }) in examples {
            // The last token is no input.
            if ids.len() - 1 > seq {
                self.long += 1;
                self.first_long.get_or_insert_with(|| (origin.clone(), line, ids.len()));
            }
            self.longest = self.longest.max(ids.len());
            self.ids.extend(ids);
            self.counted.extend(counted);
            self.ends.push(self.ids.len() as u64);
        }
    }

    fn examples(self, path: &Path, seq: usize) -> Result<Examples> {
        let Self { ids, counted, ends, first_long, long, longest } = self;
        let count = ends.len();
        if let Some((origin, line, tokens)) = first_long {
            return Err(Error::LongExample { origin, line, tokens, seq, long, examples: count, longest });
        }
        if count == 0 {
            return Err(Error::Empty { path: path.into() });
        }
        let origin: Arc<str> = format!("`{}`", path.display()).into();
        let tokens = Tokens::of_documents(Arc::clone(&origin), ids, ends);
        Ok(Examples { origin, tokens, counted: Arc::new(counted), range: 0..count as u64 })
    }
}

impl Examples {
    /// Returns where they come from, as messages name it.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns how many there are.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Returns the number of their tokens.
    pub fn tokens(&self) -> u64 {
        match self.is_empty() {
            true => 0,
            false => self.place(self.range.end - 1).end - self.place(self.range.start).start,
        }
    }

    /// Lists their numbers in the file.
    pub fn numbers(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Returns the tokens of the example with a number, each with whether it is to be learned.
    ///
    /// # Panics
    /// If the file has no such example.
    pub fn example(&self, number: u64) -> impl ExactSizeIterator<Item = (i64, bool)> + '_ {
        let place = self.place(number);
        let place = place.start as usize..place.end as usize;
        let ids = self.tokens.ids()[place.clone()].iter().map(|&id| i64::from(id));
        ids.zip(self.counted[place].iter().copied())
    }

    /// Holds out the last examples, from the one on that holds the token at a `fraction` before the end; the second, if that is
    /// the first. 0 holds nothing out.
    ///
    /// # Errors
    /// [`Error::Fraction`] outside `[0, 1)`, [`Error::TooShort`] if there is one example only.
    pub fn split(&self, fraction: f64, seq: usize) -> Result<(Self, Option<Self>)> {
        let cut = cut_at(self.tokens(), fraction)?;
        if fraction == 0.0 {
            return Ok((self.clone(), None));
        }
        let at = self.place(self.range.start).start + cut.min(self.tokens() - 1);
        let first = self.tokens.document_at(at).max(self.range.start + 1);
        let part = |range: Range<u64>, name| {
            let origin = format!("the {name} part of {}", self.origin).into();
            Self { origin, range, ..self.clone() }
        };
        if first >= self.range.end {
            let origin = part(first..first, "validation").origin.to_string();
            return Err(Error::TooShort { origin, tokens: 0, need: 2, seq, held_out: Some(fraction) });
        }
        Ok((part(self.range.start..first, "training"), Some(part(first..self.range.end, "validation"))))
    }

    /// Returns where the tokens of an example are.
    pub(crate) fn place(&self, number: u64) -> Range<u64> {
        self.tokens.document(number)
    }
}
