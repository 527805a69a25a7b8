//! `cargo xtask bundle`: a folder that runs where no more is installed than a driver and a Python with PyTorch.
//!
//! | file | is |
//! |---|---|
//! | `mod.rs` | the command: builds, puts the folder together beside its place, and moves it there whole |
//! | `contents.rs` | which files go into it, and where |
//! | `launch.rs` | the script `mp`, which finds libtorch on the other machine and sets what Open MPI needs |

mod contents;
mod launch;

use anyhow::{bail, ensure, Context, Result};
use clap::Args;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use self::contents::Item;
pub use self::contents::TEXT;
#[cfg(test)]
pub use self::launch::scripts;
use crate::gpu_check::results;
use crate::setup::{self, Installs};
use crate::workspace::Workspace;
use crate::{process, train};

/// What a bundle may weigh, so that it travels to machines that take no more.
const LIMIT_BYTES: u64 = 64 << 20;
/// What a bundle is known by, and says of itself.
pub const DESCRIPTION: &str = "bundle.json";
/// Arguments of the build of what is checked on a GPU beside `mp-cli`.
const BENCHES: [&str; 8] = ["build", "--release", "-p", "mp-benches", "--bin", "train", "--bin", "conformance"];

/// Arguments of `cargo xtask bundle`.
#[derive(Args)]
pub struct Options {
    /// The folder to make; default: bundle in the build folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A text to take along, for the recipe that `gpu-check` trains on Shakespeare's plays
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
}

/// Makes the folder and says what it weighs.
pub fn command(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let place = make(workspace, options.out.as_deref(), options.text.as_deref())?;
    let bytes: u64 = contents::below(&place)?.iter().map(|file| size(file)).sum();
    eprintln!("{}: {}; start there with ./mp --help", place.display(), mebibytes(bytes));
    Ok(ExitCode::SUCCESS)
}

/// Makes a bundle at `out`, or in the build folder, and returns where it is.
pub fn make(workspace: &Workspace, out: Option<&Path>, text: Option<&Path>) -> Result<PathBuf> {
    let installs = setup::ensure(workspace)?;
    let target = workspace.target()?;
    let place = std::path::absolute(out.map_or_else(|| target.join("bundle"), Path::to_path_buf))?;
    may_replace(&place)?;
    if let Some(text) = text {
        contents::check_text(text)?;
    }
    let open_mpi = open_mpi(workspace, &installs)?;
    if let Some(libtorch) = installs.libtorch() {
        launch::check_abi(&libtorch.join("lib"))?;
    }
    train::build_release(workspace, &installs)?;
    let mut build = workspace.cargo();
    installs.apply(build.args(BENCHES));
    process::run(&mut build)?;

    let items = contents::list(&workspace.root, &target.join("release"), &open_mpi, text)?;
    let partial = place.with_extension(format!("partial-{}", std::process::id()));
    let made = fill(&partial, &workspace.root, &items, &installs).and_then(|()| replace(&partial, &place));
    if made.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    made.map(|()| place)
}

/// Only a bundle, an empty folder or nothing is replaced.
fn may_replace(place: &Path) -> Result<()> {
    let empty = match fs::read_dir(place) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => !place.exists(),
    };
    ensure!(
        empty || place.join(DESCRIPTION).exists(),
        "{} is there and is no bundle: name another folder with --out",
        place.display()
    );
    Ok(())
}

/// The folder of the one Open MPI that can be moved.
fn open_mpi(workspace: &Workspace, installs: &Installs) -> Result<PathBuf> {
    let folder = setup::open_mpi_of_cache(workspace);
    let mpicc = &installs.mpi.mpicc;
    ensure!(
        mpicc.starts_with(&folder),
        "the MPI library of {} cannot be taken along, for its files name their folders; the Open MPI that set-up installs \
         can: delete .cargo/mp.toml, unset MPICC, and take mpicc from the PATH",
        mpicc.display()
    );
    Ok(folder)
}

