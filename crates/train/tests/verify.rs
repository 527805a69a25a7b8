//! Verification on rank-threads: layouts that are right pass on both families, and what one rank can show is shown.

use std::sync::Arc;

use mp_comm::solo::Solo;
use mp_comm::{threads, Communicator};
use mp_runtime::Device;
use mp_train::verify::{verify, Case, Listener, Outline, Report, Verdict, Which, LIMIT, NOISE_LIMIT};
use mp_train::{Config, Result};
use rstest::rstest;

/// Writes down what it hears.
#[derive(Default)]
struct Notes(Vec<String>);

impl Listener for Notes {
    fn start(&mut self, outline: &Outline<'_>) {
        self.0.push(format!("{} layouts", outline.layouts));
    }
    fn begin(&mut self, case: &Case) {
        self.0.push(format!("begin {case}"));
    }
    fn end(&mut self, verdict: &Verdict) {
        self.0.push(format!("end {}", verdict.layout));
    }
}

fn config(sets: &[&str]) -> Config {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    Config::load(None, None, &sets).unwrap()
}

fn on(world: &Arc<dyn Communicator>, sets: &[&str], layouts: &str) -> Result<(Report, Vec<String>)> {
    let mut notes = Notes::default();
    let report = verify(&config(sets), world, Device::Cpu, &layouts.parse::<Which>()?, &mut notes)?;
    Ok((report, notes.0))
}

/// Asserts that every rank has the same, passing report, and returns it.
fn passes(ranks: usize, sets: &[&str], layouts: &str) -> Report {
    let mut reports = threads::run(ranks, |world| on(&world, sets, layouts));
    let told: Vec<String> = reports.iter().map(|(report, _)| serde_json::to_string(report).unwrap()).collect();
    assert!(told.iter().all(|other| *other == told[0]), "{told:#?}");
    let (report, _) = reports.remove(0);
    assert!(report.pass, "{report:#?}");
    report
}

#[test]
fn llama_in_single_precision() {
    let sets = ["model.kv_heads=2", "model.dropout=0.1", "model.layers=9"];
    let report = passes(
        4,
        &sets,
        "tp4,tp2pp2 zb-v sp full,dp4zero3 full2,pp2dp2zero1 interleaved,cp2tp2 sp,cp2tp2 a2a sp selective,cp4 a2a mb1,tp1",
    );
    for verdict in &report.layouts {
        assert!(verdict.worst < LIMIT && verdict.worst >= 0.0 && verdict.tensor.is_some(), "{verdict:?}");
        let noise = verdict.noise.unwrap();
        assert!(noise < NOISE_LIMIT && (noise > 0.0 || verdict.layout == "tp1"), "{verdict:?}");
    }
}

#[test]
fn gpt2_in_bfloat16() {
    let sets = ["model.architecture=gpt2", "train.precision=bf16", "optimizer.name=sgd"];
    passes(4, &sets, "tp2dp2zero2 sp,pp4 zb-h1,pp2 gpipe mb1,tp2cp2");
}

#[rstest]
#[case::masked_alone(&["model.tie_embeddings=false", "model.dropout=0.1"], "tp4,cp4,cp2tp2 sp,pp2dp2 zb-h1,dp4zero3 full")]
#[case::with_sentences(
    &["model.next_sentence=true"],
    "tp4 sp,tp2pp2 zb-v sp full,dp4zero3,pp2dp2zero1 interleaved,cp2tp2 sp full2,cp2dp2zero2 a2a"
)]
fn bert(#[case] more: &[&str], #[case] layouts: &str) {
    let sets = [&["model.architecture=bert", "train.precision=fp64"], more].concat();
    passes(4, &sets, layouts);
}

#[test]
fn the_configured_layout_is_verified_as_it_is_configured() {
    let sets = [
        "model.layers=12",
        "train.precision=fp64",
        "parallel.tp=1",
        "parallel.pp=2",
        "parallel.schedule=interleaved",
        "parallel.chunks=3",
        "parallel.split=[3, 1, 2, 1, 3, 2]",
        "parallel.zero=1",
    ];
    let report = passes(4, &sets, "tp2dp2,configured");
    let found: Vec<_> = report.layouts.iter().map(|verdict| (verdict.layout.as_str(), verdict.configured)).collect();
    assert_eq!(found, [("tp2dp2", false), ("pp2dp2zero1 interleaved chunks3 split", true)]);
}

#[test]
fn double_precision_has_no_noise() {
    let report = passes(2, &["train.precision=fp64"], "tp2,dp2zero1");
    assert!(report.layouts.iter().all(|verdict| verdict.noise.is_none()));
}

#[test]
fn one_rank_shows_what_it_can() {
    let world: Arc<dyn Communicator> = Arc::new(Solo::new("world"));
    // Dropped-out weights are what selective recompute drops; without them it would be no layout of its own.
    let (report, notes) = on(&world, &["model.dropout=0.1"], "all").unwrap();
    assert!(report.pass, "{report:#?}");
    let configured: Vec<_> = report.layouts.iter().filter(|verdict| verdict.configured).collect();
    assert!(matches!(configured[..], [verdict] if verdict.layout == "tp1 mb1"), "{report:#?}");
    // Recompute of four sorts with and without accumulation.
    assert_eq!(notes[0], "8 layouts");
    for layout in ["tp1", "tp1 mb1", "tp1 selective", "tp1 full2 mb1"] {
        assert!(notes.contains(&format!("begin {layout}")) && notes.contains(&format!("end {layout}")), "{notes:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_all() {
    for layouts in ["tp8", "dp2zero1,pp2zero2", "tp2 fast", "tp2tp1", "tp2,dp2,tp2", "tp2 gpipe"] {
        let errors = threads::run(2, |world| Ok::<_, mp_train::Error>(on(&world, &[], layouts).unwrap_err()));
        assert!(errors.iter().all(mp_train::Error::is_input), "{errors:?}");
    }
}
