//! The process's one stay in MPI: start, thread level, end, abort.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use mpi::ffi;

use super::group::Group;
use super::raw::{self, invoke, Handle, Ticket, What};
use super::{engine, messages, Mpi};
use crate::{Call, Communicator, Error, Result};

/// What an MPI library lets the threads of a process do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ThreadLevel {
    /// Only one thread may exist.
    Single,
    /// Only the thread that started MPI may call it.
    Funneled,
    /// Any thread may call, one at a time; this crate sees to that with a lock.
    Serialized,
    /// Any thread may call at any time.
    Multiple,
}

impl ThreadLevel {
    fn of(code: i32) -> Self {
        // SAFETY: constants that rsmpi's C file exports.
        let (funneled, serialized, multiple) =
            unsafe { (ffi::RSMPI_THREAD_FUNNELED, ffi::RSMPI_THREAD_SERIALIZED, ffi::RSMPI_THREAD_MULTIPLE) };
        match code {
            c if c >= multiple => Self::Multiple,
            c if c >= serialized => Self::Serialized,
            c if c >= funneled => Self::Funneled,
            _ => Self::Single,
        }
    }

    fn code(self) -> i32 {
        // SAFETY: constants that rsmpi's C file exports.
        unsafe {
            match self {
                Self::Single => ffi::RSMPI_THREAD_SINGLE,
                Self::Funneled => ffi::RSMPI_THREAD_FUNNELED,
                Self::Serialized => ffi::RSMPI_THREAD_SERIALIZED,
                Self::Multiple => ffi::RSMPI_THREAD_MULTIPLE,
            }
        }
    }

    /// Returns MPI's name of the level.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Single => "MPI_THREAD_SINGLE",
            Self::Funneled => "MPI_THREAD_FUNNELED",
            Self::Serialized => "MPI_THREAD_SERIALIZED",
            Self::Multiple => "MPI_THREAD_MULTIPLE",
        }
    }
}

/// What the MPI library that this program is linked with says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// Its own version line, `"Open MPI v5.0.11, …"` for instance.
    pub version: String,
    /// The version of the MPI standard that it implements.
    pub standard: (u32, u32),
    /// The thread level granted, once [`Mpi::initialize`] has run.
    pub thread_level: Option<ThreadLevel>,
    /// Whether it offers user-level failure mitigation, by which survivors of a dead rank can go on.
    pub ulfm: bool,
    /// Whether it takes device pointers; `None` where it does not say.
    pub cuda_aware: Option<bool>,
}

/// Asks the MPI library about itself; works before MPI has started.
pub fn library() -> Library {
    // SAFETY: MPI allows these calls at any time; the buffer has the length that the library states.
    unsafe {
        let mut text = vec![0u8; raw::mp_comm_max_library_version().max(0) as usize + 1];
        let mut len = 0;
        ffi::MPI_Get_library_version(text.as_mut_ptr().cast::<c_char>(), &mut len);
        text.truncate(len.max(0) as usize);
        let version = String::from_utf8_lossy(&text).trim_end_matches('\0').trim().to_owned();
        let (mut major, mut minor) = (0, 0);
        ffi::MPI_Get_version(&mut major, &mut minor);
        let cuda = raw::mp_comm_is_cuda_aware();
        Library {
            version,
            standard: (major.max(0) as u32, minor.max(0) as u32),
            thread_level: SESSION.get().map(|session| session.level),
            ulfm: raw::mp_comm_has_ulfm() != 0,
            cuda_aware: (cuda >= 0).then_some(cuda > 0),
        }
    }
}

/// The process's session; set once, since MPI starts once.
static SESSION: OnceLock<Session> = OnceLock::new();

struct Session {
    level: ThreadLevel,
    /// False from the end of MPI on. Calls hold it to read, so that the end waits for them.
    alive: RwLock<bool>,
    /// Taken around every call where the level is below MPI_THREAD_MULTIPLE.
    serial: Mutex<()>,
}

