//! Files of a run with a line a step, appended while it goes: `metrics.jsonl`, one [`Record`] a line, and its like.

use std::fs::{File, OpenOptions};
use std::io::{Error as IoError, ErrorKind, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::{de::DeserializeOwned, Serialize};

use crate::durable;
use crate::records::Record;
use crate::{Error, Result};

/// What one line says, and of which step.
pub trait Line: Serialize + DeserializeOwned {
    /// Returns the number of finished updates that the line speaks of.
    fn step(&self) -> u64;
}

impl Line for Record {
    fn step(&self) -> u64 {
        Record::step(self)
    }
}

/// Appends lines to a file.
#[derive(Debug)]
pub struct Lines<R> {
    path: PathBuf,
    file: File,
    kind: PhantomData<R>,
}

/// The lines of `metrics.jsonl`.
pub type Metrics = Lines<Record>;

impl<R: Line> Lines<R> {
    /// Opens a file, and drops what it says of steps after `step`: they will be made again, or never were saved.
    ///
    /// A file that is not there is made. A run that starts fresh passes 0.
    ///
    /// # Errors
    /// [`Error::Read`] where a line is no record, [`Error::Write`].
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        if path.exists() {
            let kept: String =
                lines::<R>(path)?.into_iter().filter(|(_, r)| r.step() <= step).map(|(line, _)| line + "\n").collect();
            durable::write(path, kept.as_bytes())?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|source| Error::Write { path: path.into(), source })?;
        Ok(Self { path: path.into(), file, kind: PhantomData })
    }

    /// Returns the file, and its place, for whoever is to flush it to the disk.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn handle(&self) -> Result<(PathBuf, File)> {
        let file = self.file.try_clone().map_err(|source| Error::Write { path: self.path.clone(), source })?;
        Ok((self.path.clone(), file))
    }

    /// Appends one line.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write(&mut self, record: &R) -> Result<()> {
        // One call for the whole line, so that a reader beside the run sees it whole.
        let line = serde_json::to_string(record).expect("a record is JSON") + "\n";
        self.file.write_all(line.as_bytes()).map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}

/// Reads a file of records; a last line that a crash cut off is left out.
///
/// # Errors
/// [`Error::Read`] where the file or one of its lines cannot be read.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    lines_of(path)
}

/// Reads a file of lines of any kind; a last one that a crash cut off is left out.
///
/// # Errors
/// [`Error::Read`] where the file or one of its lines cannot be read.
pub fn lines_of<R: Line>(path: &Path) -> Result<Vec<R>> {
    Ok(lines(path)?.into_iter().map(|(_, record)| record).collect())
}

/// Reads the whole lines of a file, with what each says.
fn lines<R: Line>(path: &Path) -> Result<Vec<(String, R)>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |(number, line): (usize, &str)| match serde_json::from_str(line) {
        Ok(record) => Ok((line.to_string(), record)),
        Err(error) => {
            let reason = format!("line {} is no record ({error})", number + 1);
            Err(Error::Read { path: path.into(), source: IoError::new(ErrorKind::InvalidData, reason) })
        }
    };
    whole.lines().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{EndReason, EndRecord, EvalRecord};

    fn eval(step: u64) -> Record {
        Record::Eval(EvalRecord { step, loss: 1.0 / step as f64 })
    }

    #[test]
    fn records_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let records = [eval(1), eval(3), Record::End(EndRecord { step: 3, reason: EndReason::Finished })];
        let mut metrics = Metrics::open(&path, 0).unwrap();
        records.iter().for_each(|record| metrics.write(record).unwrap());
        assert_eq!(read(&path).unwrap(), records);
    }

    #[test]
    fn a_continued_run_forgets_what_was_not_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        (1..=5).for_each(|step| metrics.write(&eval(step)).unwrap());
        // A crash cuts the last line.
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "{\"kind\":\"ev").unwrap();
        assert_eq!(read(&path).unwrap().len(), 5);
        Metrics::open(&path, 3).unwrap().write(&eval(4)).unwrap();
        assert_eq!(read(&path).unwrap(), [eval(1), eval(2), eval(3), eval(4)]);
    }

    #[test]
    fn a_foreign_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"kind\":\"eval\",\"step\":1,\"loss\":2.0}\nhello\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2 is no record"), "{error}");
    }
}
