//! Adapters in whole runs: the model under them stays as it is, the loss drops, and checkpoints hold the adapters alone.
#![allow(missing_docs)]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use mp_comm::{threads, Communicator};
use mp_data::{Batch, Targets, TextSource, Tokens};
use mp_runtime::{Device, Kind, Tensor};
use mp_train::assemble::Allocated;
use mp_train::layout::Layout;
use mp_train::records::{Observer, Record, Report, StepRecord};
use mp_train::step::Work;
use mp_train::{metrics, run, weights, Config, Result};

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
    let names = weights::open(&out.path().join("cut")).unwrap().names();
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
