//! What `mpirun` and its ranks need around them: `cargo xtask env` prints it, the other commands set it.

use anyhow::{Context, Result};
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::process;
use crate::setup::{self, Flavor, Mpi};
use crate::workspace::Workspace;

/// Prints shell lines for `eval`; everything else goes to standard error.
pub fn command(workspace: &Workspace) -> Result<ExitCode> {
    let installs = setup::ensure(workspace)?;
    let lines = shell_lines(&installs.mpi, &workspace.target()?.join("release"), process::which("mpirun").as_deref())?;
    std::io::stdout().write_all(lines.as_bytes()).context("cannot print")?;
    Ok(ExitCode::SUCCESS)
}

/// The lines, where `found` is the launcher that the shell finds by itself.
fn shell_lines(mpi: &Mpi, release: &Path, found: Option<&Path>) -> Result<String> {
    let shown = |path: &Path| quoted(&path.display().to_string());
    let mut lines = Vec::new();
    let mut folders = shown(release) + ":";
    if mpi.mpirun.file_name() != Some("mpirun".as_ref()) {
        lines.push(format!("mpirun() {{ {} \"$@\"; }}", shown(&mpi.mpirun)));
    } else if found != Some(&mpi.mpirun) {
        // One that is found anyway needs no place before everything else in its folder, which may be /usr/bin.
        folders += &(shown(mpi.mpirun.parent().context("mpirun lies in a folder")?) + ":");
    }
    lines.push(format!("export PATH={folders}\"$PATH\""));
    if let Some(library) = &mpi.library {
        // Our own binaries carry the path; programs that the user links with mpicc may not.
        lines.push(format!("export LD_LIBRARY_PATH={}\"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"", shown(library)));
    }
    lines.extend(variables(mpi, process_memory_is_readable()).iter().map(|(name, value)| default_export(name, value)));
    Ok(lines.join("\n") + "\n")
}

/// Shell lines for a script that runs on another machine, of which nothing is known: it has to find out by itself whether
/// processes there may read each other's memory.
pub fn defaults_elsewhere(mpi: &Mpi) -> String {
    let lines = variables(mpi, true);
    lines.iter().map(|(name, value)| default_export(name, value)).collect::<Vec<_>>().join("\n")
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
    for (name, value) in variables(mpi, process_memory_is_readable()) {
        // A setting of the user's own is no accident.
        if std::env::var_os(&name).is_none_or(|own| own.is_empty()) {
            command.env(name, value);
        }
    }
}

/// What lets MPI run as root, in containers and with more ranks than cores; ranks are free to move between the cores.
///
/// `single_copy`: whether a process may read another's memory.
fn variables(mpi: &Mpi, single_copy: bool) -> Vec<(String, String)> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    if mpi.flavor == Flavor::OpenMpi {
        all.extend([
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_mpi_yield_when_idle", "1"),
        ]);
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

/// A line that sets a variable only where the user has not.
fn default_export(name: &str, value: &str) -> String {
    // Between double quotes, and inside the braces, other characters are special than between single ones.
    let special = |c: char| ['\\', '"', '$', '`', '}'].contains(&c);
    let escaped: String = value.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect();
    format!("export {name}=\"${{{name}:-{escaped}}}\"")
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
        variables(mpi, true).into_iter().map(|(name, _)| name).collect()
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
        assert!(variables(&mpi(Flavor::Mpich, "4.0.2"), false).is_empty());
    }

    #[test]
    fn the_launchers_folder_joins_the_path_only_where_it_is_missing() {
        let mpi = mpi(Flavor::Mpich, "4.0.2");
        let lines = |found: &str| shell_lines(&mpi, Path::new("/t/release"), Some(Path::new(found))).unwrap();
        assert_eq!(lines("/usr/bin/mpirun"), "export PATH='/t/release':'/mpi/bin':\"$PATH\"\n");
        assert_eq!(lines("/mpi/bin/mpirun"), "export PATH='/t/release':\"$PATH\"\n");
    }

    #[test]
    fn a_launcher_of_another_name_is_reached_as_mpirun() {
        let mut mpi = mpi(Flavor::Mpich, "4.0.2");
        mpi.mpirun = "/usr/bin/mpirun.mpich".into();
        let text = shell_lines(&mpi, Path::new("/t/release"), None).unwrap();
        assert_eq!(text, "mpirun() { '/usr/bin/mpirun.mpich' \"$@\"; }\nexport PATH='/t/release':\"$PATH\"\n");
    }

    #[test]
    fn quoted_text_comes_back_from_a_shell_as_it_was() {
        let text = "it's $HOME \"and\" `more`";
        let script = format!("printf %s {}", quoted(text));
        assert_eq!(process::stdout_of(Command::new("sh").args(["-c", &script])).unwrap(), text);
    }

    #[test]
    fn a_setting_of_the_users_own_wins_over_an_exported_one() {
        let text = r#"a 'b' "c" $HOME `d` \e {f}"#;
        let script = default_export("NAME", text) + "; printf %s \"$NAME\"";
        let told = |own: &str| process::stdout_of(Command::new("sh").args(["-c", &script]).env("NAME", own)).unwrap();
        assert_eq!(told("its own $value"), "its own $value");
        assert_eq!(told(""), text);
        let lines = shell_lines(&mpi(Flavor::OpenMpi, "5.0.11"), Path::new("/t"), None).unwrap();
        let line = r#"export PRTE_MCA_rmaps_default_mapping_policy="${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}""#;
        assert!(lines.lines().any(|other| other == line), "{lines}");
    }

    #[test]
    fn the_launcher_gets_ranks_before_the_program() {
        let command = mpirun(&mpi(Flavor::OpenMpi, "5.0.11"), 3, Path::new("mp-cli"));
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments, ["-n", "3", "mp-cli"]);
    }
}
