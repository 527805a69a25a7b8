//! Documents in files as users have them: plain text, JSON lines, compressed, in folders, by patterns, from a pipe. They
//! are read once, from front to back, in pieces of bounded size.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crate::{file, Error, Result};

/// Where documents come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Standard input.
    Standard,
    /// A file.
    File(PathBuf),
}

impl Input {
    /// Finds what arguments mean: `-` is standard input, a folder all files below it that are not hidden, and a pattern with
    /// `*`, `?` or `[…]` what it matches; both in the order of their paths.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::NotAFile`], [`Error::Pattern`].
    pub fn find(words: &[String]) -> Result<Vec<Self>> {
        let mut inputs = Vec::new();
        for word in words {
            let path = Path::new(word);
            match word.as_str() {
                "-" => inputs.push(Input::Standard),
                _ if path.exists() => inputs.extend(files(path)?),
                pattern if pattern.contains(['*', '?', '[']) => inputs.extend(matches(pattern)?),
                _ => return Err(Error::Missing { path: path.into() }),
            }
        }
        Ok(inputs)
    }

    /// Returns the number of bytes, where it is known.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Input::Standard => None,
            Input::File(path) => path.metadata().ok().map(|metadata| metadata.len()),
        }
    }

    fn origin(&self) -> PathBuf {
        match self {
            Input::Standard => "standard input".into(),
            Input::File(path) => path.clone(),
        }
    }

    /// Says whether each line is an object: by the name, or where that does not tell, by whether a field was asked for.
    fn is_lines(&self, field_given: bool) -> bool {
        let Input::File(path) = self else { return field_given };
        let name = path.to_string_lossy().to_lowercase();
        let name = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
        let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| name.ends_with(suffix));
        ends(&[".jsonl", ".ndjson", ".json"]) || (field_given && !ends(&[".txt", ".text", ".md"]))
    }
}

fn files(path: &Path) -> Result<Vec<Input>> {
    match path.is_dir() {
        true => Ok(file::below(path)?.into_iter().map(Input::File).collect()),
        false => {
            file::regular(path)?;
            Ok(vec![Input::File(path.into())])
        }
    }
}

fn matches(pattern: &str) -> Result<Vec<Input>> {
    let refused = |problem: String| Error::Pattern { pattern: pattern.into(), problem };
    let paths = glob::glob(pattern).map_err(|error| refused(format!("is no pattern: {error}")))?;
    let mut found = Vec::new();
    for path in paths {
        let path = path.map_err(|error| Error::Unreadable { path: error.path().into(), source: error.into() })?;
        found.extend(files(&path)?);
    }
    match found.is_empty() {
        true => Err(refused("matches no file".into())),
        false => Ok(found),
    }
}

/// What of a text is handed out at once, and how many bytes of lines.
const TEXT: u64 = 8 << 20;
const LINES: u64 = 1 << 20;

/// The pieces of all inputs, in order.
pub struct Documents {
    inputs: std::vec::IntoIter<Input>,
    field: Option<String>,
    /// Whether all inputs are lines, whatever their names.
    lines: bool,
    open: Option<Open>,
    read: Arc<AtomicU64>,
}

/// An input under way.
struct Open {
    origin: PathBuf,
    from: Box<dyn BufRead + Send>,
    lines: bool,
    /// Bytes handed out of a text, or lines.
    position: u64,
    /// What a text's last piece left.
    rest: Vec<u8>,
}

/// Some bytes of an input, not yet understood.
pub(crate) struct Piece {
    origin: PathBuf,
    bytes: Vec<u8>,
    content: Content,
}

enum Content {
    /// Whole lines, from one with this number on, each an object with a document in this field.
    Lines { first: u64, field: String },
    /// A text from this byte on; whether its document ends with it.
    Text { first: u64, ends: bool },
}

/// A document, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub text: String,
    /// Whether the document ends here.
    pub ends: bool,
}

impl Documents {
    /// Begins to read inputs. Compressed ones (gzip, zstd) are known by their first bytes. Of JSON lines the document is in
    /// `field`, or `text`; any other file is one document.
    pub fn new(inputs: Vec<Input>, field: Option<&str>) -> Self {
        let field = field.map(String::from);
        Self { inputs: inputs.into_iter(), field, lines: false, open: None, read: Arc::default() }
    }

    /// Begins to read inputs of which each is JSON lines, whatever their names.
    pub(crate) fn of_lines(inputs: Vec<Input>) -> Self {
        Self { lines: true, ..Self::new(inputs, None) }
    }

