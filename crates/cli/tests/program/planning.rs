//! The planner in the program: machines that are measured or named, and training that asks it.

use std::fs;

use crate::common::{alone, losses, ranks, train, with_sets, TINY};

#[test]
fn flags_and_files_of_machines_that_cannot_serve_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |words: &[&str]| alone(folder.path(), &[&["plan"], words].concat()).input_error().to_string();
    assert!(
        refused(&["--measure", "no/where.toml"]).contains("`--measure` is \"no/where.toml\", but it cannot be written")
    );
    for flag in [&["--cluster", "cpu"][..], &["--best", "2"], &["--html", "a.html"], &["--out", "b"], &["--ranks", "2"]]
    {
        assert!(refused(&[&["--measure", "a.toml"], flag].concat()).contains("cannot be used with"), "{flag:?}");
    }
    assert!(!folder.path().join("a.toml").exists());
    assert!(refused(&["--best", "3"]).contains("required arguments were not provided"));
    assert!(refused(&["--cluster", "cpu", "--ranks", "99999999999"]).contains("`--ranks` is 99999999999, but"));
    fs::write(folder.path().join("bad.toml"), "[node]\ncount = 1\ndevice = 2\n").unwrap();
    let unknown = "the cluster `bad.toml` cannot be used: there is no key `node.device`; did you mean `devices`?";
    assert!(refused(&["--cluster", "bad.toml"]).contains(unknown));
    let ended = train(folder.path(), &["parallel.cluster=bad.toml"]);
    assert!(ended.input_error().contains("there is no key `node.device`"), "{ended:#?}");
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn layers_that_are_dealt_out_by_hand_stay_and_adapters_are_told_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |set: &str| alone(folder.path(), &["plan", "--cluster", "h100", "--json", "-", "--set", set]);
    let json: serde_json::Value = serde_json::from_str(&plan("parallel.split=[1,3]").success().out).unwrap();
    let layouts = json["layouts"].as_array().unwrap();
    let stages = |layout: &serde_json::Value| layout["pp"] == 2 && layout["chunks"] == 1;
    assert!(!layouts.is_empty() && layouts.iter().all(stages), "{json}");
    let ended = plan("lora.rank=2");
    let message = ended.input_error();
    assert!(message.contains("choose one with lora.rank 0 and set its degrees in [parallel]"), "{message}");
}

#[test]
fn two_ranks_ask_the_planner_and_one_line_says_what_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let sets = ["parallel.dp=0", "parallel.cluster=cpu", "train.name=asked"];
    let ended = ranks(2, folder.path(), &with_sets("train", &[TINY, &sets])).success();
    let said: Vec<&str> = ended.out.lines().filter(|line| line.starts_with("planner ")).collect();
    let [line] = said[..] else { panic!("{ended:#?}") };
    for part in [" a step, ", " a rank on CPU", "; next "] {
        assert!(line.contains(part), "{line}");
    }
    let config = fs::read_to_string(folder.path().join("runs/asked/config.toml")).unwrap();
    assert!(config.contains("chosen = [\"tp\", \"pp\", \"dp\", \"cp\""), "{config}");
}

/// Reads the best layout of a tiny model on a machine's file, and how many ranks a node of it has.
fn planned(folder: &std::path::Path, machine: &str, sets: &[&str]) -> (serde_json::Value, u64) {
    let words = [&with_sets("plan", &[TINY, sets])[..], &["--cluster", machine, "--json"]].concat();
    let json: serde_json::Value = serde_json::from_str(&alone(folder, &words).success().out).unwrap();
    (json["layouts"][0].clone(), json["cluster"]["node"]["devices"].as_u64().unwrap())
}

