//! The machine that a plan is for, by name or from a file.

use std::path::Path;

use mp_plan::Cluster;

use crate::{Error, Result};

/// Reads a cluster: a preset's name, or a TOML file's.
///
/// # Errors
/// [`Error::Plan`] for a name that is neither and for a machine that cannot be, [`Error::Read`] for a file that cannot be
/// read, [`Error::Syntax`] for one that is no cluster.
pub fn load(name: &str) -> Result<Cluster> {
    let path = Path::new(name);
    if Cluster::PRESETS.contains(&name) || !(path.exists() || path.extension().is_some()) {
        return Ok(Cluster::preset(name)?);
    }
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let cluster: Cluster = toml::from_str(&text).map_err(|error| Error::Syntax {
        origin: name.into(),
        reason: error.to_string().trim_end().replace('\n', "\n  "),
    })?;
    cluster.check()?;
    Ok(cluster)
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
        let text = toml::to_string(&own).unwrap();
        std::fs::write(&file, &text).unwrap();
        assert_eq!(load(name).unwrap(), own);
        std::fs::write(&file, text.replace("latency", "latencies")).unwrap();
        let error = load(name).unwrap_err();
        assert!(matches!(error, Error::Syntax { .. }) && error.to_string().contains("latencies"), "{error}");
        std::fs::write(&file, text.replace("devices = 8", "devices = 0")).unwrap();
        assert!(load(name).unwrap_err().to_string().contains("node.devices is 0"));
        assert!(matches!(load("abacus").unwrap_err(), Error::Plan(_)));
        assert!(matches!(load("nowhere.toml").unwrap_err(), Error::Read { .. }));
    }
}
