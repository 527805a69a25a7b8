//! One operation timed by all ranks at once.

use std::time::Instant;

use mp_comm::{BufferMut, Communicator, ReduceOp};
use mp_runtime::Device;

use super::Effort;
use crate::agree::agree;
use crate::finished::finished;
use crate::Result;

/// Times operations. Every call is collective over the world.
pub(super) struct Bench<'a> {
    world: &'a dyn Communicator,
    device: Device,
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
    pub fn new(world: &'a dyn Communicator, device: Device, effort: Effort) -> Self {
        Self { world, device, effort, begun: Instant::now() }
    }

    pub fn world(&self) -> &'a dyn Communicator {
        self.world
    }

    pub fn device(&self) -> Device {
        self.device
    }

    pub fn effort(&self) -> Effort {
        self.effort
    }

    /// Makes what an operation works on. No rank goes on alone to where the others would wait for it.
    ///
    /// # Errors
    /// On all ranks, what making it fails with on any.
    pub fn prepared<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        agree(self.world, make())
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
    pub fn seconds(&self, operation: impl FnMut() -> Result<()>) -> Result<f64> {
        self.seconds_of(true, operation)
    }

    /// The same, of an operation that not every rank takes part in: on the others it does nothing, and does not count.
    ///
    /// # Errors
    /// As [`seconds`](Self::seconds).
    pub fn seconds_of(&self, takes_part: bool, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
        let [once, elapsed] = self.once(&mut operation)?;
        let each = match (self.effort, elapsed > self.either(QUICK_LIMIT, LIMIT)) {
            (Effort::Quick(_), true) => return Ok(once),
            (Effort::Full, true) => 0.0,
            (_, false) => self.either(QUICK_EACH, EACH),
        };
        self.repeated(takes_part, once, each, operation)
    }

    /// As [`seconds`](Self::seconds), of samples that take so many seconds, whatever the time.
    ///
    /// # Errors
    /// As [`seconds`](Self::seconds).
    pub fn seconds_in(&self, each: f64, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
        let [once, _] = self.once(&mut operation)?;
        self.repeated(true, once, each, operation)
    }

    /// Runs an operation twice; returns what the second run took, and the seconds since the beginning, each on the slowest
    /// rank, which decides for all.
    fn once(&self, operation: &mut impl FnMut() -> Result<()>) -> Result<[f64; 2]> {
        // Caches, and what libraries prepare.
        agree(self.world, operation())?;
        let begun = Instant::now();
        let done = operation().and_then(|()| finished(self.device));
        let mut known = [begun.elapsed().as_secs_f64().max(1e-9), self.begun.elapsed().as_secs_f64()];
        agree(self.world, done)?;
        self.world.all_reduce(BufferMut::new(&mut known), ReduceOp::Max)?;
        Ok(known)
    }

    /// Runs an operation that takes `once` as often as fits in `each` seconds; returns the mean of the quick runs of the ranks
    /// that take part.
    fn repeated(
        &self,
        takes_part: bool,
        once: f64,
        each: f64,
        mut operation: impl FnMut() -> Result<()>,
    ) -> Result<f64> {
        let repeats = (SAMPLE / once).ceil().min(REPEATED);
        let samples = (each / (once * repeats)).clamp(FEWEST, MOST) as usize;
        self.world.barrier()?;
        let mut sample = || -> Result<f64> {
            let begun = Instant::now();
            (0..repeats as usize).try_for_each(|_| operation())?;
            finished(self.device)?;
            Ok(begun.elapsed().as_secs_f64() / repeats)
        };
        let times: Result<Vec<f64>> = (0..samples).map(|_| sample()).collect();
        let mut times = agree(self.world, times)?;
        times.sort_by(f64::total_cmp);
        let typical = times[(QUICK * times.len() as f64) as usize];
        mean(self.world, takes_part.then_some(typical))
    }
}

/// Returns the mean of the values of the ranks that have one, 0 if none has.
fn mean(world: &dyn Communicator, value: Option<f64>) -> Result<f64> {
    let mut sum = [value.unwrap_or(0.0), f64::from(u8::from(value.is_some()))];
    world.all_reduce(BufferMut::new(&mut sum), ReduceOp::Sum)?;
    Ok(sum[0] / sum[1].max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp_comm::threads;

    #[test]
    fn who_takes_no_part_does_not_count() {
        let of = |values: [Option<f64>; 3]| threads::run(3, move |world| mean(&*world, values[world.rank().0]));
        assert_eq!(of([Some(2.0), Some(4.0), None]), [3.0; 3]);
        assert_eq!(of([None, None, Some(5.0)]), [5.0; 3]);
        assert_eq!(of([None; 3]), [0.0; 3]);
    }

    /// One rank that cannot make what the others can takes them all along, at once.
    #[test]
    fn what_one_rank_cannot_make_no_rank_goes_on_without() {
        let ended = threads::run(3, |world| -> std::result::Result<_, String> {
            let bench = Bench::new(&*world, Device::Cpu, Effort::Full);
            let fails = world.rank().0 == 1;
            Ok(bench.prepared(|| if fails { Err(crate::Error::Unmeasurable) } else { Ok(()) }))
        });
        assert!(matches!(ended[1], Err(crate::Error::Unmeasurable)));
        assert!([0, 2].iter().all(|&rank| matches!(ended[rank], Err(crate::Error::Peer { rank: 1, .. }))));
    }
}
