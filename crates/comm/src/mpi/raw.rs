//! The MPI library's C interface: what `handles.c` adds to the bindings, kinds and reductions as MPI's handles, and
//! return codes as errors.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void, CStr};

use mpi::ffi::{self, MPI_Error_string};
pub(super) use mpi::ffi::{MPI_Comm, MPI_Datatype, MPI_Op, MPI_Request};

use super::session;
use crate::{Call, Error, Kind, Rank, ReduceOp, Result};

extern "C" {
    pub(super) fn mp_comm_in_place() -> *mut c_void;
    pub(super) fn mp_comm_request_null() -> MPI_Request;
    pub(super) fn mp_comm_undefined() -> c_int;
    pub(super) fn mp_comm_max_library_version() -> c_int;
    pub(super) fn mp_comm_return_errors(comm: MPI_Comm) -> c_int;
    pub(super) fn mp_comm_split_node(comm: MPI_Comm, node: *mut MPI_Comm) -> c_int;
    pub(super) fn mp_comm_wait(request: *mut MPI_Request, received_bytes: *mut c_int) -> c_int;
    pub(super) fn mp_comm_test(request: *mut MPI_Request, done: *mut c_int, received_bytes: *mut c_int) -> c_int;
    pub(super) fn mp_comm_receive(
        buffer: *mut c_void,
        bytes: c_int,
        from: c_int,
        tag: c_int,
        comm: MPI_Comm,
        received_bytes: *mut c_int,
    ) -> c_int;
    pub(super) fn mp_comm_largest_tag() -> c_int;
    pub(super) fn mp_comm_has_ulfm() -> c_int;
    pub(super) fn mp_comm_is_cuda_aware() -> c_int;
    fn mp_comm_max_error_string() -> c_int;
}

/// A communicator's handle.
#[derive(Clone, Copy)]
pub(super) struct Handle(pub(super) MPI_Comm);

// SAFETY: a handle is a name for the library's own object. The library grants MPI_THREAD_SERIALIZED or better, checked
// when the session starts; with less than MPI_THREAD_MULTIPLE every call goes through the session's lock.
unsafe impl Send for Handle {}
// SAFETY: as for Send.
unsafe impl Sync for Handle {}

/// A started operation's handle.
pub(super) struct Ticket(pub(super) MPI_Request);

// SAFETY: as for `Handle`; each ticket has one owner, so no two threads complete it at once.
unsafe impl Send for Ticket {}

impl Ticket {
    pub(super) fn null() -> Self {
        // SAFETY: returns a constant of the library.
        Self(unsafe { mp_comm_request_null() })
    }

    /// Says whether there is no operation, or none any more.
    pub(super) fn is_null(&self) -> bool {
        self.0 == Self::null().0
    }
}

/// What an error of one MPI call tells.
#[derive(Debug, Clone, Copy)]
pub(super) struct What<'a> {
    pub(super) call: Call,
    pub(super) group: &'a str,
    pub(super) function: &'static str,
    pub(super) bytes: usize,
    pub(super) peer: Option<Rank>,
}

/// Makes one call into the library, under the session's rules, and turns its code into a result.
pub(super) fn invoke(what: What<'_>, call: impl FnOnce() -> c_int) -> Result<()> {
    let _entered = session::enter()?;
    let code = call();
    if code == 0 {
        return Ok(());
    }
    Err(Error::Mpi {
        call: what.call,
        group: what.group.into(),
        peer: what.peer,
        bytes: what.bytes,
        function: what.function,
        code,
        message: message(code),
    })
}

/// Returns the library's words for a code. The caller is inside the session, or it has not started.
pub(super) fn message(code: c_int) -> String {
    // SAFETY: the buffer has the length that the library states as its longest message's.
    unsafe {
        let mut text = vec![0u8; mp_comm_max_error_string().max(0) as usize + 1];
        let mut len = 0;
        MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &mut len);
        CStr::from_bytes_until_nul(&text).map(|t| t.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// Returns MPI's type for a kind; bfloat16 travels as 16 bits and is never reduced by the library.
pub(super) fn datatype(kind: Kind) -> MPI_Datatype {
    // SAFETY: constants that rsmpi's C file exports.
    unsafe {
        match kind {
            Kind::F64 => ffi::RSMPI_DOUBLE,
            Kind::F32 => ffi::RSMPI_FLOAT,
            Kind::Bf16 => ffi::RSMPI_UINT16_T,
            Kind::I64 => ffi::RSMPI_INT64_T,
            Kind::I32 => ffi::RSMPI_INT32_T,
            Kind::U8 => ffi::RSMPI_UINT8_T,
        }
    }
}

/// Returns MPI's reduction; an average is a sum that the caller divides.
pub(super) fn operation(op: ReduceOp) -> MPI_Op {
    // SAFETY: constants that rsmpi's C file exports.
    unsafe {
        match op {
            ReduceOp::Sum | ReduceOp::Avg => ffi::RSMPI_SUM,
            ReduceOp::Max => ffi::RSMPI_MAX,
            ReduceOp::Min => ffi::RSMPI_MIN,
        }
    }
}

/// Narrows a count or rank. Transfers are cut below this bound and ranks come from the library.
pub(super) fn int(value: usize) -> c_int {
    c_int::try_from(value).unwrap_or(c_int::MAX)
}
