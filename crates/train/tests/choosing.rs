//! Layouts that the planner chooses for a run: the same on all ranks, with the losses of any other, and open again on other
//! ranks.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use mp_comm::{threads, Communicator};
use mp_plan::{Cluster, ParallelConfig, ParallelKey};
use mp_runtime::Device;
use mp_train::records::{Choice, Observer, Record};
use mp_train::{metrics, run, Config, Error, Result};

/// A machine whose ranks have so much memory, as a file.
fn machine(folder: &Path, memory_bytes: usize) -> PathBuf {
    let mut cluster = Cluster::preset("cpu").unwrap();
    (cluster.node.memory_bytes, cluster.device.memory_bytes) = (0, memory_bytes);
    let file = folder.join(format!("machine-{memory_bytes}.toml"));
    std::fs::write(&file, toml::to_string(&cluster).unwrap()).unwrap();
    file
}

/// A run of a few steps in double precision.
fn tiny(out: &Path, name: &str, sets: &[&str]) -> Vec<String> {
    let place = [format!("train.out={}", out.display()), format!("train.name={name}")];
    let base = ["model.hidden=16", "model.layers=2", "train.precision=fp64", "train.steps=2", "train.seq=16"];
    let base = base.into_iter().chain(["train.global_batch=8", "eval.batches=2"]);
    place.into_iter().chain(base.chain(sets.iter().copied()).map(String::from)).collect()
}

/// What the ranks heard of the planner.
struct Heard<'a>(&'a Mutex<Vec<Choice>>);

impl Observer for Heard<'_> {
    fn chosen(&mut self, choice: &Choice) {
        self.0.lock().unwrap().push(choice.clone());
    }
}

/// Trains on rank-threads; what each came to, and what was chosen.
fn train(ranks: usize, config: &Config) -> (Vec<Result<()>>, Vec<Choice>) {
    let heard = Mutex::new(Vec::new());
    let one = |world: Arc<dyn Communicator>| -> std::result::Result<Result<()>, String> {
        let stop = AtomicBool::new(false);
        Ok(run::train(config, world, Device::Cpu, &stop, &mut Heard(&heard)).map(drop))
    };
    let ended = threads::run(ranks, one);
    (ended, heard.into_inner().unwrap())
}

fn succeed(ranks: usize, config: &Config) -> Vec<Choice> {
    let (ended, heard) = train(ranks, config);
    ended.into_iter().for_each(|ended| ended.unwrap());
    heard
}

fn losses(run: &Path) -> Vec<f64> {
    let records = metrics::read(&run.join("metrics.jsonl")).unwrap();
    records
        .into_iter()
        .filter_map(|record| if let Record::Step(step) = record { Some(step.loss) } else { None })
        .collect()
}

fn saved(run: &Path) -> ParallelConfig {
    Config::load(Some(&run.join("config.toml")), None, &[]).unwrap().parallel
}

#[test]
fn what_is_chosen_is_written_trains_alike_and_stands_or_opens_with_the_ranks() {
    let out = tempfile::tempdir().unwrap();
    let cluster = format!("parallel.cluster={}", machine(out.path(), 1 << 30).display());
    let load = |name: &str, sets: &[&str]| Config::load(None, None, &tiny(out.path(), name, sets)).unwrap();
    succeed(1, &load("rule", &[]));
    let rule = losses(&out.path().join("rule"));
    for ranks in [1, 2, 4] {
        let name = format!("asked-{ranks}");
        let heard = succeed(ranks, &load(&name, &["parallel.pp=0", &cluster]));
        let [choice] = &heard[..] else { panic!("rank 0 alone hears, once: {heard:?}") };
        assert!(choice.step_seconds.unwrap() > 0.0 && choice.memory_bytes <= choice.room_bytes, "{choice:?}");
        let run = out.path().join(&name);
        let parallel = saved(&run);
        assert!(!parallel.asks && parallel.chosen.contains(&ParallelKey::Tp), "{parallel:?}");
        assert_eq!(parallel.tp * parallel.pp * parallel.dp * parallel.cp, ranks);
        for (one, other) in losses(&run).iter().zip(&rule) {
            // Sums in another order, in double precision.
            assert!((one - other).abs() < 1e-12, "{ranks} ranks: {one} {other}");
        }
        // The same words again, and the file alone, say the same layout.
        let file = run.join("config.toml");
        let sets = ["checkpoint.resume=true", "train.steps=3"].map(String::from);
        assert_eq!(succeed(ranks, &Config::load(Some(&file), None, &sets).unwrap()), []);
        // On other ranks it is chosen again.
        let sets = ["checkpoint.resume=true", "train.steps=4"].map(String::from);
        let other = if ranks == 4 { 2 } else { 4 };
        assert_eq!(succeed(other, &Config::load(Some(&file), None, &sets).unwrap()).len(), 1);
        // Which then stands for those, also where the command names the run alone.
        let named = load(&name, &["checkpoint.resume=true", "train.steps=5"]);
        assert_eq!(succeed(other, &named), []);
        assert_eq!(losses(&run).len(), 5);
    }
}

