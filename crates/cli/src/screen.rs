//! Where words for people go, and where JSON goes.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::args::Output;
use crate::failure::refused;

/// The two outputs of a command. Only rank 0's says anything.
#[derive(Debug)]
pub struct Screen {
    speaks: bool,
    json: Json,
}

/// Where JSON goes.
#[derive(Debug)]
enum Json {
    Nowhere,
    StandardOutput,
    File(PathBuf, File),
}

impl Screen {
    /// Opens the outputs; the JSON file is made at once, so that it is known to be writable before the work begins.
    ///
    /// # Errors
    /// An input error where it is not.
    pub fn open(output: &Output, speaks: bool) -> mp_train::Result<Self> {
        let json = match &output.json {
            _ if !speaks => Json::Nowhere,
            None => Json::Nowhere,
            Some(path) if path == Path::new("-") => Json::StandardOutput,
            Some(path) => {
                let file = File::create(path).map_err(|error| cannot(path, &error))?;
                Json::File(path.clone(), file)
            }
        };
        Ok(Self { speaks, json })
    }

    /// Says whether this rank speaks to people.
    pub fn speaks(&self) -> bool {
        self.speaks
    }

    /// Prints a line for people: on standard output, unless JSON has it for itself.
    pub fn line(&self, text: &str) {
        if !self.speaks {
            return;
        }
        // A reader that went away (`| head`) ends nothing.
        let _ = match self.json {
            Json::StandardOutput => writeln!(io::stderr(), "{text}"),
            _ => writeln!(io::stdout(), "{text}"),
        };
    }

    /// Says whether standard output is for people.
    pub fn shows(&self) -> bool {
        self.speaks && !matches!(self.json, Json::StandardOutput)
    }

    /// Prints a piece of text for people, at once.
    pub fn piece(&self, text: &str) {
        if self.shows() {
            let _ = write!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
        }
    }

    /// Writes a result as one line of JSON, where it was asked for: one of several, or one that programs read by the line.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn object(&mut self, value: &impl Serialize) -> mp_train::Result<()> {
        self.write(serde_json::to_string(value).expect("a result is plain data") + "\n")
    }

    /// Writes the command's result as JSON, where it was asked for.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn result(&mut self, value: &impl Serialize) -> mp_train::Result<()> {
        self.write(serde_json::to_string_pretty(value).expect("a result is plain data") + "\n")
    }

    fn write(&mut self, text: String) -> mp_train::Result<()> {
        match &mut self.json {
            Json::Nowhere => {}
            Json::StandardOutput => {
                let _ = io::stdout().write_all(text.as_bytes());
            }
            Json::File(path, file) => file
                .write_all(text.as_bytes())
                .map_err(|source| mp_train::Error::Write { path: path.clone(), source })?,
        }
        Ok(())
    }
}

/// Words a file that cannot be made.
fn cannot(path: &Path, error: &io::Error) -> mp_train::Error {
    refused("--json", format!("\"{}\"", path.display()), format!("this file cannot be written: {error}"))
}
