//! Starts the program as a user does, alone or under mpirun, and reads what it says.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

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

/// Every command must be over by then, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(60);

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
    fn of(output: Output, begun: Instant) -> Self {
        assert!(begun.elapsed() < LIMIT, "took {:?}", begun.elapsed());
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

/// The program, in a folder, free of a launcher's variables.
pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mp-cli"));
    command.current_dir(folder);
    command
}

/// Runs the program alone.
pub fn alone(folder: &Path, words: &[&str]) -> Ended {
    let begun = Instant::now();
    Ended::of(program(folder).args(words).output().unwrap(), begun)
}

/// Prepares to run the program on `ranks` ranks.
#[allow(dead_code, reason = "not every test needs ranks")]
pub fn launcher(ranks: usize, folder: &Path) -> Command {
    let mut command = Command::new(env!("MP_CLI_MPIRUN"));
    command.current_dir(folder).args(["--bind-to", "none", "-n", &ranks.to_string()]);
    // What lets MPI run as root, with more ranks than cores, and in containers.
    for (name, value) in [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("OMPI_MCA_mpi_yield_when_idle", "1"),
        ("OMPI_MCA_smsc", "^cma"),
    ] {
        command.env(name, value);
    }
    command.arg(env!("CARGO_BIN_EXE_mp-cli"));
    command
}

/// Runs the program on `ranks` ranks.
#[allow(dead_code, reason = "not every test needs ranks")]
pub fn ranks(ranks: usize, folder: &Path, words: &[&str]) -> Ended {
    let begun = Instant::now();
    let output = launcher(ranks, folder).args(words).output();
    Ended::of(output.expect("mpirun lies beside the MPI library"), begun)
}

/// Puts `--set` before every assignment, after a command's name.
pub fn with_sets<'a>(name: &'a str, sets: &[&[&'a str]]) -> Vec<&'a str> {
    let sets = sets.iter().flat_map(|sets| sets.iter()).flat_map(|set| ["--set", *set]);
    std::iter::once(name).chain(sets).collect()
}

/// Trains alone.
#[allow(dead_code, reason = "not every test trains")]
pub fn train(folder: &Path, sets: &[&str]) -> Ended {
    alone(folder, &with_sets("train", &[TINY, sets]))
}