    /// Returns a counter of the bytes read so far, as they lie on disk.
    pub fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.read)
    }

    /// Reads the next piece, unless all are read.
    pub(crate) fn next_piece(&mut self) -> Result<Option<Piece>> {
        loop {
            let Some(open) = &mut self.open else {
                let Some(input) = self.inputs.next() else { return Ok(None) };
                let lines = self.lines || input.is_lines(self.field.is_some());
                self.open = Some(Open::new(&input, lines, &self.read)?);
                continue;
            };
            let field = || self.field.clone().unwrap_or_else(|| "text".into());
            let piece = if open.lines { open.lines(field)? } else { open.text()? };
            if piece.as_ref().is_none_or(Piece::is_last) {
                self.open = None;
            }
            if piece.is_some() {
                return Ok(piece);
            }
        }
    }

    /// Walks the texts of all inputs, a document or a part of one at a time; ends after the first error.
    pub fn texts(mut self) -> impl Iterator<Item = Result<String>> + Send {
        let mut waiting = Vec::new().into_iter();
        let mut failed = false;
        std::iter::from_fn(move || loop {
            if let Some(stretch) = waiting.next() {
                let Stretch { text, .. } = stretch;
                return Some(Ok(text));
            }
            if failed {
                return None;
            }
            match self.next_piece().and_then(|piece| piece.map(Piece::stretches).transpose()) {
                Ok(None) => return None,
                Ok(Some(stretches)) => waiting = stretches.into_iter(),
                Err(error) => {
                    failed = true;
                    return Some(Err(error));
                }
            }
        })
    }
}

impl Open {
    fn new(input: &Input, lines: bool, read: &Arc<AtomicU64>) -> Result<Self> {
        let origin = input.origin();
        let unreadable = |source| Error::Unreadable { path: origin.clone(), source };
        let raw: Box<dyn Read + Send> = match input {
            Input::Standard => Box::new(io::stdin()),
            Input::File(path) => Box::new(File::open(path).map_err(unreadable)?),
        };
        let from = plain(Counted { inner: raw, read: Arc::clone(read) }).map_err(unreadable)?;
        Ok(Self { origin, from, lines, position: 0, rest: Vec::new() })
    }

    /// Reads whole lines.
    fn lines(&mut self, field: impl Fn() -> String) -> Result<Option<Piece>> {
        let mut bytes = Vec::new();
        let took = (&mut self.from).take(LINES).read_to_end(&mut bytes);
        took.and_then(|_| self.from.read_until(b'\n', &mut bytes)).map_err(|source| self.unreadable(source))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let content = Content::Lines { first: self.position + 1, field: field() };
        self.position += bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
        Ok(Some(Piece { origin: self.origin.clone(), bytes, content }))
    }

    /// Reads a text to its end, or a part of it to where it may be cut.
    fn text(&mut self) -> Result<Option<Piece>> {
        let mut bytes = std::mem::take(&mut self.rest);
        let missing = TEXT - bytes.len() as u64;
        let took =
            (&mut self.from).take(missing).read_to_end(&mut bytes).map_err(|source| self.unreadable(source))? as u64;
        let (first, ends) = (self.position, took < missing);
        if !ends {
            self.rest = bytes.split_off(cut(&bytes));
        }
        self.position += bytes.len() as u64;
        Ok(Some(Piece { origin: self.origin.clone(), bytes, content: Content::Text { first, ends } }))
    }

    fn unreadable(&self, source: io::Error) -> Error {
        Error::Unreadable { path: self.origin.clone(), source }
    }
}

/// Finds where a text is cut, in the second half of what is there: behind a single line break, or before a single space that
/// a word follows, both of which tokenizers of bytes and words take alike with and without the rest. Where there is neither, behind
/// any line break, and at last before any character.
fn cut(bytes: &[u8]) -> usize {
    let solid = |byte: u8| !byte.is_ascii_whitespace();
    let last = |fits: &dyn Fn(usize) -> bool| (bytes.len() / 2 + 2..bytes.len()).rev().find(|&at| fits(at));
    let line = |at: usize| bytes[at - 1] == b'\n';
    last(&|at| line(at) && solid(bytes[at - 2]) && solid(bytes[at]))
        .or_else(|| last(&|at| solid(bytes[at - 2]) && solid(bytes[at - 1]) && bytes[at] == b' ' && follows(bytes, at)))
        .or_else(|| last(&line))
        .or_else(|| last(&|at| bytes[at] & 0xc0 != 0x80))
        .unwrap_or(bytes.len())
}