#[test]
fn what_is_fixed_stays_and_a_rule_of_thumb_asks_nobody() {
    let out = tempfile::tempdir().unwrap();
    let cluster = format!("parallel.cluster={}", machine(out.path(), 1 << 30).display());
    let sets = ["parallel.tp=2", "parallel.zero=auto", "parallel.micro_batch=1", &cluster];
    succeed(4, &Config::load(None, None, &tiny(out.path(), "fixed", &sets)).unwrap());
    let parallel = saved(&out.path().join("fixed"));
    assert_eq!((parallel.tp, parallel.micro_batch), (2, 1));
    let own = [ParallelKey::Tp, ParallelKey::MicroBatch];
    assert!(!parallel.chosen.iter().any(|key| own.contains(key)), "{parallel:?}");
    let rule = Config::load(None, None, &tiny(out.path(), "rule", &[&cluster])).unwrap();
    assert_eq!(succeed(2, &rule), []);
    let text = std::fs::read_to_string(out.path().join("rule/config.toml")).unwrap();
    let section = text.split("[parallel]\n").nth(1).unwrap().split("\n\n").next().unwrap();
    for key in ["tp", "pp", "dp", "cp", "chunks", "micro_batch", "zero", "schedule", "recompute", "chosen"] {
        assert!(!section.lines().any(|line| line.starts_with(key)), "{key}: {section}");
    }
}

#[test]
fn layers_that_are_dealt_out_by_hand_decide_the_stages() {
    let out = tempfile::tempdir().unwrap();
    let cluster = format!("parallel.cluster={}", machine(out.path(), 1 << 30).display());
    let sets = ["model.layers=3", "parallel.split=[1, 2]", "parallel.dp=0", &cluster];
    let heard = succeed(4, &Config::load(None, None, &tiny(out.path(), "dealt", &sets)).unwrap());
    assert!(heard[0].layout.starts_with("pp=2 × "), "{heard:?}");
    let parallel = saved(&out.path().join("dealt"));
    assert_eq!((parallel.pp, parallel.split), (2, vec![1, 2]));
}

#[test]
fn what_fits_nowhere_is_refused_on_all_ranks_with_what_lacks() {
    let out = tempfile::tempdir().unwrap();
    let cluster = format!("parallel.cluster={}", machine(out.path(), 1 << 10).display());
    let sets = ["parallel.tp=0", "checkpoint.asynchronous=false", &cluster];
    let (ended, _) = train(2, &Config::load(None, None, &tiny(out.path(), "none", &sets)).unwrap());
    let errors: Vec<Error> = ended.into_iter().map(|ended| ended.unwrap_err()).collect();
    assert!(errors.iter().all(Error::is_input), "{errors:?}");
    let message = errors[0].to_string();
    assert!(message.starts_with("no layout of 2 ranks fits: the nearest, "), "{message}");
    assert!(message.contains("dp=") && message.contains(" KiB that a rank may;"), "{message}");
    assert!(matches!(errors[1], Error::Peer { rank: 0, input: true }), "{}", errors[1]);
    assert!(!out.path().join("none").exists());
}

#[test]
fn what_cannot_be_chosen_for_is_refused_before_anything_is_measured() {
    let out = tempfile::tempdir().unwrap();
    for (sets, part) in [
        (["parallel.tp=3", "parallel.pp=0"], "no layout of 2 ranks can cut this model as asked; "),
        (["parallel.split=[1, 2]", "parallel.pp=0"], "parallel.split [1, 2] sums to 3, and model.layers is 2"),
        (
            ["lora.rank=2", "parallel.pp=0"],
            "`lora.rank` is 2, but layouts are chosen for models that are trained whole",
        ),
        (["parallel.cluster=abacus", "parallel.pp=0"], "cluster \"abacus\" is neither a file nor one of"),
    ] {
        let (ended, _) = train(2, &Config::load(None, None, &tiny(out.path(), "none", &sets)).unwrap());
        for error in ended.into_iter().map(Result::unwrap_err) {
            assert!(error.is_input(), "{error}");
            assert!(matches!(error, Error::Peer { .. }) || error.to_string().contains(part), "{error}");
        }
    }
}

/// Without a file the machine at hand is measured.
#[test]
fn a_machine_that_nobody_names_is_measured() {
    let out = tempfile::tempdir().unwrap();
    let heard = succeed(2, &Config::load(None, None, &tiny(out.path(), "measured", &["parallel.tp=0"])).unwrap());
    assert!(heard.len() == 1 && heard[0].step_seconds.is_some_and(|seconds| seconds > 0.0), "{heard:?}");
    let run = out.path().join("measured");
    assert_eq!(losses(&run).len(), 2);
    // And kept: what goes on on as many ranks is held against the same.
    let machine = std::fs::read_to_string(run.join("machine.toml")).unwrap();
    let load = |steps: &str| {
        let sets = tiny(out.path(), "measured", &["parallel.tp=0", "checkpoint.resume=true", steps]);
        Config::load(None, None, &sets).unwrap()
    };
    assert_eq!(succeed(2, &load("train.steps=3")), []);
    let records = metrics::read(&run.join("metrics.jsonl")).unwrap();
    let mfu =
        records.into_iter().filter_map(|record| if let Record::Step(step) = record { Some(step.mfu) } else { None });
    assert_eq!(mfu.map(|mfu| mfu.is_some()).collect::<Vec<_>>(), [true; 3]);
    assert_eq!(std::fs::read_to_string(run.join("machine.toml")).unwrap(), machine);
    // On other ranks it is another machine.
    assert_eq!(succeed(1, &load("train.steps=4")).len(), 1);
    assert_ne!(std::fs::read_to_string(run.join("machine.toml")).unwrap(), machine);
}
