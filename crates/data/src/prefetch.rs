//! Reading batches ahead of the training loop, on a thread of its own.

use std::any::Any;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{self, Receiver, Sender};

use crate::{Batch, BatchPlan, Error, Result, SampleSource};

/// One rank's batches, in order, read in the background.
///
/// The thread stays a bounded number of batches ahead. An error of the source comes out in place of the batch that it
/// prevented, after all batches before it. Dropping the reader ends the thread and waits for it, which takes no longer
/// than the read under way.
#[derive(Debug)]
pub struct Prefetch {
    plan: BatchPlan,
    /// The step and micro-batch that come out next.
    due: (u64, usize),
    /// `None` only while dropping, to wake a thread that waits for room.
    batches: Option<Receiver<Result<Batch>>>,
    /// `None` once joined.
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Starts to read the batches of data-parallel rank `rank`, from the step after `first_step` finished ones on, at
    /// most `depth` batches ahead.
    ///
    /// # Errors
    /// [`Error::Rank`] if the plan has no such rank, [`Error::Zero`] if `depth` is 0, [`Error::ReaderStopped`] if the
    /// system gives no thread.
    pub fn new(
        source: Arc<dyn SampleSource>,
        plan: BatchPlan,
        rank: usize,
        first_step: u64,
        depth: usize,
    ) -> Result<Self> {
        if rank >= plan.dp() {
            return Err(Error::Rank { rank, dp: plan.dp() });
        }
        if depth == 0 {
            return Err(Error::Zero { what: "depth" });
        }
        let (sender, batches) = channel::bounded(depth);
        let thread = thread::Builder::new()
            .name("mp-data reader".into())
            .spawn(move || read_on(&*source, plan, rank, first_step, &sender))
            .map_err(|error| Error::ReaderStopped { step: first_step, micro: 0, reason: error.to_string() })?;
        Ok(Self { plan, due: (first_step, 0), batches: Some(batches), thread: Some(thread) })
    }

    /// Returns the step and the micro-batch of it that come out next.
    pub fn position(&self) -> (u64, usize) {
        self.due
    }

    /// Waits for the next micro-batch.
    ///
    /// # Errors
    /// The source's, once; after it, or if the source panicked, [`Error::ReaderStopped`].
    pub fn next_batch(&mut self) -> Result<Batch> {
        let received = self.batches.as_ref().and_then(|batches| batches.recv().ok());
        let batch = received.unwrap_or_else(|| Err(self.stopped()))?;
        let (step, micro) = self.due;
        self.due = if micro + 1 < self.plan.micro_batches() { (step, micro + 1) } else { (step + 1, 0) };
        Ok(batch)
    }

    /// Waits for the micro-batches of the next step, or for those that are left of one begun.
    ///
    /// # Errors
    /// Those of [`Prefetch::next_batch`].
    pub fn next_step(&mut self) -> Result<Vec<Batch>> {
        (self.due.1..self.plan.micro_batches()).map(|_| self.next_batch()).collect()
    }

