//! Filling the cache: wheels are downloaded by pip, checked, unpacked into a partial folder and moved into place whole.

use anyhow::{bail, ensure, Context, Result};
use serde_json::json;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::packages::{Bundle, Processor, Wheel};
use super::prerequisites;
use crate::process;

/// A folder that carries this file was complete when it was moved into place; the text names the wheels.
const STAMP: &str = ".complete";

/// The wheel's Python: its version only chooses among wheels with the same libraries.
const PYTHON: &str = "3.11";
const ABIS: [&str; 3] = ["cp311", "abi3", "none"];
const PLATFORMS: [&str; 7] = [
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_25",
    "manylinux_2_18",
    "manylinux2014",
    "manylinux2010",
    "manylinux1",
];

/// The cache and the processor it serves.
pub struct Installer<'a> {
    cache: &'a Path,
    processor: Processor,
}

impl<'a> Installer<'a> {
    /// Prepares to install below `cache`.
    ///
    /// # Errors
    /// If no wheels exist for this machine.
    pub fn new(cache: &'a Path) -> Result<Self> {
        let Some(processor) = Processor::of_this_machine() else {
            bail!(
                "nothing can be installed on {} {}: the packages exist for Linux on x86_64 and aarch64; \
                 set MPICC, LIBTORCH (2.11.0) and LIBCLANG_PATH to installations of your own",
                std::env::consts::OS,
                std::env::consts::ARCH
            );
        };
        Ok(Self { cache, processor })
    }

    /// Returns the bundle's folder, and installs it first if it is not there or was left unfinished.
    pub fn ensure(&self, bundle: &Bundle) -> Result<PathBuf> {
        let place = self.cache.join(bundle.folder);
        if is_complete(&place, bundle, self.processor) {
            return Ok(place);
        }
        fs::create_dir_all(self.cache)
            .with_context(|| format!("cannot create the cache folder {} (set MP_CACHE)", self.cache.display()))?;
        let _lock = lock(self.cache, Duration::MAX)?;
        // Another set-up may have finished the job while this one waited.
        if !is_complete(&place, bundle, self.processor) {
            self.install(bundle, &place)?;
        }
        Ok(place)
    }

    fn install(&self, bundle: &Bundle, place: &Path) -> Result<()> {
        let python = self.python()?;
        let partial = self.cache.join(format!("{}.partial", bundle.folder));
        let wheels: Vec<&Wheel> = bundle.wheels.iter().copied().flatten().collect();
        let mut archives = Vec::new();
        for wheel in &wheels {
            archives.push(self.download(&python, wheel)?);
        }
        // Unpacking is cheap beside the download: an interrupted one starts anew.
        remove(&partial)?;
        fs::create_dir_all(&partial)?;
        for (wheel, archive) in wheels.iter().zip(&archives) {
            eprintln!("{} {}: checking and unpacking", wheel.name, wheel.version);
            self.unpack(&python, bundle, wheel, archive, &partial)?;
        }
        for file in bundle.required {
            ensure!(partial.join(file).exists(), "{file} is missing in the package for {}", bundle.folder);
        }
        fs::write(partial.join(STAMP), stamp(bundle, self.processor))?;
        replace(&partial, place)?;
        for archive in archives {
            remove(archive.parent().context("a wheel lies in its folder")?)?;
        }
        // Gone only when no other bundle's wheel waits in it.
        let _ = fs::remove_dir(self.cache.join("downloads"));
        Ok(())
    }

    /// The interpreter of a virtual environment in the cache: pip, whatever the machine's own lacks or forbids.
    fn python(&self) -> Result<PathBuf> {
        let folder = self.cache.join("python");
        let python = folder.join("bin/python");
        if folder.join(STAMP).exists() && runs(&python, &["-m", "pip", "--version"]) {
            return Ok(python);
        }
        let host = prerequisites::python()?;
        remove(&folder)?;
        process::stdout_of(Command::new(host).args(["-m", "venv"]).arg(&folder))
            .context("cannot make a Python environment; on Debian and Ubuntu: apt install python3-venv")?;
        fs::write(folder.join(STAMP), "")?;
        Ok(python)
    }

