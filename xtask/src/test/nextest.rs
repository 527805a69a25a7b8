//! The test runner: the user's own, else one that is built into the cache.

use anyhow::{ensure, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::workspace::Workspace;
use crate::{process, setup};

const VERSION: &str = "0.9.143";

/// Builds the runner if there is none, within `limit`.
pub fn ensure(workspace: &Workspace, limit: Duration) -> Result<()> {
    let root = root(workspace);
    if process::which("cargo-nextest").is_some() || binary(&root).exists() {
        return Ok(());
    }
    let begin = Instant::now();
    std::fs::create_dir_all(&workspace.cache)?;
    let _lock = setup::lock_cache(&workspace.cache, limit)?;
    // Another clone may have built it while this one waited.
    if binary(&root).exists() {
        return Ok(());
    }
    eprintln!("cargo-nextest is not on the PATH: building {VERSION} into {} (a few minutes, once)", root.display());
    let target = workspace.cache.join("nextest-build");
    let outcome = process::watch(&mut install(workspace, &root, &target), limit.saturating_sub(begin.elapsed()))?;
    ensure!(outcome.status.is_some(), "cargo-nextest was not built within {} s", limit.as_secs());
    ensure!(outcome.success(), "cargo-nextest could not be built");
    match std::fs::remove_dir_all(target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Lets `command` find the runner that [`ensure()`] built.
pub fn find(workspace: &Workspace, command: &mut Command) -> Result<()> {
    if process::which("cargo-nextest").is_none() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(root(workspace).join("bin")).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders)?);
    }
    Ok(())
}

fn root(workspace: &Workspace) -> PathBuf {
    workspace.cache.join(format!("nextest-{VERSION}"))
}

fn binary(root: &Path) -> PathBuf {
    root.join("bin/cargo-nextest")
}

fn install(workspace: &Workspace, root: &Path, target: &Path) -> Command {
    let mut install = workspace.cargo();
    // Unoptimised: it is built in half the time, and waits for the tests anyway. It has no need to update itself.
    install.args(["install", "cargo-nextest", "--version", VERSION, "--locked", "--debug"]);
    install.args(["--no-default-features", "--features", "default-no-update", "--root"]).arg(root);
    install.env("CARGO_TARGET_DIR", target);
    install
}
