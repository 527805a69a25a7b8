//! Processes that are killed at random moments of a save, one or all, and disks that fill: the newest complete checkpoint
//! loads, what was said to be complete is there, and nothing partial is taken for whole.
//!
//! The ranks are processes of this program that write as a run does, each its shard and rank 0 the commit; the test itself
//! plays the votes between them, over pipes.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use mp_runtime::rng::Stream;
use mp_train::checkpoint::{About, CheckpointStore, DirectoryStore, Dtype, Entry, Section, Slice, Verify};
use mp_train::Config;

/// Tells a child who it is.
const RANK: &str = "MP_TEST_CRASH_RANK";
const RANKS: usize = 3;
/// A rank that answers nothing by then is stuck.
const LIMIT: Duration = Duration::from_secs(60);
const ROWS: usize = 3 * RANKS;
/// Enough for a save to take some milliseconds; the first step is within every limit on file sizes.
const COLUMNS: usize = 40_000;
const FIRST_COLUMNS: usize = 16;

fn columns(step: u64) -> usize {
    if step == 1 {
        FIRST_COLUMNS
    } else {
        COLUMNS
    }
}

/// What element `at` is in the checkpoint of `step`.
fn element(step: u64, at: usize) -> [u8; 4] {
    ((step as usize * 1_000_003 + at) as f32).to_le_bytes()
}

fn write(store: &DirectoryStore, step: u64, rank: usize) -> mp_train::Result<()> {
    let columns = columns(step);
    let rows = rank * ROWS / RANKS..(rank + 1) * ROWS / RANKS;
    let entry = Entry::new("a", Dtype::F32, &[ROWS, columns]);
    let mut shard = store.shard(step, rank)?;
    for section in Section::ALL {
        shard.file(section, &[Slice { entry: entry.clone(), region: vec![rows.clone(), 0..columns] }])?;
        let elements: Vec<u8> = (rows.start * columns..rows.end * columns).flat_map(|at| element(step, at)).collect();
        shard.append(&elements)?;
    }
    shard.finish()
}

#[test]
#[ignore = "the child of the crash tests, which talk to it"]
fn writing_rank() {
    let Ok(rank) = std::env::var(RANK) else { return };
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        let (step, store) = (words[1].parse().unwrap(), DirectoryStore::new(words[2], 2));
        let done = match words[0] {
            "write" => write(&store, step, rank.parse().unwrap()),
            _ => store.commit(RANKS, &About::new(step, &Config::default())).map(drop),
        };
        // The test runner's own lines are told from ours by the first word.
        let answer = if done.is_ok() { "done" } else { "failed" };
        println!("\nrank {answer}");
    }
}

/// A rank as the test sees it.
struct Rank {
    child: Child,
    tell: ChildStdin,
    heard: Receiver<bool>,
    /// Answers that are still to come.
    owed: usize,
    killed: bool,
}

impl Rank {
    /// Starts a rank; `limited` has its files end after some 100 KiB.
    fn start(rank: usize, limited: bool) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut command = match limited {
            true => Command::new("sh"),
            false => Command::new(&program),
        };
        if limited {
            // Ignored, the signal becomes an error of the write.
            command.args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\""]).arg(&program);
        }
        command.args(["--exact", "writing_rank", "--ignored", "--nocapture"]).env(RANK, rank.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (tell, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, tell, heard: listen(out), owed: 0, killed: false }
    }

    /// Asks for something; one that was killed does not hear.
    fn ask(&mut self, what: &str, step: u64, folder: &Path) {
        let _ = writeln!(self.tell, "{what} {step} {}", folder.display());
        self.owed += 1;
    }

    /// Waits for an answer, until a moment where one is given.
    fn hear(&mut self, until: Option<Instant>) -> Result<bool, RecvTimeoutError> {
        let left = until.map_or(LIMIT, |until| until.saturating_duration_since(Instant::now()));
        let answer = self.heard.recv_timeout(left)?;
        self.owed -= 1;
        Ok(answer)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.killed = true;
    }

    /// Waits until it has nothing to do; says whether it lives.
    fn is_idle(&mut self) -> bool {
        while self.owed > 0 {
            match self.hear(None) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => panic!("a rank is silent"),
            }
        }
        !self.killed
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hears a rank's answers until it ends.
fn listen(out: ChildStdout) -> Receiver<bool> {
    let (sender, heard) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let answer = match line.as_str() {
                "rank done" => true,
                "rank failed" => false,
                _ => continue,
            };
            if sender.send(answer).is_err() {
                return;
            }
        }
    });
    heard
}

/// How a save came to its end.
#[derive(Debug, PartialEq)]
enum Outcome {
    Committed,
    Failed,
    Died,
}

