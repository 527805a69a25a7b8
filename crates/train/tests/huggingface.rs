//! Published models against what transformers computes: in at any layout, through a run folder, and out again.

mod published;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use mp_comm::threads;
use mp_data::Tokenizer;
use mp_runtime::{Device, Kind};
use mp_train::checkpoint::Verify;
use mp_train::generate::{answer, Prompt, Sampling, Wish};
use mp_train::huggingface::{export, import, Folder};
use mp_train::inference::{Inference, Use};
use mp_train::weights::{self, WeightSource};
use mp_train::{run, Config, Error};
use rstest::rstest;
use safetensors::SafeTensors;
use tempfile::tempdir;

use published::{config, fixture, python, Golden};

/// The fixtures with as many heads as two and four ranks can share, and those with three.
const EVEN: [&str; 12] = [
    "gpt2",
    "gpt2_sharded",
    "llama",
    "llama_tied_linear",
    "llama3",
    "llama_bias",
    "llama_mlp_bias_bf16",
    "mistral",
    "mistral_fp16",
    "qwen2",
    "qwen2_window",
    "bert",
];
const ODD: [&str; 5] = ["gpt2_odd", "llama_odd", "mistral_odd", "qwen2_odd", "bert_odd"];

fn fixtures() -> Vec<&'static str> {
    EVEN.into_iter().chain(ODD).collect()
}

/// Computes the largest difference of a model's logits from a fixture's, under a layout.
fn difference(from: &Path, name: &str, layout: [usize; 2]) -> f64 {
    let open = || weights::open(from, None, Verify::Checksums);
    published::difference(&|layout| config(from, layout), &open, name, layout)
}

#[rstest]
fn logits_are_those_of_transformers(#[values([1, 1], [2, 1], [4, 1], [1, 2], [2, 2])] layout: [usize; 2]) {
    for name in EVEN {
        let worst = difference(&fixture(name), name, layout);
        assert!(worst <= 1e-5, "{name} differs by {worst:e}");
    }
}

#[rstest]
fn odd_heads_are_those_of_transformers(#[values([1, 1], [3, 1], [1, 2])] layout: [usize; 2]) {
    for name in ODD {
        let worst = difference(&fixture(name), name, layout);
        assert!(worst <= 1e-5, "{name} differs by {worst:e}");
    }
}

/// The fixtures that have `generation.safetensors`, and the tensor ranks that can share them.
const CONTINUED: [(&str, [usize; 2]); 3] = [("gpt2_odd", [1, 3]), ("llama3", [1, 2]), ("mistral", [1, 4])];

/// Reads rows of whole numbers from what `continue.py` wrote.
fn rows(golden: &Golden, name: &str) -> Vec<Vec<u32>> {
    let rows = Vec::<Vec<i64>>::try_from(golden.tensor(name, Kind::Int64).unwrap()).unwrap();
    rows.into_iter().map(|row| row.into_iter().map(|id| id as u32).collect()).collect()
}

fn numbers(golden: &Golden, name: &str) -> Vec<Vec<f64>> {
    let tensor = golden.tensor(name, Kind::Double).unwrap();
    Vec::try_from(tensor.view([-1, *tensor.size().last().unwrap()])).unwrap()
}

