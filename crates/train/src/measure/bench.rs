//! One operation timed by all ranks at once.

use std::time::Instant;

use mp_comm::{BufferMut, Communicator, ReduceOp};

use super::Effort;
use crate::agree::agree;
use crate::Result;

/// Times operations. Every call is collective over the world.
pub(super) struct Bench<'a> {
    world: &'a dyn Communicator,
    effort: Effort,
    begun: Instant,
}

/// What a sample lasts at least, so that the clock does not count: short operations are repeated in it.
const SAMPLE: f64 = 50e-6;
/// The fewest and most samples, and the most repetitions in one.
const FEWEST: f64 = 5.0;
const MOST: f64 = 101.0;
const REPEATED: f64 = 64.0;
/// Which of the samples counts: a quick one, for other programs only ever make one longer.
const QUICK: f64 = 0.1;
/// Seconds for one operation.
const EACH: f64 = 20e-3;
const QUICK_EACH: f64 = 4e-3;
/// Seconds after which each operation has the fewest samples, with little effort one: the machine is busy, or larger than this
/// was made for.
const LIMIT: f64 = 15.0;
const QUICK_LIMIT: f64 = 1.8;

impl<'a> Bench<'a> {
    pub fn new(world: &'a dyn Communicator, effort: Effort) -> Self {
        Self { world, effort, begun: Instant::now() }
    }

    pub fn world(&self) -> &'a dyn Communicator {
        self.world
    }

    pub fn effort(&self) -> Effort {
        self.effort
    }

    /// Chooses by effort.
    pub fn either<T>(&self, quick: T, full: T) -> T {
        match self.effort {
            Effort::Quick(_) => quick,
            Effort::Full => full,
        }
    }

    /// Returns the seconds of an operation that every rank makes as often.
    ///
    /// # Errors
    /// On all ranks, what the operation fails with on any.
    pub fn seconds(&self, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
        let [once, elapsed] = self.once(&mut operation)?;
        let each = match (self.effort, elapsed > self.either(QUICK_LIMIT, LIMIT)) {
            (Effort::Quick(_), true) => return Ok(once),
            (Effort::Full, true) => 0.0,
            (_, false) => self.either(QUICK_EACH, EACH),
        };
        self.repeated(once, each, operation)
    }

    /// The same, of samples that take so many seconds, whatever the time.
    ///
    /// # Errors
    /// As [`seconds`](Self::seconds).
    pub fn seconds_in(&self, each: f64, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
        let [once, _] = self.once(&mut operation)?;
        self.repeated(once, each, operation)
    }

    /// Runs an operation twice; returns what the second run took, and the seconds since the beginning, each on the slowest
    /// rank, which decides for all.
    fn once(&self, operation: &mut impl FnMut() -> Result<()>) -> Result<[f64; 2]> {
        // Caches, and what libraries prepare.
        agree(self.world, operation())?;
        let begun = Instant::now();
        let done = operation();
        let mut known = [begun.elapsed().as_secs_f64().max(1e-9), self.begun.elapsed().as_secs_f64()];
        agree(self.world, done)?;
        self.world.all_reduce(BufferMut::new(&mut known), ReduceOp::Max)?;
        Ok(known)
    }

    /// Runs an operation that takes `once` as often as fits in `each` seconds; returns the mean of the ranks' quick runs.
    fn repeated(&self, once: f64, each: f64, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
        let repeats = (SAMPLE / once).ceil().min(REPEATED);
        let samples = (each / (once * repeats)).clamp(FEWEST, MOST) as usize;
        self.world.barrier()?;
        let mut sample = || -> Result<f64> {
            let begun = Instant::now();
            (0..repeats as usize).try_for_each(|_| operation())?;
            Ok(begun.elapsed().as_secs_f64() / repeats)
        };
        let times: Result<Vec<f64>> = (0..samples).map(|_| sample()).collect();
        let mut times = agree(self.world, times)?;
        times.sort_by(f64::total_cmp);
        let mut typical = [times[(QUICK * times.len() as f64) as usize]];
        self.world.all_reduce(BufferMut::new(&mut typical), ReduceOp::Avg)?;
        Ok(typical[0])
    }
}
