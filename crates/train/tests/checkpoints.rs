//! Checkpoints as a run uses them: what comes back, what a crash leaves, and what is refused.
// A box of one dim is one range.
#![allow(clippy::single_range_in_vec_init)]

use std::fs;
use std::path::Path;

use mp_train::checkpoint::{About, CheckpointStore, DirectoryStore, Dtype, Entry, Section, Slice, Verify};
use mp_train::{Config, Error, Result};
use proptest::prelude::*;

const MODEL: &str = "model-00000.safetensors";
const MANIFEST: &str = "manifest.json";
const OPTIMIZER: &str = "optimizer-00000.safetensors";

/// A store in a folder that is yet to be made.
fn store(folder: &tempfile::TempDir, keep: usize) -> DirectoryStore {
    DirectoryStore::new(folder.path().join("checkpoints"), keep)
}

/// Elements that depend on the step.
fn elements(step: u64, count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (step as f32 + i as f32).to_le_bytes()).collect()
}

fn about(step: u64) -> About {
    About::new(step, &Config::default())
}

fn whole(name: &str, dtype: Dtype, shape: &[usize]) -> Slice {
    Slice::whole(Entry::new(name, dtype, shape))
}

/// Writes a checkpoint of two files, and returns its folder.
fn save(store: &DirectoryStore, step: u64) -> Result<std::path::PathBuf> {
    save_with(store, about(step))
}

fn save_with(store: &DirectoryStore, about: About) -> Result<std::path::PathBuf> {
    let mut writer = store.shard(about.step, 0)?;
    writer.file(Section::Model, &[whole("b", Dtype::F32, &[2, 3]), whole("a", Dtype::BF16, &[4])])?;
    writer.append(&elements(about.step, 6))?;
    writer.append(&[1, 2, 3])?;
    writer.append(&[4, 5, 6, 7, 8])?;
    writer.file(Section::Optimizer, &[whole("b", Dtype::F64, &[1]), whole("none", Dtype::F32, &[0])])?;
    writer.append(&1.5f64.to_le_bytes())?;
    writer.finish()?;
    store.commit(1, &about)
}