#[test]
fn texts_go_on_as_in_transformers() {
    for (name, degrees) in CONTINUED {
        let golden = Golden::at(&fixture(name).join("generation.safetensors"));
        // Bytes are ids here: those of a vocabulary of 37 are characters.
        let text = |ids: &Vec<u32>| ids.iter().map(|&id| char::from(id as u8)).collect::<String>();
        let prompt = |(number, ids)| Prompt::new(number, &text(ids), &Tokenizer::bytes(), 32).unwrap();
        let prompts: Vec<Prompt> = (0..).zip(&rows(&golden, "prompts")).map(prompt).collect();
        for (expected, repetition_penalty) in [("greedy", 1.0), ("penalized", 1.3)] {
            let sampling = Sampling { temperature: 0.0, repetition_penalty, ..Sampling::default() };
            let wish =
                Wish { sampling, max_new_tokens: 16, stops: Vec::new(), ends: Vec::new(), batch: 2, cached: true };
            for tp in degrees {
                let config = config(&fixture(name), &["train.precision=fp64", &format!("parallel.tp={tp}")]);
                let written = threads::run(tp, |world| {
                    let source = weights::open(&fixture(name), None, Verify::Checksums)?;
                    let inference = Inference::new(&config, 37, &*source, &world, Device::Cpu, Use::Writing)?;
                    answer(inference.assembled(), &Tokenizer::bytes(), &prompts, &wish, &mut |_, _| ())
                });
                let got: Vec<Vec<u32>> = written[0].iter().map(|written| written.tokens.clone()).collect();
                assert_eq!(got, rows(&golden, expected), "{name}: {expected} on {tp}");
            }
        }
    }
}

#[test]
fn rules_leave_of_scores_what_those_of_transformers_leave() {
    for (name, _) in CONTINUED {
        let golden = Golden::at(&fixture(name).join("generation.safetensors"));
        let (scores, prompt) = (numbers(&golden, "scores").remove(0), rows(&golden, "prompts").remove(0));
        let all = numbers(&golden, "probabilities");
        for (rule, expected) in numbers(&golden, "rules").iter().zip(&all) {
            let &[temperature, top_k, top_p, min_p, repetition_penalty] = &rule[..] else { unreachable!("five rules") };
            let sampling = Sampling { temperature, top_k: top_k as usize, top_p, min_p, repetition_penalty, seed: 1 };
            let weighed = sampling.weigh(scores.clone(), &prompt).unwrap();
            let kept: Vec<u32> = weighed.iter().map(|(id, _)| *id).collect();
            let theirs: Vec<u32> = (0..).zip(expected).filter(|(_, p)| **p > 0.0).map(|(id, _)| id).collect();
            assert_eq!(kept, theirs, "{name}: {sampling:?}");
            let sum: f64 = weighed.iter().map(|(_, weight)| weight).sum();
            for (id, weight) in weighed {
                let far = (weight / sum - expected[id as usize]).abs();
                assert!(far <= 1e-6, "{name}: {sampling:?}: {id} differs by {far:e}");
            }
        }
    }
}

/// Takes a fixture through a run folder, and writes it in small files.
fn there_and_back(name: &str, folder: &Path) -> PathBuf {
    let (run, out) = (folder.join(format!("run-{name}")), folder.join(name));
    import(&config(&fixture(name), &["model.dropout=0"]), &run).unwrap();
    export(&run, &out, 5000, &|_| ()).unwrap();
    out
}

#[test]
fn what_went_through_a_run_folder_is_the_same_model() {
    let folder = tempdir().unwrap();
    for name in fixtures() {
        let out = there_and_back(name, folder.path());
        let worst = difference(&folder.path().join(format!("run-{name}")), name, [1, 1]);
        assert!(worst <= 1e-5, "{name} differs by {worst:e} as a run folder");
        let (before, after) = (Folder::open(&fixture(name)).unwrap(), Folder::open(&out).unwrap());
        assert_eq!(before.names(), after.names());
        for parameter in before.names() {
            let entry = before.entry(&parameter).unwrap();
            let whole: Vec<_> = entry.shape.iter().map(|&n| 0..n).collect();
            assert_eq!(after.entry(&parameter), Some(entry), "{name}");
            let [a, b] = [&before, &after].map(|source| source.read(&parameter, &whole).unwrap());
            assert!(a == b, "{name}: {parameter}");
        }
        let dropless = |path: &Path| {
            let mut architecture = Folder::describe(path).unwrap().architecture;
            architecture.dropout = 0.0;
            architecture
        };
        assert_eq!(dropless(&fixture(name)), dropless(&out));
    }
}

