//! Writing one checkpoint into a hidden folder, and giving it its name at the end.

use std::fs::{self, File};
use std::io::{BufWriter, Error as IoError, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::directory::{folder_name, Aside, DirectoryStore};
use super::manifest::{self, FileRecord, Manifest};
use super::{tensor_file, CheckpointWriter, Entry};
use crate::durable::{self, sync_folder};
use crate::{Config, Error, Result};

/// Small tensors are gathered up to this many bytes before they go to the system.
const GATHERED_BYTES: usize = 1 << 20;

/// A checkpoint under way in a folder that the store's readers do not look at.
#[derive(Debug)]
pub(super) struct DirectoryWriter {
    store: DirectoryStore,
    step: u64,
    partial: PathBuf,
    done: Vec<FileRecord>,
    current: Option<Current>,
}

/// The file that elements are appended to.
#[derive(Debug)]
struct Current {
    path: PathBuf,
    record: FileRecord,
    file: BufWriter<File>,
    checksum: blake3::Hasher,
    /// Bytes of elements that are still to come.
    missing: u64,
}

impl DirectoryWriter {
    /// Makes the hidden folder.
    pub(super) fn new(store: &DirectoryStore, step: u64) -> Result<Self> {
        let partial = store.aside(step, Aside::Partial);
        let made = match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => fs::create_dir_all(&partial),
        };
        made.map_err(|source| Error::Write { path: partial.clone(), source })?;
        Ok(Self { store: store.clone(), step, partial, done: Vec::new(), current: None })
    }

    /// Finishes the file under way, if there is one.
    fn close(&mut self) -> Result<()> {
        let Some(current) = self.current.take() else { return Ok(()) };
        if current.missing > 0 {
            return Err(misuse(&current.path, format!("{} bytes of elements are missing", current.missing)));
        }
        let Current { path, mut record, file, checksum, .. } = current;
        let synced = file.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all());
        synced.map_err(|source| Error::Write { path, source })?;
        record.blake3 = checksum.finalize().to_hex().to_string();
        self.done.push(record);
        Ok(())
    }

    /// Writes the manifest, and flushes the folder.
    fn seal(&mut self, tokens: u64, config: &Config) -> Result<()> {
        let manifest = Manifest {
            format: manifest::FORMAT.into(),
            version: manifest::VERSION,
            step: self.step,
            tokens,
            seed: config.train.seed,
            config: serde_json::to_value(config).expect("a tree of plain values is JSON"),
            code_version: env!("CARGO_PKG_VERSION").into(),
            files: std::mem::take(&mut self.done),
        };
        let json = serde_json::to_string_pretty(&manifest).expect("a manifest is JSON");
        durable::write(&self.partial.join(manifest::NAME), json.as_bytes())
    }

    /// Gives the folder its name. A checkpoint of the same step steps aside first.
    fn publish(&self) -> Result<PathBuf> {
        let path = self.store.folder(self.step);
        let aside = self.store.aside(self.step, Aside::Replaced);
        let rename =
            |from: &Path, to: &Path| fs::rename(from, to).map_err(|source| Error::Write { path: to.into(), source });
        if path.exists() {
            rename(&path, &aside)?;
        }
        rename(&self.partial, &path)?;
        sync_folder(self.store.root())?;
        if let Err(error) = fs::remove_dir_all(&aside) {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(path = %aside.display(), %error, "a replaced checkpoint stays");
            }
        }
        Ok(path)
    }
}

impl CheckpointWriter for DirectoryWriter {
    fn file(&mut self, name: &str, entries: &[Entry]) -> Result<()> {
        self.close()?;
        let path = self.partial.join(name);
        if !is_plain(name) || name == manifest::NAME || self.done.iter().any(|file| file.name == name) {
            return Err(misuse(&path, "it is no new file's name".into()));
        }
        let (header, missing) = tensor_file::header(entries).map_err(|problem| misuse(&path, problem))?;
        let file = File::create(&path).map_err(|source| Error::Write { path: path.clone(), source })?;
        let bytes = header.len() as u64 + missing;
        let record = FileRecord { name: name.into(), bytes, blake3: String::new(), tensors: entries.to_vec() };
        let file = BufWriter::with_capacity(GATHERED_BYTES, file);
        let mut current = Current { path, record, file, checksum: blake3::Hasher::new(), missing };
        current.put(&header)?;
        self.current = Some(current);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.current else {
            return Err(misuse(&self.partial, "elements came before the first file".into()));
        };
        current.missing = current.missing.checked_sub(bytes.len() as u64).ok_or_else(|| {
            misuse(&current.path, format!("{} bytes came where {} are missing", bytes.len(), current.missing))
        })?;
        current.put(bytes)
    }

    fn commit(mut self: Box<Self>, tokens: u64, config: &Config) -> Result<PathBuf> {
        let _span = tracing::info_span!("checkpoint", step = self.step).entered();
        self.close()?;
        self.seal(tokens, config)?;
        let path = self.publish()?;
        self.store.forget_oldest(self.step);
        Ok(path)
    }
}

impl Current {
    /// Writes bytes, and counts them into the checksum.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.checksum.update(bytes);
        self.file.write_all(bytes).map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}

impl Drop for DirectoryWriter {
    fn drop(&mut self) {
        // After the commit there is no such folder; before it, what is there serves nobody.
        self.current = None;
        let _ = fs::remove_dir_all(&self.partial);
    }
}

/// Says whether a name stays in its folder.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\'])
}

/// Words a call that the writer cannot follow.
fn misuse(path: &Path, problem: String) -> Error {
    Error::Write { path: path.into(), source: IoError::new(ErrorKind::InvalidInput, problem) }
}

impl DirectoryStore {
    /// Removes the oldest checkpoints beyond those to keep. Not being able to is no reason to end a run.
    fn forget_oldest(&self, newest: u64) {
        use super::CheckpointStore;
        if self.keep() == 0 {
            return;
        }
        let older: Vec<u64> = self.steps().unwrap_or_default().into_iter().filter(|&step| step < newest).collect();
        let surplus = older.len().saturating_sub(self.keep() - 1);
        for &step in &older[..surplus] {
            // The name goes first, so that no half of it is ever taken for a checkpoint.
            let aside = self.aside(step, Aside::Removed);
            let removed = fs::rename(self.folder(step), &aside).and_then(|()| fs::remove_dir_all(&aside));
            if let Err(error) = removed {
                tracing::warn!(checkpoint = folder_name(step), %error, "an old checkpoint stays");
            }
        }
    }
}
