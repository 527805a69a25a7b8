//! Where the wall time of a step goes on one rank, as far as it can be seen from outside the kernels.
//!
//! A step is walked through once, and cut into pieces. Of each piece, what the rank spent inside calls to the other ranks is
//! booked under the group that they were made to; what is left is the rank's own. Nothing is measured twice and nothing left
//! out, so that the parts are the step.
//!
//! Where tensors lie on a device the time is that of its stream, from mark to mark: what the stream stands still for in a call to
//! the other ranks is waited for, whether the host waits or not, and what is hidden behind computation is not. The host runs
//! ahead as ever, and waits once, at the end of the step, where the marks are read.
//!
//! | part | is | [`Terms`](mp_plan::cost::Terms) |
//! |---|---|---|
//! | computing | forward and backward, less what is waited for inside | products, attention, elements, recompute |
//! | tensor | collectives of the tensor group in the passes and behind them | tensor |
//! | context | messages and exchanges of the context group | context |
//! | bubble | messages of the pipeline; its last rank, when norms are summed | bubble |
//! | data | collectives of the data ranks and of all ranks, and the table at both ends | data |
//! | optimizer | clearing, measuring, clipping and applying gradients | optimizer |
//! | rest | reading samples, and agreeing with the other ranks before the step | none |

use std::sync::Arc;

use mp_comm::stopwatch::{Wait, Waited};
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Moment};
use crate::Result;

/// A step's wall time by what it went to; the parts sum to the whole.
///
/// # Units
/// Seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// Forward and backward.
    pub computing: f64,
    /// Waiting for collectives of the tensor group.
    pub tensor: f64,
    /// Waiting for the context group.
    pub context: f64,
    /// Waiting for other stages.
    pub bubble: f64,
    /// Waiting for collectives of the data ranks, and for the table at both ends.
    pub data: f64,
    /// Clearing, measuring, clipping and applying gradients.
    pub optimizer: f64,
    /// Reading, and agreeing with the other ranks before the step.
    pub rest: f64,
}

impl Times {
    /// The names of the parts, as people read them.
    pub const NAMES: [&'static str; 7] =
        ["computing", "tensor collectives", "context messages", "bubble", "data collectives", "optimizer", "rest"];

    /// Returns the parts in the order of [`NAMES`](Self::NAMES).
    pub fn parts(&self) -> [f64; 7] {
        let Self { computing, tensor, context, bubble, data, optimizer, rest } = *self;
        [computing, tensor, context, bubble, data, optimizer, rest]
    }

    /// Takes the parts in the order of [`NAMES`](Self::NAMES).
    pub fn of_parts([computing, tensor, context, bubble, data, optimizer, rest]: [f64; 7]) -> Self {
        Self { computing, tensor, context, bubble, data, optimizer, rest }
    }

    /// Adds everything up.
    pub fn total(&self) -> f64 {
        self.parts().iter().sum()
    }
}

/// How long a rank has waited for each of its groups.
#[derive(Debug, Clone, Default)]
pub struct Waits {
    /// The tensor group, and the groups split from it.
    pub tensor: Arc<Waited>,
    /// The context group.
    pub context: Arc<Waited>,
    /// The pipeline.
    pub pipeline: Arc<Waited>,
    /// The data ranks, and the two ends of the model.
    pub data: Arc<Waited>,
    /// All ranks.
    pub world: Arc<Waited>,
    /// What tells the time.
    clock: Clock,
}

impl Waits {
    /// Reads the time on `clock` from now on.
    pub(crate) fn read_on(&mut self, clock: Clock) {
        if let Clock::Device(device) = &clock {
            self.all().into_iter().for_each(|waited| waited.read_on(Arc::clone(device)));
        }
        self.clock = clock;
    }

    /// Lists the groups: tensor, context, pipeline, data, world.
    fn all(&self) -> [&Waited; 5] {
        [&self.tensor, &self.context, &self.pipeline, &self.data, &self.world].map(|waited| &**waited)
    }
}

/// What a rank does in a piece of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Getting ready, whomever it waits for.
    Preparing,
    /// Forwards, backwards and their messages.
    Passing,
    /// Completing the gradients' sums.
    Summing,
    /// What ends a step: clearing before it belongs here too, as in the planner's count.
    Updating,
}

/// Cuts a step into pieces.
#[derive(Debug)]
pub struct Pieces<'a> {
    waits: &'a Waits,
    begun: Moment,
    pieces: Vec<Piece>,
}

/// A piece that is over, or will be when the device has come to its end.
#[derive(Debug)]
struct Piece {
    doing: Doing,
    ended: Moment,
    waited: [Wait; 5],
}

