//! Datasets in the files of Megatron-LM: written by another program, by ours, and damaged.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mp_data::{Element, Error, Indexed, IndexedWriter};
use proptest::prelude::*;

/// What `indexed/golden.py` writes, but for the last document.
const DOCUMENTS: [&[&[u32]]; 6] =
    [&[&[1, 2, 3]], &[&[4], &[5, 6, 7, 8]], &[], &[&[9]], &[&[]], &[&[10, 11], &[], &[12, 13, 14]]];

fn golden(element: Element) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/indexed").join(element.name())
}

fn path(prefix: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", prefix.display()))
}

/// Writes documents of sequences.
fn write(prefix: &Path, element: Element, documents: &[&[&[u32]]]) {
    let mut writer = IndexedWriter::create(prefix, element).unwrap();
    for document in documents {
        document.iter().for_each(|sequence| writer.sequence(sequence).unwrap());
        writer.end_document().unwrap();
    }
    writer.finish().unwrap();
}

fn all(data: &Indexed) -> Vec<i64> {
    let mut ids = Vec::new();
    data.read(0..data.tokens(), usize::MAX, &mut ids).unwrap();
    ids
}

/// Four documents of 3, 2, 0 and 4 tokens, 1 to 9.
fn small(folder: &Path) -> PathBuf {
    let prefix = folder.join("small");
    write(&prefix, Element::U16, &[&[&[1, 2, 3]], &[&[4, 5]], &[], &[&[6, 7, 8, 9]]]);
    prefix
}

#[test]
fn what_another_program_wrote_is_read() {
    for element in Element::ALL {
        let data = Indexed::open(golden(element)).unwrap();
        assert_eq!((data.element(), data.documents(), data.sequences(), data.tokens()), (element, 7, 9, 15));
        let ids = all(&data);
        assert_eq!(ids[..14], (1..=14).collect::<Vec<i64>>());
        assert_eq!(ids[14], element.largest().min(u32::MAX.into()) as i64);
        let documents: Vec<_> = (0..7).map(|document| data.document(document).unwrap()).collect();
        assert_eq!(documents, [0..3, 3..8, 8..8, 8..9, 9..9, 9..14, 14..15]);
        let sequences: Vec<_> = (0..9).map(|sequence| data.sequence(sequence).unwrap()).collect();
        assert_eq!(sequences, [0..3, 3..4, 4..8, 8..9, 9..9, 9..11, 11..11, 11..14, 14..15]);
        let found: Vec<u64> = (0..15).map(|token| data.document_at(token).unwrap()).collect();
        assert_eq!(found, [0, 0, 0, 1, 1, 1, 1, 1, 3, 5, 5, 5, 5, 5, 6]);
        assert_eq!(data.verify(None).unwrap(), Some(ids[14]));
    }
}

#[test]
fn what_is_written_is_what_another_program_writes() {
    let folder = tempfile::tempdir().unwrap();
    for element in Element::ALL {
        let prefix = folder.path().join(element.name());
        let last = [element.largest().min(u32::MAX.into()) as u32];
        let last: &[&[u32]] = &[&last];
        write(&prefix, element, &[&DOCUMENTS[..], &[last]].concat());
        for suffix in [".bin", ".idx"] {
            let expected = fs::read(path(&golden(element), suffix)).unwrap();
            assert_eq!(fs::read(path(&prefix, suffix)).unwrap(), expected, "{}{suffix}", element.name());
        }
    }
    // Nothing of the work is left lying about.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 12);
}

#[test]
fn a_dataset_of_nothing_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("none");
    write(&prefix, Element::I32, &[]);
    let data = Indexed::open(&prefix).unwrap();
    assert_eq!((data.documents(), data.tokens(), data.verify(Some(1)).unwrap()), (0, 0, None));
    assert!(matches!(data.document_at(0), Err(Error::Beyond { count: 0, .. })));
}

