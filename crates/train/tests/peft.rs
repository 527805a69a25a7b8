//! Adapters as PEFT saves them against what PEFT computes: in at any layout, through a run folder, out again alone and folded
//! in.

mod published;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use mp_comm::{threads, Communicator};
use mp_model::Pass;
use mp_runtime::{bytes, Device, Kind, Tensor};
use mp_train::assemble::Allocated;
use mp_train::checkpoint::Verify;
use mp_train::huggingface::{export, export_adapter, export_merged, import, Adapter, Folder};
use mp_train::layout::Layout;
use mp_train::pipeline::forward_only;
use mp_train::weights;
use mp_train::{run, Config, Result};
use rstest::rstest;
use safetensors::tensor::TensorView;
use safetensors::SafeTensors;
use serde_json::{json, Value};
use tempfile::{tempdir, TempDir};

use published::{fixture, python, Golden};

const NAMES: [&str; 4] = ["adapter_gpt2", "adapter_llama3", "adapter_qwen2", "adapter_bert"];

/// The assignments that go on with the adapters of a folder.
fn kept(from: &Path) -> Vec<String> {
    let source = weights::open(from, None, Verify::Checksums).unwrap();
    let lora = source.adapters().unwrap().lora.clone();
    vec![
        format!("lora.rank={}", lora.rank),
        format!("lora.alpha={:?}", lora.alpha),
        format!("lora.targets={}", json!(lora.targets)),
    ]
}

fn config(from: &Path, sets: &[&str], more: &[String]) -> Config {
    let more = more.iter().map(String::as_str);
    published::config(from, &sets.iter().copied().chain(more).collect::<Vec<_>>())
}

/// Computes the largest difference of logits from a fixture's: with adapters beside their matrices, and folded in.
fn differences(from: &Path, name: &str, layout: [usize; 2]) -> [f64; 2] {
    let kept = kept(from);
    let beside = || weights::open(from, None, Verify::Checksums);
    let merged = || weights::open_merged(from, None, Verify::Checksums);
    [
        published::difference(&|sets| config(from, sets, &kept), &beside, name, layout),
        published::difference(&|sets| config(from, sets, &[]), &merged, name, layout),
    ]
}

#[rstest]
fn logits_are_those_of_peft(#[values([1, 1], [2, 1], [4, 1], [1, 2], [2, 2])] layout: [usize; 2]) {
    for name in NAMES {
        let [beside, merged] = differences(&fixture(name), name, layout);
        assert!(beside <= 1e-5 && merged <= 1e-5, "{name} differs by {beside:e}, merged by {merged:e}");
    }
}

#[test]
fn adapters_that_change_nothing_would_show() {
    for name in NAMES {
        let base = fixture(name.strip_prefix("adapter_").unwrap());
        let open = || weights::open(&base, None, Verify::Checksums);
        let far = published::difference(&|sets| config(&base, sets, &[]), &open, name, [1, 1]);
        assert!(far > 1e-3, "{name}: {far:e}");
    }
}

/// Takes a fixture's adapters into a run folder.
fn imported(name: &str, folder: &Path) -> PathBuf {
    let run = folder.join(format!("run-{name}"));
    import(&config(&fixture(name), &["model.dropout=0"], &[]), &run).unwrap();
    run
}

#[test]
fn what_went_through_a_run_folder_is_the_same() {
    let folder = tempdir().unwrap();
    for name in NAMES {
        let run = imported(name, folder.path());
        let (alone, merged) = (folder.path().join(name), folder.path().join(format!("merged-{name}")));
        export_adapter(&run, None, &alone).unwrap();
        export_merged(&run, None, &merged, 1 << 20, &|_| ()).unwrap();
        for at in [&run, &alone] {
            let [beside, folded] = differences(at, name, [1, 1]);
            assert!(beside <= 1e-5 && folded <= 1e-5, "{name} differs by {beside:e}, merged by {folded:e}");
        }
        let open = || weights::open(&merged, None, Verify::Checksums);
        let worst = published::difference(&|sets| config(&merged, sets, &[]), &open, name, [1, 1]);
        assert!(worst <= 1e-5, "{name} differs by {worst:e} as a merged folder");
        // Out and in again each element is the same, and so is what is said of them.
        let [before, after] = [&run, &alone].map(|at| weights::open(at, None, Verify::Checksums).unwrap());
        let (mut said, mut says) = (before.adapters().unwrap().lora.clone(), after.adapters().unwrap().lora.clone());
        assert!(said.computes_as(&says), "{said:?} and {says:?}");
        (said.alpha, says.alpha) = (0.0, 0.0);
        assert_eq!(said, says);
        for parameter in before.names() {
            let entry = before.entry(&parameter).unwrap();
            let whole: Vec<_> = entry.shape.iter().map(|&n| 0..n).collect();
            assert_eq!(after.entry(&parameter), Some(entry), "{name}");
            let [a, b] = [&before, &after].map(|source| source.read(&parameter, &whole).unwrap());
            assert!(a == b, "{name}: {parameter}");
        }
    }
}