/// Leave to call the library, until dropped.
pub(super) struct Entered {
    _alive: RwLockReadGuard<'static, bool>,
    _serial: Option<MutexGuard<'static, ()>>,
}

/// Enters the library for one call. Never nested: the lock is not reentrant.
pub(super) fn enter() -> Result<Entered> {
    let session = SESSION.get().ok_or(Error::Lifecycle { what: "not initialized" })?;
    let alive = session.alive.read().unwrap_or_else(PoisonError::into_inner);
    if !*alive {
        return Err(Error::Lifecycle { what: "already finalized" });
    }
    let serial =
        (session.level < ThreadLevel::Multiple).then(|| session.serial.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Entered { _alive: alive, _serial: serial })
}

/// Says whether a thread may block inside the library while others call it.
pub(super) fn may_block() -> bool {
    SESSION.get().is_some_and(|session| session.level == ThreadLevel::Multiple)
}

/// The guard of a process's stay in MPI.
///
/// Dropping it waits until all ranks drop theirs, brings requests that nobody waited for to an end, and ends MPI; handles that outlive it answer [`Error::Lifecycle`]. Dropped by a panic it aborts the run
/// instead, since peers may be waiting for this rank and MPI's orderly end would wait for them.
#[derive(Debug)]
pub struct MpiWorld {
    /// `None` only while being dropped.
    world: Option<Arc<dyn Communicator>>,
    level: ThreadLevel,
    /// MPI ends on the thread that started it.
    same_thread: PhantomData<*const ()>,
}

impl MpiWorld {
    /// Returns the group of all processes, named `"world"`.
    pub fn communicator(&self) -> Arc<dyn Communicator> {
        match &self.world {
            Some(world) => Arc::clone(world),
            None => unreachable!("a world is there until it is dropped"),
        }
    }

    /// Returns the granted thread level.
    pub fn thread_level(&self) -> ThreadLevel {
        self.level
    }

    /// Ends all ranks of the run at once with this exit code.
    pub fn abort(&self, code: i32) -> ! {
        abort(code)
    }
}

impl Drop for MpiWorld {
    fn drop(&mut self) {
        if std::thread::panicking() {
            abort(101);
        }
        self.world = None;
        settle();
        if let Some(session) = SESSION.get() {
            let mut alive = session.alive.write().unwrap_or_else(PoisonError::into_inner);
            *alive = false;
            // SAFETY: on the thread that started MPI, since the guard is not Send; no call is under way, since each
            // holds `alive` to read, and none can follow.
            unsafe { ffi::MPI_Finalize() };
        }
    }
}

/// How long the end of MPI waits for requests that do not move, once all ranks have come to it. No rank waits for their
/// outcome any more then; but MPI wants to end with nothing under way.
const PATIENCE: Duration = Duration::from_secs(1);

/// Moves what was started and never waited for until nothing is left: peers may be waiting for it.
///
/// What does not move although all ranks are here lacks a counterpart. It is left to the library, with its memory.
fn settle() {
    let mut ticket = Ticket::null();
    let what = What { call: Call::Barrier, group: "world", function: "MPI_Ibarrier", bytes: 0, peer: None };
    // SAFETY: a collective over all processes, which nothing but the end of MPI follows.
    let mut waiting = invoke(what, || unsafe { ffi::MPI_Ibarrier(ffi::RSMPI_COMM_WORLD, &mut ticket.0) }).is_ok();
    let (mut left, mut moved) = (usize::MAX, Instant::now());
    loop {
        let now = engine::chunks_left() + messages::orphans();
        if waiting {
            let mut done = 0;
            // SAFETY: the ticket is this function's own.
            let outcome = invoke(what, || unsafe { raw::mp_comm_test(&mut ticket.0, &mut done, std::ptr::null_mut()) });
            waiting = outcome.is_ok() && done == 0;
        }
        if waiting || now != left {
            (left, moved) = (now, Instant::now());
        }
        if !waiting && now == 0 {
            return;
        }
        if moved.elapsed() > PATIENCE {
            tracing::debug!(left = now, "MPI ends with requests that no rank answers");
            return;
        }
        std::thread::yield_now();
    }
}

