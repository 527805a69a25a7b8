//! The time half of a run's ledger: every rank's step by what it went to, beside what was predicted of the machine.

use mp_train::ledger::{Ledger, Time};
use mp_train::times::Times;

use crate::common::{succeed, tiny};

fn time(ranks: usize, name: &str, sets: &[&str]) -> Time {
    let out = tempfile::tempdir().unwrap();
    let base = ["model.layers=2", "train.global_batch=4", "checkpoint.every=0", "eval.every=0"];
    let report = succeed(ranks, &tiny(out.path(), name, &[&base, sets]));
    Ledger::read(&report.run_dir.join("ledger.json")).unwrap().time
}

#[test]
fn each_ranks_step_is_the_sum_of_its_parts_as_predicted_and_as_measured() {
    let time = time(2, "known", &["parallel.cluster=cpu", "parallel.pp=2", "parallel.tp=1"]);
    // Of six steps three warm up.
    assert_eq!((time.reason, time.steps, time.left_out, time.ranks.len()), (None, 3, 3, 2));
    for (index, rank) in time.ranks.iter().enumerate() {
        assert_eq!(rank.rank, index);
        let names: Vec<&str> = rank.parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, Times::NAMES);
        let seconds: Vec<_> = rank.parts.iter().map(|part| part.seconds).collect();
        let measured: f64 = seconds.iter().map(|seconds| seconds.measured_seconds).sum();
        let predicted: f64 = seconds.iter().filter_map(|seconds| seconds.predicted_seconds).sum();
        let near = |sum: f64, whole: f64| assert!((sum / whole - 1.0).abs() < 1e-9, "{sum} of {whole}");
        near(measured, rank.total.measured_seconds);
        near(predicted, rank.total.predicted_seconds.unwrap());
        let of = |name: &str| seconds[names.iter().position(|known| *known == name).unwrap()];
        // Nothing is waited for in groups of one rank.
        for name in ["tensor collectives", "context messages"] {
            assert_eq!((of(name).predicted_seconds, of(name).measured_seconds), (Some(0.0), 0.0), "{name}");
        }
        assert!(of("computing").measured_seconds > 0.0 && of("bubble").measured_seconds > 0.0);
        assert!(of("rest").measured_seconds > 0.0 && of("rest").predicted_seconds.is_none());
    }
    // Both are at work on the same step: its whole is one number in the plan.
    let [first, second] = [0, 1].map(|rank: usize| time.ranks[rank].total.predicted_seconds.unwrap());
    assert!((first / second - 1.0).abs() < 1e-9, "{first} {second}");
}

#[test]
fn without_a_prediction_the_reason_is_told_and_nothing_is_off() {
    for (sets, reason) in [
        (
            ["train.precision=fp64"].as_slice(),
            "what the run is on is not known: `parallel.cluster` names no machine, and one is measured only behind steps of 100 s in all",
        ),
        (&["parallel.cluster=cpu", "train.precision=bf16"], "the rate of CPU in bf16 is not known"),
        (
            &["parallel.cluster=cpu", "lora.rank=2"],
            "`lora.rank` is 2, but memory and time are predicted for models that are trained whole",
        ),
    ] {
        let time = time(1, "unknown", sets);
        assert_eq!(time.reason.as_deref(), Some(reason));
        assert_eq!(time.deviation(), None);
        for rank in &time.ranks {
            assert!(rank.parts.iter().all(|part| part.seconds.predicted_seconds.is_none()));
            assert!(rank.total.measured_seconds > 0.0);
        }
    }
}
