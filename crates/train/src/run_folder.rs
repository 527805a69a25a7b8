//! A run's folder: how it is named, who may have it, and what lies in it.
//!
//! ```text
//! runs/<name>/
//!   config.toml      the configuration, in the form that repeats the run
//!   plan.json        what each rank holds
//!   metrics.jsonl    see [`crate::metrics`]
//!   ledger.json      what the plan predicted, beside what the run measured: see [`crate::ledger`]
//!   data.jsonl       which samples each step read: see [`crate::audit`]
//!   sample.txt       text that the model wrote at the end
//!   checkpoints/     see [`crate::checkpoint`]
//!   .lock            held by the program that trains there, with its process and machine as text
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mp_comm::Communicator;

use crate::agree::{agree, told};
use crate::checkpoint::{CheckpointStore, DirectoryStore};
use crate::durable;
use crate::{Config, Error, Result};

/// The saved configuration's file name.
pub const CONFIG: &str = "config.toml";

/// The folder of checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

/// The file that the program holds which trains in a folder.
const LOCK: &str = ".lock";

/// The file of the machine that was measured to choose the run's layout.
const MACHINE: &str = "machine.toml";

/// How long a folder that is in use is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The folder that a run writes into. It exists, and no other program trains there while this lives.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// On rank 0, the [`LOCK`]: the system takes it back when the process ends, however it does.
    _lock: Option<File>,
}

impl RunFolder {
    /// Makes the folder, or takes the one of the run that is continued, and saves the configuration there.
    ///
    /// Rank 0 decides the name (clocks differ) and touches the disk; call it once everything else about the input is
    /// known to be good, since it leaves something behind.
    ///
    /// # Communication
    /// Collective over `world`: one agreement and two broadcasts.
    ///
    /// # Errors
    /// [`Error::RunFolder`] on rank 0 if the folder exists and the run is not to be continued, if another program trains
    /// there, or if it cannot be written; [`Error::Peer`] on the others.
    pub fn open(world: &dyn Communicator, config: &Config) -> Result<Self> {
        let made = if world.rank().0 == 0 { prepare(config).map(Some) } else { Ok(None) };
        let (path, lock) = agree(world, made)?.unzip();
        let path = told(world, path.map(|path: PathBuf| path.to_string_lossy().into_owned()))?;
        Ok(Self { path: path.into(), _lock: lock })
    }

    /// Returns the folder itself, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the place of `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Returns the place of `data.jsonl`.
    pub fn data_log(&self) -> PathBuf {
        self.path.join(crate::audit::LOG)
    }

    /// Returns the place of `ledger.json`.
    pub fn ledger(&self) -> PathBuf {
        self.path.join(crate::ledger::FILE)
    }

    /// Returns the place of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// Writes `config.toml`, whole.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write_config(&self, config: &Config) -> Result<()> {
        save(&self.path, config)
    }

    /// Writes `plan.json`, whole.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write_plan(&self, json: &str) -> Result<()> {
        durable::write(&self.path.join("plan.json"), json.as_bytes())
    }

    /// Writes the machine that was measured to choose the layout, whole.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write_machine(&self, text: &str) -> Result<()> {
        durable::write(&self.path.join(MACHINE), text.as_bytes())
    }

    /// Writes `sample.txt`, whole.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write_sample(&self, text: &str) -> Result<()> {
        durable::write(&self.path.join("sample.txt"), text.as_bytes())
    }
}

/// Returns the file of the machine that was measured to choose the layout of the run that `config` continues, if there is one.
pub(crate) fn kept_machine(config: &Config) -> Option<PathBuf> {
    let name = config.train.name.as_ref().filter(|_| config.checkpoint.resume)?;
    Some(config.train.out.join(name).join(MACHINE)).filter(|file| file.exists())
}

/// Makes a run folder around a checkpoint that is no run's: a place for checkpoints, where `make` makes it, and then a
/// configuration, so that a folder without a whole checkpoint is no run's and can be tried again. Returns what `make` does.
///
/// # Errors
/// [`Error::RunFolder`] if the folder is another run's, or cannot be written; those of `make`.
pub fn around(path: &Path, config: &Config, make: impl FnOnce(&DirectoryStore) -> Result<PathBuf>) -> Result<PathBuf> {
    if path.join(CONFIG).exists() || has_checkpoint(path) {
        return Err(Error::RunFolder { path: path.into(), problem: "exists; give the name of a new folder".into() });
    }
    let cannot = |error| Error::RunFolder { path: path.into(), problem: format!("cannot be written: {error}") };
    durable::make_folders(path).map_err(cannot)?;
    let made = make(&DirectoryStore::new(path.join(CHECKPOINTS), 0))?;
    save(path, config)?;
    Ok(made)
}

