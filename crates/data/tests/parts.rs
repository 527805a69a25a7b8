//! What a path can name, cut into training and validation by documents.

use std::fs;
use std::path::{Path, PathBuf};

use mp_data::{
    open, Attend, Element, Error, IndexedWriter, Part, Sample, SampleSource, TextSource, Tokenizer, Validation,
};
use proptest::prelude::*;

/// Documents of so many tokens; the tokens count up from 0.
fn files(folder: &Path, lengths: &[u32]) -> PathBuf {
    let prefix = folder.join("data.set");
    let mut writer = IndexedWriter::create(&prefix, Element::U16).unwrap();
    let mut at = 0;
    for length in lengths {
        writer.document(&(at..at + length).collect::<Vec<_>>()).unwrap();
        at += length;
    }
    writer.finish().unwrap();
    prefix
}

fn split(path: &Path, fraction: f64) -> mp_data::Result<mp_data::Split> {
    open(Some(path), &Tokenizer::bytes(), 256, &Validation::Fraction(fraction), 4)
}

fn ids(part: &Part) -> Vec<i64> {
    let mut ids = Vec::new();
    part.read(0..part.len(), &mut ids).unwrap();
    ids
}

#[test]
fn files_are_found_by_their_common_name_and_by_either_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = files(folder.path(), &[30, 20]);
    for path in [prefix.clone(), prefix.with_extension("set.bin"), prefix.with_extension("set.idx")] {
        let parts = split(&path, 0.0).unwrap();
        assert_eq!((ids(&parts.train), parts.train.documents()), ((0..50).collect(), 2));
    }
    fs::remove_file(prefix.with_extension("set.bin")).unwrap();
    assert!(matches!(split(&prefix.with_extension("set.bin"), 0.0), Err(Error::Missing { .. })));
}

#[test]
fn documents_are_held_out_whole() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = files(folder.path(), &[10, 5, 20, 8, 7]);
    for (fraction, cut) in [(0.1, 43), (0.15, 35), (0.35, 15), (0.5, 15), (0.99, 10)] {
        let parts = split(&prefix, fraction).unwrap();
        assert_eq!(ids(&parts.train), (0..cut).collect::<Vec<i64>>(), "{fraction}");
        assert_eq!(ids(&parts.validation.unwrap()), (cut..50).collect::<Vec<i64>>(), "{fraction}");
    }
    let other = tempfile::tempdir().unwrap();
    let other = files(other.path(), &[6]);
    let parts = open(Some(&prefix), &Tokenizer::bytes(), 256, &Validation::File(other), 4).unwrap();
    assert_eq!((parts.train.len(), parts.validation.unwrap().len()), (50, 6));
}

#[test]
fn one_document_cannot_be_held_out_from_itself() {
    let folder = tempfile::tempdir().unwrap();
    let error = split(&files(folder.path(), &[50]), 0.1).unwrap_err();
    assert!(matches!(error, Error::TooShort { tokens: 0, .. }), "{error}");
}

#[test]
fn a_folder_of_texts_is_cut_between_them() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("a", "0123456789"), ("b", "abcdefghij"), ("c", "ABCDEFGHIJ")] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let parts = split(folder.path(), 0.4).unwrap();
    assert_eq!((parts.train.documents(), parts.validation.unwrap().documents()), (1, 2));
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = files(folder.path(), &[300]);
    let parts = split(&prefix, 0.0).unwrap();
    let source = TextSource::new(parts.train, 299, 1).unwrap();
    let error = source.sample(0, &mut Sample::default()).unwrap_err();
    assert!(matches!(error, Error::Format { offset: 512, .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Files give the same samples as the same documents in memory, whatever part they are.
    #[test]
    fn files_and_memory_are_one(lengths in prop::collection::vec(0u32..12, 2..9), seed: u64, number in 0u64..50, within: bool) {
        prop_assume!(lengths.iter().sum::<u32>() > 5);
        let folder = tempfile::tempdir().unwrap();
        let part = split(&files(folder.path(), &lengths), 0.0).unwrap().train;
        let ends = lengths.iter().scan(0, |at, &length| { *at += u64::from(length); Some(*at) }).collect();
        let memory = mp_data::Tokens::of_documents("memory", (0..lengths.iter().sum()).collect(), ends);
        let attend = if within { Attend::Within } else { Attend::Across };
        let (a, b) = (TextSource::new(part, 5, seed).unwrap().attending(attend), TextSource::new(memory, 5, seed).unwrap().attending(attend));
        let (mut x, mut y) = (Sample::default(), Sample::default());
        a.sample(number, &mut x).unwrap();
        b.sample(number, &mut y).unwrap();
        prop_assert_eq!(x, y);
        prop_assert_eq!(a.pieces(number).unwrap(), b.pieces(number).unwrap());
    }
}
