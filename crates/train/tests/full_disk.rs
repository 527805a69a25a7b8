//! A disk that takes no more, played by the limit on file sizes, which needs no root: the writer fails with an error,
//! what was there stays, and nothing half is left.

use std::path::Path;
use std::process::Command;

use mp_train::checkpoint::{About, CheckpointStore, DirectoryStore, Dtype, Entry, Section, Slice, Verify};
use mp_train::{Config, Error};

/// Tells the child where to write.
const FOLDER: &str = "MP_TEST_CHECKPOINTS";

/// Writes a checkpoint of one tensor of `elements`.
fn save(folder: &Path, step: u64, elements: usize) -> mp_train::Result<()> {
    let store = DirectoryStore::new(folder, 1);
    let mut writer = store.shard(step, 0)?;
    writer.file(Section::Model, &[Slice::whole(Entry::new("a", Dtype::F32, &[elements]))])?;
    writer.append(&vec![0; 4 * elements])?;
    writer.finish()?;
    store.commit(1, &About::new(step, &Config::default())).map(|_| ())
}

#[test]
#[ignore = "the child of `a_full_disk_leaves_the_previous_checkpoint`, which limits it"]
fn child_writes_more_than_fits() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let error = save(Path::new(&folder), 2, 1 << 20).unwrap_err();
    assert!(matches!(&error, Error::Write { path, .. } if path.ends_with("model-00000.safetensors")), "{error}");
    assert!(!error.is_input());
}

#[test]
fn a_full_disk_leaves_the_previous_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), 1, 4).unwrap();
    // Ignored, the signal becomes an error of the write. The limit is of some 100 KiB in every shell's unit.
    let limited = "trap '' XFSZ; ulimit -f 200; exec \"$0\" --exact child_writes_more_than_fits --ignored";
    let program = std::env::current_exe().unwrap();
    let output = Command::new("sh").args(["-c", limited]).arg(program).env(FOLDER, folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");

    let store = DirectoryStore::new(folder.path(), 1);
    assert_eq!(store.latest(Verify::Checksums).unwrap().unwrap().manifest().about.step, 1);
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["step-00000001"], "nothing half is left");
}
