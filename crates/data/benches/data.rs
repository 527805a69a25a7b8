//! Text to tokens and tokens to batches, on this machine: what `cargo xtask bench data` lays beside Python.
//!
//! Prints one JSON object, and leaves text and tokenizer for the peer.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use mp_data::{
    tokenize, train_tokenizer, Attend, Batch, BatchPlan, Corpus, Documents, Indexed, Input, Job, Part, Prefetch,
    Result, SampleSource, TextSource, Tokenizer,
};

/// Tokens of the vocabulary, inputs of a sample, samples of a batch, and seconds that reading is timed for.
const VOCAB: usize = 8192;
const SEQ: usize = 1024;
const BATCH: usize = 8;
const SECONDS: f64 = 2.0;

fn main() -> Result<()> {
    // Cargo adds a flag of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [folder, megabytes, threads] = &words[..] else {
        eprintln!("usage: data FOLDER MEGABYTES THREADS");
        std::process::exit(2);
    };
    let number = |word: &String| word.parse::<usize>().expect("a whole number");
    let (folder, megabytes, threads) = (PathBuf::from(folder), number(megabytes), number(threads));
    let text = write_text(&folder, megabytes * 1_000_000);
    let path = folder.join("tokenizer.json");
    let corpus = folder.join("corpus.txt");
    fs::write(&corpus, Corpus::embedded().text()).expect("the folder can be written");
    let tokenizer = match path.exists() {
        true => Tokenizer::load(path.to_str().expect("a plain path"))?,
        false => train_tokenizer(Documents::new(vec![Input::File(corpus)], None), VOCAB, &path)?,
    };
    let prefix = folder.join("tokens");
    for suffix in ["idx", "bin"] {
        let _ = fs::remove_file(prefix.with_extension(suffix));
    }
    let begun = Instant::now();
    let end = tokenizer.end_of_document();
    let job = Job { inputs: vec![Input::File(text)], field: None, tokenizer: &tokenizer, end, threads };
    let done = tokenize(&job, &prefix, &mut |_| {})?;
    let seconds = begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    let data = Arc::new(Indexed::open(&prefix)?);
    let open_seconds = begun.elapsed().as_secs_f64();
    let part = Part::of_files(data, tokenizer.vocab_size());
    let across = TextSource::new(part, SEQ, 1)?;
    let within = across.clone().attending(Attend::Within);
    println!(
        "{{\"text_bytes\":{},\"documents\":{},\"tokens\":{},\"vocab\":{},\"threads\":{threads},\"tokenize_seconds\":{seconds},\
         \"open_seconds\":{open_seconds},\"across_batches_per_second\":{},\"within_batches_per_second\":{},\
         \"prefetched_batches_per_second\":{}}}",
        done.text_bytes,
        done.documents,
        done.tokens,
        tokenizer.vocab_size(),
        read(&across)?,
        read(&within)?,
        prefetch(across)?
    );
    Ok(())
}

/// Writes documents of a few sentences, no two alike: the corpus's, in an order of their own, each with a number.
fn write_text(folder: &Path, bytes: usize) -> PathBuf {
    let corpus = Corpus::embedded();
    let sentences: Vec<&str> =
        corpus.text().split_inclusive(['.', '\n']).filter(|line| line.trim().len() > 20).collect();
    let path = folder.join("text.jsonl");
    let mut file = BufWriter::new(File::create(&path).expect("the folder can be written"));
    let (mut state, mut written, mut number) = (1u64, 0, 0);
    while written < bytes {
        let mut text = format!("{number}: ");
        for _ in 0..4 + number % 23 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text += sentences[(state >> 33) as usize % sentences.len()];
        }
        written += text.len();
        number += 1;
        writeln!(file, "{}", serde_json::json!({ "text": text })).expect("the disk has room");
    }
    file.flush().expect("the disk has room");
    path
}

/// Counts the batches that one thread reads in a second, in the shuffled order.
fn read(source: &dyn SampleSource) -> Result<f64> {
    let (begun, mut batches) = (Instant::now(), 0);
    while begun.elapsed().as_secs_f64() < SECONDS {
        let first = batches * BATCH as u64;
        std::hint::black_box(Batch::read(source, first..first + BATCH as u64)?);
        batches += 1;
    }
    Ok(batches as f64 / begun.elapsed().as_secs_f64())
}

/// Counts the batches that come from the background thread in a second.
fn prefetch(source: TextSource) -> Result<f64> {
    let mut reader = Prefetch::new(Arc::new(source), BatchPlan::new(BATCH, BATCH, 1)?, 0, 0, 4)?;
    let (begun, mut batches) = (Instant::now(), 0);
    while begun.elapsed().as_secs_f64() < SECONDS {
        std::hint::black_box(reader.next_batch()?);
        batches += 1;
    }
    Ok(f64::from(batches) / begun.elapsed().as_secs_f64())
}
