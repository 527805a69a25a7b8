//! Lets the binary find libtorch and MPI at run time, and its tests the launcher.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The folders that torch-sys and mp-comm found; cargo hands them to direct dependents.
    let torch = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    let mpi = std::env::var("DEP_MP_COMM_MPI_MPI_LIB").unwrap_or_default();
    for folder in torch.split(':').chain(mpi.split(':')).filter(|folder| !folder.is_empty()) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
    println!("cargo:rerun-if-env-changed=MP_MPIRUN");
    // The launcher that set-up found works; one that lies beside the library is a guess.
    let recorded = std::env::var("MP_MPIRUN").ok().filter(|launcher| !launcher.is_empty());
    let beside = || mpi.split(':').map(|folder| Path::new(folder).join("../bin/mpirun")).find(|path| path.exists());
    let launcher = recorded.or_else(|| beside().map(|path| path.display().to_string()));
    println!("cargo:rustc-env=MP_CLI_MPIRUN={}", launcher.unwrap_or_else(|| "mpirun".into()));
}