#[test]
fn transformers_computes_the_same_of_what_is_exported() {
    let Some(python) = python("import transformers, torch") else {
        eprintln!("not run: no Python here imports transformers; name one as MP_BENCH_PYTHON");
        return;
    };
    let folder = tempdir().unwrap();
    let mut check = Command::new(python);
    check.arg(fixture("check.py"));
    for name in fixtures() {
        check.arg(there_and_back(name, folder.path())).arg(fixture(name).join("golden.safetensors"));
    }
    let output = check.output().unwrap();
    let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{}", told.concat());
    assert_eq!(told[0].matches(": the same").count(), fixtures().len(), "{}", told.concat());
}

#[test]
fn transformers_reads_the_tokenizer_of_bytes() {
    let Some(python) = python("import transformers") else {
        eprintln!("not run: no Python here imports transformers; name one as MP_BENCH_PYTHON");
        return;
    };
    let folder = tempdir().unwrap();
    let mut check = Command::new(python);
    check.arg(fixture("check_tokenizer.py"));
    // transformers takes a tokenizer of Qwen2's own for that family, whatever class is named.
    for (name, set) in [
        ("qwen2", "model.attention_bias=qkv"),
        ("llama", "model.attention_bias=none"),
        ("gpt2", "model.architecture=gpt2"),
    ] {
        let out = format!("train.out={}", folder.path().display());
        let sets = [&out, &format!("train.name={name}"), set, "model.hidden=16", "model.layers=1", "model.heads=2"];
        let more = ["train.steps=1", "train.seq=16", "train.global_batch=4", "eval.every=0", "model.dropout=0"];
        let all: Vec<String> = sets.into_iter().chain(more).map(String::from).collect();
        let run = train(1, &Config::load(None, None, &all).unwrap()).run_dir;
        let published = folder.path().join(format!("{name}-published"));
        assert_eq!(export(&run, &published, 1 << 30, &|_| ()).unwrap().model_type, name);
        check.arg(published);
    }
    let output = check.output().unwrap();
    let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success() && told[0].matches(": bytes").count() == 3, "{}", told.concat());
}

/// Makes a folder with the files of a fixture, changed.
fn changed(name: &str, change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let folder = tempdir().unwrap();
    for file in fs::read_dir(fixture(name)).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    change(folder.path());
    folder
}

fn refused(name: &str, change: impl FnOnce(&Path)) -> String {
    let error = Folder::open(changed(name, change).path()).unwrap_err();
    assert!(error.is_input(), "{error}");
    error.to_string()
}

#[test]
fn folders_that_are_not_whole_are_refused() {
    let pickled = refused("gpt2", |folder| {
        fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
    });
    assert!(pickled.contains("pickled weights are not read"), "{pickled}");
    let cut = refused("gpt2", |folder| {
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        fs::write(folder.join("model.safetensors"), &bytes[..bytes.len() - 4]).unwrap();
    });
    assert!(cut.contains("`model.safetensors`"), "{cut}");
    let index = "model.safetensors.index.json";
    let replaced = |from: &str, to: &str| {
        let (from, to) = (from.to_string(), to.to_string());
        refused("llama3", move |folder| {
            let text = fs::read_to_string(folder.join(index)).unwrap();
            assert!(text.contains(&from));
            fs::write(folder.join(index), text.replace(&from, &to)).unwrap();
        })
    };
    let elsewhere = replaced("\"model.norm.weight\"", "\"model.other.weight\"");
    assert!(elsewhere.contains("holds `model.norm.weight`, which"), "{elsewhere}");
    let outside = replaced("model-00001-of-", "../model-00001-of-");
    assert!(outside.contains("in \"../model-00001-of-00005.safetensors\""), "{outside}");
    let absent = refused("llama3", |folder| fs::remove_file(folder.join("model-00002-of-00005.safetensors")).unwrap());
    assert!(absent.contains("model-00002-of-00005.safetensors"), "{absent}");
}

