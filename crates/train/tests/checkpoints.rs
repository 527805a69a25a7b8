//! Checkpoints as a run uses them: what comes back, what a crash leaves, and what is refused.

use std::fs;
use std::path::Path;

use mp_train::checkpoint::{CheckpointStore, DirectoryStore, Dtype, Entry, Verify};
use mp_train::{Config, Error, Result};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// A store in a folder that is yet to be made.
fn store(folder: &tempfile::TempDir, keep: usize) -> DirectoryStore {
    DirectoryStore::new(folder.path().join("checkpoints"), keep)
}

/// Elements that depend on the step.
fn elements(step: u64, count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (step as f32 + i as f32).to_le_bytes()).collect()
}

/// Writes a checkpoint of two files, and returns its folder.
fn save(store: &DirectoryStore, step: u64) -> Result<std::path::PathBuf> {
    let mut writer = store.begin(step)?;
    writer.file(MODEL, &[Entry::new("b", Dtype::F32, &[2, 3]), Entry::new("a", Dtype::BF16, &[4])])?;
    writer.append(&elements(step, 6))?;
    writer.append(&[1, 2, 3])?;
    writer.append(&[4, 5, 6, 7, 8])?;
    writer.file(OPTIMIZER, &[Entry::new("b", Dtype::F64, &[1]), Entry::new("none", Dtype::F32, &[0])])?;
    writer.append(&1.5f64.to_le_bytes())?;
    writer.commit(step * 100, &Config::default())
}

#[test]
fn tensors_come_back_and_so_does_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    assert!(store.latest(Verify::Checksums).unwrap().is_none());
    let path = save(&store, 7).unwrap();
    assert!(path.ends_with("checkpoints/step-00000007"));

    let reader = store.latest(Verify::Checksums).unwrap().unwrap();
    let manifest = reader.manifest();
    assert_eq!((manifest.step, manifest.tokens, manifest.seed), (7, 700, Config::default().train.seed));
    assert_eq!(serde_json::from_value::<Config>(manifest.config.clone()).unwrap(), Config::default());
    let tensor = reader.read(MODEL, "b").unwrap();
    assert_eq!((tensor.entry, tensor.bytes), (Entry::new("b", Dtype::F32, &[2, 3]), elements(7, 6)));
    assert_eq!(reader.read(MODEL, "a").unwrap().bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(reader.read(OPTIMIZER, "b").unwrap().bytes, 1.5f64.to_le_bytes());
    assert!(reader.read(OPTIMIZER, "none").unwrap().bytes.is_empty());
    assert!(reader.read(OPTIMIZER, "a").unwrap_err().to_string().contains("holds no tensor `a`"));
}

#[test]
fn the_newest_stay_and_the_new_one_always_does() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 2);
    for step in [1, 2, 3, 4] {
        save(&store, step).unwrap();
    }
    assert_eq!(store.steps().unwrap(), [3, 4]);
    // A run that went back: what lies ahead of it is not its own to remove.
    save(&store, 2).unwrap();
    assert_eq!(store.steps().unwrap(), [2, 3, 4]);
    let names = fs::read_dir(folder.path().join("checkpoints")).unwrap().count();
    assert_eq!(names, 3, "nothing hidden is left");
}

#[test]
fn a_checkpoint_may_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    save(&store, 5).unwrap();
    save(&store, 5).unwrap();
    assert_eq!(store.steps().unwrap(), [5]);
    store.open(5, Verify::Checksums).unwrap();
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    save(&store, 1).unwrap();
    let mut writer = store.begin(2).unwrap();
    writer.file(MODEL, &[Entry::new("a", Dtype::F32, &[2])]).unwrap();
    writer.append(&[0; 4]).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(folder.path().join("checkpoints")).unwrap().count(), 1);
    assert_eq!(store.latest(Verify::Checksums).unwrap().unwrap().manifest().step, 1);
}

#[test]
fn elements_must_be_as_many_as_were_announced() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    let entries = [Entry::new("a", Dtype::F32, &[2])];
    let mut writer = store.begin(1).unwrap();
    assert!(writer.append(&[0; 4]).is_err());
    writer.file(MODEL, &entries).unwrap();
    assert!(writer.append(&[0; 12]).unwrap_err().to_string().contains("12 bytes came where 8 are missing"));
    let mut writer = store.begin(1).unwrap();
    writer.file(MODEL, &entries).unwrap();
    writer.append(&[0; 4]).unwrap();
    assert!(writer.commit(0, &Config::default()).unwrap_err().to_string().contains("4 bytes of elements are missing"));
    let mut writer = store.begin(1).unwrap();
    assert!(writer.file("../outside", &entries).is_err());
    assert!(writer.file("manifest.json", &entries).is_err());
    drop(writer);
    assert!(store.steps().unwrap().is_empty());
}

