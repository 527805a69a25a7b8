//! `cargo xtask setup`: finds or installs libtorch, MPI and libclang, and records the choice for every later build.
//!
//! `choice` takes the first candidate that fits; `mpi`, `libtorch` and `libclang` name the candidates; `install` and
//! `packages` fill the cache; `record` is the file that cargo reads.

mod choice;
mod install;
mod libclang;
mod libtorch;
mod mpi;
mod packages;
mod prerequisites;
mod record;

use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

pub use self::install::lock as lock_cache;
use self::libtorch::Libtorch;
pub use self::mpi::{Flavor, Mpi};
pub use self::packages::LIBTORCH_VERSION;
pub use self::prerequisites::{for_tests as check_for_tests, python as host_python};
use self::record::Record;
use crate::workspace::Workspace;

/// Arguments of `cargo xtask setup`.
#[derive(Args, Default)]
pub struct Options {
    /// Install libtorch for GPUs although this machine has none (for a cache that others share)
    #[arg(long)]
    cuda: bool,
}

/// What was found or installed.
pub struct Installs {
    /// The MPI library.
    pub mpi: Mpi,
    before: Record,
    record: Record,
    misleading: Vec<&'static str>,
    story: Vec<String>,
}

impl Installs {
    /// The folders that the loader has to search for libtorch and MPI where a binary does not carry them.
    pub fn libraries(&self) -> Vec<PathBuf> {
        self.record.libraries()
    }

    /// The folder of libtorch, where set-up chose it.
    pub fn libtorch(&self) -> Option<PathBuf> {
        self.record.variables.get("LIBTORCH").map(PathBuf::from)
    }

    /// Gives a command what plain `cargo` would read from the record.
    ///
    /// The process that runs set-up was itself started by cargo with the values of before; they would win.
    pub fn apply(&self, command: &mut Command) {
        for name in &self.misleading {
            command.env_remove(name);
        }
        for (name, value) in &self.record.variables {
            // The user's own stays as it was typed, so that a plain `cargo build` sees the same and rebuilds nothing.
            if self.misleading.contains(&name.as_str()) || self.before.users_own(name).is_none() {
                command.env(name, value);
            }
        }
    }
}

/// Runs `cargo xtask setup`.
pub fn command(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let installs = ensure_with(workspace, options)?;
    for line in &installs.story {
        eprintln!("{line}");
    }
    eprintln!("ready: `cargo build --release` works; for mpirun: eval \"$(cargo xtask env)\"");
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that everything is there; silent when nothing has to be done.
pub fn ensure(workspace: &Workspace) -> Result<Installs> {
    ensure_with(workspace, &Options::default())
}

fn ensure_with(workspace: &Workspace, options: &Options) -> Result<Installs> {
    prerequisites::compiler()?;
    let before = Record::read(&workspace.root);
    let with_cuda = options.cuda || libtorch::machine_has_cuda();
    let mpi = mpi::find(&workspace.cache, &before)?;
    let libclang = libclang::find(&workspace.cache, &before)?;
    let libtorch = libtorch::find(&workspace.cache, &before, with_cuda)?;

    let record = record_of(&before, &mpi.value, &libclang.value, &libtorch.value);
    let mut story = vec![
        format!("{} {} in {} ({})", mpi.value.flavor.name(), mpi.value.version, folder_of(&mpi.value), mpi.origin),
        format!("libclang in {} ({})", libclang.value.display(), libclang.origin),
        format!(
            "libtorch {} {} in {} ({})",
            libtorch.value.version,
            if libtorch.value.cuda { "for CPU and GPU" } else { "for CPU" },
            libtorch.value.folder.display(),
            libtorch.origin
        ),
    ];
    if with_cuda && !libtorch.value.cuda {
        story.push("note: this machine has a GPU, and that libtorch cannot use it".into());
    }
    let refused: Vec<String> = [mpi.refused, libclang.refused, libtorch.refused].concat();
    let misleading = misleading(&refused);
    story.extend(misleading.iter().map(|name| {
        format!("warning: {name} is set in your shell and would win in a plain `cargo build`: unset {name}")
    }));
    if record.write(&workspace.root)? {
        story.push("wrote .cargo/mp.toml".into());
    }
    Ok(Installs { mpi: mpi.value, before, record, misleading, story })
}

/// The folder of the Open MPI that set-up installs, which works wherever it lies.
pub fn open_mpi_of_cache(workspace: &Workspace) -> PathBuf {
    workspace.cache.join(packages::OPEN_MPI.folder)
}

fn folder_of(mpi: &Mpi) -> String {
    let folder = mpi.mpicc.parent().and_then(|bin| bin.parent());
    folder.unwrap_or(&mpi.mpicc).display().to_string()
}

fn record_of(before: &Record, mpi: &Mpi, libclang: &std::path::Path, libtorch: &Libtorch) -> Record {
    let mut record = Record::default();
    let mut set = |name: &str, value: String| record.variables.insert(name.into(), value);
    set("LIBTORCH", libtorch.folder.display().to_string());
    set("MPICC", mpi.mpicc.display().to_string());
    set("MP_MPIRUN", mpi.mpirun.display().to_string());
    set("LIBCLANG_PATH", libclang.display().to_string());
    if let Some(library) = &mpi.library {
        set("MP_RPATH", library.display().to_string());
    }
    let own_headers = before.users_own("BINDGEN_EXTRA_CLANG_ARGS");
    if let Some(headers) = prerequisites::builtin_headers().filter(|_| own_headers.is_none()) {
        set("BINDGEN_EXTRA_CLANG_ARGS", format!("-I{}", headers.display()));
    }
    record
}

/// The variables of the shell that name an installation which did not fit.
fn misleading(refused: &[String]) -> Vec<&'static str> {
    let names = ["LIBTORCH_USE_PYTORCH", "LIBTORCH", "MPICC", "LIBCLANG_PATH"];
    let names = names.into_iter();
    names.filter(|name| refused.iter().any(|origin| origin.split('=').next() == Some(*name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_variables_whose_installation_was_refused_mislead() {
        let refused = ["LIBTORCH=/a".to_string(), "on the PATH (/b)".to_string()];
        assert_eq!(misleading(&refused), ["LIBTORCH"]);
        assert_eq!(misleading(&["LIBTORCH_USE_PYTORCH".to_string()]), ["LIBTORCH_USE_PYTORCH"]);
    }
}