impl<'a> Pieces<'a> {
    /// Begins a step; what was waited for before does not count.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) where a device refuses.
    pub fn begin(waits: &'a Waits) -> Result<Self> {
        waits.all().into_iter().for_each(|waited| drop(waited.take()));
        Ok(Self { waits, begun: waits.clock.now()?, pieces: Vec::new() })
    }

    /// Ends the piece that began with the step or where the last one ended.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) where a device refuses.
    pub fn end(&mut self, doing: Doing) -> Result<()> {
        let ended = self.waits.clock.now()?;
        self.pieces.push(Piece { doing, ended, waited: self.waits.all().map(Waited::take) });
        Ok(())
    }

    /// Returns where the time of all pieces went, once a device has come to the end of the last one.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) where a device refuses.
    pub fn times(self) -> Result<Times> {
        let (mut times, mut begun) = (Times::default(), self.begun);
        for Piece { doing, mut ended, waited } in self.pieces {
            let whole = begun.seconds_until(&mut ended)?;
            let mut seconds = [0.0; 5];
            for (seconds, wait) in seconds.iter_mut().zip(waited) {
                *seconds = wait.seconds()?;
            }
            times.book(doing, whole, seconds);
            begun = ended;
        }
        Ok(times)
    }
}

impl Times {
    /// Books a piece of so many seconds, of which `waited` went to the groups.
    fn book(&mut self, doing: Doing, whole: f64, waited: [f64; 5]) {
        let [tensor, context, pipeline, data, world] = waited;
        let own = whole - (tensor + context + pipeline + data + world);
        match doing {
            Doing::Preparing => self.rest += whole,
            Doing::Updating => {
                self.optimizer += own;
                self.bubble += pipeline;
                self.data += tensor + context + data + world;
            }
            Doing::Passing | Doing::Summing => {
                self.tensor += tensor;
                self.context += context;
                self.bubble += pipeline;
                self.data += data + world;
                match doing {
                    Doing::Passing => self.computing += own,
                    _ => self.data += own,
                }
            }
        }
    }
}

/// Steps at the beginning that no summary counts, where there are twice as many or more: in them memory is touched for the
/// first time, and kernels are chosen.
const WARM_UP: usize = 3;
/// The latest so many steps are kept.
const KEPT: usize = 1024;

/// The times of a run's steps.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The latest, the oldest of them at `next` once there are [`KEPT`].
    steps: Vec<Times>,
    next: usize,
    count: usize,
    /// What all of them took.
    seconds: f64,
}

/// What the steps of a run took, all in all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// How many steps it is of.
    pub steps: usize,
    /// How many at the beginning were left out.
    pub left_out: usize,
    /// Of those between the quartiles, by the whole step, the mean of each part: as little moved by stragglers as a median,
    /// and the parts still sum to the whole.
    pub times: Times,
}

impl History {
    /// Notes a step.
    pub fn push(&mut self, times: Times) {
        self.count += 1;
        self.seconds += times.total();
        match self.steps.get_mut(self.next) {
            Some(oldest) if self.count > KEPT => *oldest = times,
            _ => self.steps.push(times),
        }
        self.next = self.count % KEPT;
    }