#[test]
fn adapters_of_whole_modules_go_out_as_peft_wrote_them() {
    let folder = tempdir().unwrap();
    for name in ["adapter_llama3", "adapter_qwen2", "adapter_bert"] {
        let run = imported(name, folder.path());
        let out = folder.path().join(name);
        export_adapter(&run, None, &out).unwrap();
        let [own, written] =
            [fixture(name), out].map(|folder| fs::read(folder.join("adapter_model.safetensors")).unwrap());
        let [own, written] = [&own, &written].map(|file| SafeTensors::deserialize(file).unwrap());
        let sorted = |file: &SafeTensors<'_>| {
            let mut names: Vec<String> = file.names().into_iter().map(|name| name.to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(sorted(&written), sorted(&own), "{name}");
        for tensor in sorted(&own) {
            let [a, b] = [&own, &written].map(|file| file.tensor(&tensor).unwrap());
            assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()), "{name}: {tensor}");
            assert!(a.data() == b.data(), "{name}: {tensor}");
        }
    }
}

#[test]
fn of_dropout_an_exports_configuration_decides_though_it_was_edited() {
    let folder = tempdir().unwrap();
    let (run, out) = (imported("adapter_gpt2", folder.path()), folder.path().join("out"));
    export_adapter(&run, None, &out).unwrap();
    let before = Adapter::open(&out, None).unwrap().lora().clone();
    with_key(&out, "lora_dropout", json!(0.375));
    let after = Adapter::open(&out, None).unwrap().lora().clone();
    assert_eq!(after, mp_plan::LoraConfig { dropout: 0.375, ..before });
}

