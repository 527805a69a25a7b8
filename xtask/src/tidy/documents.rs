//! Relative links in Markdown lead to files that exist.

use std::path::{Component, Path, PathBuf};

use super::{Complaint, TrackedFile};

/// Complains about links that lead nowhere.
pub fn check(files: &[TrackedFile]) -> Vec<Complaint> {
    let documents = files.iter().filter(|file| file.path.ends_with(".md"));
    documents.flat_map(|file| complaints(file, files)).collect()
}

fn complaints(document: &TrackedFile, files: &[TrackedFile]) -> Vec<Complaint> {
    let folder = Path::new(&document.path).parent().unwrap_or(Path::new(""));
    let links = links(document.text.as_deref().unwrap_or_default());
    let broken = links.into_iter().filter(|(_, link)| !exists(folder, link, files));
    broken
        .map(|(line, link)| Complaint::new(&document.path, line, format!("the link to {link} leads nowhere")))
        .collect()
}

/// The targets of inline links and link definitions outside code, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_fence = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
        } else if !in_fence {
            found.extend(links_of_line(&without_code(line)).into_iter().map(|link| (index + 1, link)));
        }
    }
    found
}

fn without_code(line: &str) -> String {
    // Every second piece between back quotes is code.
    line.split('`').enumerate().map(|(index, piece)| if index % 2 == 0 { piece } else { "code" }).collect()
}

fn links_of_line(line: &str) -> Vec<String> {
    let inline = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let definition = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target.trim());
    let targets = inline.chain(definition).map(|target| target.split_whitespace().next().unwrap_or_default());
    targets.map(|target| target.trim_matches(['<', '>']).to_string()).collect()
}

fn exists(folder: &Path, link: &str, files: &[TrackedFile]) -> bool {
    let path = link.split('#').next().unwrap_or_default();
    // Another site, or a heading of the same page.
    if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
        return true;
    }
    let Some(target) = resolved(&folder.join(path)) else { return false };
    let as_folder = format!("{target}/");
    target.is_empty() || files.iter().any(|file| file.path == target || file.path.starts_with(&as_folder))
}

/// Takes `.` and `..` out; nothing above the root is ours.
fn resolved(path: &Path) -> Option<String> {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !parts.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;

    fn broken(text: &str) -> Vec<(usize, String)> {
        let files = made_up(&[("docs/a.md", text), ("docs/b.md", ""), ("crates/plan/src/lib.rs", "")]);
        check(&files).into_iter().map(|complaint| (complaint.line, complaint.message)).collect()
    }

    #[test]
    fn links_to_files_folders_headings_and_other_sites_hold() {
        let text = "[b](b.md#part) [plan](../crates/plan) [here](#part) [there](https://example.org/x)\n[r]: ../crates/plan/src/lib.rs\n";
        assert_eq!(broken(text), []);
    }

    #[test]
    fn missing_targets_are_reported_with_their_line() {
        let found = broken("fine\n[c](c.md) and [above](../../x.md)\n[r]: d.md\n");
        let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 2, 3]);
        assert_eq!(found[0].1, "the link to c.md leads nowhere");
    }

    #[test]
    fn code_holds_no_links() {
        assert_eq!(broken("`[x](y.md)`\n```\n[x](y.md)\n```\n"), []);
    }
}
