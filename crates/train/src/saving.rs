//! Checkpoints of a run under way: when they are due, and how they are written behind the next steps.
//!
//! A save holds the steps up for a copy of what this rank writes. A thread writes the copy to the disk; at the heads of
//! later steps the ranks vote on whether all have written, then rank 0's thread commits. A second save waits for the first:
//! there is one copy, in memory that is used again. The threads make no call on a communicator.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use mp_comm::{Communicator, Rank};

use crate::agree::{agree_and_vote, Votes};
use crate::checkpoint::{About, CheckpointStore};
use crate::config::{CheckpointConfig, Every};
use crate::state::Shard;
use crate::step::Trainer;
use crate::{Error, Result};

/// A checkpoint that is complete on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// Its finished updates.
    pub step: u64,
    /// Its folder, on rank 0.
    pub path: Option<PathBuf>,
}

/// Saves a run's state, and knows what is under way.
#[derive(Debug)]
pub struct Saver {
    store: Arc<dyn CheckpointStore>,
    world: Arc<dyn Communicator>,
    every: Every,
    keep_best: usize,
    asynchronous: bool,
    /// What this rank writes, from when it first does.
    shard: Option<Arc<Shard>>,
    /// The copy's memory between saves.
    spare: Task<Vec<u8>>,
    flight: Option<Flight>,
    /// When the last save began, or the run.
    begun: Instant,
    held: Duration,
    /// The validation losses of checkpoints, lowest first, as many as are kept for their loss.
    losses: Vec<f64>,
}

/// A save under way.
#[derive(Debug)]
struct Flight {
    about: About,
    phase: Phase,
}

/// How far a rank is with a save.
#[derive(Debug)]
enum Phase {
    /// It writes its shard; the thread gives the copy's memory back.
    Writing(Task<Vec<u8>>),
    /// It has written, and waits for the others.
    Written,
    /// Rank 0 makes the checkpoint of all shards visible.
    Committing(Task<PathBuf>),
    /// It has nothing more to do.
    Over(Option<PathBuf>),
}

impl Saver {
    /// Starts without a save under way; `losses` are those of the checkpoints that are there.
    pub fn new(
        config: &CheckpointConfig,
        store: Arc<dyn CheckpointStore>,
        world: Arc<dyn Communicator>,
        losses: Vec<f64>,
    ) -> Self {
        Self {
            store,
            world,
            every: config.every,
            keep_best: config.keep_best,
            asynchronous: config.asynchronous,
            shard: None,
            spare: Task::Over(Ok(Vec::new())),
            flight: None,
            begun: Instant::now(),
            held: Duration::ZERO,
            losses,
        }
    }

    /// Finds what this rank writes, and takes the memory of its copy behind the first steps, so that no save is held up by
    /// the system handing out pages. Local to each rank.
    ///
    /// # Errors
    /// Those of [`Shard::new`], and [`Error::Write`] if no thread can be started.
    pub fn prepare(&mut self, trainer: &Trainer) -> Result<()> {
        let shard = Arc::new(Shard::new(trainer)?);
        let bytes = if self.asynchronous { shard.bytes() } else { 0 };
        self.shard = Some(shard);
        // Ones, for pages of zeros are handed out when they are first written.
        self.spare = Task::spawn(move || Ok(vec![1; bytes]))?;
        Ok(())
    }

    /// Says whether a save is due after so many updates.
    pub fn is_due(&self, step: u64) -> bool {
        matches!(self.every, Every::Steps(every) if every > 0 && step.is_multiple_of(every))
    }

    /// Says whether a save is due by rank 0's clock; the ranks vote on it.
    pub fn is_time(&self) -> bool {
        let first = self.world.rank() == Rank(0);
        matches!(self.every, Every::Time(every) if first && self.begun.elapsed() >= every)
    }

    /// Says whether an evaluation is among those whose checkpoint is kept for its loss.
    pub fn is_among_best(&self, loss: f64) -> bool {
        let beats = |last: &f64| loss < *last;
        self.keep_best > 0 && self.losses.get(self.keep_best - 1).is_none_or(beats)
    }

    /// Returns how long the last save held this rank up.
    pub fn held(&self) -> Duration {
        self.held
    }

    /// Begins to save; what was under way is completed first, and returned. Collective over the world where something is.
    ///
    /// What fails on this rank is told by [`settled`](Self::settled), where all ranks hear of it.
    ///
    /// # Errors
    /// Those of [`finish`](Self::finish).
    pub fn begin(&mut self, trainer: &Trainer, about: About) -> Result<Option<Saved>> {
        let _span = tracing::info_span!("save", step = about.step).entered();
        self.begun = Instant::now();
        let earlier = self.finish()?;
        let task = self.task(trainer, about.step).unwrap_or_else(|error| Task::Over(Err(error)));
        if let Some(loss) = about.validation_loss.filter(|&loss| self.is_among_best(loss)) {
            self.losses.insert(self.losses.partition_point(|&other| other <= loss), loss);
            self.losses.truncate(self.keep_best);
        }
        self.flight = Some(Flight { about, phase: Phase::Writing(task) });
        self.held = self.begun.elapsed();
        Ok(earlier)
    }

