//! Files that a command writes once it has something to write: seen to be writable before the work begins, and left as they
//! are until then.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mp_train::{durable, Error, Result};

use crate::failure::refused;

/// A file that is to be written.
#[derive(Debug)]
pub struct Destination {
    /// By which it was named.
    flag: &'static str,
    /// As it was typed.
    path: PathBuf,
    /// Where links lead, for the file behind a link is meant.
    place: PathBuf,
    /// Once it has its first words.
    file: Option<File>,
}

impl Destination {
    /// Takes the file that `flag` names.
    ///
    /// # Errors
    /// An input error where it cannot be written.
    pub fn new(flag: &'static str, path: &Path) -> Result<Self> {
        let place = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let destination = Self { flag, path: path.to_owned(), place, file: None };
        if !destination.is_passage() {
            durable::check(&destination.place).map_err(|error| {
                refused(flag, format!("\"{}\"", path.display()), format!("it cannot be written: {error}"))
            })?;
        }
        Ok(destination)
    }

    /// Says whether this is a device or a pipe: it has nothing to lose, nothing may take its place, and whoever opens a pipe
    /// twice ends it.
    fn is_passage(&self) -> bool {
        self.place.metadata().is_ok_and(|known| !known.is_file() && !known.is_dir())
    }

    /// Writes: the first time in place of what the file holds, then behind what was written. Before the first words are whole
    /// the old ones are there.
    ///
    /// # Errors
    /// [`Error::Output`] for what the disk refuses.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let failed = |source: io::Error| Error::Output { flag: self.flag, path: self.path.clone(), source };
        let (mut file, rest) = match self.file.take() {
            Some(file) => (file, text),
            None if self.is_passage() => (File::options().write(true).open(&self.place).map_err(failed)?, text),
            None => {
                durable::write(&self.place, text.as_bytes()).map_err(|error| match error {
                    Error::Write { source, .. } => failed(source),
                    other => other,
                })?;
                (File::options().append(true).open(&self.place).map_err(failed)?, "")
            }
        };
        file.write_all(rest.as_bytes()).map_err(failed)?;
        self.file = Some(file);
        Ok(())
    }

    /// Returns the path, as it was typed.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
