//! A rank's device, and the communicator for tensors that lie there.
//!
//! # How ranks choose
//! Each rank looks at its machine: which device is its own, by its number in the machine, and whether NCCL can be opened.
//! They tell each other, and every rank decides alike from what all of them see: first the [place](super::place), then,
//! where tensors lie on devices, the [transport]. So there is no rank on a device beside one on the host, and none in NCCL
//! beside one in MPI. What is refused on one rank is refused on all, before any tensor is made.
//!
//! Ranks share a device where the driver gives theirs one number: that is so for two processes on one GPU, and not for two
//! that a launcher has shown one GPU each, although both call it device 0.
//!
//! # Threads
//! libtorch has a thread of its own for the backward on each device. Collectives would then be started from two threads of a
//! rank: the backward's, and the one that makes the step. MPI would allow it, for it is started at `MPI_THREAD_MULTIPLE`, and
//! refused below `MPI_THREAD_SERIALIZED`. Their order would still have to be the same on all ranks, which two threads do not
//! promise; and NCCL takes the calls on one group as they come. So
//! [`mp_runtime::autograd::backward`] keeps a backward on the thread that asks for it, on a device as on the host: what a
//! rank starts is in the order of its schedule and of the graph, which all ranks have alike. The device loses nothing by
//! it, since the thread only queues.

use std::sync::Arc;

use mp_comm::solo::Solo;
use mp_comm::staged::Staged;
use mp_comm::transport::{self, Asked, Choice, Circumstances, Transport};
use mp_comm::{Buffer, BufferMut, Communicator, ReduceOp};
use mp_plan::TransportName;
use mp_runtime::Device;
use mp_train::agree::agree;
use mp_train::config::{DeviceName, TrainConfig};
use mp_train::{Config, Error, Result};

use super::machine::{Here, Joins, Machine};
use super::place::{decide, numerics, Number, Place, Seen};
use crate::failure::refused;
use crate::screen::Screen;

/// What a rank computes on, and with what it reaches the others.
#[derive(Debug)]
pub struct Equipment {
    /// Where its tensors lie.
    pub device: Device,
    /// The group of all ranks, for tensors that lie there and for the host's memory.
    pub communicator: Arc<dyn Communicator>,
    /// Both in a line for people, where they are no matter of course.
    pub words: Option<String>,
}

impl Equipment {
    /// Tells people of it, where that is worth a line.
    #[must_use]
    pub fn tell(self, screen: &Screen) -> Self {
        if let Some(words) = &self.words {
            screen.line(words);
        }
        self
    }
}

/// Equips this rank for a run. Collective over `world`.
///
/// # Errors
/// On all ranks: an input error for a device, a transport or a choice of numerics that cannot be had; what the device's
/// libraries fail with.
pub fn equip(world: &Arc<dyn Communicator>, config: &Config) -> Result<Equipment> {
    equip_on(&Here, world, config)
}

/// Equips one rank for what it computes without the others.
///
/// # Errors
/// As [`equip`]'s; what carries tensors is no matter here.
pub fn equip_alone(config: &Config) -> Result<Device> {
    let alone: Arc<dyn Communicator> = Arc::new(Solo::new("alone"));
    let survey = Survey::make(&Here, &alone, config.train.device, TransportName::Auto)?;
    let numerics = numerics(&config.train, &survey.place)?;
    if let Place::Device { index, .. } = survey.place {
        Here.prepare(index, numerics)?;
    }
    Ok(survey.place.device())
}

fn equip_on(machine: &dyn Machine, world: &Arc<dyn Communicator>, config: &Config) -> Result<Equipment> {
    let mut survey = Survey::make(machine, world, config.train.device, config.parallel.transport)?;
    let numerics = agree(&**world, numerics(&config.train, &survey.place))?;
    let communicator = match survey.place {
        Place::Host(_) => Arc::clone(world),
        Place::Device { index, .. } => {
            agree(&**world, machine.prepare(index, numerics).map_err(Error::from))?;
            survey.carried(machine, world, index)?
        }
    };
    let words = survey.words(world.size(), &config.train);
    if let Some(words) = &words {
        tracing::info!("{words}");
    }
    Ok(Equipment { device: survey.place.device(), communicator, words })
}

