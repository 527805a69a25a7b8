//! What goes into a bundle, and where.

use anyhow::{ensure, Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// One file.
#[derive(Debug, PartialEq, Eq)]
pub struct Item {
    /// Where it comes from.
    pub from: PathBuf,
    /// Its path in the bundle.
    pub to: String,
    /// Whether what only debuggers read is left out.
    pub stripped: bool,
}

/// Programs by their names in the release folder and in the bundle.
const PROGRAMS: [(&str, &str); 3] = [("mp-cli", "mp-cli"), ("train", "bench-train"), ("conformance", "conformance")];
/// Of Open MPI what starts ranks: compilers, headers and documentation stay behind.
const STARTERS: [&str; 5] = ["mpirun", "ompirun_wrapper", "prte", "prted", "prterun"];
/// The Python programs that `gpu-check` sets ours beside.
const PEERS: [&str; 2] = ["model.py", "train.py"];
/// Small models that transformers saved, of each family that writes.
const MODELS: [&str; 4] = ["gpt2", "llama3", "mistral", "qwen2"];
/// Where the text for the recipe lies.
pub const TEXT: &str = "data/text.txt";

/// Lists everything but the scripts.
pub fn list(root: &Path, release: &Path, open_mpi: &Path, text: Option<&Path>) -> Result<Vec<Item>> {
    let plain = |from: PathBuf, to: String| Item { from, to, stripped: false };
    let mut items: Vec<Item> = PROGRAMS
        .iter()
        .map(|(name, to)| Item { from: release.join(name), to: format!("bin/{to}"), stripped: true })
        .collect();
    // It runs the checks on the other machine, and needs neither libtorch nor MPI.
    let own = std::env::current_exe().context("cannot find the program that is running")?;
    items.push(Item { from: own, to: "bin/xtask".into(), stripped: true });
    items.extend(STARTERS.map(|name| plain(open_mpi.join("bin").join(name), format!("openmpi/bin/{name}"))));
    for folder in ["lib", "etc", "share"] {
        let files = below(&open_mpi.join(folder))?.into_iter();
        let wanted = files.filter(|file| !file.is_symlink() && !is_of_a_compiler(file));
        for file in wanted {
            let to = format!("openmpi/{}", shown(&file, open_mpi));
            items.push(plain(file, to));
        }
    }
    items.push(plain(root.join("xtask/src/environment_probe.py"), "openmpi/probe.py".into()));
    items.extend(PEERS.map(|name| plain(root.join("benches/peers").join(name), format!("peers/{name}"))));
    for file in below(&root.join("benches/configs"))? {
        let to = format!("configs/{}", shown(&file, &root.join("benches/configs")));
        items.push(plain(file, to));
    }
    let models = root.join("crates/train/tests/huggingface");
    for name in MODELS {
        let files = below(&models.join(name))?.into_iter();
        for file in files.filter(|file| is_of_a_model(file)) {
            let to = format!("models/{}", shown(&file, &models));
            items.push(plain(file, to));
        }
    }
    if let Some(text) = text {
        items.push(plain(text.into(), TEXT.into()));
    }
    Ok(items)
}

/// Refuses a text that no recipe can be trained on.
pub fn check_text(text: &Path) -> Result<()> {
    let known = text.metadata().with_context(|| format!("--text {} cannot be read", text.display()))?;
    ensure!(known.is_file() && known.len() > 0, "--text {} is no text: name a file that is not empty", text.display());
    Ok(())
}

fn is_of_a_compiler(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().ends_with("-wrapper-data.txt"))
}

/// Beside the models lie tensors that tests compare with.
fn is_of_a_model(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".json") || name.starts_with("model")
}

fn shown(file: &Path, folder: &Path) -> String {
    file.strip_prefix(folder).unwrap_or(file).display().to_string()
}

/// The files below a folder, sorted.
pub fn below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(below(&path)?),
            false => found.push(path),
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_starts_ranks_comes_along_and_what_compiles_stays() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mpi = std::env::temp_dir().join(format!("xtask-bundle-contents-{}", std::process::id()));
        for file in ["lib/openmpi/a.so", "etc/b.conf", "share/openmpi/help.txt", "share/openmpi/mpicc-wrapper-data.txt"]
        {
            fs::create_dir_all(mpi.join(file).parent().unwrap()).unwrap();
            fs::write(mpi.join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("openmpi/a.so", mpi.join("lib/link.so")).unwrap();
        let items = list(root, Path::new("/t/release"), &mpi, None).unwrap();
        let at = |to: &str| items.iter().find(|item| item.to == to);
        assert!(at("bin/mp-cli").unwrap().stripped && !at("openmpi/bin/mpirun").unwrap().stripped);
        assert_eq!(at("bin/bench-train").unwrap().from, Path::new("/t/release/train"));
        let of_mpi = items.iter().map(|item| &item.to).filter(|to| to.starts_with("openmpi/") && !to.contains("/bin/"));
        let expected =
            ["openmpi/lib/openmpi/a.so", "openmpi/etc/b.conf", "openmpi/share/openmpi/help.txt", "openmpi/probe.py"];
        assert_eq!(of_mpi.collect::<Vec<_>>(), expected);
        // Everything that comes from the tree is there.
        let missing = items.iter().filter(|item| item.from.starts_with(root) && !item.from.exists());
        assert_eq!(missing.collect::<Vec<_>>(), Vec::<&Item>::new());
        assert!(at("models/llama3/config.json").is_some() && at("models/llama3/golden.safetensors").is_none());

        let refused = |text: &Path| check_text(text).unwrap_err().to_string();
        assert_eq!(refused(Path::new("/none")), "--text /none cannot be read");
        for text in [mpi.clone(), mpi.join("empty")] {
            fs::write(mpi.join("empty"), "").unwrap();
            let told = format!("--text {} is no text: name a file that is not empty", text.display());
            assert_eq!(refused(&text), told);
        }
        fs::remove_dir_all(mpi).unwrap();
    }
}