#[test]
fn a_note_of_ranks_that_cannot_be_is_passed_over() {
    let said = Adapter::open(&fixture("adapter_gpt2"), None).unwrap().lora().clone();
    let (_parent, folder) = changed("adapter_gpt2", |_| ());
    let path = folder.join("adapter_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let note = json!({ "rank": 1u64 << 63, "alpha": 6.0, "dropout": 0.0, "targets": said.targets });
    let notes = [("mp_lora".to_string(), note.to_string())].into();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    fs::write(&path, safetensors::serialize(tensors, Some(notes)).unwrap()).unwrap();
    assert_eq!(Adapter::open(&folder, None).unwrap().lora(), &said);
}

#[test]
fn adapters_with_a_tokenizer_do_not_hide_what_their_models_folder_says() {
    let parent = tempdir().unwrap();
    let [base, adapters] = ["base", "adapters"].map(|name| parent.path().join(name));
    for (from, into) in [(fixture("gpt2"), &base), (fixture("adapter_gpt2"), &adapters)] {
        fs::create_dir(into).unwrap();
        for file in fs::read_dir(from).unwrap().map(|file| file.unwrap().path()).filter(|file| file.is_file()) {
            fs::copy(&file, into.join(file.file_name().unwrap())).unwrap();
        }
    }
    with_key(&adapters, "base_model_name_or_path", json!(base.to_string_lossy()));
    let tokenizer = r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}"#;
    fs::write(adapters.join("tokenizer.json"), tokenizer).unwrap();
    fs::write(base.join("generation_config.json"), r#"{"eos_token_id": [5, 7], "bos_token_id": 3}"#).unwrap();
    let config = published::config(&adapters, &["model.dropout=0"]);
    assert_eq!(config.data.tokenizer, adapters.join("tokenizer.json").to_string_lossy());
    assert_eq!(mp_train::generate::ends(&config, &config.data.open_tokenizer().unwrap()), [5, 7]);
    let run = parent.path().join("run");
    import(&config, &run).unwrap();
    let marks: Value = serde_json::from_slice(&fs::read(run.join("generation_config.json")).unwrap()).unwrap();
    assert_eq!((&marks["eos_token_id"], &marks["bos_token_id"]), (&json!([5, 7]), &json!(3)));
}

fn train(ranks: usize, config: &Config) -> mp_train::records::Report {
    let one = |world| run::train(config, world, Device::Cpu, &AtomicBool::new(false), &mut ());
    threads::run(ranks, one).remove(0)
}

/// Trains adapters on a fixture for three steps.
fn trained(base: &str, targets: &str, folder: &Path) -> PathBuf {
    let sets = [
        format!("train.out={}", folder.display()),
        format!("train.name=run-{base}-{}", targets.len()),
        format!("lora.targets={targets}"),
    ];
    let more =
        ["model.dropout=0", "model.vocab=37", "lora.rank=3", "lora.alpha=5", "train.steps=3", "optimizer.lr=0.05"];
    let more =
        [&more[..], &["eval.every=0", "data.path=text", "data.tokenizer=tokenizer.json", "data.validation=0"]].concat();
    let tokenizer = folder.join("tokenizer.json");
    let vocab: serde_json::Map<String, Value> =
        // Three ids are left for what masks.
        (0..34u8).map(|id| (char::from(b'A' + id).to_string(), id.into())).collect();
    let model = json!({ "type": "BPE", "vocab": vocab, "merges": [] });
    fs::write(&tokenizer, json!({ "version": "1.0", "added_tokens": [], "model": model }).to_string()).unwrap();
    let text: String = (0..400u32).map(|at| char::from(b'A' + (at * at % 23) as u8)).collect();
    fs::write(folder.join("text"), text).unwrap();
    let more: Vec<String> = more
        .into_iter()
        .map(|set| match set.split_once('=') {
            Some((key @ ("data.path" | "data.tokenizer"), file)) => format!("{key}={}", folder.join(file).display()),
            _ => set.to_string(),
        })
        .collect();
    let config = config(&fixture(base), &[], &[&sets[..], &more].concat());
    train(1, &config).run_dir
}

/// Writes the inputs of a fixture with the logits that a run computes in fp64, as a fixture has them.
fn golden(run: &Path, base: &str, file: &Path) {
    let sets = [kept(run), vec!["train.precision=fp64".into()]].concat();
    let config = config(run, &[], &sets);
    let tokens = Golden::of(base).tensor("input_ids", Kind::Int64).unwrap();
    let world: Arc<dyn Communicator> = Arc::new(mp_comm::solo::Solo::new("world"));
    let logits = || -> Result<Option<Tensor>> {
        let layout = Layout::new(&config, 0, world.size())?;
        let groups = layout.groups(&world)?;
        let trainer = Allocated::new(&config, &layout, &groups, Device::Cpu)?.trainer(&config, &layout, groups)?;
        weights::load(trainer.parameters(), &*weights::open(run, None, Verify::Checksums)?)?;
        let shape = trainer.assembled().activation_shape(2, 12);
        let pass = Pass::evaluation(&tokens);
        forward_only(trainer.line(), trainer.model(), &pass, shape, |last, hidden| last.logits(hidden))
    };
    let logits = logits().unwrap().unwrap().to_kind(Kind::Float).contiguous();
    let shape: Vec<usize> = logits.size().iter().map(|&n| n as usize).collect();
    let (ids, logits) = (bytes::view(&tokens).unwrap(), bytes::view(&logits).unwrap());
    let tensors = [
        ("input_ids", TensorView::new(safetensors::Dtype::I64, vec![2, 12], ids).unwrap()),
        ("logits", TensorView::new(safetensors::Dtype::F32, shape, logits).unwrap()),
    ];
    fs::write(file, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

/// Adapters that PEFT has no such form for, trained a little: of parts of a fused module, of those with others of another rank
/// in PEFT's eyes, and beside one of two modules whose names end alike.
const TRAINED: [(&str, &str); 6] = [
    ("gpt2", "['attention.query']"),
    ("gpt2", "['attention.query', 'attention.value']"),
    ("gpt2", "['attention.key', 'attention.query', 'attention.value', 'mlp.up', 'attention.output']"),
    ("bert", "['mlp.down', 'attention.value']"),
    ("llama3", "['attention.key', 'mlp.gate', 'mlp.down']"),
    ("mistral", "['attention.query', 'attention.value']"),
];

/// Runs a script over folders and the logits that they must give.
fn check(python: &Path, script: &str, pairs: &[(PathBuf, PathBuf)]) {
    let mut check = Command::new(python);
    check.arg(fixture(script)).env("HF_HUB_OFFLINE", "1");
    for (folder, golden) in pairs {
        check.arg(folder).arg(golden);
    }
    let output = check.output().unwrap();
    let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{}", told.concat());
    assert_eq!(told[0].matches(": the same").count(), pairs.len(), "{}", told.concat());
}

#[test]
fn peft_and_transformers_compute_the_same_of_what_is_exported() {
    let Some(python) = python("import peft, transformers, torch") else {
        eprintln!("not run: no Python here imports peft and transformers; name one as MP_BENCH_PYTHON");
        return;
    };
    let folder = tempdir().unwrap();
    let mut runs = Vec::new();
    for name in NAMES {
        runs.push((imported(name, folder.path()), fixture(name).join("golden.safetensors")));
    }
    for (index, (base, targets)) in TRAINED.into_iter().enumerate() {
        let run = trained(base, targets, folder.path());
        let file = folder.path().join(format!("golden-{index}.safetensors"));
        golden(&run, base, &file);
        runs.push((run, file));
    }
    let (mut alone, mut merged) = (Vec::new(), Vec::new());
    for (index, (run, golden)) in runs.into_iter().enumerate() {
        let at = |what: &str| folder.path().join(format!("{what}-{index}"));
        export_adapter(&run, None, &at("adapter")).unwrap();
        export_merged(&run, None, &at("merged"), 1 << 20, &|_| ()).unwrap();
        alone.push((at("adapter"), golden.clone()));
        merged.push((at("merged"), golden));
    }
    check(&python, "check_adapter.py", &alone);
    check(&python, "check.py", &merged);
}

#[test]
fn adapters_of_parts_of_a_module_come_back_as_they_were() {
    let folder = tempdir().unwrap();
    for (index, (base, targets)) in TRAINED.into_iter().enumerate() {
        let run = trained(base, targets, folder.path());
        let out = folder.path().join(format!("out-{index}"));
        export_adapter(&run, None, &out).unwrap();
        let [before, after] = [&run, &out].map(|at| weights::open(at, None, Verify::Checksums).unwrap());
        let [said, says] = [&before, &after].map(|source| source.adapters().unwrap().lora.clone());
        assert_eq!(said, says);
        for parameter in before.names() {
            let whole: Vec<_> = before.entry(&parameter).unwrap().shape.iter().map(|&n| 0..n).collect();
            let [a, b] = [&before, &after].map(|source| source.read(&parameter, &whole).unwrap());
            assert!(a == b, "{targets}: {parameter}");
        }
    }
}

/// Makes a folder with the files of a fixture, beside its model, changed.
fn changed(name: &str, change: impl FnOnce(&Path)) -> (TempDir, PathBuf) {
    let parent = tempdir().unwrap();
    let folder = parent.path().join(name);
    fs::create_dir(&folder).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(fixture(name).join(file), folder.join(file)).unwrap();
    }
    let base = fixture(name.strip_prefix("adapter_").unwrap());
    with_key(&folder, "base_model_name_or_path", json!(base.to_string_lossy()));
    change(&folder);
    (parent, folder)
}

fn with_key(folder: &Path, key: &str, value: Value) {
    let file = folder.join("adapter_config.json");
    let mut keys: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    keys[key] = value;
    fs::write(file, keys.to_string()).unwrap();
}

/// Writes a file's tensors anew, under other names or with other shapes.
fn with_tensors(folder: &Path, change: impl Fn(&str, Vec<usize>) -> Option<(String, Vec<usize>)>) {
    let path = folder.join("adapter_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let held = SafeTensors::deserialize(&bytes).unwrap();
    let changed = held.tensors().into_iter().filter_map(|(name, view)| {
        let (name, shape) = change(&name, view.shape().to_vec())?;
        Some((name, TensorView::new(view.dtype(), shape, view.data()).unwrap()))
    });
    let written = safetensors::serialize(changed.collect::<Vec<_>>(), None).unwrap();
    fs::write(path, written).unwrap();
}

fn refused(change: impl FnOnce(&Path)) -> String {
    let (_parent, folder) = changed("adapter_gpt2", change);
    let error = weights::open(&folder, None, Verify::Checksums).unwrap_err();
    assert!(error.is_input(), "{error}");
    error.to_string()
}

#[rstest]
#[case("peft_type", json!("IA3"), "only \"LORA\" is computed")]
#[case("use_dora", json!(true), "`use_dora` = true, but that is not computed")]
#[case("bias", json!("lora_only"), "only \"none\" is computed")]
#[case("lora_bias", json!(true), "`lora_bias` = true")]
#[case("modules_to_save", json!(["lm_head"]), "`modules_to_save` = [\"lm_head\"]")]
#[case("rank_pattern", json!({"c_fc": 4}), "`rank_pattern` = {\"c_fc\":4}, but one rank")]
#[case("alpha_pattern", json!({"c_fc": 4}), "`alpha_pattern`")]
#[case("layers_to_transform", json!([0]), "`layers_to_transform` = [0]")]
#[case("init_lora_weights", json!("pissa"), "`init_lora_weights` = \"pissa\"")]
#[case("task_type", json!("SEQ_CLS"), "`task_type` = \"SEQ_CLS\"")]
#[case("target_modules", json!([]), "at least one module's name")]
#[case("target_modules", json!(".*c_attn"), "patterns are not read")]
#[case("target_modules", json!(["q_proj"]), "the model has no module `q_proj`; adapters are computed beside `attn.c_attn`")]
#[case("target_modules", json!(["c_attn", "wte"]), "`wte` selects `transformer.wte`")]
#[case("target_modules", json!(["h.0.attn.c_attn"]), "`transformer.h.0.attn.c_attn` and not `transformer.h.1.attn.c_attn`")]
#[case("target_modules", json!(["c_attn"]), "`target_modules` selects no module of the model that it belongs to")]
#[case("r", json!(0), "`r` = 0, but it must be a whole number above 0")]
#[case("r", json!(3), "has shape [2, 16] where the model and `adapter_config.json` make it [3, 16]")]
#[case("lora_alpha", json!(-1), "it must be a finite number above 0")]
#[case("lora_dropout", json!(1), "`lora_dropout` = 1")]
#[case("a_new_key", json!("x"), "`a_new_key` = \"x\", and what that changes")]
#[case("base_model_name_or_path", json!("gpt2-xl"), "stand on the model `gpt2-xl`, which is no folder here")]
#[case("base_model_name_or_path", json!(""), "on a model that lies in no folder known here; name its folder as `model.base`")]
#[case("base_model_name_or_path", json!(null), "on a model that lies in no folder known here; name its folder as `model.base`")]
fn what_is_not_computed_is_refused_by_name(#[case] key: &str, #[case] value: Value, #[case] shown: &str) {
    let told = refused(|folder| with_key(folder, key, value));
    assert!(told.contains(shown), "{told}");
}

#[test]
fn folders_that_are_not_whole_are_refused() {
    let pickled = refused(|folder| {
        fs::rename(folder.join("adapter_model.safetensors"), folder.join("adapter_model.bin")).unwrap();
    });
    assert!(pickled.contains("pickled adapters are not read"), "{pickled}");
    let both = refused(|folder| fs::write(folder.join("model.safetensors"), "").unwrap());
    assert!(both.contains("holds both a model and adapters"), "{both}");
    let cut = refused(|folder| {
        let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
        fs::write(folder.join("adapter_model.safetensors"), &bytes[..bytes.len() - 4]).unwrap();
    });
    assert!(cut.contains("`adapter_model.safetensors` is no safetensors file"), "{cut}");
    let first = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight";
    let missing = refused(|folder| with_tensors(folder, |name, shape| (name != first).then(|| (name.into(), shape))));
    assert!(missing.contains(&format!("`adapter_model.safetensors`: there is no tensor `{first}`")), "{missing}");
    let renamed = |to: &'static str| {
        refused(move |folder| {
            with_tensors(folder, |name, shape| Some((if name == first { to } else { name }.to_string(), shape)));
        })
    };
    for (name, rule) in [
        ("base_model.model.transformer.wte.lora_embedding_A", "not beside embeddings"),
        ("base_model.model.transformer.h.0.attn.c_attn.lora_magnitude_vector.weight", "keep their magnitudes"),
        ("base_model.model.lm_head.lora_A.weight", "selects no module"),
    ] {
        let told = renamed(name);
        assert!(told.contains(&format!("the tensor `{name}`")) && told.contains(rule), "{told}");
    }
    let turned = refused(|folder| {
        with_tensors(folder, |name, mut shape| {
            if name == first {
                shape.reverse();
            }
            Some((name.into(), shape))
        });
    });
    assert!(turned.contains(&format!("`{first}` has shape [16, 2] where")), "{turned}");
}

#[test]
fn another_model_may_be_named_and_must_fit() {
    let (_parent, folder) =
        changed("adapter_gpt2", |folder| with_key(folder, "base_model_name_or_path", json!("gone")));
    let at = |base: &str| weights::open(&folder, Some(&fixture(base)), Verify::Checksums);
    assert_eq!(at("gpt2").unwrap().adapters().unwrap().base, fixture("gpt2"));
    let narrow = at("gpt2_odd").unwrap_err().to_string();
    assert!(narrow.contains("make it [2, 12]"), "{narrow}");
    let itself = at("adapter_gpt2").unwrap_err().to_string();
    let other = format!("`{}` cannot be used: it holds adapters itself", fixture("adapter_gpt2").display());
    assert!(itself.contains(&other) && !itself.contains("model.from"), "{itself}");
    // Names of a bare model.
    let bare = "base_model.model.";
    let (_parent, folder) = changed("adapter_gpt2", |folder| {
        with_tensors(folder, |name, shape| Some((name.replace(&format!("{bare}transformer."), bare), shape)));
    });
    let [beside, merged] = differences(&folder, "adapter_gpt2", [1, 1]);
    assert!(beside <= 1e-5 && merged <= 1e-5);
}

#[test]
fn a_relative_model_is_found_beside_the_adapters() {
    assert_eq!(Adapter::open(&fixture("adapter_bert"), None).unwrap().base(), fixture("adapter_bert/../bert"));
}

#[test]
fn exports_that_cannot_be_are_refused() {
    let folder = tempdir().unwrap();
    let run = imported("adapter_gpt2", folder.path());
    let plain = folder.path().join("plain");
    import(&published::config(&fixture("gpt2"), &[]), &plain).unwrap();
    let out = folder.path().join("out");
    let told = |error: Result<mp_train::huggingface::Export>| {
        let error = error.unwrap_err();
        assert!(error.is_input() && !out.exists(), "{error}");
        error.to_string()
    };
    assert!(told(export(&run, &out, 1 << 20, &|_| ())).contains("say `--merged`"));
    assert!(told(export_merged(&plain, None, &out, 1 << 20, &|_| ())).contains("leave `--merged` out"));
    assert!(told(export_adapter(&plain, None, &out)).contains("leave `--adapter` out"));
    // A run as the model under adapters is not what PEFT loads.
    let (_parent, adapters) =
        changed("adapter_gpt2", |folder| with_key(folder, "base_model_name_or_path", json!(plain.to_string_lossy())));
    let on_run = folder.path().join("on-run");
    import(&config(&adapters, &["model.dropout=0"], &[]), &on_run).unwrap();
    assert!(told(export_adapter(&on_run, None, &out)).contains("name it as `--base DIR`"));
    export_adapter(&on_run, Some("some/name"), &out).unwrap();
    let keys: Value = serde_json::from_slice(&fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&keys["base_model_name_or_path"], &keys["fan_in_fan_out"]), (&json!("some/name"), &json!(true)));
    assert!(export_adapter(&on_run, Some("some/name"), &out).unwrap_err().to_string().contains("it exists"));
    assert!(Folder::is(&fixture("gpt2")));
}