/// What the ranks have found and decided.
#[derive(Debug)]
pub struct Survey {
    /// Where tensors lie.
    pub place: Place,
    /// What carries them.
    pub choice: Choice,
    /// What it was chosen by.
    asked: Asked,
    found: Circumstances,
    /// NCCL, where it was looked for.
    library: Option<Box<dyn Joins>>,
}

impl Survey {
    /// Looks at the machine at hand as a run that asks for nothing does, and tries what it finds: a device, and what would
    /// carry tensors between the ranks. Collective over `world`.
    ///
    /// # Errors
    /// On all ranks: what a device or its libraries fail with.
    pub fn of_this_machine(world: &Arc<dyn Communicator>) -> Result<Self> {
        Self::tried(&Here, world)
    }

    fn tried(machine: &dyn Machine, world: &Arc<dyn Communicator>) -> Result<Self> {
        let mut survey = Self::make(machine, world, DeviceName::Auto, TransportName::Auto)?;
        if let Place::Device { index, .. } = survey.place {
            let numerics = numerics(&TrainConfig::default(), &survey.place)?;
            agree(&**world, machine.prepare(index, numerics).map_err(Error::from))?;
            survey.carried(machine, world, index)?;
        }
        Ok(survey)
    }

    fn make(
        machine: &dyn Machine,
        world: &Arc<dyn Communicator>,
        name: DeviceName,
        transport: TransportName,
    ) -> Result<Self> {
        let world = &**world;
        let place = match name {
            // Nobody looks: to ask for devices takes time.
            DeviceName::Cpu => Place::Host(None),
            name => {
                let own = look(machine, world.local_rank().0);
                let all = tell_all(world, own.as_ref().ok().map(|(_, number)| number))?;
                let seen: Seen = own.map(|(index, _)| index);
                agree(world, decide(name, seen, &all, machine.has_driver()))?
            }
        };
        let asked = asked(transport);
        let (found, library) = circumstances(machine, world, &place, asked)?;
        let choice = agree(world, choose(asked, &found))?;
        Ok(Self { place, choice, asked, found, library })
    }

    /// Makes the communicator for tensors on a device; chooses again where NCCL does not start. Collective.
    fn carried(
        &mut self,
        machine: &dyn Machine,
        world: &Arc<dyn Communicator>,
        index: usize,
    ) -> Result<Arc<dyn Communicator>> {
        let accelerator = machine.accelerator(index);
        if let (Transport::Nccl, Some(library)) = (self.choice.transport, &self.library) {
            match library.join(Arc::clone(world), Arc::clone(&accelerator)) {
                Ok(joined) => return Ok(joined),
                Err(error) => {
                    let way_out = if self.asked == Asked::Nccl { "; set parallel.transport=mpi" } else { "" };
                    self.found.nccl = Err(format!("{error}{way_out}"));
                }
            }
            // It is the same on all ranks, so that the first one says what is refused.
            self.choice = choose(self.asked, &self.found)?;
        }
        let made = || -> mp_comm::Result<Arc<dyn Communicator>> {
            let host = Arc::clone(world);
            Ok(match self.choice.transport {
                Transport::Direct => Arc::new(Staged::direct(host, accelerator)?),
                _ => Arc::new(Staged::new(host, accelerator)?),
            })
        };
        agree(&**world, made().map_err(Error::from))
    }

    /// Says in a line what is computed on and what carries tensors; nothing for the host where nobody expects more.
    fn words(&self, ranks: usize, train: &TrainConfig) -> Option<String> {
        let (index, ranks_a_device) = match &self.place {
            Place::Host(why) => return why.as_ref().map(|why| format!("device    the CPU: {why}")),
            Place::Device { index, ranks_a_device } => (*index, *ranks_a_device),
        };
        let devices = match (ranks, ranks_a_device) {
            (1, _) => format!("CUDA device {index}"),
            (_, 1) => format!("a CUDA device for each of {ranks} ranks"),
            (_, shared) => format!("CUDA, up to {shared} of {ranks} ranks on a device"),
        };
        let deterministic = if train.deterministic { ", deterministic" } else { "" };
        let tf32 = if train.tf32 { ", TF32 products" } else { "" };
        let carried = match ranks {
            1 => String::new(),
            _ => format!("; {}: {}", self.transport(), self.choice.reason),
        };
        Some(format!("device    {devices}{deterministic}{tf32}{carried}"))
    }

