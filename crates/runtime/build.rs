//! Compiles the C++ shim against the libtorch that torch-sys found, and lets this package's tests find it at run time.

use std::path::PathBuf;

fn main() {
    let library = PathBuf::from(
        std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys hands its library folder to direct dependents"),
    );
    let include = library.parent().expect("a library folder has a parent").join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .flag("-O2")
        .flag("-Wno-unused-parameter")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("shim/shim.cpp")
        .warnings(false)
        .compile("mpshim");
    println!("cargo:rustc-env=MP_LIBTORCH_VERSION={}", version(&include));
    println!("cargo:rerun-if-changed=shim/shim.cpp");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", library.display());
}

/// Reads libtorch's release from its headers.
fn version(include: &std::path::Path) -> String {
    let header = include.join("torch/headeronly/version.h");
    let text = std::fs::read_to_string(&header).unwrap_or_else(|error| panic!("{}: {error}", header.display()));
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("#define {name} ")));
        line.unwrap_or_else(|| panic!("{} defines no {name}", header.display())).trim().to_string()
    };
    ["TORCH_VERSION_MAJOR", "TORCH_VERSION_MINOR", "TORCH_VERSION_PATCH"].map(number).join(".")
}
