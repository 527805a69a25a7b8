//! What must be on the machine already: a C++ compiler, Python where something has to be fetched, and what the tests use.

use anyhow::{bail, ensure, Context, Result};
use std::path::PathBuf;
use std::process::Command;

use crate::process;

/// Checks for a C++ compiler, which the bindings to libtorch are compiled with.
pub fn compiler() -> Result<()> {
    let own = std::env::var("CXX").ok().filter(|program| !program.trim().is_empty());
    let found = match &own {
        Some(program) => program.split_whitespace().next().and_then(process::which).is_some(),
        None => ["c++", "g++"].iter().any(|program| process::which(program).is_some()),
    };
    match own {
        _ if found => Ok(()),
        Some(program) => bail!("CXX={program} is not on the PATH: unset it, or install that compiler"),
        None => bail!("no C++ compiler on the PATH; on Debian and Ubuntu: apt install g++"),
    }
}

/// Checks for what `cargo xtask test` calls beside the compiler: git, clippy and rustfmt.
pub fn for_tests() -> Result<()> {
    ensure!(process::which("git").is_some(), "no git on the PATH; on Debian and Ubuntu: apt install git");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let works = |name: &str| process::stdout_of(Command::new(&cargo).args([name, "--version"])).is_ok();
    match missing_components(works).as_slice() {
        [] => Ok(()),
        missing => {
            let names = missing.join(" ");
            bail!("this Rust toolchain lacks {names}: rustup component add {names}")
        }
    }
}

/// The components whose cargo command does not work.
fn missing_components(works: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let components = [("clippy", "clippy"), ("fmt", "rustfmt")].into_iter();
    components.filter(|(command, _)| !works(command)).map(|(_, component)| component).collect()
}

/// Finds a Python that can make virtual environments.
pub fn python() -> Result<PathBuf> {
    let python = process::which("python3")
        .context("no python3 on the PATH; on Debian and Ubuntu: apt install python3 python3-venv")?;
    let code = "import sys; print('%d.%d' % sys.version_info[:2]); sys.exit(sys.version_info < (3, 9))";
    let version = Command::new(&python).args(["-c", code]).output().context("cannot start python3")?;
    ensure!(
        version.status.success(),
        "python3 is version {}: 3.9 or newer is needed",
        String::from_utf8_lossy(&version.stdout).trim()
    );
    let modules = process::stdout_of(Command::new(&python).args(["-c", "import venv, ensurepip"]));
    if modules.is_err() {
        bail!("python3 lacks its venv and pip modules; on Debian and Ubuntu: apt install python3-venv");
    }
    Ok(python)
}

/// The folder of the compiler's own headers (`stddef.h` and the like), which a bare libclang lacks.
pub fn builtin_headers() -> Option<PathBuf> {
    let compiler = ["gcc", "cc"].into_iter().find_map(process::which)?;
    let printed = process::stdout_of(Command::new(compiler).arg("-print-file-name=include")).ok()?;
    let folder = PathBuf::from(printed.trim());
    folder.join("stddef.h").exists().then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_components_that_do_not_work_are_missing() {
        assert!(missing_components(|_| true).is_empty());
        assert_eq!(missing_components(|command| command == "clippy"), ["rustfmt"]);
        assert_eq!(missing_components(|_| false), ["clippy", "rustfmt"]);
    }
}