/// Adds a tensor to a fixture's file.
fn with_tensor(folder: &Path, name: &str, dtype: safetensors::Dtype, shape: Vec<usize>, data: &[u8]) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let held = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = held.tensors();
    tensors.retain(|(known, _)| known != name);
    tensors.push((name.into(), safetensors::tensor::TensorView::new(dtype, shape, data).unwrap()));
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

#[test]
fn a_head_beside_a_tied_embedding_must_be_the_same() {
    let table = |folder: &Path| {
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        SafeTensors::deserialize(&bytes).unwrap().tensor("transformer.wte.weight").unwrap().data().to_vec()
    };
    let dtype = safetensors::Dtype::F32;
    let same = changed("gpt2", |folder| with_tensor(folder, "lm_head.weight", dtype, vec![37, 16], &table(folder)));
    Folder::open(same.path()).unwrap();
    let other = refused("gpt2", |folder| {
        let mut elements = table(folder);
        elements[0] ^= 1;
        with_tensor(folder, "lm_head.weight", dtype, vec![37, 16], &elements);
    });
    assert!(other.contains("`lm_head.weight` and `transformer.wte.weight` differ"), "{other}");
}

#[test]
fn weights_of_whole_numbers_are_refused() {
    let whole = refused("gpt2", |folder| {
        with_tensor(folder, "transformer.ln_f.bias", safetensors::Dtype::I32, vec![16], &[0; 64]);
    });
    assert!(whole.contains("`transformer.ln_f.bias` is of kind I32"), "{whole}");
}

fn train(ranks: usize, config: &Config) -> mp_train::records::Report {
    let one = |world| run::train(config, world, Device::Cpu, &AtomicBool::new(false), &mut ());
    threads::run(ranks, one).remove(0)
}

#[test]
fn runs_begin_from_published_models_and_imported_ones() {
    let folder = tempdir().unwrap();
    let base = |name: &str, sets: &[String]| {
        let mut all = vec![format!("train.out={}", folder.path().display()), format!("train.name={name}")];
        let more = ["train.steps=2", "train.seq=16", "train.global_batch=4", "train.precision=fp64", "eval.every=0"];
        all.extend(more.map(String::from));
        all.extend(["optimizer.warmup=0", "optimizer.lr=1e-12", "checkpoint.every=0"].map(String::from));
        all.extend(sets.iter().cloned());
        Config::load(None, None, &all).unwrap()
    };
    let shape = ["model.hidden=16", "model.layers=2", "model.heads=4", "model.kv_heads=2"].map(String::from);
    let first = train(1, &base("first", &shape));
    let out = folder.path().join("published");
    export(&first.run_dir, &out, 1 << 30, &|_| ()).unwrap();
    let from = format!("model.from={}", out.display());

    // A step of 1e-12 changes nothing that shows: two updates begin and end with the exported model's loss.
    let cut = ["parallel.tp=2", "parallel.pp=2"].map(String::from);
    let next = train(4, &base("next", &[std::slice::from_ref(&from), &cut[..]].concat()));
    let losses = |report: &mp_train::records::Report| report.validation_loss.unwrap();
    assert!((losses(&next) - losses(&first)).abs() < 1e-8, "{} after {}", losses(&next), losses(&first));

    import(&base("imported", &[from]), &folder.path().join("imported")).unwrap();
    let resumed = train(2, &base("imported", &["checkpoint.resume=true".into()]));
    assert_eq!(resumed.step, 2);
    assert!((losses(&resumed) - losses(&first)).abs() < 1e-8, "{} after {}", losses(&resumed), losses(&first));
}

#[test]
fn nothing_is_overwritten() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let from = config(&fixture("gpt2"), &[]);
    import(&from, &run).unwrap();
    assert!(matches!(import(&from, &run), Err(Error::RunFolder { .. })));
    export(&run, &folder.path().join("out"), 1 << 30, &|_| ()).unwrap();
    assert!(matches!(export(&run, &folder.path().join("out"), 1 << 30, &|_| ()), Err(Error::Published { .. })));
}
