//! The test runner: the user's own, else one that is built into the cache.

use anyhow::Result;
use std::process::Command;

use crate::process;
use crate::workspace::Workspace;

const VERSION: &str = "0.9.143";

/// Lets `command` find `cargo nextest`, and builds it first where there is none.
pub fn prepare(workspace: &Workspace, command: &mut Command) -> Result<()> {
    if process::which("cargo-nextest").is_some() {
        return Ok(());
    }
    let root = workspace.cache.join(format!("nextest-{VERSION}"));
    let bin = root.join("bin");
    if !bin.join("cargo-nextest").exists() {
        eprintln!("cargo-nextest is not on the PATH: building {VERSION} into {} (a few minutes, once)", root.display());
        let mut install = workspace.cargo();
        // Unoptimised: it is built in half the time, and waits for the tests anyway.
        install.args(["install", "cargo-nextest", "--version", VERSION, "--locked", "--debug", "--root"]).arg(&root);
        install.env("CARGO_TARGET_DIR", workspace.cache.join("nextest-build"));
        process::run(&mut install)?;
        std::fs::remove_dir_all(workspace.cache.join("nextest-build"))?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(bin).chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(folders)?);
    Ok(())
}
