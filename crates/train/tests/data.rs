//! Runs on data of every kind: the same losses under any layout, and continued with another batch.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use mp_comm::threads;
use mp_data::{Element, IndexedWriter};
use mp_runtime::Device;
use mp_train::records::{Record, StepRecord};
use mp_train::{metrics, run, Config, Result};

/// Documents of pseudorandom bytes, 3 to 40 long.
fn files(folder: &Path, name: &str, documents: u32) -> PathBuf {
    let prefix = folder.join(name);
    let mut writer = IndexedWriter::create(&prefix, Element::U16).unwrap();
    let mut state = documents;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 24
    };
    for _ in 0..documents {
        let length = 3 + next() % 38;
        writer.document(&(0..length).map(|_| next()).collect::<Vec<_>>()).unwrap();
    }
    writer.finish().unwrap();
    prefix
}

fn config(out: &Path, name: &str, sets: &[&str]) -> Result<Config> {
    let mut all: Vec<String> = [
        "model.hidden=16",
        "model.layers=1",
        "model.heads=2",
        "train.precision=fp64",
        "train.steps=4",
        "train.seq=16",
        "train.global_batch=4",
        "optimizer.warmup=1",
        "eval.every=2",
        "checkpoint.every=0",
        "checkpoint.keep=0",
    ]
    .map(String::from)
    .to_vec();
    all.extend([format!("train.out={}", out.display()), format!("train.name={name}")]);
    all.extend(sets.iter().map(|set| (*set).to_string()));
    Config::load(None, None, &all)
}

fn train(ranks: usize, config: &Config) -> Result<Vec<StepRecord>> {
    let folder = threads::run(ranks, |world| -> std::result::Result<Result<PathBuf>, String> {
        let made = run::train(config, world, Device::Cpu, &AtomicBool::new(false), &mut ());
        Ok(made.map(|report| report.run_dir))
    })
    .remove(0)?;
    let steps = metrics::read(&folder.join("metrics.jsonl"))?.into_iter().filter_map(|record| match record {
        Record::Step(step) => Some(step),
        _ => None,
    });
    Ok(steps.collect())
}

fn assert_close(a: &[StepRecord], b: &[StepRecord]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a.loss - b.loss).abs() < 1e-10 * b.loss, "step {}: {} for {}", a.step, a.loss, b.loss);
    }
}

#[test]
fn a_blend_of_packed_documents_is_the_same_under_every_layout() {
    let out = tempfile::tempdir().unwrap();
    let (a, b) = (files(out.path(), "a", 90), files(out.path(), "b", 40));
    let blend = format!("data.blend=[{{path={a:?}, weight=0.7}}, {{path={b:?}, weight=0.3, epochs=2}}]");
    let sets = |more: &[&'static str]| [&[&*blend, "data.attend_across=false"], more].concat();
    let one = train(1, &config(out.path(), "one", &sets(&[])).unwrap()).unwrap();
    for (name, ranks, more) in
        [("dp", 2, &["parallel.dp=2"][..]), ("cp", 2, &["parallel.cp=2"]), ("tp", 2, &["parallel.tp=2"])]
    {
        assert_close(&train(ranks, &config(out.path(), name, &sets(more)).unwrap()).unwrap(), &one);
    }
    let across = config(out.path(), "across", &[&blend]).unwrap();
    assert!((train(1, &across).unwrap()[0].loss - one[0].loss).abs() > 1e-6, "segments make a difference");
}

#[test]
fn a_source_that_would_be_read_too_often_is_refused_before_anything_is_made() {
    let out = tempfile::tempdir().unwrap();
    let a = files(out.path(), "a", 90);
    let blend = format!("data.blend=[{{path={a:?}, weight=1, epochs=0.05}}]");
    let error = train(1, &config(out.path(), "x", &[&blend]).unwrap()).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("`data.blend` [0]"), "{error}");
    assert!(!out.path().join("x").exists());
}

#[test]
fn ids_of_another_tokenizer_are_refused_before_anything_is_made() {
    let out = tempfile::tempdir().unwrap();
    let prefix = out.path().join("large");
    let mut writer = IndexedWriter::create(&prefix, Element::U16).unwrap();
    writer.document(&[300; 99]).unwrap();
    writer.finish().unwrap();
    let sets = [&*format!("data.path={}", prefix.display()), "data.validation=0"];
    let error = train(1, &config(out.path(), "x", &sets).unwrap()).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("large.bin`, byte"), "{error}");
    assert!(!out.path().join("x").exists());
}
