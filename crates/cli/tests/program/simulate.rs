//! `mp-cli plan --simulate`: stages are timed here, and a cluster's step is replayed.

use std::fs;

use crate::common::alone;

const MODEL: [&str; 14] = [
    "plan",
    "--set",
    "model.hidden=32",
    "--set",
    "model.layers=4",
    "--set",
    "model.heads=4",
    "--set",
    "train.seq=32",
    "--set",
    "train.global_batch=8",
    "--set",
    "train.threads=1",
    "--cluster",
];

#[test]
fn layouts_are_timed_here_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| alone(folder.path(), &[&MODEL[..], more].concat());
    let ended = plan(&["cpu", "--ranks", "8", "--simulate", "2", "--json", "if.json"]).success();
    for words in ["as if every device were the one at hand", "1 thread", "one micro-batch through each virtual stage"] {
        assert!(ended.out.contains(words), "{ended:#?}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("if.json")).unwrap()).unwrap();
    let layouts = json["layouts"].as_array().unwrap();
    assert_eq!((layouts.len(), &json["device"]["threads"]), (2, &1.into()));
    for layout in layouts {
        let count = layout["pp"].as_u64().unwrap() * layout["chunks"].as_u64().unwrap();
        let stages = layout["stages"].as_array().unwrap();
        assert_eq!(stages.len() as u64, count, "{layout}");
        assert!(stages.iter().all(|stage| stage["seconds"]["forward"].as_f64().unwrap() > 0.0), "{layout}");
        assert_eq!(stages.iter().map(|stage| stage["layers"].as_u64().unwrap()).sum::<u64>(), 4);
        let replayed = &layout["replayed"];
        let parts = replayed["parts"].as_object().unwrap().values().map(|part| part.as_f64().unwrap());
        let seconds = replayed["seconds"].as_f64().unwrap();
        // As many terms in another order.
        assert!((parts.sum::<f64>() - seconds).abs() < 1e-9 * seconds, "{layout}");
        // The preset is no description of this machine.
        assert!(replayed["mfu"].is_null() && layout["step_seconds"].as_f64().unwrap() > 0.0, "{layout}");
    }
    // A measured file tells utilisation where it has the device at hand, and not where it has another.
    let device = json["device"]["name"].as_str().unwrap();
    for (name, known) in [(device, true), ("another host's processor, 1 thread", false)] {
        let file = format!(
            "node = {{ count = 1, devices = 8, memory_bytes = 8e9, bandwidth = 1e9, latency = 1e-6 }}\n\
             device = {{ name = \"{name}\", memory_bandwidth = 1e10, peak.fp32 = 1e12 }}\n\
             network = {{ bandwidth = 1e9, latency = 1e-6 }}\n\
             measured.memory = [[1e6, 1e10]]\n"
        );
        fs::write(folder.path().join("file.toml"), file.replace("8e9", "8000000000")).unwrap();
        let ended = plan(&["file.toml", "--ranks", "8", "--json", "--simulate", "1"]).success();
        let json: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
        let replayed = &json["layouts"][0]["replayed"];
        let share = replayed["model_flops"].as_f64().unwrap() / 1e12;
        // A number that is written and read again may have moved by its last bit.
        let same = replayed["mfu"].as_f64().map(|mfu| (mfu / share - 1.0).abs() < 1e-12);
        assert_eq!(same, known.then_some(true), "{name}: {json}");
    }
    // All degrees are set: one layout.
    let degrees = ["tp=2", "pp=2", "dp=1"].map(|degree| format!("parallel.{degree}"));
    let sets: Vec<&str> = degrees.iter().flat_map(|degree| ["--set", degree]).collect();
    let ended = plan(&[&["cpu", "--ranks", "4", "--json"], &sets[..], &["--simulate"]].concat()).success();
    let json: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(json["layouts"].as_array().unwrap().len(), 1);
    assert_eq!((&json["layouts"][0]["tp"], &json["layouts"][0]["pp"]), (&2.into(), &2.into()));
}

#[test]
fn what_cannot_be_simulated_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| alone(folder.path(), &[&MODEL[..], more].concat());
    plan(&["cpu", "--simulate", "0"]).input_error();
    alone(folder.path(), &["plan", "--simulate"]).input_error();
    // Nothing fits a thousandth of a device's memory.
    let small = "
        [node]
        count = 1
        devices = 2
        bandwidth = 1e9
        latency = 1e-6
        [device]
        name = \"small\"
        memory_bytes = 1000
        memory_bandwidth = 1e9
        peak.fp32 = 1e9
        [network]
        bandwidth = 1e9
        latency = 1e-6
    ";
    fs::write(folder.path().join("small.toml"), small).unwrap();
    let ended = plan(&["small.toml", "--simulate"]);
    assert!(ended.input_error().contains("no layout fits that machine"), "{ended:#?}");
    // One that would fit there, and not here: two layers of it are more than any machine has.
    let large = small.replace("memory_bytes = 1000", "memory_bytes = 9000000000000000000");
    fs::write(folder.path().join("large.toml"), large).unwrap();
    let ended = plan(&["large.toml", "--simulate", "1", "--set", "model.hidden=1000000"]);
    let message = ended.input_error();
    assert!(message.contains(" bytes (") && message.contains(" are free on this machine"), "{ended:#?}");
}
