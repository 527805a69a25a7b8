//! libclang, which reads MPI's header when the bindings are made: the user's own, the system's, or one in the cache.

use anyhow::{bail, Result};
use std::fs;
use std::path::{Path, PathBuf};

use super::choice::{choose, Candidate, Choice};
use super::install::Installer;
use super::packages::LIBCLANG;
use super::record::Record;

/// Chooses the folder: `LIBCLANG_PATH`, the system's newest, the cache.
pub fn find(cache: &Path, record: &Record) -> Result<Choice<PathBuf>> {
    let mut candidates = Vec::new();
    if let Some(own) = record.users_own("LIBCLANG_PATH") {
        candidates.push(Candidate::new(format!("LIBCLANG_PATH={own}"), move || inspect(Path::new(&own))));
    }
    let before = record.variables.get("LIBCLANG_PATH").map(PathBuf::from).filter(|path| !path.starts_with(cache));
    if let Some(before) = before {
        candidates.push(Candidate::new("chosen before (.cargo/mp.toml)", move || inspect(&before)));
    }
    if let Some(system) = newest_below(Path::new("/usr/lib")) {
        candidates.push(Candidate::new("the system", move || inspect(&system)));
    }
    choose(candidates, || Ok(Installer::new(cache)?.ensure(&LIBCLANG)?.join("native")))
}

/// Accepts a folder that holds the library, or the library itself, as bindgen does.
fn inspect(path: &Path) -> Result<PathBuf> {
    if path.is_file() || holds_libclang(path) {
        return Ok(path.into());
    }
    bail!("{} has no libclang.so", path.display())
}

fn holds_libclang(folder: &Path) -> bool {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| {
        let name = name.to_string_lossy();
        // Not libclang-cpp.so, which has another interface.
        name.starts_with("libclang.so")
            || (name.starts_with("libclang-") && !name.starts_with("libclang-cpp") && name.contains(".so"))
    })
}

/// Debian and Ubuntu keep each release in `llvm-<version>/lib`.
fn newest_below(libraries: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(libraries).ok()?.flatten();
    let releases = entries.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.strip_prefix("llvm-")?.parse().ok()?;
        let folder = entry.path().join("lib");
        holds_libclang(&folder).then_some((version, folder))
    });
    releases.max().map(|(_, folder)| folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_release_with_the_c_interface_is_taken() {
        let root = std::env::temp_dir().join(format!("xtask-libclang-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for file in ["llvm-9/lib/libclang-9.so.1", "llvm-14/lib/libclang.so", "llvm-19/lib/libclang-cpp.so.19"] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        assert_eq!(newest_below(&root), Some(root.join("llvm-14/lib")));
        fs::remove_dir_all(&root).unwrap();
    }
}
