//! Running commands: captured, watched line by line, or with a time-out that leaves no process behind.

use anyhow::{bail, Context, Result};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a watched command ended.
pub struct Outcome {
    /// The exit status; `None` when the time-out ended it.
    pub status: Option<ExitStatus>,
    /// Everything it printed, both streams.
    pub text: String,
}

impl Outcome {
    /// Whether it ended by itself with success.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

/// Runs to the end and returns standard output; an error carries what it wrote to standard error.
pub fn stdout_of(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs with the streams passed through; an error if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", describe(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", describe(command));
    }
    Ok(())
}

/// Runs, shows each line as it comes and keeps it, and ends the whole process tree after `limit`.
pub fn watch(command: &mut Command, limit: Duration) -> Result<Outcome> {
    follow(command, limit, [Some(Shown::Output), Some(Shown::Error)])
}

/// As [`watch`], but keeps standard output to itself: it is for programs, not for people.
pub fn capture(command: &mut Command, limit: Duration) -> Result<Outcome> {
    follow(command, limit, [None, Some(Shown::Error)])
}

/// As [`watch`], but shows nothing.
pub fn hear(command: &mut Command, limit: Duration) -> Result<Outcome> {
    follow(command, limit, [None, None])
}

/// `shown`: where its standard output and its standard error are repeated.
fn follow(command: &mut Command, limit: Duration, shown: [Option<Shown>; 2]) -> Result<Outcome> {
    let name = describe(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let text = Arc::new(Mutex::new(String::new()));
    let echoes = [
        echo(child.stdout.take().context("standard output is piped")?, shown[0], &text),
        echo(child.stderr.take().context("standard error is piped")?, shown[1], &text),
    ];
    let status = wait(&mut child, limit)?;
    // A process that was left behind may hold the streams open for ever: what it prints is not waited for.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) && !echoes.iter().all(|echo| echo.is_finished()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = text.lock().map(|text| text.clone()).unwrap_or_default();
    Ok(Outcome { status, text })
}

/// The stream of ours on which a line is repeated.
#[derive(Clone, Copy)]
enum Shown {
    Output,
    Error,
}

fn echo(stream: impl Read + Send + 'static, on: Option<Shown>, kept: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let kept = Arc::clone(kept);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let shown = String::from_utf8_lossy(&line);
            match on {
                Some(Shown::Error) => eprint!("{shown}"),
                Some(Shown::Output) => print!("{shown}"),
                None => {}
            }
            if let Ok(mut kept) = kept.lock() {
                kept.push_str(&shown);
            }
            line.clear();
        }
    })
}

fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let begin = Instant::now();
    while begin.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    end_tree(child)?;
    Ok(None)
}

/// Ends a process and all that descends from it: politely first, so that `mpirun` can take its ranks along.
fn end_tree(child: &mut Child) -> Result<()> {
    let mut tree = vec![(child.id(), started(child.id()).unwrap_or(0))];
    tree.extend(descendants(child.id()));
    signal("TERM", &[child.id()]);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) && child.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Ranks are in process groups of their own, and nobody's children once mpirun is gone: hence the list made before.
    kill_left(tree);
    child.wait()?;
    Ok(())
}

/// Ends all that descends from this process: politely first, and after five seconds whatever is left.
pub fn end_descendants() {
    let tree = descendants(std::process::id());
    let numbers: Vec<u32> = tree.iter().map(|(id, _)| *id).collect();
    signal("TERM", &numbers);
    let goes_on = |(id, born): &(u32, u64)| started(*id) == Some(*born) && stat_state(*id) != Some('Z');
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) && tree.iter().any(goes_on) {
        std::thread::sleep(Duration::from_millis(20));
    }
    kill_left(tree);
}

/// Ends what is left of a tree, which goes from parents to children, so that nobody whose child ends starts another.
fn kill_left(mut tree: Vec<(u32, u64)>) {
    let newer: Vec<_> = tree.iter().flat_map(|(id, _)| descendants(*id)).collect();
    tree.extend(newer);
    let left: Vec<u32> = tree.iter().filter(|(id, born)| started(*id) == Some(*born)).map(|(id, _)| *id).collect();
    signal("KILL", &left);
}

fn signal(name: &str, processes: &[u32]) {
    if processes.is_empty() {
        return;
    }
    let list = processes.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    // A process that ended meanwhile is no error.
    let _ = Command::new("sh").args(["-c", &format!("kill -{name} {list} 2>/dev/null")]).status();
}

/// The processes below `root`, each with its start time, which tells it from a later process of the same number.
fn descendants(root: u32) -> Vec<(u32, u64)> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(parent) = stat_field(id, 1) {
            children.entry(parent as u32).or_default().push(id);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(next) = open.pop() {
        for &id in children.get(&next).into_iter().flatten() {
            found.extend(started(id).map(|born| (id, born)));
            open.push(id);
        }
    }
    found
}

fn started(id: u32) -> Option<u64> {
    stat_field(id, 19)
}

/// A field of `/proc/<id>/stat`, counted from the state, which follows the name in brackets.
fn stat_field(id: u32, index: usize) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(index)?.parse().ok()
}

/// The state in `/proc/<id>/stat`: `Z` for a process that has ended and was not yet waited for.
fn stat_state(id: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    text.rsplit_once(')')?.1.trim_start().chars().next()
}

/// The exit code to pass on.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Finds a program on the `PATH`.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// A command as a person would type it.
pub fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    format!("`{line}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_watched_command_keeps_both_streams_and_its_status() {
        let outcome = watch(&mut shell("echo one; echo two >&2; exit 3"), Duration::from_secs(60)).unwrap();
        assert_eq!(outcome.status.and_then(|status| status.code()), Some(3));
        let mut lines: Vec<&str> = outcome.text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn a_time_out_ends_grandchildren_too() {
        // `exec` keeps the number that is printed; the trap makes the parent deaf to the polite signal.
        let script = "trap '' TERM; (exec sleep 600) & echo $!; wait; sleep 600";
        let outcome = watch(&mut shell(script), Duration::from_millis(300)).unwrap();
        assert!(outcome.status.is_none());
        let grandchild: u32 = outcome.text.trim().parse().unwrap();
        // Whoever inherits it may not have collected its exit status yet.
        let stat = std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "process {grandchild} is still there: {stat}");
    }

    #[test]
    fn a_failed_command_says_what_it_wrote() {
        let error = stdout_of(&mut shell("echo broken >&2; exit 1")).unwrap_err().to_string();
        assert!(error.contains("broken"), "{error}");
    }
}
