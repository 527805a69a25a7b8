//! `mp-cli eval` and `mp-cli generate` as a user types them, and the handbook's chapter as it stands.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::common::{alone, chapter, finish, program, ranks, train, Ended};
use serde_json::Value;

/// A run `runs/a` of a model with 16 positions.
fn trained() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), &["train.name=a"]).success();
    folder
}

const FROM: [&str; 2] = ["--set", "model.from=runs/a"];

fn words<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[command], &FROM[..], more].concat()
}

fn generate(folder: &Path, more: &[&str]) -> Ended {
    alone(folder, &words("generate", more))
}

#[test]
fn the_chapter_works_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let said = chapter("generation.md", folder.path());
    assert!(said.contains("of 260 tokens") && said.contains("Each rank"), "{said}");
    let measured: Value = serde_json::from_str(&fs::read_to_string(folder.path().join("eval.json")).unwrap()).unwrap();
    // 265 bytes in windows of 64.
    assert_eq!(measured["tokens"], 260);
    let written = fs::read_to_string(folder.path().join("written.jsonl")).unwrap();
    let lines: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!([&lines[0]["prompt"], &lines[1]["prompt"]], ["Each rank", "A part of"]);
    assert!(lines.len() == 2 && lines.iter().all(|line| line["tokens"].as_array().unwrap().len() == 20));
}

#[test]
fn ranks_measure_and_write_what_one_does() {
    let folder = trained();
    fs::write(folder.path().join("text.txt"), "one two three four five six seven eight nine ten").unwrap();
    fs::write(folder.path().join("prompts.jsonl"), "\"a\"\n{\"prompt\": \"line\\nend\"}\n\"xyz\"\n").unwrap();
    let eval = words("eval", &["--set", "data.path=text.txt", "--set", "train.precision=fp64", "--json"]);
    let one: Value = serde_json::from_str(&alone(folder.path(), &eval).success().out).unwrap();
    let two: Value = serde_json::from_str(&ranks(2, folder.path(), &eval).success().out).unwrap();
    let loss = |measured: &Value| measured["loss"].as_f64().unwrap();
    assert!((loss(&one) - loss(&two)).abs() < 1e-10 && one["tokens"] == two["tokens"], "{one} {two}");
    let write = words("generate", &["--prompts", "prompts.jsonl", "--max-new-tokens", "6", "--json"]);
    let one = alone(folder.path(), &write).success().out;
    assert_eq!(one.lines().count(), 3);
    for sets in [&["--set", "parallel.tp=2"][..], &["--set", "parallel.tp=1"], &["--set", "parallel.pp=1"]] {
        assert_eq!(ranks(2, folder.path(), &[&write[..], sets].concat()).success().out, one, "{sets:?}");
    }
}

#[test]
fn what_cannot_be_continued_is_refused_in_one_message() {
    let folder = trained();
    let long = "x".repeat(17);
    fs::write(folder.path().join("bad.txt"), b"one\ntw\xff").unwrap();
    for (more, problem) in [
        (&["--prompt", ""][..], "prompt 1 is empty"),
        (&["--prompt", &long], "has 17 tokens, and the model has 16 positions"),
        (&["--prompts", "bad.txt"], "line 2 is not UTF-8"),
        (&["--prompts", "none.txt"], "none.txt"),
        (&["--prompt", "a", "--top-p", "0"], "`top_p` is 0"),
        (&["--prompt", "a", "--temperature", "-1"], "`temperature` is -1"),
        (&["--prompt", "a", "--stop", ""], "`stop`"),
        (&["--prompt", "a", "--batch", "0"], "`batch` is 0"),
        (&[], "`--prompt` is unset"),
    ] {
        let ended = generate(folder.path(), more);
        assert!(ended.input_error().contains(problem), "{more:?}: {ended:#?}");
        assert_eq!(ended.out, "");
    }
    let ended = ranks(2, folder.path(), &words("generate", &["--prompt", ""]));
    assert!(ended.input_error().contains("prompt 1 is empty"), "{ended:#?}");
    for command in ["eval", "generate"] {
        let ended = alone(folder.path(), &[command]);
        assert!(ended.input_error().contains("`model.from` is unset"), "{ended:#?}");
    }
    let bert = ["model.architecture=bert", "train.name=b", "train.seq=16"];
    train(folder.path(), &bert).success();
    let ended = alone(folder.path(), &["generate", "--set", "model.from=runs/b", "--prompt", "a"]);
    assert!(ended.input_error().contains("`model.architecture` is bert"), "{ended:#?}");
}

#[test]
fn data_that_have_no_whole_are_not_measured() {
    let folder = trained();
    let blend = "data.blend=[{path=\"one.txt\", weight=1}, {path=\"two.txt\", weight=2}]";
    for (sets, problem) in [
        (&[][..], "`data.path` is unset, but must name what the model is measured on"),
        (&["--set", "data.format=chat"], "`data.path` is unset"),
        (&["--set", blend], "two.txt, but is for training: measure each source by itself"),
    ] {
        let ended = alone(folder.path(), &words("eval", sets));
        assert!(ended.input_error().contains(problem), "{ended:#?}");
    }
}