    /// Says why no batch comes any more.
    fn stopped(&mut self) -> Error {
        let reason = match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => format!("it panicked with \"{}\"", panic_text(&*panic)),
            _ => "an earlier batch could not be read".into(),
        };
        Error::ReaderStopped { step: self.due.0, micro: self.due.1, reason }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // Without a receiver the thread's next send fails, and it returns.
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A panic has already been printed by its hook; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

/// The thread: reads and sends until the receiver is gone or a read fails.
fn read_on(source: &dyn SampleSource, plan: BatchPlan, rank: usize, first_step: u64, batches: &Sender<Result<Batch>>) {
    for step in first_step.. {
        for micro in 0..plan.micro_batches() {
            let batch = {
                let _span = tracing::trace_span!("read_batch", step, micro).entered();
                Batch::read(source, plan.samples(step, rank, micro))
            };
            let failed = batch.is_err();
            if batches.send(batch).is_err() || failed {
                return;
            }
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Piece, Sample};
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Each sample is its own number; from `limit` on, reading fails or panics.
    struct Numbers {
        limit: u64,
        panics: bool,
        read: AtomicU64,
    }

    impl SampleSource for Numbers {
        fn seq(&self) -> usize {
            2
        }

        fn len_tokens(&self) -> u64 {
            u64::MAX
        }

        fn samples_per_epoch(&self) -> u64 {
            u64::MAX
        }

        fn sample(&self, number: u64, into: &mut Sample) -> Result<()> {
            self.read.fetch_add(1, Ordering::SeqCst);
            assert!(number < self.limit || !self.panics, "sample {number} is out of reach");
            if number >= self.limit {
                return Err(Error::Missing { path: format!("shard-{number}").into() });
            }
            into.follow([number as i64; 3]);
            into.number = number;
            Ok(())
        }

        fn pieces(&self, number: u64) -> Result<Vec<Piece>> {
            Ok(vec![Piece { source: 0, document: number, tokens: 0..3 }])
        }
    }

    fn numbers(limit: u64, panics: bool) -> Arc<Numbers> {
        Arc::new(Numbers { limit, panics, read: AtomicU64::new(0) })
    }

    /// The first token of each row.
    fn rows(batch: &Batch) -> Vec<i64> {
        batch.tokens.iter().step_by(batch.seq).copied().collect()
    }

    #[test]
    fn batches_come_in_order_from_any_step() {
        let plan = BatchPlan::new(8, 2, 2).unwrap();
        let mut reader = Prefetch::new(numbers(u64::MAX, false), plan, 1, 3, 2).unwrap();
        assert_eq!(reader.position(), (3, 0));
        assert_eq!(reader.next_step().unwrap().iter().map(rows).collect::<Vec<_>>(), [[28, 29], [30, 31]]);
        let batch = reader.next_batch().unwrap();
        assert_eq!((rows(&batch), batch.numbers), (vec![36, 37], vec![36, 37]));
        assert_eq!(reader.position(), (4, 1));
        // A step that was begun is finished first.
        assert_eq!(reader.next_step().unwrap().iter().map(rows).collect::<Vec<_>>(), [[38, 39]]);
        assert_eq!(reader.position(), (5, 0));
    }

    #[test]
    fn an_error_comes_after_the_good_batches_and_then_the_reader_is_gone() {
        let mut reader = Prefetch::new(numbers(4, false), BatchPlan::new(2, 2, 1).unwrap(), 0, 0, 8).unwrap();
        assert_eq!(rows(&reader.next_batch().unwrap()), [0, 1]);
        assert_eq!(rows(&reader.next_batch().unwrap()), [2, 3]);
        assert!(reader.next_batch().unwrap_err().to_string().contains("`shard-4`"));
        for _ in 0..2 {
            assert!(matches!(reader.next_batch(), Err(Error::ReaderStopped { step: 2, micro: 0, .. })));
        }
    }

    #[test]
    fn a_panic_of_the_source_is_an_error() {
        let mut reader = Prefetch::new(numbers(1, true), BatchPlan::new(1, 1, 1).unwrap(), 0, 0, 1).unwrap();
        reader.next_batch().unwrap();
        let text = reader.next_batch().unwrap_err().to_string();
        assert!(text.contains("it panicked with \"sample 1 is out of reach\""), "{text}");
    }

    #[test]
    fn dropping_ends_the_thread() {
        let source = numbers(u64::MAX, false);
        let mut reader = Prefetch::new(source.clone(), BatchPlan::new(1, 1, 1).unwrap(), 0, 0, 3).unwrap();
        for _ in 0..5 {
            reader.next_batch().unwrap();
        }
        drop(reader);
        // The thread held the other reference; it was joined, so this is no race.
        assert_eq!(Arc::strong_count(&source), 1);
        // Five taken, three in the channel, one that found no room.
        assert!(source.read.load(Ordering::SeqCst) <= 9);
    }

    #[test]
    fn impossible_readers_are_refused() {
        let plan = BatchPlan::new(4, 1, 2).unwrap();
        let start = |rank, depth| Prefetch::new(numbers(9, false), plan, rank, 0, depth);
        assert!(matches!(start(2, 1), Err(Error::Rank { rank: 2, dp: 2 })));
        assert!(matches!(start(0, 0), Err(Error::Zero { .. })));
    }
}
