//! The layout of a run, where its configuration leaves that to the planner, and the machine that it is on.
//!
//! The machine is the one that `parallel.cluster` names; where a layout is to be chosen and none is named, the one at hand,
//! which is measured. Rank 0 searches, and all ranks take what it finds.

use std::sync::Arc;

use mp_comm::{BufferMut, Communicator, Rank, ReduceOp};
use mp_plan::ranking::why;
use mp_plan::{cost, search, Candidate, Cluster, Estimate, Job, ParallelConfig, Space};
use mp_runtime::{device, Device};

use crate::agree::{agree, told};
use crate::crowd::ranks_a_memory;
use crate::layout::Layout;
use crate::measure::{measure, Effort};
use crate::records::{Choice, Observer, RunnerUp};
use crate::text::vocabulary;
use crate::{cluster, memory, run_folder, Config, Error, Result};

/// What a run trains with.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The configuration, with nothing left to the planner.
    pub config: Config,
    /// The machine, where it is known: as `parallel.cluster` says, for as many nodes as the ranks need, or as it was measured
    /// to choose the run's layout.
    pub machine: Option<Cluster>,
    /// Whether it was measured now.
    pub measured: bool,
}

/// Completes a configuration for the ranks of `world`. Collective; every rank gets the same. `observer` hears on rank 0 what
/// was chosen, and why.
///
/// # Errors
/// On all ranks: a machine that `parallel.cluster` does not describe; where a layout is to be chosen, what no layout can
/// cut ([`Error::Plan`]), what fits in no layout ([`Error::NoRoom`]), and what measuring fails with.
pub fn choose(
    config: &Config,
    world: &Arc<dyn Communicator>,
    device: Device,
    observer: &mut dyn Observer,
) -> Result<Chosen> {
    let config = config.for_ranks(world.size());
    let named = agree(&**world, named(&config.parallel.cluster))?;
    let named = named.map(|machine| machine.with_ranks(world.size()));
    if !config.parallel.asks {
        let machine = match named {
            Some(machine) => Some(machine),
            None => kept(&config, &**world)?,
        };
        return Ok(Chosen { config, machine, measured: false });
    }
    let config = Config { parallel: config.parallel.reopened(), ..config };
    // What no machine makes up for is told before one is measured.
    let asked = agree(&**world, Asked::of(&config, world.size()))?;
    let measured = named.is_none();
    let machine = match named {
        Some(machine) => machine,
        None => measure(world, device, Effort::Quick(asked.job.precision), &mut ())?,
    };
    let room = room(&config, &asked.job, &**world, device, &machine)?;
    let first = world.rank() == Rank(0);
    let best = if first { asked.best(&machine, room).map(Some) } else { Ok(None) };
    let best = agree(&**world, best)?;
    if let Some((_, choice)) = &best {
        observer.chosen(choice);
    }
    let (parallel, machine) = told(&**world, best.map(|(parallel, _)| (parallel, machine)))?;
    Ok(Chosen { config: Config { parallel, ..config }, machine: Some(machine), measured })
}

/// Reads the machine that the configuration names.
fn named(name: &str) -> Result<Option<Cluster>> {
    match name {
        "" => Ok(None),
        name => cluster::load(name).map(Some),
    }
}

/// Returns the machine that was measured on as many ranks to choose the layout of the run that goes on. Collective.
fn kept(config: &Config, world: &dyn Communicator) -> Result<Option<Cluster>> {
    let read = || match (world.rank(), run_folder::kept_machine(config)) {
        (Rank(0), Some(file)) => {
            let machine = cluster::load(&file.to_string_lossy())?;
            Ok(Some((machine.ranks() == world.size()).then_some(machine)))
        }
        (Rank(0), None) => Ok(Some(None)),
        _ => Ok(None),
    };
    told(world, agree(world, read())?)
}

/// Returns the bytes that a layout may fill on each rank: what the machine has, or what is free here where that is less, without
/// the copy that checkpoints are written from.
fn room(config: &Config, job: &Job, world: &dyn Communicator, device: Device, machine: &Cluster) -> Result<usize> {
    let usable = 1.0 - machine.efficiency.reserve;
    let sharing = ranks_a_memory(world, device)?;
    let free = device::free_bytes(device).map(|free| (usable * free as f64) as usize / sharing);
    let mut least = [free.unwrap_or(usize::MAX).min(machine.rank_memory()) as i64];
    world.all_reduce(BufferMut::new(&mut least), ReduceOp::Min)?;
    let (elements, host) = (job.architecture.parameter_count(), device == Device::Cpu);
    let copy = memory::copy_bytes(config, elements, world.size(), host);
    // A machine has some memory.
    Ok((least[0] as usize).saturating_sub(copy as usize).max(1))
}

/// What a layout is chosen for.
struct Asked<'a> {
    config: &'a Config,
    vocab: usize,
    job: Job,
    ranks: usize,
    space: Space,
}

impl<'a> Asked<'a> {
    fn of(config: &'a Config, ranks: usize) -> Result<Self> {
        config.check_dropout()?;
        let vocab = vocabulary(config, &config.data.open_tokenizer()?);
        let job = Layout::job(config, vocab)?;
        let space = Space::of(&job, ranks).fixed(&config.parallel);
        // Where there is none, the search says why.
        if space.candidates(&job, ranks).next().is_none() {
            let preset = Cluster::preset("cpu")?;
            search(&job, &preset, &*cost::of(&preset), &space, ranks, 1)?;
        }
        Ok(Self { config, vocab, job, ranks, space })
    }

    /// Finds the best layout that keeps no more than `room` bytes on a rank.
    fn best(&self, machine: &Cluster, room: usize) -> Result<(ParallelConfig, Choice)> {
        let mut within = machine.clone();
        (within.node.memory_bytes, within.device.memory_bytes, within.efficiency.reserve) = (0, room, 0.0);
        let found = search(&self.job, &within, &*cost::of(&within), &self.space, self.ranks, 2)?;
        let Some(best) = found.layouts.first() else {
            let nearest = found.misses.first().map(|nearest| (nearest, nearest.largest().total()));
            return Err(Error::NoRoom {
                ranks: self.ranks,
                nearest: nearest.map(|(nearest, _)| self.words(&nearest.candidate)).transpose()?.unwrap_or_default(),
                bytes: nearest.map_or(0, |(_, bytes)| bytes as u64),
                room: room as u64,
            });
        };
        let seconds = |estimate: &Estimate| estimate.time.map(|time| time.seconds);
        let next = found.layouts.get(1).map(|next| -> Result<RunnerUp> {
            Ok(RunnerUp { layout: self.words(&next.candidate)?, step_seconds: seconds(next), why: why(best, next) })
        });
        let choice = Choice {
            layout: self.words(&best.candidate)?,
            machine: machine.device.name.clone(),
            step_seconds: seconds(best),
            memory_bytes: best.largest().total() as u64,
            room_bytes: room as u64,
            next: next.transpose()?,
        };
        Ok((self.parallel(&best.candidate), choice))
    }

    fn parallel(&self, candidate: &Candidate) -> ParallelConfig {
        candidate.complete(&self.job, &self.config.parallel).chosen_for(&self.config.parallel)
    }

    fn words(&self, candidate: &Candidate) -> Result<String> {
        let config = Config { parallel: self.parallel(candidate), ..self.config.clone() };
        Ok(Layout::new(&config, self.vocab, self.ranks)?.words(config.train.precision))
    }
}
