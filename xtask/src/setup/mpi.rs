//! The MPI library: the user's own if it gives MPI 3.1, else Open MPI 5 in the cache.

use anyhow::{bail, ensure, Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::choice::{choose, Candidate, Choice};
use super::install::Installer;
use super::packages::OPEN_MPI;
use super::record::Record;
use crate::process;

/// An MPI installation that can compile, link and run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mpi {
    /// The compiler wrapper.
    pub mpicc: PathBuf,
    /// The launcher.
    pub mpirun: PathBuf,
    /// The folder of the library, when the loader does not look there by itself.
    pub library: Option<PathBuf>,
    /// Which library it is.
    pub flavor: Flavor,
    /// Its version.
    pub version: String,
}

/// The MPI libraries that are known to serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavor {
    /// Open MPI, from 4.1.
    OpenMpi,
    /// MPICH, from 4.
    Mpich,
}

impl Flavor {
    /// The name as its makers write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenMpi => "Open MPI",
            Self::Mpich => "MPICH",
        }
    }

    /// What its header defines, and no other's does.
    fn macro_name(self) -> &'static str {
        match self {
            Self::OpenMpi => "OPEN_MPI",
            Self::Mpich => "MPICH_VERSION",
        }
    }
}

/// Chooses the installation: `MPICC`, the one chosen before, `mpicc` on the `PATH`, the cache.
pub fn find(cache: &Path, record: &Record) -> Result<Choice<Mpi>> {
    let mut candidates = Vec::new();
    if let Some(own) = record.users_own("MPICC") {
        let path = process::which(&own).unwrap_or_else(|| PathBuf::from(&own));
        candidates.push(Candidate::new(format!("MPICC={own}"), move || inspect(&path)));
    }
    // One in the cache is looked at last and through its stamp: it may be half deleted.
    let outside = |path: &PathBuf| !path.starts_with(cache);
    if let Some(before) = record.variables.get("MPICC").map(PathBuf::from).filter(outside) {
        candidates.push(Candidate::new("chosen before (.cargo/mp.toml)", move || inspect(&before)));
    }
    if let Some(path) = process::which("mpicc").filter(outside) {
        candidates.push(Candidate::new(format!("on the PATH ({})", path.display()), move || inspect(&path)));
    }
    choose(candidates, || installed(&Installer::new(cache)?.ensure(&OPEN_MPI)?))
}

/// Looks at the folder of the cache.
fn installed(folder: &Path) -> Result<Mpi> {
    let mpi = inspect(&folder.join("bin/mpicc")).context("the installed Open MPI does not work")?;
    let expected = OPEN_MPI.wheels[0][0].version;
    ensure!(mpi.version == expected, "the installed Open MPI is {}, not {expected}", mpi.version);
    Ok(mpi)
}

/// Looks at an installation through its compiler wrapper.
///
/// # Errors
/// If it cannot compile and link, is older than MPI 3.1, has no launcher, or is an unknown library.
pub fn inspect(mpicc: &Path) -> Result<Mpi> {
    let shown = process::stdout_of(Command::new(mpicc).arg("-show"))?;
    let mpirun = launcher(mpicc)?;
    let printed = process::stdout_of(Command::new(&mpirun).arg("--version"))?;
    let (flavor, version) = parse_version(&printed)?;
    compiles(mpicc, flavor).with_context(|| format!("it cannot compile for MPI 3.1 and {}", mpirun.display()))?;
    Ok(Mpi { mpicc: mpicc.into(), mpirun, library: library_folder(&shown), flavor, version })
}

/// The launcher of the same installation: beside the wrapper and, where several share a folder, with the same suffix.
fn launcher(mpicc: &Path) -> Result<PathBuf> {
    let name = mpicc.file_name().unwrap_or_default().to_string_lossy();
    let suffix = name.strip_prefix("mpicc").unwrap_or_default();
    let names = [format!("mpirun{suffix}"), "mpirun".to_string()];
    let beside = names.iter().map(|name| mpicc.with_file_name(name)).find(|path| path.exists());
    let found = beside.or_else(|| process::which("mpirun"));
    found.with_context(|| format!("no mpirun beside {} nor on the PATH", mpicc.display()))
}