fn fill(folder: &Path, root: &Path, items: &[Item], installs: &Installs) -> Result<()> {
    for item in items {
        put(item, &folder.join(&item.to))?;
    }
    for (name, text) in launch::scripts(&installs.mpi) {
        let path = folder.join(name);
        write(&path, &text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let description = json!({
        "format": "mp-bundle",
        "program": program(root),
        "libtorch": setup::LIBTORCH_VERSION,
        "open_mpi": installs.mpi.version,
        "processor": std::env::consts::ARCH,
    });
    write(&folder.join(DESCRIPTION), &format!("{description:#}\n"))?;
    within_limit(folder)
}

/// The release, with the commit where git knows one, and a word where the tree differs from it.
fn program(root: &Path) -> String {
    let release = env!("CARGO_PKG_VERSION");
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]).current_dir(root);
    process::stdout_of(&mut git).map_or(release.into(), |commit| format!("{release} ({})", commit.trim()))
}

fn put(item: &Item, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot make {}; name another folder with --out", folder.display()))?;
    if item.stripped {
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(to).arg(&item.from);
        process::run(&mut strip).context("cannot strip a program; on Debian and Ubuntu: apt install binutils")
    } else {
        let copied = fs::copy(&item.from, to);
        copied.map(drop).with_context(|| format!("cannot copy {} to {}", item.from.display(), to.display()))
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Refuses what is too heavy, with what weighs most.
fn within_limit(folder: &Path) -> Result<()> {
    let mut files: Vec<(u64, PathBuf)> = contents::below(folder)?.into_iter().map(|file| (size(&file), file)).collect();
    let total: u64 = files.iter().map(|(bytes, _)| bytes).sum();
    if total <= LIMIT_BYTES {
        return Ok(());
    }
    files.sort_unstable_by(|one, other| other.cmp(one));
    let named = files
        .iter()
        .take(5)
        .map(|(bytes, file)| format!("{} {}", mebibytes(*bytes), file.strip_prefix(folder).unwrap_or(file).display()));
    bail!(
        "the bundle has {}, and {} is the limit; the largest files: {}",
        mebibytes(total),
        mebibytes(LIMIT_BYTES),
        named.collect::<Vec<_>>().join(", ")
    )
}

fn size(file: &Path) -> u64 {
    file.metadata().map_or(0, |data| data.len())
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Results that `gpu-check` left in the bundle go over into the new one.
fn replace(partial: &Path, place: &Path) -> Result<()> {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let kept = partial.join(entry.file_name());
        if results::path(&entry.path()).exists() && !kept.exists() {
            fs::rename(entry.path(), &kept).with_context(|| format!("cannot keep {}", entry.path().display()))?;
        }
    }
    if place.exists() {
        fs::remove_dir_all(place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    fs::rename(partial, place).with_context(|| format!("cannot move the bundle to {}", place.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-bundle-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_too_heavy_is_refused_with_what_weighs_most() {
        let folder = folder("heavy");
        for (name, bytes) in [("light", 1), ("heavy", LIMIT_BYTES)] {
            fs::File::create(folder.join(name)).unwrap().set_len(bytes).unwrap();
        }
        let error = within_limit(&folder).unwrap_err().to_string();
        assert!(error.ends_with("64.0 MiB is the limit; the largest files: 64.0 MiB heavy, 0.0 MiB light"), "{error}");
        fs::remove_file(folder.join("light")).unwrap();
        within_limit(&folder).unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn results_that_lie_in_a_bundle_stay() {
        let folder = folder("results");
        let (old, new) = (folder.join("bundle"), folder.join("partial"));
        for path in [old.join("gpu-results"), old.join("data"), new.clone()] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(results::path(&old.join("gpu-results")), "figures").unwrap();
        fs::write(old.join("data/text.txt"), "").unwrap();
        fs::write(new.join(DESCRIPTION), "").unwrap();
        replace(&new, &old).unwrap();
        assert_eq!(fs::read_to_string(results::path(&old.join("gpu-results"))).unwrap(), "figures");
        assert!(old.join(DESCRIPTION).exists() && !old.join("data").exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn only_a_bundle_is_replaced() {
        let folder = folder("own");
        may_replace(&folder).unwrap();
        may_replace(&folder.join("new")).unwrap();
        fs::write(folder.join("thesis.txt"), "").unwrap();
        assert!(may_replace(&folder).unwrap_err().to_string().ends_with("name another folder with --out"));
        assert!(may_replace(&folder.join("thesis.txt")).is_err());
        fs::write(folder.join(DESCRIPTION), "").unwrap();
        may_replace(&folder).unwrap();
        fs::remove_dir_all(folder).unwrap();
    }
}