    /// Names the transport.
    pub fn transport(&self) -> &'static str {
        match self.choice.transport {
            Transport::Host => "memory of the host",
            Transport::Nccl => "NCCL",
            Transport::Direct => "MPI on device memory",
            Transport::Staged => "MPI through host memory",
        }
    }
}

/// Chooses what carries tensors, and blames the configuration for what cannot be had.
fn choose(asked: Asked, found: &Circumstances) -> Result<Choice> {
    transport::choose(asked, found).map_err(|error| match error {
        mp_comm::Error::Transport { asked, reason } => not_to_be_had(&asked, &reason),
        other => other.into(),
    })
}

/// Finds this rank's own device, and what tells it apart; or why there is none.
fn look(machine: &dyn Machine, local_rank: usize) -> std::result::Result<(usize, Number), String> {
    let index = mp_runtime::device::of_local_rank(local_rank, machine.devices()?);
    let index = index.ok_or_else(|| "no device is counted".to_string())?;
    let number = machine.number(index).map_err(|error| error.to_string())?;
    Ok((index, number))
}

/// Tells all ranks what each of them sees.
///
/// # Communication
/// One all-gather of 17 bytes.
fn tell_all(world: &dyn Communicator, own: Option<&Number>) -> Result<Vec<Option<Number>>> {
    const BYTES: usize = 1 + size_of::<Number>();
    let mut mine = [0u8; BYTES];
    if let Some(number) = own {
        mine[0] = 1;
        mine[1..].copy_from_slice(number);
    }
    let mut all = vec![0u8; BYTES * world.size()];
    world.all_gather(Buffer::new(&mine), BufferMut::new(&mut all))?;
    let read = |told: &[u8]| (told[0] == 1).then(|| std::array::from_fn(|byte| told[1 + byte]));
    Ok(all.chunks_exact(BYTES).map(read).collect())
}

/// Finds what a transport is chosen by, the same on all ranks. Collective.
fn circumstances(
    machine: &dyn Machine,
    world: &dyn Communicator,
    place: &Place,
    asked: Asked,
) -> Result<(Circumstances, Option<Box<dyn Joins>>)> {
    let ranks = world.size();
    let on_host = Circumstances {
        on_device: false,
        ranks,
        ranks_a_device: ranks,
        nccl: Err("it was not looked for".into()),
        cuda_aware: None,
    };
    let Place::Device { ranks_a_device, .. } = *place else { return Ok((on_host, None)) };
    let serves = asked == Asked::Nccl || (asked == Asked::Auto && ranks > 1);
    let opened = if serves { Some(machine.nccl()) } else { None };
    let aware = machine.cuda_aware();
    // The least of all ranks: whether NCCL is open, and whether MPI takes device pointers, where it says so.
    let open = i64::from(opened.as_ref().is_some_and(std::result::Result::is_ok));
    let mut least = [open, aware.map_or(0, |aware| 1 + i64::from(aware))];
    world.all_reduce(BufferMut::new(&mut least), ReduceOp::Min)?;
    let (nccl, library) = match (opened, least[0]) {
        (Some(Ok(library)), 1) => (Ok(library.version()), Some(library)),
        (Some(Ok(_)), _) => (Err("another rank cannot use NCCL".to_string()), None),
        (Some(Err(error)), _) => (Err(error.to_string()), None),
        (None, _) => (on_host.nccl.clone(), None),
    };
    // Who lacks the library says so, not those that have it.
    if asked == Asked::Nccl {
        let lacks = match &nccl {
            Err(why) if open == 0 => Err(not_to_be_had("nccl", why)),
            _ => Ok(()),
        };
        agree(world, lacks)?;
    }
    let cuda_aware = match least[1] {
        0 => None,
        aware => Some(aware == 2),
    };
    Ok((Circumstances { on_device: true, ranks_a_device, nccl, cuda_aware, ..on_host }, library))
}

fn asked(name: TransportName) -> Asked {
    match name {
        TransportName::Auto => Asked::Auto,
        TransportName::Nccl => Asked::Nccl,
        TransportName::Mpi => Asked::Mpi,
        TransportName::Staged => Asked::Staged,
    }
}

/// Blames the configuration for a transport that cannot be had.
fn not_to_be_had(asked: &str, reason: &str) -> Error {
    refused("parallel.transport", format!("\"{asked}\""), reason)
}

#[cfg(test)]
mod tests;
