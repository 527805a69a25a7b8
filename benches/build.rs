//! Lets the benches find libtorch and MPI at run time.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The folders that torch-sys and mp-comm found; cargo hands them to direct dependents.
    let torch = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    let mpi = std::env::var("DEP_MP_COMM_MPI_MPI_LIB").unwrap_or_default();
    for folder in torch.split(':').chain(mpi.split(':')).filter(|folder| !folder.is_empty()) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
