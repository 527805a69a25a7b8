//! What the handbook says that the planner prints, beside what it prints.

use std::fs;

use crate::common::{document, shell};

/// Returns a block's command and the text under it, where the chapter shows what the command prints.
fn shown(block: &str) -> Option<(&str, &str)> {
    let (command, rest) = block.split_once("```")?;
    let (text, _) = rest.strip_prefix("\n\n```text\n")?.split_once("```")?;
    Some((command, text))
}

#[test]
fn the_chapter_on_layouts_shows_what_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let config = "hundred-parts.toml";
    fs::create_dir(folder.path().join("docs")).unwrap();
    fs::write(folder.path().join("docs").join(config), document(config)).unwrap();
    let chapter = document("planning.md");
    let blocks: Vec<_> = chapter.split("```console\n").skip(1).filter_map(shown).collect();
    // One to begin with, three cases, and a model in a hundred parts.
    assert_eq!(blocks.len(), 5, "{blocks:?}");
    for (command, text) in blocks {
        let said = shell(command, folder.path());
        let mut lines = said.lines();
        for line in text.lines().filter(|line| !["", "…"].contains(&line.trim())) {
            assert!(lines.any(|said| said == line), "{command}does not print in its place\n{line}\nbut\n{said}");
        }
    }
}