    /// Downloads one wheel into a folder of its own; a wheel that is already there is not fetched again.
    fn download(&self, python: &Path, wheel: &Wheel) -> Result<PathBuf> {
        let whole = self.cache.join("downloads").join(format!("{}-{}", wheel.name, wheel.version));
        if let Some(archive) = archive_in(&whole) {
            eprintln!("{} {}: downloaded before", wheel.name, wheel.version);
            return Ok(archive);
        }
        let partial = whole.with_file_name(format!("{}-{}.partial", wheel.name, wheel.version));
        remove(&partial)?;
        fs::create_dir_all(&partial)?;
        // pip compares the checksum itself, before anything is unpacked.
        let request = partial.join("request.txt");
        let line = format!("{}=={} --hash=sha256:{}\n", wheel.name, wheel.version, wheel.sha256(self.processor));
        fs::write(&request, line)?;
        self.fetch(python, wheel, &request, &partial)?;
        replace(&partial, &whole)?;
        archive_in(&whole).with_context(|| format!("pip left no wheel of {}", wheel.name))
    }

    fn fetch(&self, python: &Path, wheel: &Wheel, request: &Path, folder: &Path) -> Result<()> {
        let temporary = folder.join("temporary");
        fs::create_dir_all(&temporary)?;
        let mut command = Command::new(python);
        command.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]);
        command.args(["--no-deps", "--only-binary=:all:", "--require-hashes", "--progress-bar", "off"]);
        command.args(["--implementation", "cp", "--python-version", PYTHON]);
        command.args(ABIS.iter().flat_map(|abi| ["--abi", abi]));
        let platforms = PLATFORMS.iter().map(|platform| format!("{platform}_{}", self.processor.name()));
        command.args(platforms.flat_map(|platform| ["--platform".to_string(), platform]));
        command.arg("--dest").arg(folder).arg("--requirement").arg(request);
        // The system's temporary folder is often small, and in memory.
        command.env("TMPDIR", &temporary);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start pip")?;
        let name = format!("{} {}", wheel.name, wheel.version);
        if !show_progress(child, &name, folder)? {
            bail!("pip could not download {name} (its message is above); run the command again to go on from here");
        }
        remove(&temporary)
    }

    fn unpack(&self, python: &Path, bundle: &Bundle, wheel: &Wheel, archive: &Path, into: &Path) -> Result<()> {
        let order = json!({
            "wheel": archive,
            "sha256": wheel.sha256(self.processor),
            "into": into,
            "keep": bundle.keep,
            "drop": bundle.drop,
        });
        let mut command = Command::new(python);
        command.args(["-c", include_str!("unpack.py")]).stdin(Stdio::piped());
        let mut child = command.spawn().context("cannot start python")?;
        child.stdin.take().context("standard input is piped")?.write_all(order.to_string().as_bytes())?;
        if !child.wait()?.success() {
            // A damaged archive must not be taken for good the next time.
            remove(archive.parent().context("a wheel lies in its folder")?)?;
            bail!("{} {} could not be unpacked; run the command again to download it anew", wheel.name, wheel.version);
        }
        Ok(())
    }
}

