//! One communicator of the library: made, asked, ended or aborted, by one thread at a time.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::library::Library;
use super::raw::{Code, Comm, Config, UniqueId, IN_PROGRESS, SUCCESS};
use crate::{Call, Error, Result};

/// A communicator of the library. It does not block: whoever calls asks until a call is over, for as long as `patience`.
pub(super) struct Handle {
    pub(super) library: Arc<Library>,
    pub(super) group: String,
    pub(super) patience: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` once it is ended or aborted.
    comm: Option<Comm>,
    /// Why it was aborted; told to every later call.
    failed: Option<Error>,
}

/// What a call into the library is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purpose {
    pub(super) call: Call,
    pub(super) function: &'static str,
    pub(super) bytes: usize,
}

impl Handle {
    /// Joins the ranks that have the same id. Collective; the device is current on this thread. The first of the two
    /// patiences is for the others to come, the second for all calls after that.
    pub(super) fn join(
        library: Arc<Library>,
        group: &str,
        (size, rank): (usize, usize),
        id: UniqueId,
        (joining, patience): (Duration, Duration),
    ) -> Result<Self> {
        let purpose = Purpose { call: Call::Split, function: "ncclCommInitRankConfig", bytes: 0 };
        let handle = Self { library, group: group.into(), patience: joining, state: Mutex::default() };
        // Never freed: the library may write it until the ranks have joined, which a time-out does not wait for.
        let place: &AtomicPtr<c_void> = Box::leak(Box::new(AtomicPtr::new(std::ptr::null_mut())));
        let mut config = Config::non_blocking();
        let (mut state, since) = (handle.lock(), Instant::now());
        // SAFETY: the place for the communicator lives for ever, the configuration during the call: the library copies it.
        let code =
            unsafe { (handle.library.nccl.init_rank)(place.as_ptr(), size as i32, id, rank as i32, &mut config) };
        while code == IN_PROGRESS && place.load(Ordering::Acquire).is_null() {
            if since.elapsed() > joining {
                return Err(handle.timeout(purpose.call, purpose.function));
            }
            std::thread::yield_now();
        }
        let comm = place.load(Ordering::Acquire);
        state.comm = (!comm.is_null()).then_some(Comm(comm));
        let joined = handle.settle(&mut state, purpose, code);
        drop(state);
        joined.map(|()| Self { patience, ..handle })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns why the communicator was aborted, if it was.
    pub(super) fn failure(&self) -> Result<()> {
        self.lock().failed.clone().map_or(Ok(()), Err)
    }

    /// Makes a call into the library and sees it through. A failure aborts the communicator.
    pub(super) fn invoke(&self, purpose: Purpose, call: impl FnOnce(*mut c_void) -> Code) -> Result<()> {
        let mut state = self.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        let Some(Comm(comm)) = state.comm else { return Err(self.ended(purpose)) };
        let code = call(comm);
        self.settle(&mut state, purpose, code)
    }

    /// Asks until a call is over.
    fn settle(&self, state: &mut State, purpose: Purpose, mut code: Code) -> Result<()> {
        let since = Instant::now();
        while code == IN_PROGRESS {
            if since.elapsed() > self.patience {
                let error = self.timeout(purpose.call, purpose.function);
                return Err(self.abort(state, error));
            }
            std::thread::yield_now();
            code = self.ask(state);
        }
        if code == SUCCESS {
            return Ok(());
        }
        let error = self.error(state, purpose, code);
        Err(self.abort(state, error))
    }

    /// Asks how the communicator fares.
    fn ask(&self, state: &State) -> Code {
        let (Some(Comm(comm)), mut code) = (state.comm, SUCCESS) else { return SUCCESS };
        // SAFETY: a live communicator, by the lock; one integer, alive during the call.
        match unsafe { (self.library.nccl.get_async_error)(comm, &mut code) } {
            SUCCESS => code,
            failed => failed,
        }
    }

    fn error(&self, state: &State, Purpose { call, function, bytes }: Purpose, code: Code) -> Error {
        let comm = state.comm.map_or(std::ptr::null_mut(), |comm| comm.0);
        let message = self.library.message(code, comm);
        Error::Nccl { call, group: self.group.clone(), function, bytes, code, message }
    }

    fn ended(&self, Purpose { call, function, bytes }: Purpose) -> Error {
        let message = "the group was ended before".into();
        Error::Nccl { call, group: self.group.clone(), function, bytes, code: SUCCESS, message }
    }

    fn timeout(&self, call: Call, function: &'static str) -> Error {
        Error::NcclTimeout { call, group: self.group.clone(), function, seconds: self.patience.as_secs_f64() }
    }

    /// Ends what runs on the device, and remembers why.
    fn abort(&self, state: &mut State, error: Error) -> Error {
        if let Some(Comm(comm)) = state.comm.take() {
            // SAFETY: a live communicator, by the lock, which nobody uses any more.
            unsafe { (self.library.nccl.abort)(comm) };
        }
        state.failed.get_or_insert(error).clone()
    }

    /// Aborts the communicator of a group that does not come to be.
    pub(super) fn give_up(&self, why: &Error) {
        self.abort(&mut self.lock(), why.clone());
    }

    /// Looks whether something has gone wrong behind the host's back; aborts if so, and where `overdue`.
    pub(super) fn watch(&self, call: Call, overdue: bool) {
        let mut state = self.lock();
        if state.comm.is_none() {
            return;
        }
        let code = self.ask(&state);
        if code != SUCCESS && code != IN_PROGRESS {
            let purpose = Purpose { call, function: "ncclCommGetAsyncError", bytes: 0 };
            let error = self.error(&state, purpose, code);
            self.abort(&mut state, error);
        } else if overdue {
            let error = self.timeout(call, "the device");
            self.abort(&mut state, error);
        }
    }

    /// Ends the communicator in order, once all that was queued is done; aborts it where that takes too long.
    pub(super) fn close(&self) {
        let purpose = Purpose { call: Call::Split, function: "ncclCommFinalize", bytes: 0 };
        if std::thread::panicking() {
            let error = self.ended(purpose);
            self.abort(&mut self.lock(), error);
            return;
        }
        // SAFETY: a live communicator, by the lock.
        let ended = self.invoke(purpose, |comm| unsafe { (self.library.nccl.finalize)(comm) });
        if let (Ok(()), Some(Comm(comm))) = (ended, self.lock().comm.take()) {
            // SAFETY: ended, and used no more.
            unsafe { (self.library.nccl.destroy)(comm) };
        }
    }
}
