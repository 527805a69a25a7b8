//! How the build script finds the launcher that belongs to a compiler wrapper.

#[path = "../build/launcher.rs"]
mod launcher;

use launcher::launcher;
use rstest::rstest;

#[rstest]
#[case::chosen(Some("/my/run"), "/usr/bin/mpicc", "/my/run")]
#[case::chosen_empty(Some(""), "/usr/bin/mpicc", "/usr/bin/mpirun")]
#[case::beside(None, "/usr/bin/mpicc", "/usr/bin/mpirun")]
#[case::suffix(None, "/usr/bin/mpicc.openmpi", "/usr/bin/mpirun.openmpi")]
#[case::suffix_without_its_launcher(None, "/usr/bin/mpicc.mpich", "/usr/bin/mpirun")]
#[case::nothing_beside(None, "/elsewhere/mpicc", "mpirun")]
#[case::on_the_path(None, "mpicc", "mpirun")]
#[case::suffix_on_the_path(None, "mpicc.mpich", "mpirun.mpich")]
#[case::wrapper_of_another_name(None, "/usr/bin/cc", "/usr/bin/mpirun")]
fn the_launcher_of(#[case] chosen: Option<&str>, #[case] wrapper: &str, #[case] expected: &str) {
    let there = ["/usr/bin/mpirun", "/usr/bin/mpirun.openmpi"];
    let found =
        launcher(chosen.map(str::to_owned), wrapper, |path| there.iter().any(|p| path == std::path::Path::new(p)));
    assert_eq!(found, expected);
}