    /// Returns the seconds of all steps.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Sums the latest steps up; `None` before the first.
    pub fn summary(&self) -> Option<Summary> {
        let left_out = WARM_UP.min(self.count / 2);
        // In the places of the first steps later ones may lie by now.
        let counts = |&(place, _): &(usize, &Times)| place >= left_out || place + KEPT < self.count;
        let mut steps: Vec<Times> = self.steps.iter().enumerate().filter(counts).map(|(_, times)| *times).collect();
        steps.sort_by(|one, other| one.total().total_cmp(&other.total()));
        let middle = &steps[steps.len() / 4..steps.len() - steps.len() / 4];
        if middle.is_empty() {
            return None;
        }
        let mean = |part: usize| middle.iter().map(|times| times.parts()[part]).sum::<f64>() / middle.len() as f64;
        Some(Summary { steps: steps.len(), left_out, times: Times::of_parts(std::array::from_fn(mean)) })
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use mp_comm::solo::Solo;
    use mp_comm::stopwatch::Stopwatch;
    use mp_comm::{Communicator, Mark};

    use super::*;

    fn step(computing: f64, data: f64) -> Times {
        Times { computing, data, ..Times::default() }
    }

    #[test]
    fn a_summary_is_the_mean_between_the_quartiles() {
        let mut history = History::default();
        assert_eq!(history.summary(), None);
        // Three that warm up, then eight: the two fastest and the two slowest do not count.
        for computing in [90.0, 80.0, 70.0, 1.0, 2.0, 3.0, 64.0, 4.0, 5.0, 6.0, 32.0] {
            history.push(step(computing, 0.5));
        }
        let summary = history.summary().unwrap();
        assert_eq!(summary, Summary { steps: 8, left_out: 3, times: step(4.5, 0.5) });
        assert_eq!(summary.times.total(), 5.0);
    }

    #[test]
    fn short_runs_leave_out_half_at_most() {
        let mut history = History::default();
        history.push(step(4.0, 0.0));
        assert_eq!(history.summary(), Some(Summary { steps: 1, left_out: 0, times: step(4.0, 0.0) }));
        history.push(step(2.0, 0.0));
        assert_eq!(history.summary(), Some(Summary { steps: 1, left_out: 1, times: step(2.0, 0.0) }));
    }

    #[test]
    fn long_runs_are_summed_up_by_their_latest_steps() {
        let mut history = History::default();
        (0..KEPT + 10).for_each(|_| history.push(step(1.0, 0.0)));
        (0..KEPT).for_each(|_| history.push(step(2.0, 0.0)));
        let summary = history.summary().unwrap();
        assert_eq!(summary, Summary { steps: KEPT, left_out: 3, times: step(2.0, 0.0) });
        assert_eq!(history.seconds(), (KEPT + 10 + 2 * KEPT) as f64);
    }

    #[test]
    fn every_piece_is_booked_once() {
        for doing in [Doing::Preparing, Doing::Passing, Doing::Summing, Doing::Updating] {
            let waits = Waits::default();
            let mut pieces = Pieces::begin(&waits).unwrap();
            pieces.end(doing).unwrap();
            let (Moment::Host(begun), Moment::Host(ended)) = (&pieces.begun, &pieces.pieces[0].ended) else {
                panic!("the host's time")
            };
            let whole = (*ended - *begun).as_secs_f64();
            // Nobody was waited for: all of it is the rank's own.
            let times = pieces.times().unwrap();
            let own = [times.rest, times.computing, times.data, times.optimizer][doing as usize];
            assert_eq!([own, times.total()], [whole, whole], "{doing:?}");
        }
    }

    /// A device whose time is known to nobody before the step is over, however long the host takes.
    #[derive(Debug, Default)]
    struct Late {
        /// When its stream comes to each mark, by the order of the marks.
        comes: Vec<f64>,
        marks: AtomicUsize,
        over: Arc<AtomicBool>,
    }

    #[derive(Debug)]
    struct At(f64, Arc<AtomicBool>);

    impl mp_comm::Clock for Late {
        fn mark(&self) -> mp_comm::Result<Box<dyn Mark>> {
            let mark = self.marks.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(At(self.comes[mark], Arc::clone(&self.over))))
        }
    }

    impl Mark for At {
        fn seconds_until(&mut self, later: &mut dyn Mark) -> mp_comm::Result<f64> {
            assert!(self.1.load(Ordering::SeqCst), "a moment was waited for in the midst of a step");
            let later: &mut dyn Any = later;
            Ok(later.downcast_mut::<At>().expect("a moment of this clock").0 - self.0)
        }
    }

    #[test]
    fn a_devices_time_is_booked_by_its_marks_and_read_at_the_end() {
        let over = Arc::new(AtomicBool::new(false));
        // The step begins at 1; a call of the tensor group takes from 3 to 4, one of the data ranks from 9 to 11; pieces end
        // at 8 and 12, and the update at 20.
        let comes = vec![1.0, 3.0, 4.0, 8.0, 9.0, 11.0, 12.0, 20.0];
        let mut waits = Waits::default();
        waits.read_on(Clock::Device(Arc::new(Late { comes, over: Arc::clone(&over), ..Late::default() })));
        let group = |waited: &Arc<Waited>| Stopwatch::new(Arc::new(Solo::new("group")), Arc::clone(waited));
        let (tensor, data) = (group(&waits.tensor), group(&waits.data));
        let mut pieces = Pieces::begin(&waits).unwrap();
        tensor.barrier().unwrap();
        pieces.end(Doing::Passing).unwrap();
        data.barrier().unwrap();
        pieces.end(Doing::Summing).unwrap();
        pieces.end(Doing::Updating).unwrap();
        over.store(true, Ordering::SeqCst);
        let expected = Times { computing: 6.0, tensor: 1.0, data: 4.0, optimizer: 8.0, ..Times::default() };
        assert_eq!(pieces.times().unwrap(), expected);
        assert_eq!(expected.total(), 19.0);
    }
}
