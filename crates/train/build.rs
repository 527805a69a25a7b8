//! Lets this package's tests find libtorch and MPI at run time.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=MP_RPATH");
    let torch = std::env::var("DEP_TCH_LIBTORCH_LIB").ok();
    let mpi = std::env::var("MP_RPATH").ok();
    for folder in torch.iter().chain(&mpi) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
