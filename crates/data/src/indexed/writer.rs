//! Writing a dataset, document by document, in memory that does not grow with it.

use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use super::index::{MAGIC, VERSION};
use super::{with_suffix, Element, Indexed};
use crate::{Error, Result};

/// Writes `PREFIX.bin` and `PREFIX.idx`, which appear when all is written, or not at all.
#[derive(Debug)]
pub struct IndexedWriter {
    prefix: PathBuf,
    element: Element,
    bin: BufWriter<NamedTempFile>,
    /// The sequences' lengths, and where documents end, until they are put together.
    lengths: BufWriter<File>,
    bounds: BufWriter<File>,
    sequences: u64,
    documents: u64,
    tokens: u64,
    bytes: Vec<u8>,
}

impl IndexedWriter {
    /// Starts a dataset at `prefix`.
    ///
    /// # Errors
    /// [`Error::Exists`] if one of its files is there, [`Error::Unwritable`].
    pub fn create(prefix: impl AsRef<Path>, element: Element) -> Result<Self> {
        let prefix = prefix.as_ref();
        if let Some(path) = Indexed::files(prefix).into_iter().find(|path| path.exists()) {
            return Err(Error::Exists { path });
        }
        let unwritable = |source| Error::Unwritable { path: prefix.into(), source };
        let spill = || tempfile::tempfile_in(folder(prefix)).map(BufWriter::new).map_err(unwritable);
        Ok(Self {
            prefix: prefix.into(),
            element,
            bin: BufWriter::with_capacity(1 << 20, beside(prefix)?),
            lengths: spill()?,
            bounds: spill()?,
            sequences: 0,
            documents: 0,
            tokens: 0,
            bytes: Vec::new(),
        })
    }

    /// Appends a document of one sequence.
    ///
    /// # Errors
    /// Those of [`IndexedWriter::sequence`] and [`IndexedWriter::end_document`].
    pub fn document(&mut self, ids: &[u32]) -> Result<()> {
        self.sequence(ids)?;
        self.end_document()
    }

    /// Appends a sequence to the document under way.
    ///
    /// # Errors
    /// [`Error::TokenId`] for an id that cannot be stored, [`Error::LongSequence`], [`Error::Unwritable`].
    pub fn sequence(&mut self, ids: &[u32]) -> Result<()> {
        if let Some(position) = ids.iter().position(|&id| u64::from(id) > self.element.largest()) {
            let origin = format!("sequence {} of `{}`", self.sequences, self.prefix.display());
            let vocab = self.element.largest() as usize + 1;
            return Err(Error::TokenId { origin, id: ids[position], position, vocab });
        }
        let length = i32::try_from(ids.len()).map_err(|_| Error::LongSequence { tokens: ids.len() })?;
        self.bytes.clear();
        self.element.encode(ids, &mut self.bytes);
        let written = self.bin.write_all(&self.bytes).and_then(|()| self.lengths.write_all(&length.to_le_bytes()));
        written.map_err(|source| self.unwritable(source))?;
        self.sequences += 1;
        self.tokens += ids.len() as u64;
        Ok(())
    }

    /// Ends the document under way.
    ///
    /// # Errors
    /// [`Error::Unwritable`].
    pub fn end_document(&mut self) -> Result<()> {
        self.documents += 1;
        self.bounds.write_all(&self.sequences.to_le_bytes()).map_err(|source| self.unwritable(source))
    }

    /// Returns the number of tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Returns the number of documents so far.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Puts both files where they belong, on the disk for good. The index comes last: without one there is no dataset.
    ///
    /// # Errors
    /// [`Error::Unwritable`].
    pub fn finish(self) -> Result<()> {
        let prefix = self.prefix.clone();
        let (index, bin) = (with_suffix(&prefix, ".idx"), with_suffix(&prefix, ".bin"));
        self.put(&bin, &index).map_err(|source| Error::Unwritable { path: prefix, source })
    }

    fn put(self, bin: &Path, index: &Path) -> io::Result<()> {
        let Self { bin: data, prefix, element, lengths, bounds, sequences, documents, .. } = self;
        let mut head = BufWriter::new(temporary(&prefix)?);
        head.write_all(MAGIC)?;
        head.write_all(&VERSION.to_le_bytes())?;
        head.write_all(&[element.code()])?;
        head.write_all(&sequences.to_le_bytes())?;
        head.write_all(&(documents + 1).to_le_bytes())?;
        let mut lengths = again(lengths)?;
        io::copy(&mut lengths, &mut head)?;
        lengths.rewind()?;
        pointers(lengths, sequences, element, &mut head)?;
        head.write_all(&0u64.to_le_bytes())?;
        io::copy(&mut again(bounds)?, &mut head)?;
        let mut made = Vec::new();
        for (file, path) in [(data, bin), (head, index)] {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            // Not over what has come there since.
            let placed = file.persist_noclobber(path);
            placed.inspect_err(|_| made.iter().for_each(|made: &&Path| drop(fs::remove_file(made))))?;
            made.push(path);
        }
        File::open(folder(&prefix))?.sync_all()
    }

    fn unwritable(&self, source: io::Error) -> Error {
        Error::Unwritable { path: self.prefix.clone(), source }
    }
}

/// Writes where each sequence starts.
fn pointers(mut lengths: BufReader<File>, sequences: u64, element: Element, into: &mut impl Write) -> io::Result<()> {
    let (mut at, mut length) = (0u64, [0; 4]);
    for _ in 0..sequences {
        into.write_all(&at.to_le_bytes())?;
        lengths.read_exact(&mut length)?;
        at += u64::from(u32::from_le_bytes(length)) * element.bytes();
    }
    Ok(())
}

/// Turns a file around, from writing to reading.
fn again(file: BufWriter<File>) -> io::Result<BufReader<File>> {
    let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(BufReader::new(file))
}

/// Makes a file beside the dataset that goes away again if it is not kept.
fn temporary(prefix: &Path) -> io::Result<NamedTempFile> {
    // What is kept has the rights that any new file has.
    Builder::new().prefix(".").suffix(".partial").permissions(Permissions::from_mode(0o666)).tempfile_in(folder(prefix))
}

fn beside(prefix: &Path) -> Result<NamedTempFile> {
    temporary(prefix).map_err(|source| Error::Unwritable { path: prefix.into(), source })
}

/// Returns the folder that a dataset lies in.
fn folder(prefix: &Path) -> &Path {
    match prefix.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
