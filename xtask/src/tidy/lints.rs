//! Every member takes the workspace's lints, and these deny undocumented items and unsafe code.

use super::{Complaint, TrackedFile};

const REQUIRED: [&str; 2] = ["missing_docs = \"deny\"", "unsafe_code = \"deny\""];

/// Complains about manifests without the lints.
pub fn check(files: &[TrackedFile]) -> Vec<Complaint> {
    let manifests = files.iter().filter(|file| file.path == "Cargo.toml" || file.path.ends_with("/Cargo.toml"));
    manifests.flat_map(|file| complaints(&file.path, file.text.as_deref().unwrap_or_default())).collect()
}

fn complaints(path: &str, text: &str) -> Vec<Complaint> {
    if path == "Cargo.toml" {
        let rust = table(text, "[workspace.lints.rust]");
        let missing = REQUIRED.iter().filter(|line| !rust.contains(line));
        return missing.map(|line| Complaint::new(path, 1, format!("[workspace.lints.rust] lacks {line}"))).collect();
    }
    // A workspace of its own, as the fuzz targets are, has no lints to inherit.
    let own = text.lines().any(|line| line.trim() == "[workspace]");
    match own || table(text, "[lints]").contains(&"workspace = true") {
        true => Vec::new(),
        false => vec![Complaint::new(path, 1, "[lints] lacks workspace = true")],
    }
}

/// The lines of a table, up to the next one.
fn table<'a>(text: &'a str, header: &str) -> Vec<&'a str> {
    let lines = text.lines().map(str::trim).skip_while(|line| *line != header).skip(1);
    lines.take_while(|line| !line.starts_with('[')).collect()
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;

    #[test]
    fn members_inherit_and_the_workspace_denies() {
        let root = "[workspace.lints.rust]\nmissing_docs = \"deny\"\nunsafe_code = \"deny\"\n";
        let good = [("Cargo.toml", root), ("crates/a/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n")];
        assert_eq!(check(&made_up(&good)), []);
    }

    #[test]
    fn a_member_without_the_table_and_a_softened_workspace_are_reported() {
        let root = "[workspace.lints.rust]\nmissing_docs = \"warn\"\nunsafe_code = \"deny\"\n";
        let other = "[lints]\n\n[dependencies]\nworkspace = true\n";
        let complaints = check(&made_up(&[("Cargo.toml", root), ("crates/a/Cargo.toml", other)]));
        let paths: Vec<&str> = complaints.iter().map(|complaint| complaint.path.as_str()).collect();
        assert_eq!(paths, ["Cargo.toml", "crates/a/Cargo.toml"]);
    }
}
