//! `cargo xtask tidy`: rules of the house that the compiler does not know, each broken one with its file and line.
//!
//! Every rule is a function from what the tree holds to complaints, so that tests can hand it made-up trees.

mod documents;
mod edges;
mod files;
mod lints;
mod unsafe_code;
mod words;

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::process;
use crate::workspace::Workspace;

/// A file that git tracks, or would track.
pub struct TrackedFile {
    /// The path from the root, with `/` between its parts.
    pub path: String,
    /// The size on disk.
    pub bytes: u64,
    /// The content, if it is UTF-8.
    pub text: Option<String>,
}

/// A broken rule.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Debug)]
pub struct Complaint {
    path: String,
    line: usize,
    message: String,
}

impl Complaint {
    /// A complaint about a line, counted from 1.
    pub fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.into(), line, message: message.into() }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Prints every complaint; fails if there is one.
pub fn command(workspace: &Workspace) -> Result<ExitCode> {
    let files = tracked_files(&workspace.root)?;
    let complaints = check(workspace, &files)?;
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    eprintln!("tidy: {} files, {} complaints", files.len(), complaints.len());
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(workspace: &Workspace, files: &[TrackedFile]) -> Result<BTreeSet<Complaint>> {
    let mut all = edges::check(&edges::read(&workspace.metadata()?, &workspace.root)?, files);
    all.extend(lints::check(files));
    all.extend(unsafe_code::check(files));
    all.extend(files::check(files));
    all.extend(documents::check(files));
    all.extend(words::check(files));
    Ok(all.into_iter().collect())
}

/// What git knows, and new files that it does not ignore: a mistake is best seen before the commit.
fn tracked_files(root: &Path) -> Result<Vec<TrackedFile>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed =
        process::stdout_of(&mut git).context("tidy asks git for the files; on Debian and Ubuntu: apt install git")?;
    let paths: BTreeSet<&str> = listed.split('\0').filter(|path| !path.is_empty()).collect();
    // A file that was deleted and is not committed yet has no content to judge.
    let present = paths.into_iter().filter_map(|path| Some((path, fs::read(root.join(path)).ok()?)));
    Ok(present
        .map(|(path, content)| TrackedFile {
            path: path.to_string(),
            bytes: content.len() as u64,
            text: String::from_utf8(content).ok(),
        })
        .collect())
}

/// Made-up trees for the rules' tests.
#[cfg(test)]
fn made_up(files: &[(&str, &str)]) -> Vec<TrackedFile> {
    let file = |(path, text): &(&str, &str)| TrackedFile {
        path: path.to_string(),
        bytes: text.len() as u64,
        text: Some(text.to_string()),
    };
    files.iter().map(file).collect()
}
