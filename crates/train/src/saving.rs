//! Checkpoints of a run under way: when they are due, and how they are written behind the next steps.
//!
//! A save holds the steps up for a copy of what this rank writes. A thread writes the copy to the disk; at the heads of
//! later steps the ranks vote on whether all have written, then rank 0's thread commits. A second save waits for the first:
//! there is one copy, in memory that is used again. The threads make no call on a communicator.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use mp_comm::{BufferMut, Communicator, Rank};

use crate::agree::{agree_and_vote, Votes};
use crate::checkpoint::{About, CheckpointStore, DirectoryStore};
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
    /// Files that must be on the disk before a checkpoint is, on rank 0.
    beside: Vec<(PathBuf, File)>,
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
    /// What it did failed. What the ranks have written stays until all have heard of it: one that still writes would
    /// otherwise fail for another reason than the first.
    Failed,
}

/// Lists on every rank the lowest validation losses of checkpoints, lowest first, at most `keep_best`, as rank 0 finds them:
/// whether an evaluation is among the best must not depend on each rank's own look at the disk.
///
/// # Communication
/// Two broadcasts; collective over `world`.
///
/// # Errors
/// [`Error::Comm`].
pub fn losses(world: &dyn Communicator, store: &DirectoryStore, keep_best: usize) -> Result<Vec<f64>> {
    let mut losses = match world.rank() {
        Rank(0) => store.losses().into_iter().map(|(loss, _)| loss).take(keep_best).collect(),
        _ => Vec::new(),
    };
    let mut count = [losses.len() as i64];
    world.broadcast(BufferMut::new(&mut count), Rank(0))?;
    losses.resize(count[0] as usize, 0.0);
    if !losses.is_empty() {
        world.broadcast(BufferMut::new(&mut losses), Rank(0))?;
    }
    Ok(losses)
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
            beside: Vec::new(),
            begun: Instant::now(),
            held: Duration::ZERO,
            losses,
        }
    }

    /// Takes files that other files of the run must not fall behind: before a checkpoint becomes visible, what has been
    /// written to them is flushed to the disk, on the thread that commits.
    #[must_use]
    pub fn beside(mut self, beside: Vec<(PathBuf, File)>) -> Self {
        self.beside = beside;
        self
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
    /// What fails on this rank is told by [`settled`](Self::settled), where all ranks hear of it; so is what has `failed`
    /// before, without which there must be no checkpoint.
    ///
    /// # Errors
    /// Those of [`finish`](Self::finish).
    pub fn begin(&mut self, trainer: &Trainer, about: About, failed: Result<()>) -> Result<Option<Saved>> {
        let _span = tracing::info_span!("save", step = about.step).entered();
        self.begun = Instant::now();
        let earlier = self.finish()?;
        let task = failed.and_then(|()| self.task(trainer, about.step)).unwrap_or_else(|error| Task::Over(Err(error)));
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
            Phase::Written | Phase::Over(_) | Phase::Failed => true,
        };
        if is_over {
            self.settle()?;
        }
        Ok(is_over)
    }

    /// Waits for what this rank does.
    fn settle(&mut self) -> Result<()> {
        let Some(Flight { about, phase }) = self.flight.take() else { return Ok(()) };
        let phase = match phase {
            Phase::Writing(task) => task.join().map(|copied| {
                self.spare = Task::Over(Ok(copied));
                Phase::Written
            }),
            Phase::Committing(task) => task.join().map(|path| Phase::Over(Some(path))),
            phase => Ok(phase),
        };
        let (phase, outcome) = match phase {
            Ok(phase) => (phase, Ok(())),
            Err(error) => (Phase::Failed, Err(error)),
        };
        self.flight = Some(Flight { about, phase });
        outcome
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
                let task = self.commit(about.clone()).unwrap_or_else(|error| Task::Over(Err(error)));
                self.flight = Some(Flight { about, phase: Phase::Committing(task) });
            }
            // Told already, and whoever was told does not come here.
            Phase::Failed => self.flight = Some(Flight { about, phase: Phase::Failed }),
            _ => self.flight = Some(Flight { about, phase: Phase::Over(None) }),
        }
        None
    }

    fn commit(&self, about: About) -> Result<Task<PathBuf>> {
        let (store, writers) = (Arc::clone(&self.store), self.world.size());
        let write = |path: &PathBuf| {
            let path = path.clone();
            move |source| Error::Write { path, source }
        };
        let again = |(path, file): &(PathBuf, File)| Ok((path.clone(), file.try_clone().map_err(write(path))?));
        let beside: Vec<_> = self.beside.iter().map(again).collect::<Result<_>>()?;
        Task::spawn(move || {
            // A checkpoint that a lost machine leaves must find its lines in the logs.
            beside.iter().try_for_each(|(path, file)| file.sync_all().map_err(write(path)))?;
            store.commit(writers, &about)
        })
    }

    /// Completes what is under way, and returns it. Collective over the world where something is.
    ///
    /// # Errors
    /// [`Error::Write`] on a rank where it failed, [`Error::Peer`] on the others; earlier checkpoints are intact.
    pub fn finish(&mut self) -> Result<Option<Saved>> {
        while self.flight.is_some() {
            let settled = self.settle();
            let votes = Votes { settled: true, ..Votes::default() };
            agree_and_vote(&*self.world, settled, votes).inspect_err(|_| self.give_up())?;
            if let Some(saved) = self.advance(true) {
                return Ok(Some(saved));
            }
        }
        Ok(None)
    }
}

impl Saver {
    /// Waits for what this rank does, and takes away what was written of a checkpoint that will not be.
    ///
    /// Every rank does, when it no longer writes itself: the last one leaves nothing, whichever it is.
    fn give_up(&mut self) {
        let Some(Flight { about, phase }) = self.flight.take() else { return };
        // What is being committed may still be whole, and what is being written never will be.
        let committed = match phase {
            Phase::Writing(task) => {
                drop(task.join());
                false
            }
            Phase::Committing(task) => task.join().is_ok(),
            Phase::Written | Phase::Failed => false,
            Phase::Over(_) => true,
        };
        if !committed {
            self.store.abandon(about.step);
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.give_up();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Section;
    use crate::Config;

    /// Ranks whose folders differ, as a network's caches do, still hold rank 0's losses.
    #[test]
    fn the_best_losses_are_those_that_the_first_rank_finds() {
        let found = mp_comm::threads::run(3, |world| {
            let folder = tempfile::tempdir().unwrap();
            let store = DirectoryStore::new(folder.path(), 0).keeping_best(2);
            let me = world.rank().0;
            for step in 1..=4 - me as u64 {
                let mut shard = store.shard(step, 0)?;
                shard.file(Section::Model, &[])?;
                shard.finish()?;
                let validation_loss = Some((10 * me) as f64 + step as f64);
                store.commit(1, &About { validation_loss, ..About::new(step, &Config::default()) })?;
            }
            losses(&*world, &store, 2)
        });
        assert_eq!(found, [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]);
    }
}
