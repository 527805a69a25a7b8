//! `.cargo/mp.toml`: what was chosen on this machine, as environment variables that cargo sets for every build.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The variables of the file, by name.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Record {
    /// What goes into the `[env]` table.
    pub variables: BTreeMap<String, String>,
}

impl Record {
    /// The file's place in a checkout.
    pub fn place(root: &Path) -> PathBuf {
        root.join(".cargo/mp.toml")
    }

    /// Reads the file; one that is missing or was not written by us counts as empty.
    pub fn read(root: &Path) -> Self {
        Self::parse(&fs::read_to_string(Self::place(root)).unwrap_or_default())
    }

    /// Writes the file if its text would change; returns whether it did.
    pub fn write(&self, root: &Path) -> Result<bool> {
        let place = Self::place(root);
        let text = self.text();
        if fs::read_to_string(&place).is_ok_and(|old| old == text) {
            return Ok(false);
        }
        // A build that starts meanwhile must not read half a file.
        let partial = place.with_extension(format!("partial-{}", std::process::id()));
        fs::write(&partial, text).with_context(|| format!("cannot write {}", partial.display()))?;
        fs::rename(&partial, &place).with_context(|| format!("cannot write {}", place.display()))?;
        Ok(true)
    }

    /// The value of a variable that the user set, as opposed to one that cargo took from the file.
    pub fn users_own(&self, name: &str) -> Option<String> {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
        (self.variables.get(name) != Some(&value)).then_some(value)
    }

    fn parse(text: &str) -> Self {
        let entries = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(" = ")?;
            // A JSON string without control characters is a TOML string, and the reverse.
            Some((name.to_string(), serde_json::from_str::<String>(value).ok()?))
        });
        Self { variables: entries.collect() }
    }

    fn text(&self) -> String {
        let mut text = String::from("# Written by `cargo xtask setup`; delete it to choose anew. Variables of your own win over these.\n[env]\n");
        for (name, value) in &self.variables {
            text.push_str(&format!("{name} = {}\n", serde_json::Value::from(value.as_str())));
        }
        text.push_str(&self.documentation_tests());
        text
    }

    /// The folders of libtorch and, where the loader does not know it, of MPI.
    pub fn libraries(&self) -> Vec<PathBuf> {
        let libtorch = self.variables.get("LIBTORCH").map(|folder| format!("{folder}/lib"));
        libtorch.iter().chain(self.variables.get("MP_RPATH")).map(PathBuf::from).collect()
    }

    /// Build scripts can give a library path to binaries and tests, but not to documentation tests: rustdoc links those.
    fn documentation_tests(&self) -> String {
        let folders = self.libraries();
        let flag = |folder: &PathBuf| ["-C".to_string(), format!("link-arg=-Wl,-rpath,{}", folder.display())];
        let flags: Vec<String> = folders.iter().flat_map(flag).collect();
        format!("\n[build]\nrustdocflags = {}\n", serde_json::Value::from(flags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(entries: &[(&str, &str)]) -> Record {
        Record { variables: entries.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect() }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let written = record(&[("LIBTORCH", "/a \"quoted\"/torch"), ("MPICC", "/b\\c/mpicc")]);
        assert_eq!(Record::parse(&written.text()), written);
    }

    #[test]
    fn documentation_tests_find_both_libraries() {
        let text = record(&[("LIBTORCH", "/t"), ("MP_RPATH", "/m/lib")]).text();
        let line = r#"rustdocflags = ["-C","link-arg=-Wl,-rpath,/t/lib","-C","link-arg=-Wl,-rpath,/m/lib"]"#;
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn a_value_from_the_file_is_not_the_users_own() {
        // `PATH` is set wherever this test runs.
        let path = std::env::var("PATH").unwrap();
        assert_eq!(record(&[("PATH", &path)]).users_own("PATH"), None);
        assert_eq!(record(&[]).users_own("PATH"), Some(path));
    }
}
