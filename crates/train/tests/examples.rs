//! Runs on files of examples: alike under every layout, continued, held out, measured, and refused where they cannot be.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use mp_comm::{threads, Communicator};
use mp_runtime::Device;
use mp_train::evaluate::{measure, Measured};
use mp_train::records::{EvalRecord, Record, StepRecord};
use mp_train::{audit, metrics, run, Config, Result};

/// Conversations about words, each as long as its word.
fn chats(folder: &Path, name: &str, words: &[&str]) -> PathBuf {
    let line = |word: &&str| {
        let answer: String = word.chars().rev().collect();
        let messages = serde_json::json!([
            { "role": "user", "content": word },
            { "role": "assistant", "content": answer },
        ]);
        format!("{}\n", serde_json::json!({ "messages": messages }))
    };
    let path = folder.join(name);
    fs::write(&path, words.iter().map(line).collect::<String>()).unwrap();
    path
}

const WORDS: [&str; 12] =
    ["a", "stone", "be", "mountains", "river", "sea", "io", "valley", "cloud", "rain", "understanding", "sky"];

fn config(out: &Path, name: &str, sets: &[&str]) -> Result<Config> {
    let base = [
        "model.hidden=16",
        "model.layers=2",
        "model.heads=2",
        "train.precision=fp64",
        "train.steps=4",
        "train.seq=192",
        "train.global_batch=4",
        "optimizer.warmup=1",
        "optimizer.schedule=constant",
        "eval.every=2",
        "data.format=chat",
        "data.validation=0.3",
        "checkpoint.every=2",
        "checkpoint.keep=0",
    ];
    let mut all: Vec<String> = base.map(String::from).to_vec();
    all.extend([format!("train.out={}", out.display()), format!("train.name={name}")]);
    all.extend(sets.iter().map(|set| (*set).to_string()));
    Config::load(None, None, &all)
}

/// The losses of all steps, and of all evaluations.
fn losses(ranks: usize, config: &Config) -> Result<Vec<f64>> {
    let folder = threads::run(ranks, |world| -> std::result::Result<Result<PathBuf>, String> {
        let made = run::train(config, world, Device::Cpu, &AtomicBool::new(false), &mut ());
        Ok(made.map(|report| report.run_dir))
    })
    .remove(0)?;
    let losses = metrics::read(&folder.join("metrics.jsonl"))?.into_iter().filter_map(|record| match record {
        Record::Step(StepRecord { loss, .. }) | Record::Eval(EvalRecord { loss, .. }) => Some(loss),
        _ => None,
    });
    Ok(losses.collect())
}

fn assert_close(name: &str, a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len(), "{name}");
    let near = a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-10 * b);
    assert!(near, "{name}: {a:?} for {b:?}");
}

