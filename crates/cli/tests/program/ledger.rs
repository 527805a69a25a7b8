//! What runs measure, beside what the planner said of their layouts.

use std::path::Path;

use mp_plan::{Architecture, Cluster};
use mp_train::ledger::Ledger;
use mp_train::metrics;
use mp_train::records::Record;

use crate::common::{alone, ranks, with_sets, TINY};

/// A model whose activations count.
const SMALL: [&str; 10] = [
    "model.hidden=128",
    "model.layers=2",
    "model.heads=4",
    "train.seq=64",
    "train.global_batch=8",
    "train.steps=2",
    "train.threads=1",
    "train.name=a",
    "eval.batches=1",
    "checkpoint.every=0",
];

/// A model whose parameters count: hardly an activation, so that a step's end is its fullest moment.
const LEAN: [&str; 11] = [
    "model.hidden=256",
    "model.layers=2",
    "model.heads=4",
    "model.vocab=4000",
    "train.seq=8",
    "train.steps=2",
    "train.threads=1",
    "train.name=a",
    "eval.every=0",
    "eval.batches=1",
    "checkpoint.every=0",
];

/// Trains, and holds every rank's memory against the plan: what is stored to the byte, all of it to 5 %.
fn predicted(world: usize, layouts: &[&[&str]]) {
    held(world, &SMALL, layouts, 0.05);
}

fn held(world: usize, model: &[&str], layouts: &[&[&str]], tolerance: f64) {
    for layout in layouts {
        let folder = tempfile::tempdir().unwrap();
        let words = with_sets("train", &[model, layout]);
        match world {
            1 => alone(folder.path(), &words).success(),
            _ => ranks(world, folder.path(), &words).success(),
        };
        let memory = Ledger::read(&folder.path().join("runs/a/ledger.json")).unwrap().memory;
        assert_eq!((memory.reason, memory.ranks.len()), (None, world), "{layout:?}");
        for rank in memory.ranks {
            for part in rank.parts.iter().filter(|part| part.name != "working") {
                assert_eq!(part.bytes.predicted_bytes, part.bytes.measured_bytes, "{layout:?}: {part:?}");
            }
            let error = rank.total.error.unwrap();
            assert!(error.abs() <= tolerance, "{layout:?}: {error} of rank {}, {:?}", rank.rank, rank.parts);
        }
    }
}

#[test]
fn warnings_in_a_file_have_no_colours() {
    let folder = tempfile::tempdir().unwrap();
    // No host is as slow.
    let machine = "node = { count = 1, devices = 1, bandwidth = 1.0, latency = 1.0 }\n\
                   device = { name = \"abacus\", memory_bytes = 1_000_000_000, memory_bandwidth = 1.0, peak.fp32 = 1.0 }\n\
                   network = { bandwidth = 1.0, latency = 1.0 }\n";
    std::fs::write(folder.path().join("abacus.toml"), machine).unwrap();
    let words = with_sets("train", &[TINY, &["parallel.cluster=abacus.toml"]]);
    let ended = alone(folder.path(), &words).success();
    assert!(ended.err.contains("were predicted") && !ended.err.contains('\u{1b}'), "{ended:#?}");
}

#[test]
fn one_ranks_memory_is_as_planned() {
    predicted(
        1,
        &[
            &["model.kv_heads=2", "train.precision=bf16", "optimizer.name=sgd", "parallel.micro_batch=2"],
            &["model.architecture=gpt2", "model.dropout=0.1"],
            &["model.architecture=bert", "train.precision=fp64"],
            &["parallel.recompute=full", "parallel.recompute_every=2", "data.attend_across=false"],
        ],
    );
}

#[test]
fn two_ranks_memory_is_as_planned() {
    predicted(
        2,
        &[
            &["parallel.tp=2"],
            &["parallel.tp=2", "parallel.sequence_parallel=false", "model.architecture=bert"],
            &["parallel.tp=1", "parallel.dp=2", "parallel.zero=1", "train.precision=bf16"],
            &["parallel.tp=1", "parallel.cp=2", "model.kv_heads=2"],
            &["parallel.tp=1", "parallel.pp=2", "parallel.micro_batch=1", "model.architecture=gpt2"],
            &["parallel.tp=1", "parallel.pp=2", "parallel.micro_batch=1", "parallel.schedule=zb-h1"],
        ],
    );
}

#[test]
fn memory_of_few_activations_on_one_rank_is_as_planned() {
    let one = "train.global_batch=1";
    held(1, &LEAN, &[&[one, "optimizer.name=sgd"], &[one, "train.precision=bf16"]], 0.01);
}

#[test]
fn memory_of_few_activations_on_two_ranks_is_as_planned() {
    let [alike, one, two] = ["parallel.tp=1", "train.global_batch=1", "train.global_batch=2"];
    held(
        2,
        &LEAN,
        &[
            &[alike, two, "parallel.zero=1"],
            &[alike, two, "parallel.zero=2", "train.precision=bf16"],
            &[alike, "train.global_batch=4", "parallel.micro_batch=1", "parallel.zero=3", "model.architecture=gpt2"],
            &["parallel.tp=2", one, "model.kv_heads=1", "optimizer.name=sgd"],
        ],
        0.01,
    );
}

#[test]
fn adapters_are_measured_and_not_predicted() {
    let folder = tempfile::tempdir().unwrap();
    alone(folder.path(), &with_sets("train", &[TINY, &["train.name=base"]])).success();
    let adapters = ["train.steps=1", "train.name=a", "train.threads=1", "model.from=runs/base", "lora.rank=2"];
    alone(folder.path(), &with_sets("train", &[&adapters, &["train.global_batch=4", "eval.batches=1"]])).success();
    let memory = Ledger::read(&folder.path().join("runs/a/ledger.json")).unwrap().memory;
    assert!(memory.reason.unwrap().contains("`lora.rank`"));
    let total = memory.ranks[0].total;
    assert!(total.predicted_bytes.is_none() && total.measured_bytes > Some(0), "{total:?}");
}

#[test]
fn utilisation_is_model_flops_over_the_peak_of_the_machine_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let utilisation = |name: &str, more: &[&str]| {
        let named = format!("train.name={name}");
        alone(folder.path(), &with_sets("train", &[TINY, &[&named], more])).success();
        steps(&folder.path().join("runs").join(name))
    };
    assert!(utilisation("unknown", &[]).iter().all(|(_, mfu)| mfu.is_none()));
    let plan = |name: &str| std::fs::read_to_string(folder.path().join("runs").join(name).join("plan.json")).unwrap();
    for (tokens_per_second, mfu) in utilisation("named", &["parallel.cluster=cpu"]) {
        let plan: serde_json::Value = serde_json::from_str(&plan("named")).unwrap();
        let architecture: Architecture = serde_json::from_value(plan["architecture"].clone()).unwrap();
        let peak = Cluster::preset("cpu").unwrap().device.peak.fp32.unwrap();
        let expected = architecture.flops_per_token(16) * tokens_per_second / peak;
        // Three roundings on either way.
        assert!((mfu.unwrap() / expected - 1.0).abs() < 8.0 * f64::EPSILON, "{mfu:?} for {expected}");
    }
}

/// Reads each step's rate and utilisation.
fn steps(run: &Path) -> Vec<(f64, Option<f64>)> {
    let records = metrics::read(&run.join("metrics.jsonl")).unwrap().into_iter();
    let steps: Vec<_> = records
        .filter_map(|record| match record {
            Record::Step(step) => Some((step.tokens_per_second, step.mfu)),
            _ => None,
        })
        .collect();
    assert_eq!(steps.len(), 2);
    steps
}
