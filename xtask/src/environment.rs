//! What `mpirun` and its ranks need around them: `cargo xtask env` prints it, the other commands set it.

use anyhow::{Context, Result};
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::process;
use crate::setup::{self, Flavor, Mpi};
use crate::workspace::Workspace;

/// Prints shell lines for `eval`; everything else goes to standard error.
pub fn command(workspace: &Workspace) -> Result<ExitCode> {
    let installs = setup::ensure(workspace)?;
    let launcher = &installs.mpi.mpirun;
    let mut folders = vec![workspace.target()?.join("release")];
    if launcher.file_name() != Some("mpirun".as_ref()) {
        println!("mpirun() {{ {} \"$@\"; }}", quoted(&launcher.display().to_string()));
    } else if process::which("mpirun").as_ref() != Some(launcher) {
        // One that is found anyway needs no place before everything else in its folder, which may be /usr/bin.
        folders.push(launcher.parent().context("mpirun lies in a folder")?.to_path_buf());
    }
    let folders: String = folders.iter().map(|folder| quoted(&folder.display().to_string()) + ":").collect();
    println!("export PATH={folders}\"$PATH\"");
    if let Some(library) = &installs.mpi.library {
        // Our own binaries carry the path; programs that the user links with mpicc may not.
        println!(
            "export LD_LIBRARY_PATH={}\"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"",
            quoted(&library.display().to_string())
        );
    }
    for (name, value) in variables(&installs.mpi) {
        println!("export {name}={}", quoted(&value));
    }
    Ok(ExitCode::SUCCESS)
}

/// A command that runs `program` on `ranks` ranks; its arguments follow.
pub fn mpirun(mpi: &Mpi, ranks: usize, program: &Path) -> Command {
    let mut command = Command::new(&mpi.mpirun);
    apply(mpi, &mut command);
    command.arg("-n").arg(ranks.to_string()).arg(program);
    command
}

/// Sets the variables for a command that is, or starts, `mpirun`.
pub fn apply(mpi: &Mpi, command: &mut Command) {
    for (name, value) in variables(mpi) {
        // A setting of the user's own is no accident.
        if std::env::var_os(&name).is_none() {
            command.env(name, value);
        }
    }
}

/// What lets MPI run as root, in containers and with more ranks than cores; ranks are free to move between the cores.
fn variables(mpi: &Mpi) -> Vec<(String, String)> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    if mpi.flavor == Flavor::OpenMpi {
        all.extend([
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_mpi_yield_when_idle", "1"),
        ]);
        let single_copy = process_memory_is_readable();
        match mpi.version.starts_with("4.") {
            true => {
                all.push(("OMPI_MCA_rmaps_base_oversubscribe", "1"));
                all.push(("OMPI_MCA_hwloc_base_binding_policy", "none"));
                all.extend((!single_copy).then_some(("OMPI_MCA_btl_vader_single_copy_mechanism", "none")));
            }
            false => {
                all.push(("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"));
                all.push(("PRTE_MCA_hwloc_default_binding_policy", "none"));
                all.extend((!single_copy).then_some(("OMPI_MCA_smsc", "^cma")));
            }
        }
    }
    all.into_iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// Whether a process may read another's memory with one system call, as Open MPI does for large messages.
///
/// Containers often forbid it, and Open MPI finds out too late. The call is tried, on a child: a rank allows its peers
/// what a parent may do. Where it cannot be tried the slower way is taken, which always works.
fn process_memory_is_readable() -> bool {
    let Some(python) = process::which("python3") else { return false };
    process::stdout_of(Command::new(python).args(["-c", include_str!("environment_probe.py")])).is_ok()
}

/// Quotes for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mpi(flavor: Flavor, version: &str) -> Mpi {
        let (mpicc, mpirun) = ("/mpi/bin/mpicc".into(), "/mpi/bin/mpirun".into());
        Mpi { mpicc, mpirun, library: None, flavor, version: version.into() }
    }

    fn names(mpi: &Mpi) -> Vec<String> {
        variables(mpi).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn each_release_of_open_mpi_gets_the_names_it_knows() {
        let (four, five) = (names(&mpi(Flavor::OpenMpi, "4.1.4")), names(&mpi(Flavor::OpenMpi, "5.0.11")));
        assert!(four.contains(&"OMPI_MCA_rmaps_base_oversubscribe".into()));
        assert!(!four.iter().any(|name| name.starts_with("PRTE")));
        assert!(five.contains(&"PRTE_MCA_rmaps_default_mapping_policy".into()));
        assert!(!five.iter().any(|name| name.contains("vader")));
    }

    #[test]
    fn mpich_needs_nothing() {
        assert!(variables(&mpi(Flavor::Mpich, "4.0.2")).is_empty());
    }

    #[test]
    fn quoted_text_comes_back_from_a_shell_as_it_was() {
        let text = "it's $HOME \"and\" `more`";
        let script = format!("printf %s {}", quoted(text));
        assert_eq!(process::stdout_of(Command::new("sh").args(["-c", &script])).unwrap(), text);
    }

    #[test]
    fn the_launcher_gets_ranks_before_the_program() {
        let command = mpirun(&mpi(Flavor::OpenMpi, "5.0.11"), 3, Path::new("mp-cli"));
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments, ["-n", "3", "mp-cli"]);
    }
}