/// Says whether a letter or a digit follows a place.
fn follows(bytes: &[u8], at: usize) -> bool {
    bytes.get(at + 1).is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let took = self.inner.read(into)?;
        self.read.fetch_add(took as u64, Ordering::Relaxed);
        Ok(took)
    }
}

/// Takes compression off, where there is one.
fn plain(raw: impl Read + Send + 'static) -> io::Result<Box<dyn BufRead + Send>> {
    let mut raw = BufReader::with_capacity(1 << 16, raw);
    let head = raw.fill_buf()?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(raw))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(BufReader::new(zstd::stream::read::Decoder::with_buffer(raw)?)),
        _ => Box::new(raw),
    })
}

impl Piece {
    /// Says whether its input ends with it.
    fn is_last(&self) -> bool {
        matches!(self.content, Content::Text { ends: true, .. })
    }

    /// Understands the bytes.
    ///
    /// # Errors
    /// [`Error::NotUtf8`], [`Error::Line`].
    pub fn stretches(self) -> Result<Vec<Stretch>> {
        match &self.content {
            Content::Text { first, ends } => {
                let (first, ends) = (*first, *ends);
                let text = String::from_utf8(self.bytes).map_err(|error| {
                    let at = error.utf8_error().valid_up_to();
                    Error::NotUtf8 { path: self.origin, offset: first as usize + at, byte: error.as_bytes()[at] }
                })?;
                Ok(vec![Stretch { text, ends }])
            }
            Content::Lines { field, .. } => {
                let read = |(number, line)| document(line, field).map_err(|problem| self.bad(number, problem));
                self.lines().map(read).collect()
            }
        }
    }

    /// Lists the lines that are not blank, with their numbers; a text has none.
    pub fn lines(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let first = match self.content {
            Content::Lines { first, .. } => Some(first),
            Content::Text { .. } => None,
        };
        let all = first.into_iter().flat_map(|first| (first..).zip(self.bytes.split(|&byte| byte == b'\n')));
        all.filter(|(_, line)| !line.trim_ascii().is_empty())
    }

    /// Names the input, as messages do.
    pub fn origin(&self) -> String {
        format!("`{}`", self.origin.display())
    }

    /// Says what is wrong with a line.
    pub fn bad(&self, line: u64, problem: String) -> Error {
        Error::Line { origin: self.origin(), line, problem }
    }
}

/// Reads the document of one line.
fn document(line: &[u8], field: &str) -> std::result::Result<Stretch, String> {
    let mut object: serde_json::Value =
        serde_json::from_slice(line).map_err(|error| format!("it is no JSON: {error}; each line must be an object"))?;
    match object.get_mut(field).map(serde_json::Value::take) {
        Some(serde_json::Value::String(text)) => Ok(Stretch { text, ends: true }),
        Some(_) => Err(format!("`{field}` is no string")),
        None => Err(match object.as_object() {
            Some(object) => {
                let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                format!("there is no `{field}` in it, but {}; name the document's with `--field`", keys.join(", "))
            }
            None => "it is no object".into(),
        }),
    }
}

#[cfg(all(test, feature = "huggingface"))]
mod tests {
    use super::*;
    use crate::{train_tokenizer, Documents};

    /// Tokens on both sides of a cut are those of the text in one piece.
    #[test]
    fn no_token_of_words_reaches_across_a_cut() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "the cat  sat on the mat, \r\n\r\n and the rat sat on 17 cats.\r\n\r\nthe end\n".repeat(40);
        let path = folder.path().join("text.txt");
        std::fs::write(&path, &lines).unwrap();
        let learned = Documents::new(vec![Input::File(path)], None);
        let tokenizer = train_tokenizer(learned, 320, &folder.path().join("tokenizer.json")).unwrap();
        let encode = |text: &str| tokenizer.encode(text).unwrap();
        for single in [lines.as_str(), &lines.replace("end\n", "end\r\n"), &lines.replace(['\r', '\n'], "")] {
            for length in single.len() - 150..single.len() {
                let text = &single[..length];
                let (left, right) = text.split_at(cut(text.as_bytes()));
                assert!(!left.is_empty() && left.len() >= length / 2);
                assert_eq!([encode(left), encode(right)].concat(), encode(text), "{left:?}");
            }
        }
    }
}
