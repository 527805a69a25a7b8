//! Where words for people go, and where JSON goes.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use crate::args::Output;
use crate::destination::Destination;

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
    File(Destination),
}

impl Screen {
    /// Opens the outputs, before the work begins.
    ///
    /// # Errors
    /// As [`Destination::new`].
    pub fn open(output: &Output, speaks: bool) -> mp_train::Result<Self> {
        let json = match &output.json {
            _ if !speaks => Json::Nowhere,
            None => Json::Nowhere,
            Some(path) if path == Path::new("-") => Json::StandardOutput,
            Some(path) => Json::File(Destination::new("--json", path)?),
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
            Json::File(file) => file.write(&text)?,
        }
        Ok(())
    }
}
