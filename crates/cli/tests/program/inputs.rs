//! Input that cannot serve: exit code 2, one message that names what is wrong and the way out, nothing left behind.

use std::fs;
use std::path::Path;

use crate::common::{alone, train};

/// Refuses to train, and returns the message.
fn refused(folder: &Path, sets: &[&str]) -> String {
    let ended = train(folder, sets);
    assert!(!folder.join("runs").exists(), "a run folder was left: {ended:#?}");
    ended.input_error().to_string()
}

#[test]
fn configurations_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |sets: &[&str]| refused(folder.path(), sets);
    assert!(refused(&["train.step=3"]).contains("did you mean `train.steps`?"));
    assert!(refused(&["optimiser.lr=3"]).contains("did you mean `optimizer`?"));
    assert!(refused(&["train.steps=many"]).contains("`train.steps` is \"many\", but must be a whole number"));
    assert!(refused(&["train.precision=fp16"]).contains("one of \"fp32\", \"bf16\", \"fp64\""));
    assert!(refused(&["optimizer.lr=-1"]).contains("`optimizer.lr` is -1"));
    assert!(refused(&["steps"]).contains("write it as `section.key=value`"));
    let ended = alone(folder.path(), &["train", "--preset", "shakespere"]);
    assert!(ended.input_error().contains("did you mean `shakespeare`?"));
    let ended = alone(folder.path(), &["train", "--config", "none.toml"]);
    assert!(ended.input_error().contains("`none.toml` cannot be read"));
    fs::write(folder.path().join("bad.toml"), "[train\n").unwrap();
    let ended = alone(folder.path(), &["train", "--config", "bad.toml"]);
    assert!(ended.input_error().contains("`bad.toml` is not valid TOML: line 1"));
}

#[test]
fn arguments_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    alone(folder.path(), &["trian"]).input_error();
    alone(folder.path(), &["train", "--stes", "3"]).input_error();
    let ended = alone(folder.path(), &["train", "--log", "loud"]);
    assert!(ended.input_error().contains("write one of off, error, warn, info, debug, trace"), "{ended:#?}");
    let ended = alone(folder.path(), &["plan", "--ranks", "-1"]);
    assert!(
        ended.input_error().contains("invalid value '-1' for '--ranks <N>': must be a whole number from 1"),
        "{ended:#?}"
    );
    let help = alone(folder.path(), &["--help"]).success();
    assert!(help.out.contains("mpirun -n 4 mp-cli train"));
}

#[test]
fn layouts_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |sets: &[&str]| refused(folder.path(), sets);
    refused(&["parallel.tp=2"]);
    refused(&["model.heads=3"]);
    refused(&["parallel.micro_batch=3"]);
    refused(&["model.max_seq=8"]);
    for set in ["schedule=zb-v", "chunks=2", "context=all-to-all", "sequence_parallel=true", "recompute=selective"] {
        let message = refused(&[&format!("parallel.{set}")]);
        let (key, value) = set.split_once('=').unwrap();
        assert!(message.contains(&format!("parallel.{key} {value} changes nothing: ")), "{message}");
        let ended = alone(folder.path(), &["plan", "--set", &format!("parallel.{set}")]);
        assert!(ended.input_error().contains("changes nothing"), "{ended:#?}");
    }
}

#[test]
fn a_model_that_the_machine_has_no_room_for() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), &["train.global_batch=10000000000"]);
    let message = refused(folder.path(), &["model.hidden=1000000"]);
    assert!(message.contains(" GiB on this machine") && message.contains(" GiB are free"), "{message}");
}

#[test]
fn data_that_cannot_be_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        fs::write(folder.path().join(name), bytes).unwrap();
        format!("data.path={name}")
    };
    let refused = |set: &str| refused(folder.path(), &[set]);
    assert!(refused("data.path=none.txt").contains("none.txt"));
    assert!(refused("data.path=.").contains("is empty"));
    assert!(refused(&file("empty.txt", b"")).contains("is empty"));
    assert!(refused(&file("short.txt", b"too short")).contains("tokens"));
    assert!(refused(&file("binary.txt", b"text, then \xff")).contains("byte 11 is 0xff"));
    assert!(refused("data.tokenizer=none.json").contains("none.json"));
    assert!(refused("data.validation=none.txt").contains("none.txt"));
}

#[test]
fn ids_beyond_the_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let message = refused(folder.path(), &["model.vocab=100"]);
    assert!(message.contains("model.vocab") && message.contains("100"), "{message}");
}

#[test]
fn folders_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "in the way").unwrap();
    assert!(refused(folder.path(), &["train.out=file/runs"]).contains("cannot be written"));
    let ended = alone(folder.path(), &["train", "--json", "file/a.json"]);
    assert!(ended.input_error().contains("`--json`"));
    let ended = alone(folder.path(), &["train", "--log-dir", "file/logs"]);
    assert!(ended.input_error().contains("`--log-dir`"));
    let ended = alone(folder.path(), &["train", "--trace", "file/traces"]);
    assert!(ended.input_error().contains("`--trace`"));
    let ended = alone(folder.path(), &["plan", "--out", "file/plans"]);
    assert!(ended.input_error().contains("`--out`"));
    assert_eq!(ended.out, "", "the table was printed all the same");
}

#[test]
fn a_device_that_is_not_there() {
    if Path::new("/dev/nvidiactl").exists() {
        eprintln!("skipped: this machine has a GPU");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let refused = |set: &str| refused(folder.path(), &[set]);
    assert!(refused("train.device=cuda").contains("set it to \"cpu\" or \"auto\""));
    assert!(refused("train.tf32=true").contains("`train.tf32` is true, but it is about products of a CUDA device"));
    assert!(refused("train.deterministic=true").contains("leave it out, or set train.device=cuda"));
    for transport in ["nccl", "staged"] {
        let message = refused(&format!("parallel.transport={transport}"));
        assert!(message.contains("tensors lie on the host: set train.device=cuda"), "{message}");
    }
    let ended = alone(folder.path(), &["verify", "--set", "train.tf32=true"]);
    assert!(ended.input_error().contains("compared to the rounding of their precision"), "{ended:#?}");
    for command in [&["verify"][..], &["plan", "--measure", "m.toml"]] {
        let ended = alone(folder.path(), &[command, &["--set", "train.device=cuda"]].concat());
        assert!(ended.input_error().starts_with("error: `train.device` is \"cuda\", but"), "{ended:#?}");
    }
}
