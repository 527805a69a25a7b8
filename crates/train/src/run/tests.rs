//! Runs in which one rank's reader is at fault: the log must not say that all is well.

use std::sync::atomic::AtomicBool;

use mp_comm::threads;
use mp_data::{Piece, Sample};

use super::*;
use crate::audit::{audit, Dealt};
use crate::checkpoint::{CheckpointStore, DirectoryStore};
use crate::ledger::Ledger;
use crate::metrics::lines_of;

/// Gives other samples than are asked for.
struct Faulty {
    inner: Arc<dyn SampleSource>,
    given: fn(u64) -> u64,
}

impl SampleSource for Faulty {
    fn seq(&self) -> usize {
        self.inner.seq()
    }

    fn len_tokens(&self) -> u64 {
        self.inner.len_tokens()
    }

    fn samples_per_epoch(&self) -> u64 {
        self.inner.samples_per_epoch()
    }

    fn sample(&self, number: u64, into: &mut Sample) -> mp_data::Result<()> {
        self.inner.sample((self.given)(number), into)
    }

    fn pieces(&self, number: u64) -> mp_data::Result<Vec<Piece>> {
        self.inner.pieces(number)
    }
}

#[test]
fn a_rank_that_reads_other_samples_ends_the_run_before_the_log_says_so() {
    // One is skipped from the third step on, one is read twice in it, two change places with the fourth step's.
    let faults: [fn(u64) -> u64; 3] = [
        |number| if number < 10 { number } else { number + 1 },
        |number| if number == 11 { 10 } else { number },
        |number| if (10..12).contains(&number) { number + 4 } else { number },
    ];
    for (given, axis) in
        faults.into_iter().flat_map(|given| [(given, "dp"), (given, "tp"), (given, "cp"), (given, "pp")])
    {
        let out = tempfile::tempdir().unwrap();
        let sets =
            ["model.hidden=16", "model.layers=2", "model.heads=2", "train.seq=16", "train.steps=6", "eval.every=0"];
        let mut sets: Vec<String> = sets.map(String::from).to_vec();
        sets.extend(
            ["train.global_batch=4", "train.name=a", "checkpoint.every=1", "checkpoint.keep=0"].map(String::from),
        );
        sets.extend([format!("train.out={}", out.path().display()), format!("parallel.{axis}=2")]);
        let config = Config::load(None, None, &sets).unwrap();
        let errors = threads::run(2, |world| {
            let second = world.rank() == Rank(1);
            let through = |inner| match second {
                true => Arc::new(Faulty { inner, given }) as Arc<dyn SampleSource>,
                false => inner,
            };
            Ok::<_, Error>(run(&config, world, Device::Cpu, &AtomicBool::new(false), &mut (), through).unwrap_err())
        });
        let text = errors[0].to_string();
        assert!(matches!(errors[0], Error::Samples { step: 3, first: 8, end: 12, .. }), "{axis}: {text}");
        assert!(text.contains("did not read samples 8 to 11 of step 3"), "{text}");
        assert!(matches!(errors[1], Error::Peer { rank: 0, input: false }), "{axis}: {errors:?}");
        let folder = out.path().join("a");
        let steps: Vec<u64> =
            lines_of::<Dealt>(&folder.join("data.jsonl")).unwrap().iter().map(|line| line.step).collect();
        assert_eq!(steps, [1, 2], "{axis}");
        let store = DirectoryStore::new(folder.join("checkpoints"), 0);
        assert_eq!(store.steps().unwrap(), [1, 2], "{axis}: the step that read wrongly is not saved");
        assert_eq!(audit(&folder).unwrap().contradictions, Vec::<String>::new(), "{axis}");
    }
}

#[test]
fn a_machine_is_measured_behind_steps_that_are_worth_it() {
    let out = tempfile::tempdir().unwrap();
    let sets = ["model.hidden=16", "model.layers=2", "model.heads=2", "train.seq=16", "train.steps=6", "eval.every=0"];
    let mut sets: Vec<String> = sets.map(String::from).to_vec();
    sets.extend([format!("train.out={}", out.path().display()), "train.name=a".into()]);
    let config = Config::load(None, None, &sets).unwrap();
    let world: Arc<dyn Communicator> = Arc::new(mp_comm::solo::Solo::new("world"));
    let chosen = choose(&config, &world, Device::Cpu, &mut ()).unwrap();
    let mut observer = ();
    let mut run = Run::prepare(&chosen, world, Device::Cpu, &mut observer, |source| source).unwrap();
    run.steps(&AtomicBool::new(false)).unwrap();
    let mut accounted = |reason, worth| {
        run.account(reason, worth).unwrap();
        let time = Ledger::read(&run.folder.ledger()).unwrap().time;
        (time.machine, time.reason.is_some(), time.ranks[0].total.predicted_seconds.is_some())
    };
    assert_eq!(accounted(EndReason::Finished, f64::MAX), (None, true, false));
    assert_eq!(accounted(EndReason::Signal, 0.0), (None, true, false), "who stops a run waits for no measurement");
    let (machine, unknown, predicted) = accounted(EndReason::Finished, 0.0);
    assert!(machine.is_some_and(|machine| machine.contains("thread")));
    assert_eq!((unknown, predicted), (false, true));
}
