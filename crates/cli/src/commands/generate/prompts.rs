//! A file of prompts: one a line, as text or as JSON.

use std::fs;
use std::path::Path;

use mp_train::{Error, Result};
use serde_json::Value;

use crate::failure::refused;

/// Reads the prompts of a file.
///
/// # Errors
/// [`Error::Read`]; an input error that names the line which is no prompt.
pub fn read(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let wrong = |line: usize, problem: &str| refused("--prompts", path.display(), format!("line {line} {problem}"));
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        wrong(before.iter().filter(|&&byte| byte == b'\n').count() + 1, "is not UTF-8")
    })?;
    let as_json = path.extension().is_some_and(|extension| extension == "jsonl");
    let prompt = |(index, line): (usize, &str)| match as_json {
        true => from_json(line)
            .ok_or_else(|| wrong(index + 1, "is neither a JSON string nor an object with a string called \"prompt\"")),
        false => Ok(line.to_string()),
    };
    let prompts = text.lines().enumerate().map(prompt).collect::<Result<Vec<_>>>()?;
    if let Some(empty) = prompts.iter().position(String::is_empty) {
        return Err(wrong(empty + 1, "is empty, and a model needs something to go on from"));
    }
    match prompts.is_empty() {
        true => Err(refused("--prompts", path.display(), "holds no line")),
        false => Ok(prompts),
    }
}

fn from_json(line: &str) -> Option<String> {
    match serde_json::from_str(line).ok()? {
        Value::String(prompt) => Some(prompt),
        Value::Object(mut fields) => match fields.remove("prompt")? {
            Value::String(prompt) => Some(prompt),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, bytes: &[u8]) -> std::result::Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        read(&path).map_err(|error| {
            assert!(error.is_input());
            error.to_string()
        })
    }

    #[test]
    fn a_line_is_a_prompt() {
        assert_eq!(written("a.txt", "one\n{two}\r\nthree €".as_bytes()).unwrap(), ["one", "{two}", "three €"]);
    }

    #[test]
    fn lines_of_json_hold_prompts_with_ends_of_lines() {
        let lines = br#"{"prompt": "one\ntwo", "id": 3}
"three""#;
        assert_eq!(written("a.jsonl", lines).unwrap(), ["one\ntwo", "three"]);
    }

    #[test]
    fn a_line_that_is_no_prompt_is_named() {
        for (name, bytes, problem) in [
            ("a.txt", &b"one\n\nthree"[..], "line 2 is empty"),
            ("a.txt", b"one\ntw\xff", "line 2 is not UTF-8"),
            ("a.txt", b"", "holds no line"),
            ("a.jsonl", b"{\"text\": \"one\"}", "line 1 is neither"),
            ("a.jsonl", b"\"one\"\n{\"prompt\": 3}", "line 2 is neither"),
            ("a.jsonl", b"\"\"", "line 1 is empty"),
        ] {
            let error = written(name, bytes).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
