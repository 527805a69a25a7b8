//! What `mp-cli plan` shows beside its lists: pages of pictures, and tables of single ranks.

use std::fs;

use crate::common::alone;

/// A model of a few layers in two stages.
const PIPED: &[&str] = &["--set", "model.layers=4", "--set", "parallel.pp=2", "--set", "parallel.tp=2"];

#[test]
fn a_layout_becomes_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let page = |more: &[&str]| {
        let ended = alone(folder.path(), &[&["plan", "--html", "a.html"], PIPED, more].concat()).success();
        assert!(ended.out.contains("pictures in a.html"), "{ended:#?}");
        fs::read_to_string(folder.path().join("a.html")).unwrap()
    };
    let plain = page(&["--ranks", "8"]);
    assert!(plain.contains("pp 1, forward of micro-batch 0") && plain.contains("No machine was named."), "{plain}");
    assert!(plain.contains("activations") && plain.contains("2 ranks hold each part"));
    let adapters = page(&["--ranks", "8", "--set", "lora.rank=2"]);
    assert!(adapters.contains("what passes keep is not counted") && !adapters.contains("activations"));
    let split = page(&["--ranks", "4", "--set", "parallel.split=[1,3]"]);
    assert!(split.contains("pp 1, stage 1: layers 1–3, head"), "{split}");
    let best = page(&["--cluster", "h100", "--ranks", "8", "--set", "train.precision=bf16"]);
    assert!(best.contains("H100-SXM") && best.contains("why it beats the next"), "{best}");
}

#[test]
fn a_page_that_cannot_be_written_is_an_input_error() {
    let folder = tempfile::tempdir().unwrap();
    for more in [&[][..], &["--cluster", "h100"]] {
        let ended = alone(folder.path(), &[&["plan", "--html", "no/where/a.html"], more].concat());
        assert!(ended.input_error().contains("--html"), "{ended:#?}");
    }
}

#[test]
fn no_output_takes_the_place_of_an_input_or_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let machine = "[node]\ncount = 1\n";
    fs::write(folder.path().join("mine.toml"), machine).unwrap();
    for (words, other) in [
        (["--cluster", "mine.toml", "--json", "mine.toml"], "--cluster"),
        (["--config", "mine.toml", "--html", "./mine.toml"], "--config"),
        (["--json", "both", "--html", "both"], "--json"),
    ] {
        let ended = alone(folder.path(), &[&["plan"], &words[..]].concat());
        let message = format!("must be another file than that of {other}");
        assert!(ended.input_error().contains(&message), "{ended:#?}");
    }
    assert_eq!(fs::read_to_string(folder.path().join("mine.toml")).unwrap(), machine);
    assert!(!folder.path().join("both").exists());
}

#[test]
fn a_hundred_parts_are_told_rank_by_rank() {
    let folder = tempfile::tempdir().unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/hundred-parts.toml");
    let ended = alone(folder.path(), &["plan", "--config", config, "--ranks", "100"]).success();
    assert!(
        ended.out.contains("each tensor rank's rows or columns") && ended.out.contains("on 100 ranks"),
        "{ended:#?}"
    );
    let json = fs::read_to_string(folder.path().join("plan.json")).unwrap();
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    let memory = plan["memory"].as_array().unwrap();
    assert_eq!((memory.len(), plan["parameters"][0]["ranges"].as_array().unwrap().len()), (10, 10));
    assert!(memory.iter().all(|rank| rank["activations"].as_u64() > Some(0)));
    assert!((0.99e9..1.01e9).contains(&plan["elements"].as_f64().unwrap()));
}
