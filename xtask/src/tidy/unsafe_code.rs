//! `unsafe` stays in the few modules whose job it is.

use super::{Complaint, TrackedFile};

/// The modules, each a file or a folder.
const HOMES: [&str; 5] = [
    "crates/runtime/src/ffi",
    "crates/comm/src/buffer",
    "crates/comm/src/mpi",
    "crates/comm/src/nccl",
    "crates/data/src/mmap",
];

/// Complains about the keyword anywhere else.
pub fn check(files: &[TrackedFile]) -> Vec<Complaint> {
    let sources = files.iter().filter(|file| file.path.ends_with(".rs") && !is_home(&file.path));
    sources.flat_map(complaints).collect()
}

fn is_home(path: &str) -> bool {
    HOMES.iter().any(|home| path.strip_prefix(home).is_some_and(|rest| rest == ".rs" || rest.starts_with('/')))
}

fn complaints(file: &TrackedFile) -> Vec<Complaint> {
    let code = without_comments_and_text(file.text.as_deref().unwrap_or_default());
    let guilty = code.lines().enumerate().filter(|(_, line)| has_word(line, "unsafe"));
    guilty.map(|(index, _)| Complaint::new(&file.path, index + 1, "unsafe code outside the modules for it")).collect()
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
}

/// Blanks comments and literals, and keeps the lines.
fn without_comments_and_text(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < bytes.len() {
        let skipped = literal_or_comment(&bytes[at..]);
        if skipped > 0 {
            code.extend(bytes[at..at + skipped].iter().filter(|byte| **byte == b'\n').map(|_| '\n'));
            code.push(' ');
            at += skipped;
        } else {
            code.push(if bytes[at].is_ascii() { bytes[at] as char } else { '_' });
            at += 1;
        }
    }
    code
}

/// The length of the comment or literal that begins here, or 0.
fn literal_or_comment(rest: &[u8]) -> usize {
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment(rest),
        [b'"', ..] => quoted(rest, b'"'),
        [b'r', b'"' | b'#', ..] => raw_text(rest),
        // A lifetime has no closing quote after one character.
        [b'\'', b'\\', ..] => quoted(rest, b'\''),
        [b'\'', _, b'\'', ..] => 3,
        _ => 0,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at + 1 < rest.len() {
        match &rest[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn raw_text(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0; // A raw identifier, or a name that ends in r.
    }
    let end = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let body = &rest[2 + hashes..];
    let length = body.windows(end.len()).position(|window| window == end);
    length.map_or(rest.len(), |length| 2 + hashes + length + end.len())
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;

    #[test]
    fn the_keyword_is_reported_outside_its_homes() {
        let text = "//! Reads.\n\nfn f() {\n    unsafe { g() }\n}\n";
        let files = made_up(&[
            ("crates/runtime/src/ffi/hooks.rs", text),
            ("crates/comm/src/mpi.rs", text),
            ("crates/comm/src/mpirun.rs", text),
            ("crates/plan/src/mesh.rs", text),
        ]);
        let found: Vec<String> = check(&files).iter().map(|c| format!("{}:{}", c.path, c.line)).collect();
        assert_eq!(found, ["crates/comm/src/mpirun.rs:4", "crates/plan/src/mesh.rs:4"]);
    }

    #[test]
    fn mentions_are_no_use() {
        let text = r####"//! unsafe
/* unsafe /* unsafe */ unsafe */
#![deny(unsafe_code)]
const A: &str = "unsafe \" unsafe";
const B: &str = r#"unsafe " unsafe"#;
const C: char = '"'; const D: char = '\'';
fn f<'a>(x: &'a str) -> &'a str { x } // unsafe
"####;
        assert_eq!(check(&made_up(&[("crates/plan/src/a.rs", text)])), []);
    }

    #[test]
    fn a_use_after_literals_is_still_seen() {
        let text = "const C: char = '\"';\nfn f<'a>() {}\nconst S: &str = \"a\nb\";\nunsafe fn g() {}\n";
        let complaints = check(&made_up(&[("crates/plan/src/a.rs", text)]));
        assert_eq!(complaints.iter().map(|c| c.line).collect::<Vec<_>>(), [5]);
    }
}