/// The ranks of a test: those that are killed are started again, and one of them may be another, whose disk is full.
struct Ranks {
    all: Vec<Rank>,
    full: Rank,
}

impl Ranks {
    fn start() -> Self {
        Self { all: (0..RANKS).map(|rank| Rank::start(rank, false)).collect(), full: Rank::start(1, true) }
    }

    fn revive(&mut self) {
        for (rank, process) in self.all.iter_mut().enumerate() {
            if !process.is_idle() {
                *process = Rank::start(rank, false);
            }
        }
    }

    /// Has the ranks save a step; at a moment, kills some.
    fn save(&mut self, folder: &Path, step: u64, moment: Option<Instant>, victims: &[usize]) -> Outcome {
        let mut left = moment;
        for (what, who) in [("write", 0..RANKS), ("commit", 0..1)] {
            self.all[who.clone()].iter_mut().for_each(|rank| rank.ask(what, step, folder));
            for index in who {
                loop {
                    match self.all[index].hear(left) {
                        Ok(true) => break,
                        Ok(false) => return Outcome::Failed,
                        Err(RecvTimeoutError::Disconnected) => return Outcome::Died,
                        Err(RecvTimeoutError::Timeout) => {
                            assert!(left.is_some(), "rank {index} is silent");
                            victims.iter().for_each(|&victim| self.all[victim].kill());
                            left = None;
                        }
                    }
                }
            }
        }
        Outcome::Committed
    }
}

/// Reads the newest checkpoint as a run would, checks all of it, and returns its step.
fn newest(folder: &Path) -> u64 {
    let store = DirectoryStore::new(folder, 2);
    // Every one that readers can see is whole.
    for step in store.steps().unwrap() {
        let reader = store.open(step, Verify::Checksums).unwrap();
        let expected: Vec<u8> = (0..ROWS * columns(step)).flat_map(|at| element(step, at)).collect();
        for section in Section::ALL {
            let read = reader.read(section, "a", &[0..ROWS, 0..columns(step)]).unwrap();
            assert!(read == expected, "step {step}: {section:?} holds what was not written");
        }
    }
    *store.steps().unwrap().last().expect("the first is always there")
}

/// One crash: some saves are made, one is hit, and the next run goes on from what is there.
fn crash(number: usize, ranks: &mut Ranks) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let limited = number % 4 == 3;
    assert_eq!(ranks.save(path, 1, None, &[]), Outcome::Committed);
    let mut step = 1;
    if limited {
        std::mem::swap(&mut ranks.all[1], &mut ranks.full);
        assert_eq!(ranks.save(path, 2, None, &[]), Outcome::Failed);
        std::mem::swap(&mut ranks.all[1], &mut ranks.full);
    } else {
        let mut draw = [0; 2];
        Stream::new(number as u64, "crash", 0).words(0, &mut draw);
        let victims: Vec<usize> = match number % 4 {
            0 => (0..RANKS).collect(),
            1 => vec![0],
            _ => vec![draw[0] as usize % RANKS],
        };
        // A save is measured where nobody is hit, so that the moments fall on all of the next one, on any machine.
        let begun = Instant::now();
        assert_eq!(ranks.save(path, 2, None, &[]), Outcome::Committed);
        let moment = begun.elapsed().mul_f64(f64::from(draw[1]) / f64::from(u32::MAX));
        step = 2;
        let hit = ranks.save(path, 3, Some(Instant::now() + moment), &victims);
        assert_ne!(hit, Outcome::Failed);
        if hit == Outcome::Committed {
            step = 3;
        }
    }
    // Those that live may still write; a run's do not outlive it.
    ranks.revive();
    assert!(ranks.full.is_idle());
    let found = newest(path);
    // The last word of a commit may be lost with its writer.
    assert!(found == step || (!limited && found == step + 1), "crash {number}: {found} is there instead of {step}");

    let store = DirectoryStore::new(path, 2);
    store.sweep().unwrap();
    (0..RANKS).for_each(|rank| write(&store, found + 1, rank).unwrap());
    store.commit(RANKS, &About::new(found + 1, &Config::default())).unwrap();
    assert_eq!(newest(path), found + 1);
    let hidden = std::fs::read_dir(path)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(hidden.count(), 0, "crash {number}: something half is left");
}

#[test]
fn twenty_crashes_leave_the_newest_complete_checkpoint() {
    let mut ranks = Ranks::start();
    (0..20).for_each(|number| crash(number, &mut ranks));
}

#[test]
#[ignore = "takes a minute"]
fn two_hundred_crashes_leave_the_newest_complete_checkpoint() {
    let mut ranks = Ranks::start();
    (100..300).for_each(|number| crash(number, &mut ranks));
}
