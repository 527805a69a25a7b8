//! The machine that a plan is for, by name or from a file.

use std::path::Path;

use mp_plan::Cluster;
use toml::{Table, Value};

use crate::config::{explain, placed};
use crate::error::nearest;
use crate::{Error, Result};

/// Reads a cluster: a preset's name, or a TOML file's.
///
/// # Errors
/// [`Error::Plan`] for a name that is neither, [`Error::Read`] for a file that cannot be
/// read, [`Error::Cluster`] for one that is no cluster.
pub fn load(name: &str) -> Result<Cluster> {
    if !is_file(name) {
        return Ok(Cluster::preset(name)?);
    }
    let path = Path::new(name);
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    parse(&text).map_err(|problem| Error::Cluster { path: path.into(), problem })
}

/// Says whether a name is that of a file: one that is there, or ends as files do.
pub(crate) fn is_file(name: &str) -> bool {
    let path = Path::new(name);
    !name.is_empty() && !Cluster::PRESETS.contains(&name) && (path.exists() || path.extension().is_some())
}

/// Reads a cluster's text, or says in one line what is wrong with it.
fn parse(text: &str) -> std::result::Result<Cluster, String> {
    let table: Table = text.parse().map_err(|error| format!("it is not valid TOML: {}", placed(text, &error)))?;
    let value = Value::Table(table);
    let cluster: Cluster = serde_path_to_error::deserialize(value.clone()).map_err(|error| misread(&value, &error))?;
    match cluster.check() {
        Ok(()) => Ok(cluster),
        Err(mp_plan::Error::Cluster { key, value, rule }) => Err(format!("`{key}` is {value}, but {rule}")),
        Err(other) => Err(other.to_string()),
    }
}

/// Words a key that does not exist, one that is missing, and a value of a wrong type.
fn misread(value: &Value, error: &serde_path_to_error::Error<toml::de::Error>) -> String {
    let message = error.inner().message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let path = error.path().to_string();
    // Where a key does not exist the path ends with it, or before it.
    let full = |key: &str| match path.as_str() {
        "." => key.to_owned(),
        path if path == key || path.ends_with(&format!(".{key}")) => path.to_owned(),
        path => format!("{path}.{key}"),
    };
    match quoted.split_first() {
        Some((key, known)) if message.starts_with("unknown field") => {
            let meant = nearest(key, known).map(|key| format!("; did you mean `{key}`?")).unwrap_or_default();
            format!("there is no key `{}`{meant}; there are {}", full(key), known.join(", "))
        }
        Some((key, _)) if message.starts_with("missing field") => format!("the key `{}` is missing", full(key)),
        _ => explain(value, error).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_files_are_read_and_others_refused() {
        assert_eq!(load("h100").unwrap(), Cluster::preset("h100").unwrap());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("own.toml");
        let name = file.to_str().unwrap();
        let own = Cluster::preset("a100-80").unwrap().with_ranks(64);
        std::fs::write(&file, toml::to_string(&own).unwrap()).unwrap();
        assert_eq!(load(name).unwrap(), own);
        assert!(matches!(load("abacus").unwrap_err(), Error::Plan(_)));
        assert!(matches!(load("nowhere.toml").unwrap_err(), Error::Read { .. }));
        std::fs::write(&file, "[node]\ncount = = 1\n").unwrap();
        let error = load(name).unwrap_err();
        assert!(error.is_input(), "{error}");
        let head = format!("the cluster `{name}` cannot be used: it is not valid TOML: line 2, column 9: ");
        assert!(error.to_string().starts_with(&head) && !error.to_string().contains('\n'), "{error}");
    }

    #[test]
    fn keys_that_are_wrong_are_named_in_one_line() {
        let text = toml::to_string(&Cluster::preset("h100").unwrap()).unwrap();
        for (from, to, problem) in [
            (
                "latency =",
                "latencies =",
                "there is no key `node.latencies`; did you mean `latency`?; there are count, devices",
            ),
            ("[network]", "[networks]", "there is no key `networks`; did you mean `network`?; there are node, device"),
            ("bf16 =", "int8 =", "there is no key `device.peak.int8`; there are bf16, fp32, fp64"),
            ("count = 1\n", "", "the key `node.count` is missing"),
            ("count = 1\n", "count = \"one\"\n", "`node.count` is \"one\", but must be a whole number from 0"),
            ("matrix = 0.66", "matrix = \"much\"", "`efficiency.matrix` is \"much\", but must be a number"),
            ("count = 1\n", "count = -1\n", "`node.count` is -1, but must be a whole number from 0"),
            ("devices = 8", "devices = 0", "`node.devices` is 0, but must be at least 1"),
            (
                "matrix = 0.66",
                "matrix = 66.0",
                "`efficiency.matrix` is 66, but must be a share above 0, from 1e-6 up to 1",
            ),
        ] {
            assert!(text.contains(from), "{from}: {text}");
            let error = parse(&text.replacen(from, to, 1)).unwrap_err();
            assert!(error.starts_with(problem) && !error.contains('\n'), "{to}: {error}");
        }
    }
}