/// Finds or makes the folder on this rank, and keeps it for this process.
fn prepare(config: &Config) -> Result<(PathBuf, File)> {
    let out = std::path::absolute(&config.train.out).unwrap_or_else(|_| config.train.out.clone());
    durable::make_folders(&out).map_err(|error| unwritable(&out, &error))?;
    let path = match &config.train.name {
        Some(name) => named(out.join(name), config.checkpoint.resume)?,
        None => unnamed(&out, &format!("{}-{}", config.label, timestamp(SystemTime::now())))?,
    };
    let lock = lock(&path)?;
    if !path.join(CONFIG).exists() {
        save(&path, config).map_err(|error| match error {
            Error::Write { source, .. } => unwritable(&path, &source),
            other => other,
        })?;
    }
    Ok((path, lock))
}

/// Takes a folder's lock for this process.
///
/// Of two programs in one folder, each would sweep away what the other is saving.
fn lock(path: &Path) -> Result<File> {
    let place = path.join(LOCK);
    let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&place);
    let mut file = opened.map_err(|error| unwritable(path, &error))?;
    // A run that was killed a moment ago may have a write to end before the system takes its lock back.
    let begun = Instant::now();
    while matches!(file.try_lock(), Err(TryLockError::WouldBlock)) && begun.elapsed() < PATIENCE {
        std::thread::sleep(PATIENCE / 50);
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let read = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if read { holder.trim() } else { "another program" };
            let problem = format!(
                "is in use: {holder} trains there; wait for its end or end it (one that died holds nothing), or give \
                 another `train.name`"
            );
            return Err(Error::RunFolder { path: path.into(), problem });
        }
        // Not every file system has locks, and a run is worth more than one.
        Err(TryLockError::Error(error)) => {
            tracing::warn!(path = %place.display(), %error, "the run folder cannot be locked against other programs");
        }
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let holder = format!("process {} on {}\n", std::process::id(), host.trim());
    // Only for people: who cannot be named holds the lock none the less.
    let _ = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
    Ok(file)
}

/// Writes a configuration into a run folder.
pub(crate) fn save(path: &Path, config: &Config) -> Result<()> {
    durable::write(&path.join(CONFIG), config.to_toml().as_bytes())
}

/// Makes a folder whose name outlives a lost machine.
fn make(path: &Path) -> std::io::Result<()> {
    fs::create_dir(path)?;
    durable::flush_names(path.parent().unwrap_or(path))
}

/// Makes the folder that the user named, or takes it if the run is to be continued.
fn named(path: PathBuf, resume: bool) -> Result<PathBuf> {
    match make(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {
            if resume {
                return Ok(path);
            }
            let problem = "exists; set `checkpoint.resume=true` to continue the run, or give another `train.name`";
            Err(Error::RunFolder { path, problem: problem.into() })
        }
        Err(error) => Err(unwritable(&path, &error)),
        Ok(()) => Ok(path),
    }
}

/// Makes a folder that is surely new: runs that start in the same second count up.
fn unnamed(out: &Path, name: &str) -> Result<PathBuf> {
    for number in 1.. {
        let path = out.join(if number == 1 { name.to_string() } else { format!("{name}-{number}") });
        match make(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(unwritable(&path, &error)),
        }
    }
    unreachable!("there are fewer folders than numbers")
}

/// Words a folder that refuses.
fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    let problem = format!("cannot be written: {error}; set `train.out` to a folder that can");
    Error::RunFolder { path: path.into(), problem }
}

/// Says whether a run folder holds a checkpoint.
pub fn has_checkpoint(folder: &Path) -> bool {
    newest_step(folder).is_some()
}

/// Returns the step of a run folder's newest checkpoint.
pub fn newest_step(folder: &Path) -> Option<u64> {
    DirectoryStore::new(folder.join(CHECKPOINTS), 0).steps().ok()?.into_iter().max()
}

/// Writes a time as `20260131-235959`, in UTC.
pub fn timestamp(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", clock / 3600, clock / 60 % 60, clock % 60)
}

