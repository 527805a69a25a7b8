//! libtorch: the user's own if it is the release that `tch` wants, else the one in the cache.

use anyhow::{bail, ensure, Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::choice::{choose, Candidate, Choice};
use super::install::Installer;
use super::packages::{Bundle, LIBTORCH_CPU, LIBTORCH_CUDA, LIBTORCH_VERSION};
use super::record::Record;
use crate::process;

/// A folder with `lib` and `include`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Libtorch {
    /// The folder.
    pub folder: PathBuf,
    /// The release, without its build suffix.
    pub version: String,
    /// Whether it can use GPUs.
    pub cuda: bool,
}

/// Chooses the installation: `LIBTORCH`, `LIBTORCH_USE_PYTORCH`, the one chosen before, the cache.
pub fn find(cache: &Path, record: &Record, with_cuda: bool) -> Result<Choice<Libtorch>> {
    let mut candidates = Vec::new();
    // The bindings' build script reads this variable first.
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        candidates.push(Candidate::new("LIBTORCH_USE_PYTORCH", of_python));
    }
    if let Some(own) = record.users_own("LIBTORCH") {
        candidates.push(Candidate::new(format!("LIBTORCH={own}"), move || inspect(Path::new(&own))));
    }
    let before = record.variables.get("LIBTORCH").map(PathBuf::from).filter(|path| !path.starts_with(cache));
    if let Some(before) = before {
        candidates.push(Candidate::new("chosen before (.cargo/mp.toml)", move || inspect(&before)));
    }
    choose(candidates, || {
        let folder = Installer::new(cache)?.ensure(bundle(with_cuda))?.join("torch");
        inspect(&folder).context("the installed libtorch does not fit")
    })
}

fn bundle(with_cuda: bool) -> &'static Bundle {
    match with_cuda {
        true => &LIBTORCH_CUDA,
        false => &LIBTORCH_CPU,
    }
}

/// Looks at a folder.
///
/// # Errors
/// If it is no libtorch, or not the release that the bindings are made for.
pub fn inspect(folder: &Path) -> Result<Libtorch> {
    for part in ["lib/libtorch_cpu.so", "include/torch/script.h"] {
        ensure!(folder.join(part).exists(), "{} has no {part}", folder.display());
    }
    let version = version_in(folder).with_context(|| {
        format!("{} names no version (build-version, or version.py in it or beside it)", folder.display())
    })?;
    ensure!(version == LIBTORCH_VERSION, "it is version {version}, and {LIBTORCH_VERSION} is needed");
    Ok(Libtorch { folder: folder.into(), version, cuda: folder.join("lib/libtorch_cuda.so").exists() })
}

fn version_in(folder: &Path) -> Option<String> {
    let plain = fs::read_to_string(folder.join("build-version")).ok();
    let python = || {
        let text =
            ["version.py", "../version.py"].iter().find_map(|name| fs::read_to_string(folder.join(name)).ok())?;
        version_of_module(&text)
    };
    let full = plain.or_else(python)?;
    Some(full.trim().split('+').next().unwrap_or_default().to_string())
}

fn version_of_module(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(line.trim().trim_matches(['\'', '"']).to_string())
}

/// Asks the same interpreter as the bindings' build script does.
fn of_python() -> Result<Libtorch> {
    let interpreter = if std::env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let code = "import os, torch; print(os.path.dirname(torch.__file__))";
    let printed = process::stdout_of(Command::new(interpreter).args(["-c", code]));
    let Ok(printed) = printed else { bail!("{interpreter} cannot import torch") };
    inspect(Path::new(printed.trim()))
}

/// Whether this machine has a driver for NVIDIA GPUs.
pub fn machine_has_cuda() -> bool {
    let fixed = [
        "/proc/driver/nvidia/version",
        "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
        "/usr/lib/aarch64-linux-gnu/libcuda.so.1",
        "/usr/lib64/libcuda.so.1",
        "/usr/lib/wsl/lib/libcuda.so.1",
        "/usr/local/nvidia/lib64/libcuda.so.1",
    ];
    let own = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    fixed.iter().any(|path| Path::new(path).exists())
        || std::env::split_paths(&own).any(|folder| folder.join("libcuda.so.1").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("xtask-libtorch-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for (file, text) in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const FILES: [(&str, &str); 2] = [("lib/libtorch_cpu.so", ""), ("include/torch/script.h", "")];

    #[test]
    fn the_version_is_read_with_and_without_a_build_suffix() {
        let module = "from typing import Optional\n__version__ = '2.11.0+cu130'\ndebug = False\n";
        let wheel = folder("wheel", &[FILES[0], FILES[1], ("version.py", module)]);
        let archive = folder("archive", &[FILES[0], FILES[1], ("build-version", "2.11.0+cpu\n")]);
        for place in [&wheel, &archive] {
            assert_eq!(inspect(place).unwrap().version, "2.11.0");
            fs::remove_dir_all(place).unwrap();
        }
    }

    #[test]
    fn another_release_is_refused_with_its_version() {
        let place = folder("older", &[FILES[0], FILES[1], ("build-version", "2.10.1")]);
        let error = inspect(&place).unwrap_err().to_string();
        assert_eq!(error, "it is version 2.10.1, and 2.11.0 is needed");
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn a_folder_without_libraries_or_version_is_refused_by_what_it_lacks() {
        let place = folder("unnamed", &FILES);
        assert!(inspect(&place).unwrap_err().to_string().contains("names no version"));
        fs::remove_file(place.join("lib/libtorch_cpu.so")).unwrap();
        assert!(inspect(&place).unwrap_err().to_string().ends_with("has no lib/libtorch_cpu.so"));
        fs::remove_dir_all(place).unwrap();
    }
}