#[test]
fn what_crashed_writers_left_is_swept_and_never_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    save(&store, 1).unwrap();
    save(&store, 2).unwrap();
    let root = folder.path().join("checkpoints");
    let crash = |name: &str| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join(MODEL), "half").unwrap();
    };
    // While writing 3, while removing 0, after replacing 2, and between the two renames of replacing 1.
    crash(".step-00000003.partial");
    crash(".step-00000000.removed");
    crash(".step-00000002.replaced");
    fs::rename(root.join("step-00000001"), root.join(".step-00000001.replaced")).unwrap();
    crash(".step-00000001.partial");
    fs::write(root.join("notes.txt"), "a person's").unwrap();

    assert_eq!(store.steps().unwrap(), [2]);
    store.sweep().unwrap();
    assert_eq!(store.steps().unwrap(), [1, 2]);
    store.open(1, Verify::Checksums).unwrap();
    store.open(2, Verify::Checksums).unwrap();
    let mut names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["notes.txt", "step-00000001", "step-00000002"]);
}

/// Damages the newer of two checkpoints, and returns what opening it says.
fn damaged(damage: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    save(&store, 1).unwrap();
    let path = save(&store, 2).unwrap();
    damage(&path);
    let error = store.latest(Verify::Checksums).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint { path: named, .. } if *named == path) && error.is_input());
    let text = error.to_string();
    assert!(text.ends_with("the checkpoint of step 1 is intact: remove this folder to go on there"), "{text}");
    text
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn any_changed_byte_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    let path = save(&store, 2).unwrap();
    for file in [MODEL, OPTIMIZER] {
        let whole = fs::read(path.join(file)).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(path.join(file), changed).unwrap();
            let text = store.open(2, Verify::Checksums).map(|_| ()).unwrap_err().to_string();
            assert!(text.contains(&format!("`{file}` has the checksum")), "{text}");
        }
        fs::write(path.join(file), whole).unwrap();
    }
    store.open(2, Verify::Checksums).unwrap();
}

#[test]
fn damage_is_named() {
    let manifest = |from: &'static str, to: &'static str| {
        move |path: &Path| {
            change(&path.join("manifest.json"), |bytes| {
                let text = String::from_utf8(bytes.clone()).unwrap();
                assert!(text.contains(from), "{text}");
                *bytes = text.replacen(from, to, 1).into_bytes();
            });
        }
    };
    let cut = damaged(|path| change(&path.join(MODEL), |bytes| bytes.truncate(bytes.len() - 1)));
    assert!(cut.contains("`model.safetensors` has") && cut.contains("bytes instead of"), "{cut}");
    let longer = damaged(|path| change(&path.join(OPTIMIZER), |bytes| bytes.push(0)));
    assert!(longer.contains("`optimizer.safetensors` has"), "{longer}");
    let missing = damaged(|path| fs::remove_file(path.join(OPTIMIZER)).unwrap());
    assert!(missing.contains("`optimizer.safetensors` cannot be read"), "{missing}");
    let bare = damaged(|path| fs::remove_file(path.join("manifest.json")).unwrap());
    assert!(bare.contains("`manifest.json` cannot be read"), "{bare}");
    let half = damaged(|path| change(&path.join("manifest.json"), |bytes| bytes.truncate(bytes.len() / 2)));
    assert!(half.contains("`manifest.json` is no JSON"), "{half}");
    let foreign = damaged(manifest("mp-checkpoint", "other"));
    assert!(foreign.contains("is of the format \"other\" instead of \"mp-checkpoint\""), "{foreign}");
    let newer = damaged(manifest("\"version\": 1", "\"version\": 9"));
    assert!(newer.contains("is of version 9, this program reads 1"), "{newer}");
    let moved = damaged(manifest("\"step\": 2", "\"step\": 3"));
    assert!(moved.contains("is of step 3 in a folder of step 2"), "{moved}");
    let renamed = damaged(manifest("\"name\": \"a\"", "\"name\": \"c\""));
    assert!(renamed.contains("holds other tensors than the 2 of the manifest"), "{renamed}");
    let outside = damaged(manifest("\"name\": \"model.safetensors\"", "\"name\": \"../model.safetensors\""));
    assert!(outside.contains("is no file's name"), "{outside}");
}

#[test]
fn lengths_alone_see_a_cut_but_not_a_flip() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    let path = save(&store, 1).unwrap();
    change(&path.join(MODEL), |bytes| *bytes.last_mut().unwrap() ^= 1);
    store.open(1, Verify::Lengths).unwrap();
    let error = store.open(1, Verify::Checksums).map(|_| ()).unwrap_err().to_string();
    assert!(error.ends_with("no older checkpoint is intact"), "{error}");
    change(&path.join(MODEL), |bytes| bytes.truncate(5));
    store.open(1, Verify::Lengths).map(|_| ()).unwrap_err();
}

#[test]
fn the_store_is_a_trait_object() {
    let folder = tempfile::tempdir().unwrap();
    let store: Box<dyn CheckpointStore> = Box::new(store(&folder, 1));
    assert!(store.steps().unwrap().is_empty());
}
