//! `mp-cli checkpoint`, and ranks that are killed while they save.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{
    alone, chapter, children, finish, launcher, losses, ranks, send, train, under_way, with_sets, TINY,
};
use mp_train::checkpoint::{self, Section, Verify};

/// A run `runs/a` with checkpoints of steps 1 and 2.
fn two_checkpoints() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), &["train.name=a", "checkpoint.every=1"]).success();
    folder
}

fn step(run: &str, step: u64) -> String {
    format!("runs/{run}/checkpoints/step-{step:08}")
}

/// Reads a parameter as numbers of double precision, of a checkpoint in single precision.
fn values(path: &Path, name: &str) -> Vec<f64> {
    let reader = checkpoint::open(path, Verify::Checksums).unwrap();
    let entry = reader.manifest().entry(Section::Model, name).unwrap();
    let region: Vec<_> = entry.shape.iter().map(|&dim| 0..dim).collect();
    let bytes = reader.read(Section::Model, name, &region).unwrap();
    bytes.chunks(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect()
}

#[test]
fn a_checkpoint_says_what_it_holds_and_proves_it() {
    let folder = two_checkpoints();
    let ended = alone(folder.path(), &["checkpoint", "inspect", "runs/a", "--tensors"]).success();
    for word in [
        "step-00000002",
        "after step 2: 8 samples, 128 tokens; seed 1",
        "model: 12 tensors",
        "embedding.weight F32 [256, 16]",
    ] {
        assert!(ended.out.contains(word), "{word}: {ended:#?}");
    }
    let ended = alone(folder.path(), &["checkpoint", "inspect", &step("a", 1), "--json"]).success();
    let manifest: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(
        (&manifest["step"], &manifest["model"]["embedding.weight"]["shape"]),
        (&1.into(), &serde_json::json!([256, 16]))
    );

    let code = manifest["code_version"].as_str().unwrap();
    assert!(code.starts_with(env!("CARGO_PKG_VERSION")), "{code}");
    let head = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    if let Some(head) = head.ok().filter(|head| head.status.success()) {
        let commit = String::from_utf8_lossy(&head.stdout);
        assert!(code.contains(commit.trim()), "{code} is of another commit than {commit}");
    }

    let ended = alone(folder.path(), &["checkpoint", "verify", "runs/a"]).success();
    assert_eq!(ended.out.matches("intact").count(), 2, "{ended:#?}");
    let file = folder.path().join(step("a", 1)).join("model-00000.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let ended = alone(folder.path(), &["checkpoint", "verify", "runs/a", "--json"]);
    assert!(ended.input_error().contains("`model-00000.safetensors` has the checksum"), "{ended:#?}");
    let verdicts: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert!(verdicts[0]["problem"].is_string() && verdicts[1]["problem"].is_null(), "{verdicts}");
    let nothing = alone(folder.path(), &["checkpoint", "inspect", "runs"]);
    assert!(nothing.input_error().contains("neither a run folder"), "{nothing:#?}");
}

#[test]
fn checkpoints_are_converted_and_averaged() {
    let folder = two_checkpoints();
    let name = "layers.0.attention.query.weight";
    let at = |path: &str| folder.path().join(path);
    let (first, second) = (values(&at(&step("a", 1)), name), values(&at(&step("a", 2)), name));
    assert_ne!(first, second);

    let words = ["checkpoint", "average", &step("a", 1), &step("a", 2), "--out", "runs/mean"];
    alone(folder.path(), &words).success();
    let mean: Vec<f64> = first.iter().zip(&second).map(|(a, b)| f64::from(((a + b) / 2.0) as f32)).collect();
    assert_eq!(values(&at("runs/mean"), name), mean);

    let words = [
        "checkpoint",
        "convert",
        "runs/a",
        "--out",
        "runs/small",
        "--model-only",
        "--precision",
        "bf16",
        "--files",
        "3",
    ];
    alone(folder.path(), &words).success();
    let reader = checkpoint::open(&at("runs/small"), Verify::Checksums).unwrap();
    let manifest = reader.manifest();
    assert_eq!((manifest.files.len(), manifest.optimizer.len(), manifest.about.step), (3, 0, 2));
    assert!(manifest.model.values().all(|record| record.dtype == checkpoint::Dtype::BF16));

    // What is converted without loss goes on as what it was made of.
    alone(folder.path(), &["checkpoint", "convert", "runs/a", "--out", "runs/b", "--files", "2"]).success();
    for run in ["a", "b"] {
        let set = format!("train.name={run}");
        train(folder.path(), &[&set, "checkpoint.resume=true", "train.steps=4"]).success();
    }
    assert_eq!(values(&at("runs/a"), name), values(&at("runs/b"), name));
    let again = alone(folder.path(), &["checkpoint", "convert", "runs/a", "--out", "runs/b"]);
    assert!(again.input_error().contains("give the name of a new folder"), "{again:#?}");
}

/// What is damaged is used by nothing, and what lacks a state is not gone on from.
#[test]
fn weights_are_compared_with_their_checksums_by_whoever_reads_them() {
    let folder = two_checkpoints();
    let there = |words: &[&str]| alone(folder.path(), words);
    there(&["checkpoint", "convert", "runs/a", "--out", "runs/model", "--model-only"]).success();
    let words = with_sets("train", &[TINY, &["train.name=model", "checkpoint.resume=true", "train.steps=4"]]);
    let message = there(&words).input_error().to_string();
    assert!(message.contains("a model alone, or another optimizer's") && message.contains("model.from"), "{message}");

    let file = folder.path().join(step("a", 2)).join("model-00000.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    fs::write(folder.path().join("text.txt"), "some text that is measured").unwrap();
    for words in [
        with_sets("eval", &[&["model.from=runs/a", "data.path=text.txt"]]),
        with_sets("train", &[TINY, &["model.from=runs/a", "train.name=b"]]),
        [&with_sets("generate", &[&["model.from=runs/a"]])[..], &["--prompt", "a"]].concat(),
    ] {
        for ended in [there(&words), ranks(2, folder.path(), &[&words[..], &["--set", "train.name=c"]].concat())] {
            assert!(ended.input_error().contains("has the checksum"), "{ended:#?}");
        }
    }
}

/// Waits until a run has saved so often.
fn has_saved(checkpoints: &PathBuf, step: u64) {
    let begun = Instant::now();
    let newest = || {
        let names = fs::read_dir(checkpoints).into_iter().flatten();
        let step = |name: String| name.strip_prefix("step-").and_then(|step| step.parse().ok());
        names.filter_map(|entry| step(entry.ok()?.file_name().to_string_lossy().into_owned())).max().unwrap_or(0)
    };
    while newest() < step {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ranks that save after every step, killed whenever it comes: first one of them, then all.
#[test]
fn killed_ranks_leave_checkpoints_that_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("runs/a");
    let sets = ["train.name=a", "checkpoint.every=1", "checkpoint.resume=true"];
    for (round, victims) in [(1, 1), (2, 2)] {
        let mut command = launcher(2, folder.path());
        let child = under_way(&mut command, &run, &sets);
        has_saved(&run.join("checkpoints"), 5 * round);
        for victim in children(child.id()).into_iter().take(victims) {
            send("KILL", victim);
        }
        assert_ne!(finish(child).code, 0);
        alone(folder.path(), &["checkpoint", "verify", "runs/a"]).success();
    }
    let newest = checkpoint::open(&run, Verify::Checksums).unwrap().manifest().about.step;
    let steps = format!("train.steps={}", newest + 2);
    train(folder.path(), &[&sets[..], &[&steps]].concat()).success();
    assert_eq!(checkpoint::open(&run, Verify::Checksums).unwrap().manifest().about.step, newest + 2);
}

#[test]
fn models_go_out_and_come_in_again() {
    let folder = two_checkpoints();
    let there = |words: &[&str]| alone(folder.path(), words);
    let ended = there(&["checkpoint", "export", "runs/a", "--out", "out", "--shard-bytes", "9000", "--json"]).success();
    let export: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(export["model_type"], "llama");
    assert!(export["files"].as_array().unwrap().len() > 1, "{export}");
    there(&["checkpoint", "export", "runs/a", "--out", "out"]).input_error();

    there(&["checkpoint", "import", "out", "--out", "runs/b"]).success();
    let name = "layers.0.mlp.gate.weight";
    let [before, after] = [step("a", 2), step("b", 0)].map(|path| values(&folder.path().join(path), name));
    assert_eq!(before, after);
    assert!(there(&["checkpoint", "import", "out", "--out", "runs/b"]).input_error().contains("exists"));

    train(folder.path(), &["train.name=c", "model.from=out"]).success();
    train(folder.path(), &["train.name=d", "model.from=runs/b"]).success();
    let ended = there(&["train", "--set", "model.from=out", "--set", "model.hidden=64"]);
    assert!(ended.input_error().contains("its `model.hidden` is 16, not 64"), "{ended:#?}");
}

#[test]
fn adapters_go_out_and_come_in_again() {
    let folder = two_checkpoints();
    let there = |words: &[&str]| alone(folder.path(), words);
    train(folder.path(), &["train.name=on", "model.from=runs/a", "lora.rank=2", "optimizer.lr=0.1"]).success();
    let out = ["checkpoint", "export", "runs/on", "--out", "out"];
    assert!(there(&out).input_error().contains("say `--merged` to fold them"));
    let with = |more: &[&'static str]| [&out[..], more].concat();
    assert!(there(&with(&["--adapter"])).input_error().contains("name it as `--base DIR`"));
    assert_eq!(there(&with(&["--adapter", "--merged"])).code, 2);
    let plain = there(&["checkpoint", "export", "runs/a", "--out", "base", "--base", "x"]);
    assert!(plain.input_error().contains("`--base` is x, but goes with --merged or --adapter"), "{plain:#?}");
    there(&["checkpoint", "export", "runs/a", "--out", "base"]).success();
    there(&with(&["--adapter", "--base", "base"])).success();
    there(&["checkpoint", "export", "runs/on", "--out", "merged", "--merged"]).success();
    there(&["checkpoint", "import", "out", "--out", "runs/in"]).success();

    let write = |from: &str| {
        let set = format!("model.from={from}");
        let words = ["generate", "--set", &set, "--prompt", "The ", "--max-new-tokens", "12", "--temperature", "0"];
        there(&words).success().out
    };
    let expected = write("runs/on");
    assert_ne!(expected, write("runs/a"), "the adapters change nothing");
    for from in ["out", "merged", "runs/in"] {
        assert_eq!(write(from), expected, "{from}");
    }
    fs::rename(folder.path().join("base"), folder.path().join("moved")).unwrap();
    let gone = there(&["checkpoint", "import", "out", "--out", "runs/again"]);
    assert!(gone.input_error().contains("stand on the model `base`, which is no folder here"), "{gone:#?}");
    there(&["checkpoint", "import", "out", "--out", "runs/again", "--base", "moved"]).success();

    // A run goes on where its model has moved, and on that model alone.
    fs::rename(folder.path().join("runs/a"), folder.path().join("runs/a-moved")).unwrap();
    let on = |base: &str| train(folder.path(), &["train.name=on", "checkpoint.resume=true", "train.steps=3", base]);
    on("model.base=runs/on").input_error();
    assert!(on("model.base=runs/a-moved").success().out.contains("continues after step 2"));
}

#[test]
fn the_chapter_on_moving_models_works_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let said = chapter("huggingface.md", folder.path());
    assert!(said.contains("small: llama in model.safetensors") && said.contains("done: "), "{said}");
    for run in ["imported", "from-peft"] {
        let manifest = format!("runs/{run}/checkpoints/step-00000000/manifest.json");
        assert!(folder.path().join(manifest).is_file());
    }
}

#[test]
fn the_chapter_on_checkpoints_works_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let said = chapter("checkpoints.md", folder.path());
    assert!(said.contains("60 steps read samples 0 to 959"), "{said}");
    assert!(folder.path().join("runs/mean/checkpoints").is_dir());
}

/// Thirty steps, of which every leg is another program on other ranks.
#[test]
fn a_run_that_mpirun_starts_four_times_ends_where_one_rank_does() {
    let folder = tempfile::tempdir().unwrap();
    let same = [
        "train.precision=fp64",
        "model.layers=4",
        "train.global_batch=12",
        "optimizer.schedule=constant",
        "optimizer.warmup=5",
    ];
    train(folder.path(), &[&same[..], &["train.name=whole", "train.steps=30"]].concat()).success();
    let legs: [(usize, &[&str]); 4] = [
        (4, &["train.steps=7", "parallel.tp=2", "parallel.pp=2", "parallel.schedule=zb-h1"]),
        (3, &["train.steps=15", "parallel.tp=1", "parallel.dp=3", "parallel.zero=3"]),
        (1, &["train.steps=22"]),
        (6, &["train.steps=30", "parallel.tp=2", "parallel.dp=3", "parallel.zero=1"]),
    ];
    for (count, sets) in legs {
        let sets = with_sets("train", &[TINY, &same, &["train.name=cut", "checkpoint.resume=true"], sets]);
        ranks(count, folder.path(), &sets).success();
    }
    let [whole, cut] = ["whole", "cut"].map(|name| losses(&folder.path().join("runs").join(name)));
    assert_eq!(cut.len(), 30);
    for (got, expected) in cut.iter().zip(&whole) {
        assert!(got.0 == expected.0 && (got.1 - expected.1).abs() <= 1e-9 * expected.1, "{got:?} {expected:?}");
    }
    alone(folder.path(), &["data", "audit", "runs/cut"]).success();
}