#[test]
fn a_writer_leaves_nothing_unless_it_finishes_and_replaces_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("a");
    let mut writer = IndexedWriter::create(&prefix, Element::U16).unwrap();
    writer.document(&[1, 2]).unwrap();
    assert!(matches!(writer.document(&[65_536]), Err(Error::TokenId { id: 65_536, position: 0, .. })));
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    write(&prefix, Element::U16, &[&[&[1]]]);
    assert!(matches!(IndexedWriter::create(&prefix, Element::U16), Err(Error::Exists { .. })));
    // Tokens of another program, without an index.
    let foreign = folder.path().join("train.bin");
    fs::write(&foreign, "tokens").unwrap();
    let refused = IndexedWriter::create(folder.path().join("train"), Element::U16);
    assert!(matches!(refused, Err(Error::Exists { path }) if path == foreign));
    // What comes there meanwhile stays as well, and nothing is left beside it.
    for suffix in [".bin", ".idx"] {
        let prefix = folder.path().join("late");
        let mut writer = IndexedWriter::create(&prefix, Element::U16).unwrap();
        writer.document(&[1]).unwrap();
        let late = folder.path().join(format!("late{suffix}"));
        fs::write(&late, "late").unwrap();
        assert!(matches!(writer.finish(), Err(Error::Unwritable { .. })));
        assert_eq!(fs::read(&late).unwrap(), b"late");
        fs::remove_file(&late).unwrap();
        assert!(!Indexed::exists(&prefix) && fs::read_dir(folder.path()).unwrap().count() == 3, "{suffix}");
    }
    let nowhere = IndexedWriter::create(folder.path().join("no/folder"), Element::U16);
    assert!(matches!(nowhere, Err(Error::Unwritable { .. })));
}

#[test]
fn ids_beyond_the_vocabulary_are_named_when_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let data = Indexed::open(small(folder.path())).unwrap();
    let mut ids = Vec::new();
    data.read(0..6, 7, &mut ids).unwrap();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6]);
    let error = data.read(2..9, 8, &mut ids).unwrap_err();
    assert!(matches!(&error, Error::Format { path, offset: 14, .. } if path.ends_with("small.bin")), "{error}");
    let text = error.to_string();
    assert!(text.contains("small.bin`, byte 14: token 7 has the id 8, beyond the vocabulary of 8"), "{text}");
    assert!(matches!(data.read(5..10, 99, &mut ids), Err(Error::Beyond { .. })));
}

/// Every way to damage an index that can be told from a few numbers: opening names file and byte.
#[test]
fn damaged_indices_are_refused_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = small(folder.path());
    let good = fs::read(path(&prefix, ".idx")).unwrap();
    // 3 sequences, 5 bounds: lengths at 34, pointers at 46, bounds at 70, 110 bytes.
    assert_eq!(good.len(), 110);
    let changed = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let swapped = 1u64.to_be_bytes();
    for (bytes, offset, word) in [
        (changed(0, b"PK\x03\x04"), 0, "no index of a tokenized dataset"),
        (changed(0, b"TNTIDX\0\0"), 0, "older, unmapped format"),
        (changed(7, b"x"), 7, "no index of a tokenized dataset"),
        (changed(9, &swapped), 9, "big-endian"),
        (changed(9, &[2]), 9, "version 2"),
        (changed(17, &[7]), 17, "floating-point"),
        (changed(17, &[99]), 17, "code 99"),
        (changed(18, &[4]), 110, "the file ends here"),
        (changed(18, &[2]), 98, "goes on to 110"),
        (changed(18, &[255; 8]), 110, "the file ends here"),
        (changed(26, &[0]), 26, "no document bounds"),
        (changed(46, &[2]), 46, "does not start at byte 0"),
        (changed(70, &[1]), 70, "does not start with sequence 0"),
        (changed(102, &[2]), 102, "does not end with the last"),
        (changed(102, &[4]), 102, "sequence 4 of 3"),
        (changed(42, &[255; 4]), 42, "sequence 2 has -1 tokens"),
        (changed(62, &[3]), 62, "within a token of 2"),
        (good[..109].to_vec(), 109, "the file ends here"),
        (good[..20].to_vec(), 20, "the file ends here"),
        (good[..5].to_vec(), 5, "the file ends here"),
        (Vec::new(), 0, "the file ends here"),
        ([&good[..], &[0; 3]].concat(), 110, "multimodal"),
        ([&good[..], &[0]].concat(), 110, "goes on to 111"),
    ] {
        fs::write(path(&prefix, ".idx"), &bytes).unwrap();
        let error = Indexed::open(&prefix).unwrap_err();
        let text = error.to_string();
        let (Error::Format { path, offset: found, .. }, true) = (&error, text.contains(word)) else {
            panic!("{word}: {text}")
        };
        assert!(path.ends_with("small.idx"), "{text}");
        assert_eq!(*found, offset, "{text}");
    }
}

#[test]
fn data_of_another_length_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = small(folder.path());
    for (bytes, offset) in [(17, 17), (16, 16), (20, 18), (0, 0)] {
        File::options().write(true).open(path(&prefix, ".bin")).unwrap().set_len(bytes).unwrap();
        let error = Indexed::open(&prefix).unwrap_err();
        assert!(
            matches!(&error, Error::Format { path, offset: at, .. } if path.ends_with("small.bin") && *at == offset),
            "{error}"
        );
    }
    fs::remove_file(path(&prefix, ".bin")).unwrap();
    assert!(matches!(Indexed::open(&prefix), Err(Error::Missing { .. })));
    assert!(!Indexed::exists(&prefix));
}