/// Ends all ranks of the run at once with this exit code, from any thread.
///
/// Before MPI has started and after its end this ends just this process.
pub fn abort(code: i32) -> ! {
    let alive = SESSION.get().is_some_and(|session| match session.alive.try_read() {
        Ok(alive) => *alive,
        // The end of MPI is under way.
        Err(_) => false,
    });
    if alive {
        // SAFETY: MPI has started and not ended. The serialising lock is passed by on purpose: its holder may wait for
        // ever for the rank that aborts here, and nothing follows.
        unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code) };
    }
    std::process::exit(code)
}

/// Starts MPI; see [`Mpi::initialize_with`].
pub(super) fn initialize(wanted: ThreadLevel) -> Result<MpiWorld> {
    static STARTING: Mutex<()> = Mutex::new(());
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if started()? {
        return Err(Error::Lifecycle { what: "already initialized" });
    }
    let mut provided = 0;
    // SAFETY: MPI has not started; null arguments are allowed since MPI 2.
    let code =
        unsafe { ffi::MPI_Init_thread(std::ptr::null_mut(), std::ptr::null_mut(), wanted.code(), &mut provided) };
    checked("MPI_Init_thread", code)?;
    // SAFETY: MPI has just started; only this thread knows.
    let largest_tag = unsafe {
        let all = ffi::RSMPI_COMM_WORLD;
        // Errors that belong to no communicator are raised on MPI_COMM_SELF, or on MPI_COMM_WORLD before MPI 4.
        for comm in [all, ffi::RSMPI_COMM_SELF] {
            checked("MPI_Comm_set_errhandler", raw::mp_comm_return_errors(comm))?;
        }
        // The form of collective calls depends on the level, so all ranks take the lowest.
        let (here, kind) = (raw::mp_comm_in_place(), ffi::RSMPI_INT32_T);
        let code = ffi::MPI_Allreduce(here, (&raw mut provided).cast(), 1, kind, ffi::RSMPI_MIN, all);
        checked("MPI_Allreduce", code)?;
        raw::mp_comm_largest_tag()
    };
    // A library may grant more than it was asked for.
    let level = ThreadLevel::of(provided).min(wanted);
    let refusal = if level < ThreadLevel::Serialized {
        Some(Error::ThreadLevel { provided: level.name() })
    } else if largest_tag < super::messages::EXCHANGE_TAG {
        Some(Error::Start { function: "MPI_TAG_UB", code: largest_tag, message: "too small a largest tag".into() })
    } else {
        None
    };
    if let Some(refusal) = refusal {
        // SAFETY: started by this thread just now.
        unsafe { ffi::MPI_Finalize() };
        return Err(refusal);
    }
    let session = Session { level, alive: RwLock::new(true), serial: Mutex::new(()) };
    _ = SESSION.set(session);
    // SAFETY: a constant that rsmpi's C file exports.
    let all = Handle(unsafe { ffi::RSMPI_COMM_WORLD });
    let mut guard = MpiWorld { world: None, level, same_thread: PhantomData };
    guard.world = Some(Arc::new(Mpi::new(Group::world(all)?)));
    Ok(guard)
}

/// Says whether MPI has started, by whomever.
fn started() -> Result<bool> {
    let mut flag = 0;
    // SAFETY: MPI allows this call at any time.
    checked("MPI_Initialized", unsafe { ffi::MPI_Initialized(&mut flag) })?;
    Ok(flag != 0)
}

fn checked(function: &'static str, code: i32) -> Result<()> {
    match code {
        0 => Ok(()),
        _ => Err(Error::Start { function, code, message: raw::message(code) }),
    }
}
