//! Adapters in whole runs: the model under them stays as it is, the loss drops, and checkpoints hold the adapters alone.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use mp_comm::{threads, Communicator};
use mp_data::{Batch, Targets, TextSource, Tokens};
use mp_runtime::{Device, Kind, Tensor};
use mp_train::assemble::Allocated;
use mp_train::checkpoint::{self, Verify};
use mp_train::evaluate::measure;
use mp_train::layout::Layout;
use mp_train::records::{Observer, Record, Report, StepRecord};
use mp_train::step::Work;
use mp_train::{metrics, run, Config, Result};

fn config(sets: &[&str]) -> Config {
    let base = [
        "train.precision=fp64",
        "train.seq=16",
        "train.global_batch=4",
        "train.steps=6",
        "optimizer.warmup=1",
        "checkpoint.every=3",
        "eval.every=0",
        "eval.batches=1",
    ];
    Config::load(None, None, &base.iter().chain(sets).map(|set| (*set).to_string()).collect::<Vec<_>>()).unwrap()
}

/// Trains adapters on one text over and over; returns the losses, and whether the base's values kept every bit.
fn learn(world: Arc<dyn Communicator>, config: &Config, steps: u64) -> Result<(Vec<f64>, bool)> {
    let layout = Layout::new(config, 37, world.size())?;
    let groups = layout.groups(&world)?;
    let dp = groups.dp.rank().0;
    let mut trainer = Allocated::new(config, &layout, &groups, Device::Cpu)?.trainer(config, &layout, groups)?;
    let source = TextSource::new(Tokens::new("one text", (0..17).collect()), 16, 1)?;
    let batches = (0..layout.batches.micro_batches())
        .map(|micro| Batch::read(&source, layout.batches.samples(0, dp, micro)))
        .collect::<mp_data::Result<Vec<_>>>()?;
    let base = |trainer: &mp_train::step::Trainer| -> Vec<Tensor> {
        let parameters = trainer.parameters();
        let all = parameters.partition().parameters.iter().enumerate();
        let frozen = all.filter(|(_, parameter)| parameter.spec.frozen).map(|(index, _)| index);
        let values = frozen.flat_map(|index| {
            let values = parameters.values();
            values.pieces(values.layout().range(index)).unwrap().into_iter().map(|(_, piece)| piece.copy())
        });
        values.collect()
    };
    let before = base(&trainer);
    assert!(!before.is_empty());
    let step = |step| {
        let (targets, batches) = (Targets::Every, &batches[..]);
        Ok(trainer.step(&Work { step, lr: 2e-2, batches, global_batch: 4, targets })?.loss)
    };
    let losses = (1..=steps).map(step).collect::<Result<Vec<f64>>>()?;
    let kept = before.iter().zip(base(&trainer)).all(|(before, after)| before.equal(&after));
    Ok((losses, kept))
}

/// The second factor is zero at first: what is dropped shows from the second step on.
#[test]
fn what_every_adapter_reads_is_dropped() {
    for target in mp_plan::lora::TARGETS.into_iter().flatten() {
        let [kept, dropped] = ["0.0", "0.5"].map(|dropout| {
            let lora = [format!("lora.targets=[\"{target}\"]"), format!("lora.dropout={dropout}")];
            let base = ["model.hidden=16", "model.heads=2", "model.layers=1", "model.vocab=37", "lora.rank=4"];
            let config = config(&[&base[..], &lora.each_ref().map(String::as_str)].concat());
            threads::run(1, |world| learn(world, &config, 2)).remove(0).0
        });
        assert_eq!(kept[0], dropped[0], "{target}");
        assert_ne!(kept[1], dropped[1], "{target}");
    }
}

