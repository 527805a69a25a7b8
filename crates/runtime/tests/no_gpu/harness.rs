//! PyTorch's own CUDA library over a CUDA runtime without a GPU (`runtime.c`), for tests of several packages.
//!
//! The library is there where set-up was told `--cuda`; or MP_CUDA_TORCH names the folder of another libtorch of this release, or of
//! a Python's package: `…/site-packages/torch`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The runtime and its driver, compiled, and the library that runs on them.
pub struct Harness {
    folder: tempfile::TempDir,
    pub torch: PathBuf,
}

impl Harness {
    /// Makes one, where there is a library for it.
    pub fn new() -> Option<Self> {
        let named = ["MP_CUDA_TORCH", "LIBTORCH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
        let Some(torch) = named.into_iter().find(|folder| folder.join("lib/libtorch_cuda.so").exists()) else {
            eprintln!("passed over: no CUDA build of libtorch");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        for (source, library) in [("runtime.c", "libruntime.so"), ("driver.c", "libcuda.so.1")] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/no_gpu").join(source);
            let mut command = Command::new(&compiler);
            command.args(["-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread", "-o"]);
            let status = command.arg(folder.path().join(library)).arg(source).arg("-ldl").status();
            assert!(status.expect("a C compiler").success(), "{library} compiles");
        }
        Some(Self { folder, torch })
    }

    /// A folder that goes with it.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Has a program run on so many devices that do nothing.
    pub fn surround(&self, command: &mut Command, devices: usize) {
        let libraries = std::env::join_paths([self.path(), &self.torch.join("lib")]).unwrap();
        command.env("LD_PRELOAD", self.path().join("libruntime.so")).env("LD_LIBRARY_PATH", libraries);
        command.env("FAKE_DEVICES", devices.to_string());
    }
}
