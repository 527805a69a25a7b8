//! Starts the program as a user does, alone or under mpirun, and reads what it says.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use mp_train::metrics;
use mp_train::records::Record;

/// A model that trains in a moment.
pub const TINY: &[&str] = &[
    "model.hidden=16",
    "model.layers=1",
    "model.heads=2",
    "train.seq=16",
    "train.global_batch=4",
    "train.steps=2",
    "train.threads=1",
    "eval.batches=2",
];

/// Every command must be over by then, on a busy machine too; one that is not is ended.
const LIMIT: Duration = Duration::from_secs(60);
/// How long mpirun has to end its ranks before it is ended by force.
const GRACE: Duration = Duration::from_secs(5);

/// Variables that would change what a child does: those of a launcher that started the tests, and of a talkative shell.
const LEAKING: [&str; 8] =
    ["OMPI_COMM_", "PMI_", "PMIX_", "SLURM_", "OMP_", "RUST_LOG", "RUST_BACKTRACE", "CLICOLOR_FORCE"];

/// What lets MPI run as root, with more ranks than cores, and in containers.
const CROWDED: [(&str, &str); 6] = [
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
    ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
    ("OMPI_MCA_mpi_yield_when_idle", "1"),
    ("OMPI_MCA_smsc", "^cma"),
];

/// What a command left.
#[derive(Debug)]
pub struct Ended {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ended {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Returns our one message, and asserts that there is one and that it is the input's fault.
    pub fn input_error(&self) -> &str {
        self.message(2)
    }

    /// Returns our one message, and asserts the exit code.
    pub fn message(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:#?}");
        let both = [&self.out, &self.err];
        let mut messages = both.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with("error: "));
        let message = messages.next().unwrap_or_else(|| panic!("no message: {self:#?}"));
        assert_eq!(messages.count(), 0, "{self:#?}");
        assert!(!self.err.contains("panicked"), "{self:#?}");
        message
    }

    /// Asserts success.
    pub fn success(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }
}

/// Takes the variables away that a child must not see.
fn clean(command: &mut Command) -> &mut Command {
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| LEAKING.iter().any(|prefix| name.to_string_lossy().starts_with(prefix))) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// Waits for a child, and ends one that takes too long.
pub fn finish(child: Child) -> Ended {
    let (over, watched) = mpsc::channel::<()>();
    let id = child.id();
    let watchdog = std::thread::spawn(move || {
        let mut late = false;
        for (limit, signal) in [(LIMIT, "TERM"), (GRACE, "KILL")] {
            if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                late = true;
                send(signal, id);
            }
        }
        late
    });
    let output = child.wait_with_output().unwrap();
    drop(over);
    let ended = Ended::of(&output);
    assert!(!watchdog.join().unwrap(), "no end within {LIMIT:?}: {ended:#?}");
    ended
}

/// Sends a signal to a process.
pub fn send(signal: &str, process: u32) {
    // A process that is gone by now needs none.
    let _ = Command::new("kill").args([&format!("-{signal}"), &process.to_string()]).status();
}

/// Lists the processes that a process has started.
pub fn children(parent: u32) -> Vec<u32> {
    let is_child = |stat: &str| {
        // The name, in parentheses, may hold anything; after it come the state and the parent.
        let rest = stat.rsplit_once(')').map(|(_, rest)| rest);
        rest.and_then(|rest| rest.split_whitespace().nth(1)).and_then(|id| id.parse().ok()) == Some(parent)
    };
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes
        .filter(|id| std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| is_child(&stat)))
        .collect()
}

/// Starts a command.
pub fn start(command: &mut Command) -> Child {
    clean(command).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// The program, in a folder.
pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mp-cli"));
    command.current_dir(folder);
    command
}

/// Runs the program alone.
pub fn alone(folder: &Path, words: &[&str]) -> Ended {
    finish(start(program(folder).args(words)))
}

/// Prepares to run the program on `ranks` ranks.
pub fn launcher(ranks: usize, folder: &Path) -> Command {
    launch(ranks, folder, Path::new(env!("CARGO_BIN_EXE_mp-cli")))
}

/// Prepares to run any program on `ranks` ranks.
pub fn launch(ranks: usize, folder: &Path, program: &Path) -> Command {
    let mut command = Command::new(env!("MP_CLI_MPIRUN"));
    command.current_dir(folder).args(["--bind-to", "none", "-n", &ranks.to_string()]);
    command.envs(CROWDED);
    command.arg(program);
    command
}

/// Runs the program on `ranks` ranks.
pub fn ranks(ranks: usize, folder: &Path, words: &[&str]) -> Ended {
    finish(start(launcher(ranks, folder).args(words)))
}

/// Puts `--set` before every assignment, after a command's name.
pub fn with_sets<'a>(name: &'a str, sets: &[&[&'a str]]) -> Vec<&'a str> {
    let sets = sets.iter().flat_map(|sets| sets.iter()).flat_map(|set| ["--set", *set]);
    std::iter::once(name).chain(sets).collect()
}

/// Trains alone.
pub fn train(folder: &Path, sets: &[&str]) -> Ended {
    alone(folder, &with_sets("train", &[TINY, sets]))
}

/// Starts a run that would take for ever, and waits until its first step is done.
pub fn under_way(command: &mut Command, run: &Path, sets: &[&str]) -> Child {
    let forever = ["train.steps=1000000", "checkpoint.every=0"];
    let mut child = start(command.args(with_sets("train", &[TINY, &forever, sets])));
    let metrics = run.join("metrics.jsonl");
    let begun = Instant::now();
    while std::fs::metadata(&metrics).map_or(0, |file| file.len()) == 0 {
        if child.try_wait().unwrap().is_some() || begun.elapsed() > LIMIT {
            panic!("no first step: {:#?}", finish(child));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

/// Reads what a run recorded of each step.
pub fn losses(run: &Path) -> Vec<(u64, f64)> {
    let step = |record| match record {
        Record::Step(step) => Some((step.step, step.loss)),
        _ => None,
    };
    metrics::read(&run.join("metrics.jsonl")).unwrap().into_iter().filter_map(step).collect()
}

/// Reads a file of the handbook.
pub fn document(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)).unwrap()
}

/// Runs the commands of a chapter of the handbook, and says what they printed.
pub fn chapter(name: &str, folder: &Path) -> String {
    let text = document(name);
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    shell(&blocks.collect::<Vec<_>>().join("\n"), folder)
}

/// Runs commands in one shell that finds the program and mpirun, and says what it printed.
pub fn shell(script: &str, folder: &Path) -> String {
    let found = [env!("CARGO_BIN_EXE_mp-cli"), env!("MP_CLI_MPIRUN")];
    let programs = found.iter().map(|program| Path::new(program).parent().unwrap().to_path_buf());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = programs.chain(std::env::split_paths(&path)).collect::<Vec<PathBuf>>();
    let mut shell = Command::new("bash");
    shell.envs(CROWDED).args(["-euo", "pipefail", "-c", script]).current_dir(folder).stdin(Stdio::null());
    let ended = shell.env("PATH", std::env::join_paths(paths).unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{said}\n{}", String::from_utf8_lossy(&ended.stderr));
    said
}