#[test]
fn a_frozen_model_keeps_every_bit_while_the_loss_drops() {
    for (ranks, precision, sets) in [
        (1, "fp32", [].as_slice()),
        (2, "bf16", &["parallel.tp=2"]),
        (2, "bf16", &["parallel.tp=1", "parallel.zero=1"]),
        (2, "fp32", &["parallel.tp=1", "parallel.zero=3"]),
    ] {
        let precision = format!("train.precision={precision}");
        let base = ["model.hidden=32", "model.layers=2", "model.vocab=37", "lora.rank=4", &precision];
        let config = config(&[&base, sets].concat());
        for (losses, kept) in threads::run(ranks, |world| learn(world, &config, 40)) {
            assert!(kept, "{sets:?}");
            assert!(losses[39] < losses[0] - 0.3, "{sets:?}: {losses:?}");
        }
    }
}

#[test]
fn a_frozen_model_has_neither_gradients_nor_masters() {
    let config = config(&["model.hidden=32", "model.layers=2", "lora.rank=4", "train.precision=bf16"]);
    let layout = Layout::new(&config, 37, 1).unwrap();
    let alone: Arc<dyn Communicator> = Arc::new(mp_comm::solo::Solo::new("world"));
    let groups = layout.groups(&alone).unwrap();
    let trainer = Allocated::new(&config, &layout, &groups, Device::Cpu).unwrap();
    let trainer = trainer.trainer(&config, &layout, groups).unwrap();
    let [values, gradients, masters] = trainer.parameters().bytes();
    let trained = trainer.parameters().arrangement().trained_elements();
    assert_eq!((gradients, masters), (4 * trained, 4 * trained));
    assert!(values > 8 * 2 * trained, "{values} bytes of values beside {trained} trained elements");
    assert_eq!(trainer.parameters().masters().all().kind(), Kind::Float);
}

struct Silent;

impl Observer for Silent {}

fn train(ranks: usize, config: &Config) -> Report {
    let one =
        |world: Arc<dyn Communicator>| run::train(config, world, Device::Cpu, &AtomicBool::new(false), &mut Silent);
    threads::run(ranks, one).remove(0)
}

fn steps(folder: &Path) -> Vec<StepRecord> {
    let step = |record| match record {
        Record::Step(step) => Some(step),
        _ => None,
    };
    metrics::read(&folder.join("metrics.jsonl")).unwrap().into_iter().filter_map(step).collect()
}

/// Lists the tensors of a run's newest checkpoint.
fn stored(run: &Path) -> Vec<String> {
    checkpoint::open(run, Verify::Checksums).unwrap().manifest().model.keys().cloned().collect()
}

#[test]
fn a_checkpoint_holds_the_adapters_alone_and_goes_on_under_another_layout() {
    let out = tempfile::tempdir().unwrap();
    let at = format!("train.out={}", out.path().display());
    train(1, &config(&[&at, "train.name=base", "model.hidden=16", "model.layers=2", "train.steps=2"]));
    let from = format!("model.from={}", out.path().join("base").display());
    let adapted = |name: &str, more: &[&str]| {
        let name = format!("train.name={name}");
        config(&[&[at.as_str(), &from, &name, "lora.rank=2", "lora.dropout=0.1"], more].concat())
    };
    train(1, &adapted("cut", &["train.steps=3", "optimizer.schedule=constant"]));
    let names = stored(&out.path().join("cut"));
    assert_eq!(names.len(), 2 * 2 * 2, "{names:?}");
    assert!(names.iter().all(|name| name.contains(".lora_")), "{names:?}");
    train(1, &adapted("whole", &["optimizer.schedule=constant", "train.name=straight"]));
    train(2, &adapted("cut", &["optimizer.schedule=constant", "checkpoint.resume=true", "parallel.tp=2"]));
    let (cut, whole) = (steps(&out.path().join("cut")), steps(&out.path().join("straight")));
    assert_eq!((cut.len(), whole.len()), (6, 6));
    for (a, b) in cut.iter().zip(&whole) {
        assert!((a.loss - b.loss).abs() <= 1e-10 * b.loss, "step {}: {} and {}", a.step, a.loss, b.loss);
    }
}

