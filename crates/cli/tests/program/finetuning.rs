//! Fine-tuning as a user types it, and the handbook's chapter as it stands.

use std::fs;
use std::path::Path;

use mp_train::checkpoint::{self, Verify};

use crate::common::{alone, chapter, ranks, train, with_sets};

fn loss(file: &Path) -> f64 {
    let read: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    read["loss"].as_f64().unwrap()
}

#[test]
fn the_chapter_works_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    chapter("finetuning.md", folder.path());
    let at = |name: &str| folder.path().join(name);
    let (base, full) = (loss(&at("base.json")), loss(&at("full.json")));
    assert!(full < 0.5 * base, "{full} after {base}");
    let adapted = stored(&at("runs/adapted"));
    assert!(adapted.iter().all(|name| name.contains(".lora_")), "{adapted:?}");
    let [beside, merged, adapter] = ["adapted", "merged", "adapter"].map(|name| loss(&at(&format!("{name}.json"))));
    assert!((beside - base).abs() > 0.01, "{beside} with adapters, {base} without");
    assert!((merged - beside).abs() < 1e-5 && (adapter - beside).abs() < 1e-6, "{beside}, {merged} and {adapter}");
}

/// Lists the tensors of a run's newest checkpoint.
fn stored(run: &Path) -> Vec<String> {
    checkpoint::open(run, Verify::Lengths).unwrap().manifest().model.keys().cloned().collect()
}

/// Conversations by a rule: a word is asked for backwards, of eight words and in six ways.
fn instructions() -> String {
    let words = ["stone", "river", "sun", "cloud", "rain", "wind", "sea", "leaf"];
    let ways = ["Reverse W", "W backwards", "Turn W around", "What is W reversed?", "Spell W from its end", "Mirror W"];
    let pairs = words.iter().flat_map(|word| ways.iter().map(move |way| (word, way.replace('W', word))));
    let line = |(word, asked): (&&str, String)| {
        let answer: String = word.chars().rev().collect();
        let messages =
            serde_json::json!([{ "role": "user", "content": asked }, { "role": "assistant", "content": answer }]);
        format!("{}\n", serde_json::json!({ "messages": messages }))
    };
    pairs.map(line).collect()
}

/// Every file of a run's newest checkpoint, by name.
fn files(run: &Path) -> Vec<(String, Vec<u8>)> {
    let checkpoint = fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    let mut files: Vec<_> = fs::read_dir(checkpoint).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| (file.display().to_string(), fs::read(file).unwrap())).collect()
}

#[test]
fn adapters_on_a_frozen_model_learn_instructions() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("words.jsonl"), instructions()).unwrap();
    let base = [
        "train.name=base",
        "train.steps=60",
        "train.seq=128",
        "train.global_batch=8",
        "train.threads=1",
        "model.hidden=64",
        "model.layers=1",
        "optimizer.lr=5e-3",
        "data.validation=0.01",
        "eval.every=0",
    ];
    alone(folder.path(), &with_sets("train", &[&base])).success();
    let before = files(&folder.path().join("runs/base"));
    let tuned = [
        "model.from=runs/base",
        "train.name=tuned",
        "train.steps=100",
        "train.global_batch=4",
        "train.threads=1",
        "parallel.dp=2",
        "optimizer.lr=1e-2",
        "optimizer.weight_decay=0",
        "lora.rank=16",
        "lora.alpha=32",
        "lora.targets=[\"attention.query\", \"attention.value\", \"mlp.gate\", \"mlp.up\", \"mlp.down\"]",
        "data.format=chat",
        "data.path=words.jsonl",
        // Two words that are never seen; what ends their turns is.
        "data.validation=0.25",
        "eval.every=0",
    ];
    ranks(2, folder.path(), &with_sets("train", &[&tuned])).success();
    assert_eq!(files(&folder.path().join("runs/base")), before, "the base keeps every bit");
    let metrics = fs::read_to_string(folder.path().join("runs/tuned/metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<f64> =
        lines.iter().filter(|line| line["kind"] == "step").map(|line| line["loss"].as_f64().unwrap()).collect();
    let held_out = lines.iter().rfind(|line| line["kind"] == "eval").unwrap()["loss"].as_f64().unwrap();
    assert_eq!(steps.len(), 100);
    assert!(steps[99] < 0.6 * steps[0], "{} after {}", steps[99], steps[0]);
    assert!(held_out < 0.75 * steps[0], "held out: {held_out}, and {} before", steps[0]);
    let names = stored(&folder.path().join("runs/tuned"));
    assert!(!names.is_empty() && names.iter().all(|name| name.contains(".lora_")), "{names:?}");
}

#[test]
fn lines_that_are_no_examples_end_the_run_before_it_begins_on_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let sets = ["data.format=chat", "data.path=a.jsonl", "train.seq=128"];
    for (line, shown) in [
        ("{\"messages\": [", "a.jsonl`, line 2: it is no JSON"),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
            "a.jsonl`, line 2: no message is the assistant's",
        ),
    ] {
        let good = "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}";
        fs::write(folder.path().join("a.jsonl"), format!("{good}\n{line}\n")).unwrap();
        let ended = train(folder.path(), &sets);
        assert!(ended.input_error().contains(shown), "{ended:#?}");
        let tiny = ["model.hidden=16", "model.layers=1", "train.threads=1"];
        let ended = ranks(2, folder.path(), &with_sets("train", &[&sets, &tiny]));
        assert!(ended.input_error().contains(shown), "{ended:#?}");
        let ended = alone(folder.path(), &with_sets("eval", &[&sets, &["model.from=."]]));
        assert_eq!(ended.code, 2, "{ended:#?}");
    }
    assert!(!folder.path().join("runs").exists());
}
