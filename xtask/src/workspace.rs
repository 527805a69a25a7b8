//! Where things lie: the checkout, the cache that all clones share, the target folder.

use anyhow::{bail, Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// The folders that every command needs.
pub struct Workspace {
    /// The checkout's root.
    pub root: PathBuf,
    /// The cache outside the checkout: `$MP_CACHE`, else `$XDG_CACHE_HOME/mp`, else `~/.cache/mp`.
    pub cache: PathBuf,
}

impl Workspace {
    /// Locates the checkout and the cache; creates neither.
    pub fn locate() -> Result<Self> {
        // Cargo sets the variable at run time too: two clones may share one target folder and so one binary.
        let manifest = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_string());
        let root = Path::new(&manifest).parent().context("xtask lies directly below the root")?.to_path_buf();
        Ok(Self { root, cache: cache_folder(|name| std::env::var(name).ok())? })
    }

    /// A `cargo` command at the root of the checkout.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
        // A relative target folder means the caller's folder, not the root.
        if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
            let target = std::env::current_dir().unwrap_or_default().join(target);
            command.env("CARGO_TARGET_DIR", target);
        }
        command.current_dir(&self.root);
        command
    }

    /// Reads `cargo metadata` of the members alone.
    pub fn metadata(&self) -> Result<Value> {
        let mut command = self.cargo();
        command.args(["metadata", "--no-deps", "--format-version", "1"]);
        let text = process::stdout_of(&mut command)?;
        serde_json::from_str(&text).context("`cargo metadata` printed no JSON")
    }

    /// The target folder, as cargo resolves it.
    pub fn target(&self) -> Result<PathBuf> {
        let metadata = self.metadata()?;
        Ok(metadata["target_directory"].as_str().context("`cargo metadata` names no target_directory")?.into())
    }
}

fn cache_folder(variable: impl Fn(&str) -> Option<String>) -> Result<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let folder = if let Some(own) = set("MP_CACHE") {
        PathBuf::from(own)
    } else if let Some(shared) = set("XDG_CACHE_HOME") {
        Path::new(&shared).join("mp")
    } else if let Some(home) = set("HOME") {
        Path::new(&home).join(".cache/mp")
    } else {
        bail!("no place for the cache: set MP_CACHE (or HOME) to a folder with 2 GiB free");
    };
    std::path::absolute(&folder).with_context(|| format!("cannot resolve the cache folder {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(variables: &[(&str, &str)]) -> Option<PathBuf> {
        cache_folder(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())).ok()
    }

    #[test]
    fn the_cache_prefers_the_most_specific_variable() {
        let all = [("MP_CACHE", "/m"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(folder(&all), Some("/m".into()));
        assert_eq!(folder(&all[1..]), Some("/x/mp".into()));
        assert_eq!(folder(&all[2..]), Some("/h/.cache/mp".into()));
        assert_eq!(folder(&[]), None);
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        assert_eq!(folder(&[("MP_CACHE", ""), ("HOME", "/h")]), Some("/h/.cache/mp".into()));
    }
}