/// Runs of this folder read a short text that lies there.
fn short(out: &Path) -> [String; 2] {
    let text = out.join("text");
    std::fs::write(&text, "Each rank holds a part, and no rank holds the whole. ".repeat(40)).unwrap();
    [format!("train.out={}", out.display()), format!("data.path={}", text.display())]
}

/// A run `base`, and a run `adapters` that trained some on it.
fn with_adapters(out: &Path) -> Report {
    let at = short(out);
    let at = at.each_ref().map(String::as_str);
    train(1, &config(&[&at[..], &["train.name=base", "model.hidden=16", "model.layers=2", "train.steps=2"]].concat()));
    let from = format!("model.from={}", out.join("base").display());
    let targets = "lora.targets=['mlp.down', 'attention.value', 'attention.query']";
    let lora = ["lora.rank=2", "lora.alpha=3", "lora.dropout=0.1", targets, "optimizer.lr=0.05"];
    train(1, &config(&[&at[..], &[&from, "train.name=adapters"], &lora[..]].concat()))
}

/// Begins a run from another, with a step that changes nothing that shows.
fn begun(out: &Path, from: &str, name: &str, sets: &[&str]) -> Config {
    let ([at, data], from) = (short(out), format!("model.from={}", out.join(from).display()));
    let still = ["optimizer.lr=1e-12", "optimizer.warmup=0", "train.steps=1", "lora.dropout=0"];
    let still = if sets.iter().any(|set| set.starts_with("lora.rank")) { &still[..] } else { &still[..3] };
    config(&[&[at.as_str(), &data, &from, &format!("train.name={name}")], still, sets].concat())
}

#[test]
fn a_run_with_adapters_is_a_model_to_go_on_from() {
    let out = tempfile::tempdir().unwrap();
    let out = out.path();
    let expected = with_adapters(out).validation_loss.unwrap();
    let plain = train(1, &begun(out, "base", "plain", &[])).validation_loss.unwrap();
    assert!((plain - expected).abs() > 1e-3, "the adapters learned nothing: {plain} and {expected}");
    for (index, (ranks, sets)) in [
        (1, [].as_slice()),
        (2, &["parallel.tp=2"]),
        (2, &["parallel.pp=2"]),
        (2, &["parallel.tp=1", "parallel.zero=3"]),
    ]
    .into_iter()
    .enumerate()
    {
        let kept = format!("kept-{index}");
        let on = train(ranks, &begun(out, "adapters", &kept, &[&["lora.rank=2"], sets].concat()));
        assert!((on.validation_loss.unwrap() - expected).abs() < 1e-9, "{sets:?}");
        assert!(stored(&on.run_dir).iter().all(|name| name.contains(".lora_")));
        let full = train(ranks, &begun(out, "adapters", &format!("full-{index}"), sets));
        assert!((full.validation_loss.unwrap() - expected).abs() < 1e-9, "{sets:?}");
        assert!(stored(&full.run_dir).iter().all(|name| !name.contains(".lora_")));
        // What went on with adapters stands on the same model.
        let again = train(ranks, &begun(out, &kept, &format!("again-{index}"), &[&["lora.rank=2"], sets].concat()));
        assert!((again.validation_loss.unwrap() - expected).abs() < 1e-9, "{sets:?}");
    }
}

#[test]
fn a_run_with_adapters_is_measured_as_the_model_that_they_are_folded_into() {
    let out = tempfile::tempdir().unwrap();
    let out = out.path();
    with_adapters(out);
    let full = train(1, &begun(out, "adapters", "full", &[])).run_dir;
    let loss = |ranks: usize, from: &str, sets: &[&str]| {
        let config = begun(out, from, "unused", sets);
        threads::run(ranks, |world| measure(&config, &world, Device::Cpu, 8)).remove(0).loss
    };
    let expected = loss(1, full.file_name().unwrap().to_str().unwrap(), &[]);
    for (ranks, sets) in [(1, [].as_slice()), (2, &["parallel.tp=2"]), (2, &["parallel.pp=2"]), (2, &["lora.rank=2"])] {
        let measured = loss(ranks, "adapters", sets);
        assert!((measured - expected).abs() < 1e-9, "{sets:?}: {measured} and {expected}");
    }
}

