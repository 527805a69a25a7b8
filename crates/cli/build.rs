//! Lets the binary find libtorch and MPI at run time, and its tests the launcher; says which commit it is built from.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The folders that torch-sys and mp-comm found; cargo hands them to direct dependents.
    let torch = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    let mpi = std::env::var("DEP_MP_COMM_MPI_MPI_LIB").unwrap_or_default();
    for folder in torch.split(':').chain(mpi.split(':')).filter(|folder| !folder.is_empty()) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
    println!("cargo:rustc-env=MP_CLI_VERSION={}", version());
    println!("cargo:rerun-if-env-changed=MP_MPIRUN");
    // The launcher that set-up found works; one that lies beside the library is a guess.
    let recorded = std::env::var("MP_MPIRUN").ok().filter(|launcher| !launcher.is_empty());
    let beside = || mpi.split(':').map(|folder| Path::new(folder).join("../bin/mpirun")).find(|path| path.exists());
    let launcher = recorded.or_else(|| beside().map(|path| path.display().to_string()));
    println!("cargo:rustc-env=MP_CLI_MPIRUN={}", launcher.unwrap_or_else(|| "mpirun".into()));
}

/// Returns the release, and the commit where git knows one, with a word where sources differ from it.
///
/// It depends on sources alone, so that a build can be repeated. Of all crates only this one, which nothing depends on, is
/// built anew after a commit.
fn version() -> String {
    let release = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    // In a package without its history, a repository around it is another's.
    let Some(commit) = git(&["ls-files", "--error-unmatch", "build.rs"]).and(git(&["rev-parse", "--short=12", "HEAD"]))
    else {
        return release;
    };
    let log = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]);
    let root = git(&["rev-parse", "--show-toplevel"]).unwrap_or_default();
    let sources = std::fs::read_dir("..").into_iter().flatten().flatten().map(|folder| folder.path().join("src"));
    let manifests = ["Cargo.toml", "Cargo.lock"].map(|name| Path::new(&root).join(name));
    let watched = log.map(Into::into).into_iter().chain(sources).chain(manifests);
    watched.filter(|path| path.exists()).for_each(|path| println!("cargo:rerun-if-changed={}", path.display()));
    let compiled = [":(top,glob)crates/*/src/**", ":(top)Cargo.toml", ":(top)Cargo.lock"];
    let changed = git(&[&["status", "--porcelain", "--"], &compiled[..]].concat());
    match changed.is_none_or(|changed| changed.is_empty()) {
        true => format!("{release} ({commit})"),
        false => format!("{release} ({commit}, changed)"),
    }
}

/// Returns what git answers, if it does.
fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
}