/// Turns days since 1970-01-01 into year, month and day.
///
/// # Source
/// Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`, for days from 1970 on.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years that begin in March end with the leap day; eras of 400 of them have equally many days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Strips the time that default names end with.
pub(crate) fn without_time(name: &str) -> &str {
    let digits = |text: &str, n: usize| text.len() == n && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = name.rsplitn(3, '-');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(clock), Some(day), Some(rest)) if digits(clock, 6) && digits(day, 8) => rest,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp_comm::solo::Solo;

    fn config(out: &Path, sets: &[&str]) -> Config {
        let mut all = vec![format!("train.out={}", out.display())];
        all.extend(sets.iter().map(|set| set.to_string()));
        Config::load(None, None, &all).unwrap()
    }

    #[test]
    fn times_are_utc() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101-000000");
        assert_eq!(at(951_782_399), "20000228-235959");
        assert_eq!(at(951_782_400), "20000229-000000");
        assert_eq!(at(1_709_251_199), "20240229-235959");
        assert_eq!(at(4_107_542_400), "21000301-000000");
    }

    #[test]
    fn a_named_folder_is_given_once() {
        let out = tempfile::tempdir().unwrap();
        let world = Solo::new("world");
        let folder = RunFolder::open(&world, &config(out.path(), &["train.name=a"])).unwrap();
        assert_eq!(folder.path(), out.path().join("a"));
        let error = RunFolder::open(&world, &config(out.path(), &["train.name=a"])).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("checkpoint.resume=true"), "{error}");
        let resume = config(out.path(), &["train.name=a", "checkpoint.resume=true"]);
        drop(folder);
        assert_eq!(RunFolder::open(&world, &resume).unwrap().path(), out.path().join("a"));
    }

    #[test]
    fn a_folder_in_use_is_refused_on_all_ranks_until_its_run_ends() {
        let out = tempfile::tempdir().unwrap();
        let resume = config(out.path(), &["train.name=a", "checkpoint.resume=true"]);
        let folder = RunFolder::open(&Solo::new("world"), &resume).unwrap();
        let refused = mp_comm::threads::run(3, |world| Ok::<_, Error>(RunFolder::open(&*world, &resume).unwrap_err()));
        let text = refused[0].to_string();
        let holder = format!("is in use: process {} on ", std::process::id());
        assert!(text.contains(&holder) && text.contains("another `train.name`"), "{text}");
        assert!(refused.iter().all(Error::is_input));
        drop(folder);
        RunFolder::open(&Solo::new("world"), &resume).unwrap();
    }

    #[test]
    fn a_checkpoint_that_could_not_be_made_leaves_a_folder_to_try_again() {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("new/a");
        let full = || Error::Write { path: path.clone(), source: ErrorKind::StorageFull.into() };
        assert!(matches!(around(&path, &Config::default(), |_| Err(full())), Err(Error::Write { .. })));
        assert!(!path.join(CONFIG).exists());
        around(&path, &Config::default(), |store| Ok(store.root().into())).unwrap();
        assert!(path.join(CONFIG).exists());
        assert!(matches!(around(&path, &Config::default(), |_| Err(full())), Err(Error::RunFolder { .. })));
    }

    #[test]
    fn continuing_what_is_not_there_starts_fresh() {
        let out = tempfile::tempdir().unwrap();
        let resume = config(out.path(), &["train.name=new", "checkpoint.resume=true"]);
        assert!(RunFolder::open(&Solo::new("world"), &resume).unwrap().path().join(CONFIG).exists());
    }

    #[test]
    fn unnamed_folders_never_meet_and_repeat_their_run() {
        let out = tempfile::tempdir().unwrap();
        let config = config(out.path(), &["train.steps=7"]);
        let folders: Vec<RunFolder> = (0..3).map(|_| RunFolder::open(&Solo::new("world"), &config).unwrap()).collect();
        assert!(folders[0].path() != folders[1].path() && folders[1].path() != folders[2].path());
        let again = Config::load(Some(&folders[0].path().join(CONFIG)), None, &[]).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn all_ranks_hear_of_the_same_folder_and_of_a_refusal() {
        let out = tempfile::tempdir().unwrap();
        let config = config(out.path(), &["train.name=a"]);
        let folders = mp_comm::threads::run(3, |world| RunFolder::open(&*world, &config));
        assert!(folders.iter().all(|folder| folder.path() == out.path().join("a")));
        let again = mp_comm::threads::run(3, |world| Ok::<_, Error>(RunFolder::open(&*world, &config).unwrap_err()));
        assert!(matches!(again[0], Error::RunFolder { .. }));
        assert!(matches!(again[2], Error::Peer { rank: 0, input: true }));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_the_inputs_fault() {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("file");
        fs::write(&file, "in the way").unwrap();
        let error = RunFolder::open(&Solo::new("world"), &config(&file.join("runs"), &[])).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("cannot be written"), "{error}");
    }

    #[test]
    fn the_time_is_stripped_from_default_names_alone() {
        assert_eq!(without_time("default-20260131-235959"), "default");
        assert_eq!(without_time("a-b-20260131-235959"), "a-b");
        assert_eq!(without_time("a-20260131"), "a-20260131");
        assert_eq!(without_time("a"), "a");
    }
}