#[test]
fn tensors_come_back_and_so_does_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    assert!(store.latest(Verify::Checksums).unwrap().is_none());
    let path = save(&store, 7).unwrap();
    assert!(path.ends_with("checkpoints/step-00000007"));

    let reader = store.latest(Verify::Checksums).unwrap().unwrap();
    let kept = &reader.manifest().about;
    assert_eq!(*kept, about(7));
    assert_eq!((kept.samples, kept.tokens), (7 * 16, 7 * 16 * 128));
    assert_eq!(serde_json::from_value::<Config>(kept.config.clone()).unwrap(), Config::default());
    assert_eq!(reader.manifest().entry(Section::Model, "b"), Some(Entry::new("b", Dtype::F32, &[2, 3])));
    assert_eq!(reader.read(Section::Model, "b", &[0..2, 0..3]).unwrap(), elements(7, 6));
    assert_eq!(reader.read(Section::Model, "b", &[1..2, 1..3]).unwrap(), elements(7, 6)[16..]);
    assert_eq!(reader.read(Section::Model, "a", &[0..4]).unwrap(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(reader.read(Section::Optimizer, "b", &[0..1]).unwrap(), 1.5f64.to_le_bytes());
    assert!(reader.read(Section::Optimizer, "none", &[0..0]).unwrap().is_empty());
    let refused = |section, name, region: &[_]| reader.read(section, name, region).unwrap_err().to_string();
    assert!(refused(Section::Optimizer, "a", &[0..1]).contains("optimizer part holds no tensor `a`"));
    assert!(refused(Section::Model, "b", &[0..3, 0..3]).contains("`b` of shape [2, 3] has no box [0..3, 0..3]"));
    assert!(refused(Section::Model, "b", &[0..2]).contains("has no box"));
}

#[test]
fn slices_of_several_writers_are_one_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    let entry = Entry::new("a", Dtype::F32, &[3, 4]);
    let boxes = [vec![0..3, 0..1], vec![0..1, 1..4], vec![1..3, 1..4]];
    let write = |writer: usize, region: &[std::ops::Range<usize>]| {
        let mut shard = store.shard(4, writer).unwrap();
        shard.file(Section::Model, &[Slice { entry: entry.clone(), region: region.to_vec() }]).unwrap();
        for row in region[0].clone() {
            for column in region[1].clone() {
                shard.append(&((row * 4 + column) as f32).to_le_bytes()).unwrap();
            }
        }
        shard.finish().unwrap();
    };
    (0..3).for_each(|writer| write(writer, &boxes[writer]));
    store.commit(3, &about(4)).unwrap();
    let reader = store.open(4, Verify::Checksums).unwrap();
    let expected: Vec<u8> = (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect();
    assert_eq!(reader.read(Section::Model, "a", &[0..3, 0..4]).unwrap(), expected);
    let middle: Vec<u8> = [5, 6, 9, 10].iter().flat_map(|&i| (i as f32).to_le_bytes()).collect();
    assert_eq!(reader.read(Section::Model, "a", &[1..3, 1..3]).unwrap(), middle);

    // A writer that is missing, or wrote what another did.
    write(0, &boxes[0]);
    assert!(store.commit(2, &about(4)).unwrap_err().to_string().contains("writer 1's record is not there"));
    store.abandon(4);
    (0..3).for_each(|writer| write(writer, &boxes[writer.min(1)]));
    assert!(store
        .commit(3, &about(4))
        .unwrap_err()
        .to_string()
        .contains("its slices of `a` are not all of [3, 4] once"));
    store.open(4, Verify::Checksums).unwrap();
}

#[test]
fn ranks_that_share_the_checking_see_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    let path = save(&store, 1).unwrap();
    for (file, guilty) in [(MODEL, 0), (OPTIMIZER, 1)] {
        let whole = fs::read(path.join(file)).unwrap();
        change(&path.join(file), |bytes| *bytes.last_mut().unwrap() ^= 1);
        for rank in 0..3 {
            let opened = store.open(1, Verify::Share { rank, of: 3 });
            assert_eq!(opened.is_err(), rank == guilty, "{file}, rank {rank}");
        }
        fs::write(path.join(file), whole).unwrap();
    }
}

#[test]
fn the_best_stay_beside_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 1).keeping_best(2);
    for (step, validation_loss) in
        [(1, Some(3.0)), (2, Some(1.0)), (3, None), (4, Some(2.0)), (5, Some(2.5)), (6, None)]
    {
        save_with(&store, About { validation_loss, ..about(step) }).unwrap();
    }
    assert_eq!(store.steps().unwrap(), [2, 4, 6]);
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
    let mut writer = store.shard(2, 0).unwrap();
    writer.file(Section::Model, &[whole("a", Dtype::F32, &[2])]).unwrap();
    writer.append(&[0; 4]).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(folder.path().join("checkpoints")).unwrap().count(), 1);
    assert_eq!(store.latest(Verify::Checksums).unwrap().unwrap().manifest().about.step, 1);
}

#[test]
fn elements_must_be_as_many_as_were_announced() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0);
    let slices = [whole("a", Dtype::F32, &[2])];
    let mut writer = store.shard(1, 0).unwrap();
    assert!(writer.append(&[0; 4]).is_err());
    writer.file(Section::Model, &slices).unwrap();
    assert!(writer.append(&[0; 12]).unwrap_err().to_string().contains("12 bytes came where 8 are missing"));
    let mut writer = store.shard(1, 0).unwrap();
    writer.file(Section::Model, &slices).unwrap();
    writer.append(&[0; 4]).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("4 bytes of elements are missing"));
    let mut writer = store.shard(1, 0).unwrap();
    writer.file(Section::Model, &slices).unwrap();
    writer.append(&[0; 8]).unwrap();
    assert!(writer.file(Section::Model, &slices).unwrap_err().to_string().contains("it was written already"));
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

