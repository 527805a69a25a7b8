//! The tree speaks of the project alone: not of one machine's folders, nor of how or where a change was made.

use super::{Complaint, TrackedFile};

// In halves, so that this file passes its own rule.
const FOLDERS: [&str; 4] =
    [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
const WORDS: [&str; 2] = [concat!("ag", "ent"), concat!("ag", "ents")];
const HOSTS: [&str; 3] = [concat!("py", "pi.org"), concat!("python", "hosted.org"), concat!("index.", "crates.io")];
const NUMBERED: &str = concat!("iss", "ue ");

/// Complains about each such line. The lock file is cargo's, and prose to train on may say what it likes.
pub fn check(files: &[TrackedFile]) -> Vec<Complaint> {
    let ours = files.iter().filter(|file| file.path != "Cargo.lock" && !file.path.ends_with(".txt"));
    ours.flat_map(complaints).collect()
}

fn complaints(file: &TrackedFile) -> Vec<Complaint> {
    let lines = file.text.as_deref().unwrap_or_default().lines().enumerate();
    lines.filter_map(|(index, line)| Some(Complaint::new(&file.path, index + 1, fault(line)?))).collect()
}

fn fault(line: &str) -> Option<String> {
    if let Some(folder) = FOLDERS.iter().find(|folder| names_folder(line, folder)) {
        return Some(format!("{folder} is a folder of one machine"));
    }
    if let Some(host) = HOSTS.iter().find(|host| line.contains(**host)) {
        return Some(format!("{host}: a registry is reached through its client, not by address"));
    }
    let lower = line.to_lowercase();
    let mut words = lower.split(|c: char| !c.is_alphanumeric());
    if let Some(word) = words.find(|word| WORDS.contains(word)) {
        return Some(format!("\"{word}\": the tree speaks of the project alone"));
    }
    names_number(&lower).then(|| "a numbered report: say what it was about instead".to_string())
}

/// A path that begins with the folder, not one that goes through a folder of that name.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "_.-})*~$>".contains(c))
    })
}

fn names_number(lower: &str) -> bool {
    lower.match_indices(NUMBERED).any(|(at, found)| {
        let rest = lower[at + found.len()..].trim_start_matches('#');
        rest.starts_with(|c: char| c.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        check(&made_up(&[("docs/a.md", text)])).into_iter().map(|complaint| complaint.line).collect()
    }

    #[test]
    fn folders_of_one_machine_are_reported() {
        let text = format!("cd {}mp\n$root{}x ~{}y src{}z\n", FOLDERS[0], FOLDERS[2], FOLDERS[2], FOLDERS[1]);
        assert_eq!(lines(&text), [1]);
    }

    #[test]
    fn words_are_whole_words_in_any_case() {
        let text = format!("re{} and {}ic\nx\nan {}\n", WORDS[0], WORDS[0], WORDS[0].to_uppercase());
        assert_eq!(lines(&text), [3]);
    }

    #[test]
    fn hosts_and_numbers_are_reported() {
        let text = format!("see {}\n{}#12\n{}by name\n", HOSTS[0], NUMBERED, NUMBERED);
        assert_eq!(lines(&text), [1, 2]);
    }

    #[test]
    fn prose_to_train_on_is_free() {
        let files = made_up(&[("crates/data/corpus/a.txt", WORDS[0])]);
        assert_eq!(check(&files), []);
    }
}