#[test]
fn a_run_on_conversations_is_the_same_under_every_layout_and_continued() {
    let out = tempfile::tempdir().unwrap();
    let path = format!("data.path={}", chats(out.path(), "a.jsonl", &WORDS).display());
    let sets = |more: &[&'static str]| [&[path.as_str()], more].concat();
    let one = losses(1, &config(out.path(), "one", &sets(&[])).unwrap()).unwrap();
    assert_eq!(one.len(), 4 + 2);
    for (name, ranks, more) in [
        ("dp", 2, &["parallel.dp=2"][..]),
        ("dp-accumulated", 2, &["parallel.dp=2", "parallel.micro_batch=1", "parallel.zero=3"]),
        ("cp", 2, &["parallel.cp=2"]),
        ("tp", 2, &["parallel.tp=2"]),
        ("pp", 2, &["parallel.pp=2"]),
    ] {
        let made = losses(ranks, &config(out.path(), name, &sets(more)).unwrap()).unwrap();
        assert_close(name, &made, &one);
    }
    losses(1, &config(out.path(), "cut", &sets(&["train.steps=2"])).unwrap()).unwrap();
    let goes_on = ["train.steps=4", "checkpoint.resume=true", "parallel.dp=2"];
    assert_close("cut", &losses(2, &config(out.path(), "cut", &sets(&goes_on)).unwrap()).unwrap(), &one);
    for name in ["one", "dp", "cut"] {
        let audit = audit::audit(&out.path().join(name)).unwrap();
        assert_eq!((audit.samples, audit.contradictions), (16, Vec::new()), "{name}");
    }
}

#[test]
fn a_blend_of_examples_holds_out_examples_of_each() {
    let out = tempfile::tempdir().unwrap();
    let (a, b) = (chats(out.path(), "a.jsonl", &WORDS), chats(out.path(), "b.jsonl", &WORDS[..5]));
    let blend = format!("data.blend=[{{path={a:?}, weight=0.7}}, {{path={b:?}, weight=0.3, epochs=9}}]");
    let one = losses(1, &config(out.path(), "one", &[&blend]).unwrap()).unwrap();
    let two = losses(2, &config(out.path(), "two", &[&blend, "parallel.dp=2"]).unwrap()).unwrap();
    assert_close("dp", &two, &one);
    let held_out = format!("data.validation={}", b.display());
    let other = losses(1, &config(out.path(), "file", &[&blend, &held_out]).unwrap()).unwrap();
    assert!((other[2] - one[2]).abs() > 1e-6, "another validation part");
    let often = format!("data.blend=[{{path={a:?}, weight=1, epochs=0.5}}]");
    let error = losses(1, &config(out.path(), "often", &[&often]).unwrap()).unwrap_err().to_string();
    assert!(error.contains("`data.blend` [0]"), "{error}");
}

fn measured(config: &Config, batch: usize) -> Measured {
    let world: Arc<dyn Communicator> = Arc::new(mp_comm::solo::Solo::new("world"));
    measure(config, &world, Device::Cpu, batch).unwrap()
}

/// Learned positions count in each example, and attention stays in it: or the neighbours would change the loss.
#[test]
fn an_example_is_worth_the_same_alone_and_beside_others() {
    let out = tempfile::tempdir().unwrap();
    let path = format!("data.path={}", chats(out.path(), "all.jsonl", &WORDS).display());
    for architecture in ["gpt2", "llama"] {
        let set = format!("model.architecture={architecture}");
        losses(1, &config(out.path(), architecture, &[&path, &set]).unwrap()).unwrap();
        let from = format!("model.from={}", out.path().join(architecture).display());
        let eval = |path: &str| measured(&config(out.path(), "x", &[path, &from]).unwrap(), 2);
        let together = eval(&path);
        let alone = WORDS.map(|word| eval(&format!("data.path={}", chats(out.path(), "one.jsonl", &[word]).display())));
        let tokens: u64 = alone.iter().map(|one| one.tokens).sum();
        // The answer, and `<|im_end|>`.
        assert_eq!(tokens, WORDS.iter().map(|word| word.len() as u64 + 10).sum::<u64>());
        let loss = alone.iter().map(|one| one.loss * one.tokens as f64).sum::<f64>() / tokens as f64;
        assert_eq!(together.tokens, tokens);
        assert!((together.loss - loss).abs() < 1e-12 * loss, "{architecture}: {} for {loss}", together.loss);
    }
}

#[test]
fn the_template_beside_the_tokenizer_or_the_model_is_taken() {
    let out = tempfile::tempdir().unwrap();
    let path = format!("data.path={}", chats(out.path(), "a.jsonl", &WORDS).display());
    losses(1, &config(out.path(), "base", &[&path]).unwrap()).unwrap();
    let from = format!("model.from={}", out.path().join("base").display());
    let chatml = measured(&config(out.path(), "x", &[&path, &from]).unwrap(), 4);
    let plain = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %};{% endif %}{% endfor %}";
    fs::write(out.path().join("base/chat_template.jinja"), plain).unwrap();
    let own = measured(&config(out.path(), "x", &[&path, &from]).unwrap(), 4);
    // The end of a turn is one token and not ten.
    assert_eq!(chatml.tokens - own.tokens, 9 * WORDS.len() as u64);
}

#[test]
fn what_cannot_be_fine_tuned_is_refused_before_anything_is_made() {
    let out = tempfile::tempdir().unwrap();
    let path = format!("data.path={}", chats(out.path(), "a.jsonl", &WORDS).display());
    for (sets, shown) in [
        (&["data.validation=0"][..], "`data.path` is unset, but must name JSON lines, for `data.format` is \"chat\""),
        (
            &[&path, "model.architecture=bert"],
            "`data.format` is \"chat\", but must be \"text\" for a model that learns",
        ),
        (&[&path, "data.attend_across=true"], "`data.attend_across` is true, but must be left out"),
        (&[&path, "data.format=prompts"], "one of \"text\", \"completion\", \"chat\""),
        (&[&path, "data.format=completion"], "the tokenizer `bytes` has no token that ends a document"),
        (
            &[&path, "train.seq=50"],
            "a.jsonl`, line 1: the example has 63 tokens, and `train.seq` = 50 leaves room for 51; 12 of 12",
        ),
        (&[&path, "data.validation=none.jsonl"], "none.jsonl"),
    ] {
        let made = config(out.path(), "x", sets).and_then(|config| losses(1, &config));
        let error = made.unwrap_err();
        assert!(error.is_input() && error.to_string().contains(shown), "{sets:?}: {error}");
        assert!(!out.path().join("x").exists());
    }
    config(out.path(), "x", &[&path, "data.attend_across=false"]).unwrap();
}
