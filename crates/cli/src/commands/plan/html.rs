//! `mp-cli plan --html`: a layout as a page of pictures.

use std::path::Path;

use mp_plan::Page;

use crate::destination::Destination;
use crate::screen::Screen;

/// The file that a page goes to, where one was asked for.
pub struct Html(Option<Destination>);

impl Html {
    /// Takes the file before the work begins.
    ///
    /// # Errors
    /// As [`Destination::new`].
    pub fn open(path: Option<&Path>) -> mp_train::Result<Self> {
        path.map(|path| Destination::new("--html", path)).transpose().map(Self)
    }

    /// Writes the page, where one was asked for, and says so.
    ///
    /// # Errors
    /// What `page` fails with, and what the disk refuses.
    pub fn write(self, screen: &Screen, page: impl FnOnce() -> mp_train::Result<Page>) -> mp_train::Result<()> {
        let Some(mut file) = self.0 else { return Ok(()) };
        file.write(&page()?.html())?;
        screen.line(&format!("pictures in {}", file.path().display()));
        Ok(())
    }
}
