//! Compiles the few lines of C that name MPI's macros, and tells this package's own targets and its dependents where
//! the MPI library lies.

#[cfg(feature = "mpi")]
#[path = "build/launcher.rs"]
mod launcher;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    #[cfg(feature = "mpi")]
    mpi::build();
}

#[cfg(feature = "mpi")]
mod mpi {
    use std::env;
    use std::path::Path;
    use std::process::Command;

    use super::launcher::launcher;

    /// The C file, compiled with the MPI library's own compiler wrapper.
    const SOURCE: &str = "src/mpi/handles.c";

    pub fn build() {
        for name in ["MPICC", "MP_RPATH", "MP_MPIRUN"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        if env::var_os("MPICC").is_none() {
            // Only then does the search path decide which compiler answers.
            println!("cargo:rerun-if-env-changed=PATH");
        }
        println!("cargo:rerun-if-changed={SOURCE}");
        let compiler = env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
        cc::Build::new().compiler(&compiler).file(SOURCE).warnings(true).compile("mp_comm_handles");

        let folders = match env::var("MP_RPATH") {
            Ok(folder) => vec![folder],
            Err(_) => library_folders(&compiler),
        };
        for folder in &folders {
            // Reaches this package's tests and examples only; dependents read the metadata below.
            println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        }
        println!("cargo:mpi_lib={}", folders.join(":"));
        println!("cargo:rustc-env=MP_COMM_MPIRUN={}", launcher(env::var("MP_MPIRUN").ok(), &compiler, Path::exists));
    }

    /// Asks the compiler wrapper, in Open MPI's and then in MPICH's way.
    fn library_folders(compiler: &str) -> Vec<String> {
        let answer = output(compiler, "--showme:libdirs");
        if let Some(answer) = answer {
            return answer.split_whitespace().map(str::to_owned).collect();
        }
        let line = output(compiler, "-show").unwrap_or_default();
        line.split_whitespace().filter_map(|word| word.strip_prefix("-L")).map(str::to_owned).collect()
    }

    fn output(compiler: &str, argument: &str) -> Option<String> {
        let output = Command::new(compiler).arg(argument).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