fn refused(from: &Path, sets: &[&str]) -> String {
    let from = format!("model.from={}", from.display());
    let sets: Vec<String> = [&[from.as_str()], sets].concat().into_iter().map(String::from).collect();
    let error = Config::load(None, None, &sets).unwrap_err();
    assert!(error.is_input(), "{error}");
    error.to_string()
}

#[test]
fn what_is_meant_by_adapters_must_be_clear() {
    let out = tempfile::tempdir().unwrap();
    let out = out.path();
    with_adapters(out);
    let adapters = out.join("adapters");
    for sets in [&["lora.rank=3"][..], &["lora.rank=2", "lora.alpha=4"], &["lora.rank=2", "lora.targets=['mlp.down']"]]
    {
        let told = refused(&adapters, sets);
        assert!(told.contains("`lora.rank` = 2, `lora.alpha` = 3") && told.contains("`--merged`"), "{told}");
    }
    // Adapters that are not asked for with a rank: neither folded in nor gone on with.
    let told = refused(&adapters, &["lora.alpha=3"]);
    assert!(told.contains("say the same to go on with them"), "{told}");
    let told = refused(&out.join("base"), &["model.base=somewhere"]);
    assert!(told.contains("`model.base` is") && told.contains("there are no adapters"), "{told}");
    let measured = begun(out, "base", "unused", &["lora.rank=2"]);
    let world: Arc<dyn Communicator> = Arc::new(mp_comm::solo::Solo::new("world"));
    let told = measure(&measured, &world, Device::Cpu, 8).unwrap_err().to_string();
    assert!(told.contains("`lora.rank` is 2") && told.contains("holds no adapters"), "{told}");
}

#[test]
fn a_model_under_adapters_that_moved_or_changed_is_told() {
    let out = tempfile::tempdir().unwrap();
    let (base, moved) = (out.path().join("base"), out.path().join("moved"));
    let expected = with_adapters(out.path()).validation_loss.unwrap();
    let begin = |name: &str, sets: &[&str]| {
        let config = begun(out.path(), "adapters", name, sets);
        let one = |world| {
            Ok::<_, mp_train::Error>(run::train(&config, world, Device::Cpu, &AtomicBool::new(false), &mut Silent))
        };
        threads::run(1, one).remove(0)
    };
    std::fs::rename(&base, &moved).unwrap();
    let told = begin("a", &[]).unwrap_err().to_string();
    assert!(told.contains("which is no folder here") && told.contains("`model.base`"), "{told}");
    let found = begin("b", &[&format!("model.base={}", moved.display())]).unwrap();
    assert!((found.validation_loss.unwrap() - expected).abs() < 1e-9);
    // The run that they stand on goes on.
    let at = format!("train.out={}", out.path().display());
    train(1, &config(&[&at, "train.name=moved", "checkpoint.resume=true", "train.steps=4"]));
    std::fs::rename(&moved, &base).unwrap();
    let told = begin("c", &[]).unwrap_err().to_string();
    assert!(told.contains("were trained on another model than") && told.contains("holds now"), "{told}");
    let resumed = config(&[at.as_str(), "train.name=adapters", "checkpoint.resume=true", "train.steps=8"]);
    let one = |world| {
        Ok::<_, mp_train::Error>(run::train(&resumed, world, Device::Cpu, &AtomicBool::new(false), &mut Silent))
    };
    let told = threads::run(1, one).remove(0).unwrap_err().to_string();
    assert!(told.contains("were trained on another model than"), "{told}");
}
