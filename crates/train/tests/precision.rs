//! bfloat16 over single-precision masters, held against single precision.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use mp_comm::threads;
use mp_runtime::Device;
use mp_train::records::Record;
use mp_train::{metrics, run, Config};

/// Trains 30 steps on `ranks` rank-threads; the losses.
fn losses(out: &Path, name: &str, ranks: usize, sets: &[&str]) -> Vec<f64> {
    let mut all = vec![
        format!("train.out={}", out.display()),
        format!("train.name={name}"),
        "model.hidden=32".into(),
        "model.layers=2".into(),
        "model.heads=4".into(),
        "train.steps=30".into(),
        "train.seq=32".into(),
        "train.global_batch=8".into(),
        "optimizer.warmup=5".into(),
        "optimizer.lr=1e-2".into(),
        "eval.every=0".into(),
        "eval.batches=1".into(),
        "checkpoint.every=20".into(),
        "checkpoint.keep=0".into(),
    ];
    all.extend(sets.iter().map(|set| (*set).to_string()));
    let config = Config::load(None, None, &all).unwrap();
    threads::run(ranks, |world| run::train(&config, world, Device::Cpu, &AtomicBool::new(false), &mut ()).map(|_| ()));
    let step = |record| match record {
        Record::Step(step) => Some(step.loss),
        _ => None,
    };
    metrics::read(&out.join(name).join("metrics.jsonl")).unwrap().into_iter().filter_map(step).collect()
}

/// The first loss sees roundings alone. A value is rounded to 8 bits, a relative error of at most 2⁻⁹, at some 40 places
/// in a row from the embedding to the logits; the errors are independent, so the logits (of order 1 and less here) are
/// off by about √40 · 2⁻⁹ = 0.012, and so at most is the loss, their mean over 256 positions.
const FIRST: f64 = 0.012;

#[test]
fn bf16_follows_fp32_under_every_cut() {
    let out = tempfile::tempdir().unwrap();
    let single = losses(out.path(), "fp32", 1, &["train.precision=fp32"]);
    let bf16 = "train.precision=bf16";
    for architecture in ["llama", "gpt2"] {
        let family = format!("model.architecture={architecture}");
        let single = match architecture {
            "llama" => single.clone(),
            _ => losses(out.path(), "fp32-gpt2", 1, &["train.precision=fp32", &family]),
        };
        for (ranks, cut) in [
            (1, ["parallel.tp=1", "parallel.zero=0"]),
            (2, ["parallel.tp=2", "parallel.zero=0"]),
            (2, ["parallel.tp=1", "parallel.zero=0"]),
            (4, ["parallel.tp=4", "parallel.zero=0"]),
            (2, ["parallel.tp=1", "parallel.zero=1"]),
            (2, ["parallel.tp=1", "parallel.zero=2"]),
            (2, ["parallel.tp=1", "parallel.zero=3"]),
            (2, ["parallel.tp=1", "parallel.pp=2"]),
            (2, ["parallel.tp=1", "parallel.cp=2"]),
        ] {
            let name = format!("{architecture}-{ranks}-{}", cut.join("-"));
            let half = losses(out.path(), &name, ranks, &[&[bf16, family.as_str()], &cut[..]].concat());
            assert!((half[0] - single[0]).abs() < FIRST, "{name}: {} against {}", half[0], single[0]);
            // It learns as fp32 does: masters that lost small updates, or stale weights, would stay behind. Half of what
            // fp32 gained in 30 steps is far above the noise of rounding, far below what it shows when it works.
            let (gained, wanted) = (half[0] - half[29], single[0] - single[29]);
            assert!(wanted > 1.0 && gained > 0.5 * wanted, "{name}: gained {gained} where fp32 gained {wanted}");
        }
    }
}

#[test]
fn a_bf16_run_resumes_bit_for_bit() {
    let out = tempfile::tempdir().unwrap();
    for cut in [
        ["parallel.tp=2", "parallel.zero=0"],
        ["parallel.tp=1", "parallel.zero=1"],
        ["parallel.tp=1", "parallel.zero=2"],
        ["parallel.tp=1", "parallel.zero=3"],
        ["parallel.tp=1", "parallel.pp=2"],
    ] {
        let name = cut.join("-");
        let sets = [&["train.precision=bf16", "model.dropout=0.1"], &cut[..]].concat();
        let whole = losses(out.path(), &name, 2, &sets);
        std::fs::remove_dir_all(out.path().join(&name).join("checkpoints/step-00000030")).unwrap();
        let resumed = losses(out.path(), &name, 2, &[&sets[..], &["checkpoint.resume=true"]].concat());
        assert_eq!(whole, resumed, "{name}");
    }
}