/// What opening does not see is seen when it is met.
#[test]
fn contradictions_inside_are_found_when_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = small(folder.path());
    let good = fs::read(path(&prefix, ".idx")).unwrap();
    for (at, with, offset) in [(38usize, 9u8, 38), (54, 4, 34), (54, 200, 54), (78, 200, 78), (86, 0, 86)] {
        let mut bytes = good.clone();
        bytes[at] = with;
        fs::write(path(&prefix, ".idx"), &bytes).unwrap();
        let data = Indexed::open(&prefix).unwrap();
        let error = data.verify(None).unwrap_err();
        assert!(matches!(&error, Error::Format { offset: found, .. } if *found == offset), "{at}: {error}");
    }
}

/// A dataset of 100 GB, most of it never written: neither it nor its index of 2 GB is touched but for a few pages.
#[test]
fn a_huge_dataset_opens_without_being_read() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("huge");
    let (sequences, length, bytes) = (100_000_000u64, 1_000_000u32, 100_000_000_000u64);
    let index = File::create(path(&prefix, ".idx")).unwrap();
    index.set_len(34 + 12 * sequences + 8 * (sequences + 1)).unwrap();
    index.write_all_at(b"MMIDIDX\0\0", 0).unwrap();
    index.write_all_at(&1u64.to_le_bytes(), 9).unwrap();
    index.write_all_at(&[Element::I32.code()], 17).unwrap();
    index.write_all_at(&sequences.to_le_bytes(), 18).unwrap();
    index.write_all_at(&(sequences + 1).to_le_bytes(), 26).unwrap();
    index.write_all_at(&length.to_le_bytes(), 34 + 4 * (sequences - 1)).unwrap();
    let last = bytes - 4 * u64::from(length);
    index.write_all_at(&last.to_le_bytes(), 34 + 12 * sequences - 8).unwrap();
    index.write_all_at(&sequences.to_le_bytes(), 34 + 20 * sequences).unwrap();
    File::create(path(&prefix, ".bin")).unwrap().set_len(bytes).unwrap();

    let before = resident();
    let data = Indexed::open(&prefix).unwrap();
    assert_eq!(data.tokens(), bytes / 4);
    let mut ids = Vec::new();
    data.read(data.tokens() - 9..data.tokens(), 1, &mut ids).unwrap();
    assert_eq!(ids, [0; 9]);
    // A few pages; other tests of this process run beside. The index alone would be two gigabytes.
    let grown = resident().saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes");
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Documents of sequences of ids below 100.
fn documents() -> impl Strategy<Value = Vec<Vec<Vec<u32>>>> {
    let sequence = prop::collection::vec(0u32..100, 0..6);
    prop::collection::vec(prop::collection::vec(sequence, 0..4), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn documents_come_back(documents in documents(), element in prop::sample::select(Element::ALL.to_vec())) {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join("d");
        let slices: Vec<Vec<&[u32]>> = documents.iter().map(|d| d.iter().map(|s| &s[..]).collect()).collect();
        write(&prefix, element, &slices.iter().map(|d| &d[..]).collect::<Vec<_>>());
        let data = Indexed::open(&prefix).unwrap();
        prop_assert_eq!(data.documents(), documents.len() as u64);
        data.verify(Some(100)).unwrap();
        for (number, document) in documents.iter().enumerate() {
            let range = data.document(number as u64).unwrap();
            let mut ids = Vec::new();
            data.read(range.clone(), 100, &mut ids).unwrap();
            prop_assert_eq!(ids, document.concat().iter().map(|&id| i64::from(id)).collect::<Vec<_>>());
            for token in range {
                prop_assert_eq!(data.document_at(token).unwrap(), number as u64);
            }
        }
    }

    /// A file damaged anywhere is an error or still a dataset; whatever is asked of it, nothing panics.
    #[test]
    fn damaged_files_do_not_panic(
        documents in documents(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index, shorten: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join("d");
        let slices: Vec<Vec<&[u32]>> = documents.iter().map(|d| d.iter().map(|s| &s[..]).collect()).collect();
        write(&prefix, Element::U16, &slices.iter().map(|d| &d[..]).collect::<Vec<_>>());
        let mut bytes = fs::read(path(&prefix, ".idx")).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if shorten {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(path(&prefix, ".idx"), bytes).unwrap();
        let Ok(data) = Indexed::open(&prefix) else { return Ok(()) };
        let _ = data.verify(Some(50));
        (0..data.documents()).for_each(|document| drop(data.document(document)));
        (0..data.tokens()).for_each(|token| drop(data.document_at(token)));
    }
}
