//! Which crate may depend on which: arrows point downwards only.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

use super::{Complaint, TrackedFile};

/// Each member below the roof, and what it may stand on. Members that are not listed may use all of these.
const MAY_USE: [(&str, &[&str]); 7] = [
    ("mp-plan", &[]),
    ("mp-comm", &[]),
    ("mp-data", &[]),
    ("mp-runtime", &[]),
    ("mp-model", &["mp-plan", "mp-comm", "mp-runtime"]),
    ("mp-train", &["mp-plan", "mp-comm", "mp-runtime", "mp-data", "mp-model"]),
    ("mp-cli", &["mp-plan", "mp-comm", "mp-runtime", "mp-data", "mp-model", "mp-train"]),
];

/// A member's dependency on another member.
pub struct Edge {
    /// Who depends.
    pub from: String,
    /// On whom.
    pub to: String,
    /// The manifest that says so, from the root.
    pub manifest: String,
}

/// Reads the edges between members, of every kind, from `cargo metadata`.
pub fn read(metadata: &Value, root: &Path) -> Result<Vec<Edge>> {
    let mut edges = Vec::new();
    for package in metadata["packages"].as_array().context("`cargo metadata` lists no packages")? {
        let text = |value: &Value| value.as_str().map(str::to_string).context("`cargo metadata` leaves out a name");
        let manifest = text(&package["manifest_path"])?;
        let manifest = Path::new(&manifest).strip_prefix(root).unwrap_or(Path::new(&manifest)).display().to_string();
        // Only dependencies by path are members.
        let members =
            package["dependencies"].as_array().into_iter().flatten().filter(|other| other["path"].is_string());
        for other in members {
            edges.push(Edge { from: text(&package["name"])?, to: text(&other["name"])?, manifest: manifest.clone() });
        }
    }
    Ok(edges)
}

/// Complains about every edge that is not allowed.
pub fn check(edges: &[Edge], files: &[TrackedFile]) -> Vec<Complaint> {
    let forbidden = edges.iter().filter(|edge| !allowed(&edge.from, &edge.to));
    forbidden
        .map(|edge| {
            let message =
                format!("{} must not depend on {}: see the crates in docs/architecture.md", edge.from, edge.to);
            Complaint::new(&edge.manifest, line_of(files, &edge.manifest, &edge.to), message)
        })
        .collect()
}

fn allowed(from: &str, to: &str) -> bool {
    match MAY_USE.iter().find(|(name, _)| *name == from) {
        Some((_, below)) => below.contains(&to),
        // What stands beside the house (benches, xtask) may look in, and nobody builds upon it.
        None => MAY_USE.iter().any(|(name, _)| *name == to),
    }
}

fn line_of(files: &[TrackedFile], manifest: &str, dependency: &str) -> usize {
    let text = files.iter().find(|file| file.path == manifest).and_then(|file| file.text.as_deref());
    let line = text.and_then(|text| text.lines().position(|line| line.trim_start().starts_with(dependency)));
    line.map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;
    use serde_json::json;

    #[test]
    fn arrows_point_downwards() {
        assert!(allowed("mp-model", "mp-plan"));
        assert!(allowed("mp-train", "mp-data"));
        assert!(!allowed("mp-model", "mp-data"));
        assert!(!allowed("mp-plan", "mp-comm"));
        assert!(!allowed("mp-train", "mp-cli"));
    }

    #[test]
    fn nobody_builds_on_what_stands_beside() {
        assert!(allowed("mp-benches", "mp-train"));
        for from in ["mp-cli", "mp-plan", "xtask"] {
            assert!(!allowed(from, "mp-benches"), "{from}");
        }
    }

    #[test]
    fn a_wrong_edge_is_reported_where_it_is_written() {
        let metadata = json!({"packages": [{
            "name": "mp-plan",
            "manifest_path": "/tree/crates/plan/Cargo.toml",
            "dependencies": [{"name": "serde"}, {"name": "mp-comm", "path": "/tree/crates/comm"}],
        }]});
        let files = made_up(&[("crates/plan/Cargo.toml", "[dependencies]\nserde = \"1\"\nmp-comm.workspace = true\n")]);
        let complaints = check(&read(&metadata, Path::new("/tree")).unwrap(), &files);
        assert_eq!(complaints.len(), 1);
        assert!(complaints[0].to_string().starts_with("crates/plan/Cargo.toml:3: mp-plan must not depend on mp-comm"));
    }
}