/// Gives the text of a manifest the checksum that belongs to it.
fn sealed(text: &str) -> String {
    let body = text.rsplit_once(",\"blake3\":\"").expect("it ends with its checksum").0;
    format!("{body},\"blake3\":\"{}\"}}", blake3::hash(body.as_bytes()).to_hex())
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
    for (file, seen) in [
        (MODEL, "`model-00000.safetensors` has the checksum"),
        (OPTIMIZER, "has the checksum"),
        (MANIFEST, "`manifest.json`"),
    ] {
        let whole = fs::read(path.join(file)).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(path.join(file), changed).unwrap();
            let text = store.open(2, Verify::Checksums).map(|_| ()).unwrap_err().to_string();
            assert!(text.contains(seen), "byte {at}: {text}");
            // A manifest proves itself whatever else is looked at.
            for verify in [Verify::Lengths, Verify::Share { rank: 2, of: 3 }] {
                assert_eq!(store.open(2, verify).is_err(), file == MANIFEST, "{file}, byte {at}, {verify:?}");
            }
        }
        fs::write(path.join(file), whole).unwrap();
    }
    store.open(2, Verify::Checksums).unwrap();
}

#[test]
fn damage_is_named() {
    let manifest = |from: &'static str, to: &'static str| {
        move |path: &Path| {
            change(&path.join(MANIFEST), |bytes| {
                let text = String::from_utf8(bytes.clone()).unwrap();
                assert!(text.contains(from), "{text}");
                *bytes = sealed(&text.replacen(from, to, 1)).into_bytes();
            });
        }
    };
    let cut = damaged(|path| change(&path.join(MODEL), |bytes| bytes.truncate(bytes.len() - 1)));
    assert!(cut.contains("`model-00000.safetensors` has") && cut.contains("bytes instead of"), "{cut}");
    let longer = damaged(|path| change(&path.join(OPTIMIZER), |bytes| bytes.push(0)));
    assert!(longer.contains("`optimizer-00000.safetensors` has"), "{longer}");
    let missing = damaged(|path| fs::remove_file(path.join(OPTIMIZER)).unwrap());
    assert!(missing.contains("`optimizer-00000.safetensors` cannot be read"), "{missing}");
    let bare = damaged(|path| fs::remove_file(path.join("manifest.json")).unwrap());
    assert!(bare.contains("`manifest.json` cannot be read"), "{bare}");
    let half = damaged(|path| change(&path.join("manifest.json"), |bytes| bytes.truncate(bytes.len() / 2)));
    assert!(half.contains("`manifest.json` is no JSON"), "{half}");
    let foreign = damaged(manifest("mp-checkpoint", "other"));
    assert!(foreign.contains("is of the format \"other\" instead of \"mp-checkpoint\""), "{foreign}");
    let newer = damaged(manifest("\"version\":3", "\"version\":9"));
    assert!(newer.contains("is of version 9, this program reads 3"), "{newer}");
    let moved = damaged(manifest("\"step\":2", "\"step\":3"));
    assert!(moved.contains("is of step 3 in a folder of step 2"), "{moved}");
    let renamed = damaged(manifest("\"a\":{", "\"c\":{"));
    assert!(renamed.contains("holds other tensors than the 2 of the manifest"), "{renamed}");
    let torn = damaged(manifest("\"region\":[[0,2],[0,3]]", "\"region\":[[0,1],[0,3]]"));
    assert!(torn.contains("its slices of `b` are not all of [2, 3] once"), "{torn}");
    let large = damaged(manifest("\"region\":[[0,2],[0,3]]", "\"region\":[[0,4611686018427387904],[0,4]]"));
    assert!(large.contains("its slices of `b` are not all of [2, 3] once"), "{large}");
    let beyond = damaged(manifest("\"start\":", "\"start\":99"));
    assert!(beyond.contains("lie beyond their files"), "{beyond}");
    let unsealed = damaged(|path| {
        change(&path.join(MANIFEST), |bytes| {
            *bytes =
                String::from_utf8(bytes.clone()).unwrap().replacen("\"samples\":32", "\"samples\":33", 1).into_bytes();
        });
    });
    assert!(unsealed.contains("`manifest.json` was changed"), "{unsealed}");
    let outside = damaged(manifest("\"model-00000.safetensors\"", "\"../model-00000.safetensors\""));
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

/// Asks everything of a checkpoint that a program asks.
fn exhaust(store: &DirectoryStore) {
    for verify in [Verify::Lengths, Verify::Checksums, Verify::Share { rank: 1, of: 2 }] {
        let Ok(reader) = store.open(1, verify) else { continue };
        let manifest = reader.manifest();
        let _ = manifest.bytes();
        for section in Section::ALL {
            for (name, record) in manifest.section(section) {
                let all: Vec<_> = record.shape.iter().map(|&dim| 0..dim).collect();
                let _ = record.shape.iter().product::<usize>();
                let _ = reader.read(section, name, &all);
            }
        }
        let how = mp_train::checkpoint::Rewrite { files: 2, dtype: Some(Dtype::F32), model_only: false };
        let out = tempfile::tempdir().unwrap();
        let _ = mp_train::checkpoint::convert(&*reader, &DirectoryStore::new(out.path(), 0), &how);
    }
}

/// Writes a manifest anew with the checksums that belong to it and to the files.
fn reseal(path: &Path, text: String) {
    let hash = |name: &str| blake3::hash(&fs::read(path.join(name)).unwrap()).to_hex().to_string();
    let mut text = text;
    for file in [MODEL, OPTIMIZER] {
        let field = format!("\"name\":\"{file}\"");
        let Some(at) = text.find(&field) else { continue };
        let Some(found) = text[at..].find("\"blake3\":\"") else { continue };
        let start = at + found + "\"blake3\":\"".len();
        if text.is_char_boundary(start + 64) && start + 64 < text.len() {
            text.replace_range(start..start + 64, &hash(file));
        }
    }
    let text = if text.contains(",\"blake3\":\"") { sealed(&text) } else { text };
    fs::write(path.join(MANIFEST), text).unwrap();
}

/// Numbers that sums and products go wrong with.
const NUMBERS: [u64; 8] = [0, 1, 7, 1 << 31, 1 << 61, 1 << 62, 1 << 63, u64::MAX];

/// Puts a number in the place of the `which`-th of a text.
fn renumber(text: &str, which: usize, number: u64) -> String {
    let digits = |at: usize| text.as_bytes()[at].is_ascii_digit();
    let starts: Vec<usize> =
        (1..text.len()).filter(|&at| digits(at) && matches!(text.as_bytes()[at - 1], b':' | b',' | b'[')).collect();
    let start = starts[which % starts.len()];
    let end = (start..text.len()).find(|&at| !digits(at)).unwrap();
    format!("{}{number}{}", &text[..start], &text[end..])
}

proptest! {
    // Each one writes and reads some small files.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn foreign_numbers_and_bytes_are_an_answer_or_an_error(
        numbers in prop::collection::vec((any::<usize>(), 0..NUMBERS.len()), 0..3),
        bytes in prop::collection::vec((0..3usize, any::<usize>(), any::<u8>()), 0..3),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder, 0);
        let path = save(&store, 1).unwrap();
        let whole = fs::read_to_string(path.join(MANIFEST)).unwrap();
        // The configuration is most of the text, and only looked at as a whole.
        let config = whole.find("\"config\":").unwrap()..whole.find("\"code_version\":").unwrap();
        let mut text = whole[..config.start].to_string() + &whole[config.end..];
        for (which, number) in numbers {
            text = renumber(&text, which, NUMBERS[number]);
        }
        for (file, at, byte) in bytes {
            if file == 0 {
                let mut edited = text.clone().into_bytes();
                let at = at % edited.len();
                edited[at] = byte;
                text = String::from_utf8(edited).unwrap_or(text);
            } else {
                // Length and header, for the most part.
                change(&path.join([MODEL, OPTIMIZER][file - 1]), |held| {
                    let at = at % held.len();
                    held[at] = byte;
                });
            }
        }
        let text = text.replacen("\"code_version\":", &format!("{}\"code_version\":", &whole[config.clone()]), 1);
        reseal(&path, text);
        exhaust(&store);
    }
}

#[test]
fn the_store_is_a_trait_object() {
    let folder = tempfile::tempdir().unwrap();
    let store: Box<dyn CheckpointStore> = Box::new(store(&folder, 1));
    assert!(store.steps().unwrap().is_empty());
}