#[test]
fn a_measurement_is_one_line_of_json() {
    let folder = trained();
    fs::write(folder.path().join("text.txt"), "one two three four").unwrap();
    let ended = alone(folder.path(), &words("eval", &["--set", "data.path=text.txt", "--json"])).success();
    let measured: Value = serde_json::from_str(ended.out.strip_suffix('\n').unwrap()).unwrap();
    assert!(!ended.out.trim_end().contains('\n') && ended.out.starts_with("{\"loss\":"), "{ended:#?}");
    assert_eq!(measured.as_object().unwrap().keys().collect::<Vec<_>>(), ["bits_per_byte", "loss", "tokens"]);
}

#[test]
fn what_lies_in_the_working_directory_ends_no_text() {
    let folder = trained();
    let all: Vec<u32> = (0..256).collect();
    let ends = serde_json::json!({ "eos_token_id": all }).to_string();
    fs::write(folder.path().join("generation_config.json"), &ends).unwrap();
    let length = || {
        let ended = generate(folder.path(), &["--prompt", "abc", "--max-new-tokens", "6", "--json"]).success();
        serde_json::from_str::<Value>(&ended.out).unwrap()["tokens"].as_array().unwrap().len()
    };
    assert_eq!(length(), 6);
    fs::write(folder.path().join("runs/a/generation_config.json"), &ends).unwrap();
    assert_eq!(length(), 1);
}

#[test]
fn a_prompt_that_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let bad = std::ffi::OsStr::from_bytes(b"a\xff");
    let mut command = program(folder.path());
    let ended = finish(crate::common::start(command.args(["generate", "--prompt"]).arg(bad)));
    assert_eq!(ended.code, 2, "{ended:#?}");
}

#[test]
fn a_text_that_uses_all_positions_says_so() {
    let folder = trained();
    let ended = generate(folder.path(), &["--prompt", "x", "--temperature", "0"]).success();
    assert!(ended.out.starts_with('x') && ended.out.contains("all 16 positions of the model are used"), "{ended:#?}");
    let same = generate(folder.path(), &["--prompt", "x", "--temperature", "0", "--no-cache"]).success();
    assert_eq!(same.out, ended.out);
}

#[test]
fn a_person_is_asked_line_by_line() {
    let folder = trained();
    // A terminal of its own, as `script` makes one: what is typed comes back with the answers.
    let program = env!("CARGO_BIN_EXE_mp-cli");
    let typed = format!("{program} generate --set model.from=runs/a --max-new-tokens 3 --temperature 0");
    let mut command = std::process::Command::new("script");
    command.current_dir(folder.path()).args(["-qec", &typed, "/dev/null"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else { return };
    // An empty line is refused, one that is not UTF-8 too, and the next one is taken; then there is no more.
    child.stdin.take().unwrap().write_all(b"abc\n\nab\xff\nxyz\n\x04").unwrap();
    let ended = finish(child).success();
    assert!(ended.out.contains("error: prompt 2 is empty"), "{ended:#?}");
    assert!(ended.out.contains("error: prompt 3 is not UTF-8"), "{ended:#?}");
    assert!(ended.out.matches("> ").count() >= 5 && ended.out.matches("xyz").count() >= 2, "{ended:#?}");
}

#[test]
fn a_folder_without_tokenizer_is_imported_and_asks_for_one_where_text_comes_in() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    train(folder.path(), &["train.name=a", "model.architecture=gpt2", "model.vocab=600"]).success();
    alone(folder.path(), &["checkpoint", "export", "runs/a", "--out", "published"]).success();
    fs::remove_file(at("published/tokenizer.json")).unwrap();
    alone(folder.path(), &["checkpoint", "import", "published", "--out", "runs/b"]).success();
    alone(folder.path(), &["checkpoint", "export", "runs/b", "--out", "again"]).success();
    assert!(!at("again/tokenizer.json").exists() && at("again/config.json").exists());
    fs::write(at("text.txt"), "one two three four").unwrap();
    for from in ["model.from=published", "model.from=runs/b", "model.from=again"] {
        for more in [&["generate", "--prompt", "a"][..], &["eval", "--set", "data.path=text.txt"], &["train"]] {
            let ended = alone(folder.path(), &[more, &["--set", from]].concat());
            assert!(ended.input_error().contains("`data.tokenizer` is unset"), "{from} {more:?}: {ended:#?}");
        }
    }
    // Dropouts that differ are a matter of training; the tokenizer of the user's is taken everywhere.
    let path = at("published/config.json");
    let mut keys: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    keys["attn_pdrop"] = 0.5.into();
    fs::write(&path, keys.to_string()).unwrap();
    let sets = ["--set", "model.from=published", "--set", "data.tokenizer=bytes"];
    alone(folder.path(), &[&["generate", "--prompt", "a", "--max-new-tokens", "3"], &sets[..]].concat()).success();
    alone(folder.path(), &[&["eval", "--set", "data.path=text.txt"], &sets[..]].concat()).success();
    let ended = alone(folder.path(), &[&["train"], &sets[..]].concat());
    assert!(ended.input_error().contains("`attn_pdrop` = 0.5"), "{ended:#?}");
}
