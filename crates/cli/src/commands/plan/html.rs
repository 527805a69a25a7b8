//! `mp-cli plan --html`: a layout as a page of pictures.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use mp_plan::Page;

use crate::failure::refused;
use crate::screen::Screen;

/// The file that a page goes to, where one was asked for.
pub struct Html(Option<(PathBuf, File)>);

impl Html {
    /// Makes the file at once, so that it is known to be writable before the work begins.
    ///
    /// # Errors
    /// An input error where it is not.
    pub fn open(path: Option<&Path>) -> mp_train::Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let file = File::create(path).map_err(|error| {
            refused("--html", format!("\"{}\"", path.display()), format!("this file cannot be written: {error}"))
        })?;
        Ok(Self(Some((path.to_owned(), file))))
    }

    /// Writes the page, where one was asked for, and says so.
    ///
    /// # Errors
    /// What `page` fails with, and what the disk refuses.
    pub fn write(self, screen: &Screen, page: impl FnOnce() -> mp_train::Result<Page>) -> mp_train::Result<()> {
        let Some((path, mut file)) = self.0 else { return Ok(()) };
        let text = page()?.html();
        let written = format!("pictures in {}", path.display());
        file.write_all(text.as_bytes()).map_err(|source| mp_train::Error::Write { path, source })?;
        screen.line(&written);
        Ok(())
    }
}