#[test]
fn three_ranks_measure_choose_and_train_and_what_they_measured_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let batch = "train.global_batch=6";
    let sets = [batch, "parallel.tp=0", "train.name=asked"];
    let ended = ranks(3, folder.path(), &with_sets("train", &[TINY, &sets])).success();
    assert_eq!(ended.out.lines().filter(|line| line.starts_with("planner ")).count(), 1, "{ended:#?}");
    assert_eq!(losses(&folder.path().join("runs/asked")).len(), 2);
    let (best, devices) = planned(folder.path(), "runs/asked/machine.toml", &[batch]);
    // Neither heads nor layers nor positions of this model come in three parts.
    assert_eq!((devices, &best["dp"], &best["fits"]), (3, &3.into(), &true.into()), "{best}");
    assert!(best["step_seconds"].as_f64() > Some(0.0) && best["mfu"].as_f64() > Some(0.0), "{best}");
}

#[test]
#[ignore = "measures all precisions, for up to twenty seconds; its paths are those of the test before, at less effort"]
fn two_ranks_write_the_machine_that_a_plan_reads() {
    let folder = tempfile::tempdir().unwrap();
    let ended = ranks(2, folder.path(), &["plan", "--measure", "mine.toml", "--set", "train.threads=1"]).success();
    assert!(ended.out.contains("written to mine.toml"), "{ended:#?}");
    for precision in ["fp32", "bf16", "fp64"] {
        let (best, devices) = planned(folder.path(), "mine.toml", &[&format!("train.precision={precision}")]);
        assert_eq!((devices, &best["fits"]), (2, &true.into()), "{best}");
        assert!(best["step_seconds"].as_f64() > Some(0.0), "{precision}: {best}");
    }
}

/// A host of one rank with so many bytes, of which none are in reserve.
fn host(bytes: u64) -> String {
    format!(
        "[node]\ncount = 1\ndevices = 1\nmemory_bytes = {bytes}\nbandwidth = 1e9\nlatency = 1e-6\n\
         [device]\nname = \"host\"\nmemory_bandwidth = 1e10\npeak.fp32 = 1e11\n\
         [network]\nbandwidth = 1e9\nlatency = 1e-5\n[efficiency]\nreserve = 0.0\n"
    )
}

/// The copy that checkpoints are written from lies in the same memory: both count it, and the last byte decides.
#[test]
fn what_is_planned_to_fit_is_what_training_takes() {
    let folder = tempfile::tempdir().unwrap();
    for (copied, setting) in [(true, "checkpoint.asynchronous=true"), (false, "checkpoint.asynchronous=false")] {
        let sets = [&["parallel.dp=0", setting][..], TINY].concat();
        let plan = |bytes: u64| -> serde_json::Value {
            fs::write(folder.path().join("host.toml"), host(bytes)).unwrap();
            let asked = ["--cluster", "host.toml", "--ranks", "1", "--json", "plan.json"];
            alone(folder.path(), &[with_sets("plan", &[&sets]), asked.to_vec()].concat()).success();
            serde_json::from_slice(&fs::read(folder.path().join("plan.json")).unwrap()).unwrap()
        };
        let nearest = plan(1 << 16);
        let least = nearest["layouts"][0]["memory_bytes_per_rank"].as_u64().unwrap();
        let copy = nearest["room"]["set_aside_bytes"].as_u64().unwrap();
        // Each element with its two moments.
        let elements = nearest["layouts"][0]["memory"]["moments"].as_u64().unwrap() / 8;
        assert!(
            if copied { (11 * elements..=12 * elements).contains(&copy) } else { copy == 0 },
            "{copy} of {elements}"
        );
        for (bytes, fits) in [(least + copy, true), (least + copy - 1, false)] {
            assert_eq!(plan(bytes)["layouts"][0]["fits"], fits, "{bytes}");
            let name = format!("train.name=a{copied}{fits}");
            let ended = train(folder.path(), &[&sets[..], &["parallel.cluster=host.toml", &name]].concat());
            match fits {
                true => drop(ended.success()),
                false => assert!(ended.input_error().contains("no layout of 1 rank fits"), "{ended:#?}"),
            }
        }
    }
}
