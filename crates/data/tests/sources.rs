//! The public traits as other crates use them: through trait objects, across threads, under any cut of the batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use mp_data::{Batch, BatchPlan, Prefetch, SampleSource, TextSource, Tokens};
use proptest::prelude::*;

/// Compiles only while a source is object safe and may be shared between threads.
#[test]
fn a_source_is_a_shared_trait_object() {
    fn shared<T: Send + Sync + ?Sized>(_: &T) {}
    let source: Arc<dyn SampleSource> = Arc::new(text(100, 4, 0));
    shared(&*source);
    assert_eq!((source.seq(), source.len_tokens(), source.samples_per_epoch()), (4, 100, 24));
}

/// A text in which every token is its own position.
fn text(tokens: u32, seq: usize, seed: u64) -> TextSource {
    TextSource::new(Tokens::new("counting", (0..tokens).collect()), seq, seed).unwrap()
}

/// What each step's global batch holds, row by row, read by all ranks of a plan.
fn global_batches(source: &Arc<dyn SampleSource>, plan: BatchPlan, first: u64, steps: u64) -> BTreeMap<u64, Vec<i64>> {
    let mut read = BTreeMap::new();
    for rank in 0..plan.dp() {
        let mut reader = Prefetch::new(Arc::clone(source), plan, rank, first, 2).unwrap();
        for step in first..first + steps {
            let rows: &mut Vec<i64> = read.entry(step).or_default();
            reader.next_step().unwrap().iter().for_each(|batch| rows.extend(&batch.tokens));
        }
    }
    read
}

#[test]
fn every_epoch_reads_each_window_once_across_ranks() {
    let source: Arc<dyn SampleSource> = Arc::new(text(4 * 13, 4, 9));
    assert_eq!(source.samples_per_epoch(), 12);
    let plan = BatchPlan::new(6, 1, 3).unwrap();
    let read = global_batches(&source, plan, 0, 4);
    for epoch in 0..2 {
        let mut starts: Vec<i64> =
            (2 * epoch..2 * epoch + 2).flat_map(|step| read[&step].chunks(4).map(|row| row[0])).collect();
        starts.sort_unstable();
        let expected: Vec<i64> = (0..12).map(|window| starts[0] + 4 * window).collect();
        assert_eq!(starts, expected, "epoch {epoch}");
    }
}

#[test]
fn targets_are_the_tokens_that_follow() {
    let batch = Batch::read(&text(1000, 8, 1), 5..9).unwrap();
    assert_eq!((batch.batch, batch.seq, batch.target_count()), (4, 8, 32));
    assert!(batch.tokens.iter().zip(&batch.targets).all(|(token, target)| *target == token + 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The cut into ranks and micro-batches, and where a run resumed, change nothing of what a step reads.
    #[test]
    fn no_cut_and_no_resumption_changes_a_step(
        tokens in 50u32..500, seq in 1usize..9, seed: u64, dp in 1usize..4, micro in 1usize..4, count in 1usize..3,
        first in 0u64..5,
    ) {
        let source: Arc<dyn SampleSource> = Arc::new(text(tokens, seq, seed));
        let global = dp * micro * count;
        let whole = global_batches(&source, BatchPlan::new(global, global, 1).unwrap(), 0, first + 3);
        let cut = global_batches(&source, BatchPlan::new(global, micro, dp).unwrap(), first, 3);
        for (step, rows) in cut {
            prop_assert_eq!(&rows, &whole[&step], "step {}", step);
        }
    }
}