    /// Writes this rank's shard, or has it written.
    fn task(&mut self, trainer: &Trainer, step: u64) -> Result<Task<Vec<u8>>> {
        let shard = match &self.shard {
            Some(shard) => Arc::clone(shard),
            None => Arc::clone(self.shard.insert(Arc::new(Shard::new(trainer)?))),
        };
        let writer = self.world.rank().0;
        if !self.asynchronous {
            shard.write(trainer, self.store.shard(step, writer)?)?;
            return Ok(Task::Over(Ok(Vec::new())));
        }
        let mut copied = std::mem::replace(&mut self.spare, Task::Over(Ok(Vec::new()))).join()?;
        shard.copy(trainer, &mut copied)?;
        let store = Arc::clone(&self.store);
        Task::spawn(move || {
            let _span = tracing::info_span!("write_shard", step, bytes = copied.len()).entered();
            shard.write_copy(&copied, store.shard(step, writer)?)?;
            Ok(copied)
        })
    }

    /// Says whether this rank has nothing to do until the others have done the same; where nothing is under way, it has
    /// not. Never waits.
    ///
    /// # Errors
    /// [`Error::Write`] if what was under way on this rank failed.
    pub fn settled(&mut self) -> Result<bool> {
        let Some(flight) = &mut self.flight else { return Ok(true) };
        let is_over = match &flight.phase {
            Phase::Writing(task) => task.is_over(),
            Phase::Committing(task) => task.is_over(),
            Phase::Written | Phase::Over(_) => true,
        };
        if is_over {
            self.settle()?;
        }
        Ok(is_over)
    }

    /// Waits for what this rank does.
    fn settle(&mut self) -> Result<()> {
        let Some(Flight { about, phase }) = self.flight.take() else { return Ok(()) };
        let step = about.step;
        let phase = match phase {
            Phase::Writing(task) => task.join().map(|copied| {
                self.spare = Task::Over(Ok(copied));
                Phase::Written
            }),
            Phase::Committing(task) => task.join().map(|path| Phase::Over(Some(path))),
            phase => Ok(phase),
        };
        if phase.is_err() && self.world.rank() == Rank(0) {
            self.store.abandon(step);
        }
        self.flight = Some(Flight { about, phase: phase? });
        Ok(())
    }

    /// Goes on once all ranks have settled; returns a checkpoint that became complete by it. Never waits. All ranks must
    /// come here with the same vote.
    pub fn advance(&mut self, all_settled: bool) -> Option<Saved> {
        if !all_settled {
            return None;
        }
        let Flight { about, phase } = self.flight.take()?;
        let step = about.step;
        match phase {
            Phase::Over(path) => return Some(Saved { step, path }),
            Phase::Written if self.world.rank() == Rank(0) => {
                let phase = Phase::Committing(self.commit(about.clone()));
                self.flight = Some(Flight { about, phase });
            }
            _ => self.flight = Some(Flight { about, phase: Phase::Over(None) }),
        }
        None
    }

    fn commit(&self, about: About) -> Task<PathBuf> {
        let (store, writers) = (Arc::clone(&self.store), self.world.size());
        let task = Task::spawn(move || store.commit(writers, &about));
        task.unwrap_or_else(|error| Task::Over(Err(error)))
    }

    /// Completes what is under way, and returns it. Collective over the world where something is.
    ///
    /// # Errors
    /// [`Error::Write`] on a rank where it failed, [`Error::Peer`] on the others; earlier checkpoints are intact.
    pub fn finish(&mut self) -> Result<Option<Saved>> {
        while self.flight.is_some() {
            let settled = self.settle();
            let votes = Votes { settled: true, ..Votes::default() };
            agree_and_vote(&*self.world, settled, votes).inspect_err(|_| self.flight = None)?;
            if let Some(saved) = self.advance(true) {
                return Ok(Some(saved));
            }
        }
        Ok(None)
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // The run has failed: what is being committed may still be whole, and what is being written never will be.
        let Some(Flight { about, phase }) = self.flight.take() else { return };
        let committed = match phase {
            Phase::Writing(task) => {
                drop(task.join());
                false
            }
            Phase::Committing(task) => task.join().is_ok(),
            Phase::Written => false,
            Phase::Over(_) => true,
        };
        if !committed && self.world.rank() == Rank(0) {
            self.store.abandon(about.step);
        }
    }
}

/// Something that a thread does, or that is done.
#[derive(Debug)]
enum Task<T> {
    Running(JoinHandle<Result<T>>),
    Over(Result<T>),
}

impl<T: Send + 'static> Task<T> {
    fn spawn(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<Self> {
        let thread = Builder::new().name("checkpoint".into()).spawn(work);
        thread.map(Task::Running).map_err(|source| Error::Write { path: "a thread for checkpoints".into(), source })
    }

    fn is_over(&self) -> bool {
        match self {
            Task::Running(thread) => thread.is_finished(),
            Task::Over(_) => true,
        }
    }

    fn join(self) -> Result<T> {
        match self {
            Task::Running(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Task::Over(result) => result,
        }
    }
}