/// One set-up at a time: the cache is shared by all clones.
///
/// # Errors
/// If another still holds it after `limit`.
pub fn lock(cache: &Path, limit: Duration) -> Result<File> {
    let file = File::create(cache.join(".lock"))?;
    let begin = Instant::now();
    let mut said = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the cache folder"),
            Err(TryLockError::WouldBlock) if begin.elapsed() >= limit => {
                bail!("another set-up has been filling {} for {} s", cache.display(), limit.as_secs())
            }
            Err(TryLockError::WouldBlock) => {}
        }
        if !said {
            eprintln!("waiting for another set-up that is filling {}", cache.display());
            said = true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Prints the size now and then until pip ends; returns whether it succeeded.
fn show_progress(mut child: Child, name: &str, folder: &Path) -> Result<bool> {
    eprintln!("{name}: downloading");
    let mut said = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            if status.success() {
                eprintln!("{name}: downloaded, {} MiB", size_bytes(folder) >> 20);
            }
            return Ok(status.success());
        }
        if said.elapsed() >= Duration::from_secs(3) {
            eprintln!("{name}: {} MiB so far", size_bytes(folder) >> 20);
            said = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn size_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => size_bytes(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

fn archive_in(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

fn stamp(bundle: &Bundle, processor: Processor) -> String {
    let wheels = bundle.wheels.iter().copied().flatten();
    wheels.map(|wheel| format!("{} {} {}\n", wheel.name, wheel.version, wheel.sha256(processor))).collect()
}

/// Whether the folder holds the bundle, or more: a folder made for GPUs serves a machine without one.
pub fn is_complete(place: &Path, bundle: &Bundle, processor: Processor) -> bool {
    let Ok(found) = fs::read_to_string(place.join(STAMP)) else { return false };
    let wanted = stamp(bundle, processor);
    wanted.lines().all(|line| found.lines().any(|other| other == line))
        && bundle.required.iter().all(|file| place.join(file).exists())
}

/// Moves a finished folder into place; an older one there steps aside first, so that the gap is two renames.
fn replace(finished: &Path, place: &Path) -> Result<()> {
    let aside = place.with_file_name(format!("{}.old", place.file_name().unwrap_or_default().to_string_lossy()));
    remove(&aside)?;
    if place.exists() {
        fs::rename(place, &aside)?;
    }
    fs::rename(finished, place).with_context(|| format!("cannot move {} into place", place.display()))?;
    remove(&aside)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn runs(program: &Path, arguments: &[&str]) -> bool {
    process::stdout_of(Command::new(program).args(arguments)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::packages::{LIBCLANG, LIBTORCH_CPU, LIBTORCH_CUDA};
    use super::*;

    const HERE: Processor = Processor::X86_64;

    /// A folder below the system's temporary one that goes with the value.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
            remove(&folder).unwrap();
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn fill(&self, bundle: &Bundle) {
            for file in bundle.required {
                let path = self.0.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            fs::write(self.0.join(STAMP), stamp(bundle, HERE)).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = remove(&self.0);
        }
    }

    #[test]
    fn a_folder_is_complete_with_its_stamp_and_its_files_only() {
        let scratch = Scratch::new("complete");
        assert!(!is_complete(&scratch.0, &LIBCLANG, HERE));
        scratch.fill(&LIBCLANG);
        assert!(is_complete(&scratch.0, &LIBCLANG, HERE));
        assert!(!is_complete(&scratch.0, &LIBCLANG, Processor::Aarch64));
        fs::remove_file(scratch.0.join("native/libclang.so")).unwrap();
        assert!(!is_complete(&scratch.0, &LIBCLANG, HERE));
    }

    #[test]
    fn libtorch_for_gpus_serves_a_machine_without_one_but_not_the_reverse() {
        let scratch = Scratch::new("variants");
        scratch.fill(&LIBTORCH_CUDA);
        fs::write(scratch.0.join("torch/lib/libc10.so"), "").unwrap();
        assert!(is_complete(&scratch.0, &LIBTORCH_CPU, HERE));
        scratch.fill(&LIBTORCH_CPU);
        assert!(!is_complete(&scratch.0, &LIBTORCH_CUDA, HERE));
    }

    #[test]
    fn the_lock_is_not_waited_for_beyond_the_limit() {
        let scratch = Scratch::new("lock");
        let held = lock(&scratch.0, Duration::ZERO).unwrap();
        let error = lock(&scratch.0, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("another set-up"), "{error}");
        drop(held);
        lock(&scratch.0, Duration::ZERO).unwrap();
    }

    #[test]
    fn replacing_leaves_neither_the_old_folder_nor_the_partial_one() {
        let scratch = Scratch::new("replace");
        let (old, new) = (scratch.0.join("place"), scratch.0.join("place.partial"));
        fs::create_dir_all(&old).unwrap();
        fs::create_dir_all(&new).unwrap();
        fs::write(new.join("mark"), "").unwrap();
        replace(&new, &old).unwrap();
        assert!(old.join("mark").exists());
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
    }
}
