//! The scripts of a bundle: `mp`, which finds libtorch and starts programs, and `gpu-check`.

use anyhow::{ensure, Context, Result};
use std::fs;
use std::path::Path;

use crate::environment;
use crate::setup::{Mpi, LIBTORCH_VERSION};

/// A function of libtorch whose name tells that it takes strings of the newer C++ ABI; our shim and the bindings call it.
const SYMBOL: &str = "_ZN3c105ErrorC2ENS_14SourceLocationENSt7__cxx1112basic_string";

/// The scripts by name.
pub fn scripts(mpi: &Mpi) -> [(&'static str, String); 2] {
    let launch = include_str!("mp.sh")
        .replace("@LIBTORCH@", LIBTORCH_VERSION)
        .replace("@SYMBOL@", SYMBOL)
        .replace("@DEFAULTS@", &environment::defaults_elsewhere(mpi));
    [("mp", launch), ("gpu-check", include_str!("gpu-check.sh").into())]
}

/// Refuses to bundle what was built with a libtorch of the older C++ ABI, which no PyTorch of that release has.
pub fn check_abi(libtorch: &Path) -> Result<()> {
    let library = libtorch.join("libc10.so");
    let bytes = fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
    ensure!(
        bytes.windows(SYMBOL.len()).any(|window| window == SYMBOL.as_bytes()),
        "{} is built with the older C++ ABI, which no PyTorch {LIBTORCH_VERSION} has: unset LIBTORCH",
        library.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::Flavor;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::process::{Command, Output};

    /// A bundle with a program that tells what it was given, a PyTorch and a Python that knows it.
    struct Made(PathBuf);

    impl Drop for Made {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    impl Made {
        fn new(name: &str) -> Self {
            let made = Self(std::env::temp_dir().join(format!("xtask-launch-{name}-{}", std::process::id())));
            let _ = fs::remove_dir_all(&made.0);
            let mpi = Mpi {
                mpicc: "/mpi/bin/mpicc".into(),
                mpirun: "/mpi/bin/mpirun".into(),
                library: None,
                flavor: Flavor::OpenMpi,
                version: "5.0.11".into(),
            };
            let [(_, script), _] = scripts(&mpi);
            made.write("bundle/mp", &script);
            let tell =
                "#!/bin/sh\necho \"$0 $*\"\necho \"$LD_LIBRARY_PATH\"\necho \"$OPAL_PREFIX $OMPI_ALLOW_RUN_AS_ROOT $HOME\"\n";
            made.write("bundle/bin/mp-cli", tell);
            made.write("bundle/openmpi/bin/mpirun", tell);
            made.write("site/torch/lib/libtorch_cpu.so", "");
            made.write("site/torch/lib/libc10.so", &format!("\0{SYMBOL}Ic\0"));
            made.write("site/torch/version.py", "__version__ = '2.11.0+cu130'\n");
            made.write("site/nvidia/nccl/lib/libnccl.so.2", "");
            made.write("python", &format!("#!/bin/sh\necho {}\n", made.0.join("site/torch").display()));
            made
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn start(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
            let mut command = Command::new(self.0.join("bundle/mp"));
            command.args(arguments).current_dir("/").env_remove("MP_TORCH").env_remove("LD_LIBRARY_PATH");
            command.env_remove("HOME").env_remove("TMPDIR");
            command.env("MP_PYTHON", self.0.join("python")).envs(variables.iter().copied()).output().unwrap()
        }

        /// What it complains of, without the ways out, which are the same each time.
        fn complaint(&self, arguments: &[&str], variables: &[(&str, &str)]) -> String {
            let output = self.start(arguments, variables);
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(text.lines().count(), 1, "{text}");
            let text = text.replace(&format!("{}/", self.0.display()), "");
            text.split(": set MP_PYTHON to a Python that has PyTorch 2.11.0").next().unwrap().trim_end().to_string()
        }
    }

    #[test]
    fn a_program_gets_its_arguments_and_the_folders_of_libraries() {
        let made = Made::new("folders");
        let told = |arguments: &[&str]| String::from_utf8(made.start(arguments, &[]).stdout).unwrap();
        let at = |file: &str| made.0.join(file).display().to_string();
        let (bundle, torch) = (at("bundle"), at("site/torch"));
        let libraries = format!("{bundle}/openmpi/lib:{torch}/lib:{torch}/../nvidia/nccl/lib");
        let expected = format!("{bundle}/bin/mp-cli verify -n 2\n{libraries}\n{bundle}/openmpi 1 /tmp\n");
        assert_eq!(told(&["verify", "-n", "2"]), expected);
        let expected = format!("{bundle}/openmpi/bin/mpirun -n 2 {bundle}/bin/mp-cli verify\n");
        assert!(told(&["-n", "2", "verify"]).starts_with(&expected));
        let own = made.start(&[], &[("LD_LIBRARY_PATH", "/driver"), ("MP_TORCH", &torch), ("HOME", "/home")]);
        let own = String::from_utf8(own.stdout).unwrap();
        assert!(own.contains("/nvidia/nccl/lib:/driver\n") && own.ends_with(" 1 /home\n"), "{own}");
    }

    #[test]
    fn ranks_meet_in_files_where_there_is_little_shared_memory() {
        let made = Made::new("shared");
        let tell = "#!/bin/sh\necho \"${OMPI_MCA_btl_sm_backing_directory:-shared memory}\"\n";
        made.write("bundle/openmpi/bin/mpirun", tell);
        made.write("path/df", "#!/bin/sh\necho Filesystem; echo 'shm 65536 32768 32768 50% /dev/shm'\n");
        let path = format!("{}:{}", made.0.join("path").display(), std::env::var("PATH").unwrap());
        let told = |ranks: &str, own: &str| {
            let variables = [("PATH", path.as_str()), ("OMPI_MCA_btl_sm_backing_directory", own)];
            String::from_utf8(made.start(&["-n", ranks], &variables).stdout).unwrap()
        };
        assert_eq!([told("4", ""), told("5", ""), told("5", "/own")], ["shared memory\n", "/tmp\n", "/own\n"]);
        made.write("path/df", "#!/bin/sh\nexit 1\n");
        assert_eq!(told("1", ""), "/tmp\n");
    }

    #[test]
    fn a_libtorch_that_the_loader_is_told_of_serves_where_python_has_none() {
        let made = Made::new("loader");
        let lib = made.0.join("site/torch/lib").display().to_string();
        let path = format!("/driver:{lib}/");
        for python in ["python", "no-python"] {
            made.write("python", "#!/bin/sh\necho\n");
            let python = if python == "python" { made.0.join(python).display().to_string() } else { python.into() };
            let started = made.start(&["doctor"], &[("MP_PYTHON", &python), ("LD_LIBRARY_PATH", &path)]);
            let told = String::from_utf8(started.stdout).unwrap();
            assert!(told.contains(&format!("/openmpi/lib:{lib}:")) && told.contains(&format!(":{path}\n")), "{told}");
        }
    }

    #[test]
    fn what_does_not_fit_is_one_line_with_the_way_out() {
        let made = Made::new("refusals");
        assert_eq!(made.complaint(&[], &[("MP_PYTHON", "no-python")]), "mp: no no-python to ask for libtorch");
        assert_eq!(made.complaint(&[], &[("MP_TORCH", "/none")]), "mp: /none has no lib/libtorch_cpu.so");
        assert_eq!(made.complaint(&["-n", "two"], &[]), "mp: -n two: a number of ranks is needed");
        assert_eq!(made.complaint(&["--run", "other"], &[]), "mp: --run other: bin/ has mp-cli");

        made.write("site/torch/lib/libc10.so", "_ZN3c105ErrorC2ENS_14SourceLocationESs");
        let old = "mp: site/torch is built with the older C++ ABI, which these programs cannot be linked to";
        assert_eq!(made.complaint(&[], &[]), old);
        made.write("site/torch/version.py", "__version__ = '2.10.1+cu130'\n");
        assert_eq!(made.complaint(&[], &[]), "mp: site/torch is PyTorch 2.10.1+cu130, and 2.11.0 is needed");
        made.write("python", "#!/bin/sh\necho\n");
        assert_eq!(made.complaint(&[], &[]), "mp: python has no PyTorch");
        assert_eq!(made.complaint(&[], &[("LD_LIBRARY_PATH", "/none::/usr")]), "mp: python has no PyTorch");
    }

    #[test]
    fn a_libtorch_of_the_older_abi_is_not_bundled() {
        let made = Made::new("abi");
        let folder = made.0.join("site/torch/lib");
        check_abi(&folder).unwrap();
        made.write("site/torch/lib/libc10.so", "_ZN3c105ErrorC2ENS_14SourceLocationESs");
        assert!(check_abi(&folder).unwrap_err().to_string().contains("older C++ ABI"));
    }
}