fn parse_version(printed: &str) -> Result<(Flavor, String)> {
    let first = printed.lines().next().unwrap_or_default();
    if let Some(version) = first.strip_prefix("mpirun (Open MPI) ") {
        ensure!(at_least(version, [4, 1]), "Open MPI {version} is older than 4.1");
        return Ok((Flavor::OpenMpi, version.trim().into()));
    }
    if first.starts_with("HYDRA") {
        let line = printed.lines().find_map(|line| line.trim().strip_prefix("Version:"));
        let version = line.context("mpirun prints no version")?.trim();
        ensure!(at_least(version, [4, 0]), "MPICH {version} is older than 4.0");
        return Ok((Flavor::Mpich, version.into()));
    }
    bail!("neither Open MPI nor MPICH: mpirun --version prints {first:?}")
}

fn at_least(version: &str, wanted: [u32; 2]) -> bool {
    let mut parts = version.trim().split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    [parts.next().unwrap_or(0), parts.next().unwrap_or(0)] >= wanted
}

/// The folder of the library among the wrapper's `-L` arguments.
fn library_folder(shown: &str) -> Option<PathBuf> {
    let folders = shown.split_whitespace().filter_map(|word| word.strip_prefix("-L")).map(PathBuf::from);
    // The loader's own folders hold everybody's libraries: naming one would put it before libtorch's.
    let own = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let special =
        folders.filter(|folder| !["/usr/lib", "/usr/lib64", &own].iter().any(|known| folder == Path::new(known)));
    special.into_iter().find(|folder| ["libmpi.so", "libmpich.so"].iter().any(|name| folder.join(name).exists()))
}

/// Compiles and links a program that wants MPI 3.1 of the launcher's make: two makes may share a machine.
fn compiles(mpicc: &Path, flavor: Flavor) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("mp-mpicc-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let source = folder.join("probe.c");
    let program = format!(
        "#include <mpi.h>\n\
        #if MPI_VERSION * 10 + MPI_SUBVERSION < 31\n#error MPI 3.1 is needed\n#endif\n\
        #ifndef {}\n#error mpicc and mpirun belong to different libraries\n#endif\n\
        int main(int c, char **v) {{ MPI_Init(&c, &v); return MPI_Finalize(); }}\n",
        flavor.macro_name()
    );
    let outcome = fs::write(&source, program)
        .map_err(Into::into)
        .and_then(|()| process::stdout_of(Command::new(mpicc).arg(&source).arg("-o").arg(folder.join("probe"))));
    let _ = fs::remove_dir_all(&folder);
    outcome.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_launchers() {
        let open = parse_version("mpirun (Open MPI) 5.0.11\n\nReport bugs to …").unwrap();
        assert_eq!(open, (Flavor::OpenMpi, "5.0.11".into()));
        let hydra = "HYDRA build details:\n    Version:                                 4.0.2\n    CC: gcc\n";
        assert_eq!(parse_version(hydra).unwrap(), (Flavor::Mpich, "4.0.2".into()));
    }

    #[test]
    fn old_and_unknown_libraries_are_refused_with_their_version() {
        let old = parse_version("mpirun (Open MPI) 3.1.6").unwrap_err().to_string();
        assert_eq!(old, "Open MPI 3.1.6 is older than 4.1");
        let old = parse_version("HYDRA build details:\n Version: 3.4.3").unwrap_err().to_string();
        assert_eq!(old, "MPICH 3.4.3 is older than 4.0");
        assert!(parse_version("Another MPI 9").unwrap_err().to_string().contains("Another MPI 9"));
    }

    #[test]
    fn a_compiler_that_knows_no_mpi_is_refused() {
        if let Some(compiler) = process::which("cc") {
            assert!(compiles(&compiler, Flavor::OpenMpi).is_err());
        }
    }

    #[test]
    fn a_suffix_tells_two_libraries_in_one_folder_apart() {
        let folder = std::env::temp_dir().join(format!("xtask-mpi-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for name in ["mpirun", "mpirun.mpich"] {
            fs::write(folder.join(name), "").unwrap();
        }
        assert_eq!(launcher(&folder.join("mpicc.mpich")).unwrap(), folder.join("mpirun.mpich"));
        assert_eq!(launcher(&folder.join("mpicc")).unwrap(), folder.join("mpirun"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_loaders_own_folders_are_not_named() {
        assert_eq!(library_folder("gcc -I/x -L/usr/lib -lmpi"), None);
        let folder = std::env::temp_dir().join(format!("xtask-mpi-lib-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("libmpi.so"), "").unwrap();
        assert_eq!(library_folder(&format!("gcc -L/none -L{} -lmpi", folder.display())), Some(folder.clone()));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(at_least("4.10.0rc1", [4, 2]));
        assert!(!at_least("4.0.7", [4, 1]));
        assert!(at_least("5.0", [4, 1]));
    }
}
