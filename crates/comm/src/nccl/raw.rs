//! NCCL's C interface, as far as this crate uses it, and the CUDA driver's one question.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::{Kind, ReduceOp};

/// A result code.
pub(super) type Code = c_int;

/// All is well.
pub(super) const SUCCESS: Code = 0;
/// A communicator that does not block has not finished what it was asked.
pub(super) const IN_PROGRESS: Code = 7;

/// A communicator of the library.
#[derive(Clone, Copy)]
pub(super) struct Comm(pub(super) *mut c_void);

// SAFETY: a name for the library's own object, which any thread may use; `Handle` lets one do so at a time.
unsafe impl Send for Comm {}

/// What the ranks of a new communicator find each other by.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// How a communicator is made: NCCL's `ncclConfig_t` of 2.18, which later releases take as it is.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Calls return at once, and are asked about.
    pub(super) fn non_blocking() -> Self {
        // NCCL_CONFIG_UNDEF_INT: the library's own choice.
        let open = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: super::library::OLDEST as c_uint,
            blocking: 0,
            cga_cluster_size: open,
            min_ctas: open,
            max_ctas: open,
            net_name: std::ptr::null(),
            split_share: open,
        }
    }
}

/// Declares the table of functions, and how it is filled from a library.
macro_rules! table {
    ($(#[$note:meta])* $name:ident { $($field:ident = $symbol:literal: fn($($argument:ty),*) -> $result:ty;)* }) => {
        $(#[$note])*
        pub(super) struct $name {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $name {
            /// Looks every symbol up; returns the first that is missing.
            ///
            /// # Safety
            /// The library is the one that the table describes, and stays open as long as the table is used.
            pub(super) unsafe fn of(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the declared type is that of the library's header, as the caller promises.
                        let symbol = unsafe { library.get(concat!($symbol, "\0").as_bytes()) };
                        *symbol.map_err(|_| $symbol)?
                    },)*
                })
            }
        }
    };
}
table! {
    /// NCCL's functions.
    Nccl {
        get_version = "ncclGetVersion": fn(*mut c_int) -> Code;
        get_unique_id = "ncclGetUniqueId": fn(*mut UniqueId) -> Code;
        init_rank = "ncclCommInitRankConfig": fn(*mut *mut c_void, c_int, UniqueId, c_int, *mut Config) -> Code;
        finalize = "ncclCommFinalize": fn(*mut c_void) -> Code;
        destroy = "ncclCommDestroy": fn(*mut c_void) -> Code;
        abort = "ncclCommAbort": fn(*mut c_void) -> Code;
        get_async_error = "ncclCommGetAsyncError": fn(*mut c_void, *mut Code) -> Code;
        get_error_string = "ncclGetErrorString": fn(Code) -> *const c_char;
        get_last_error = "ncclGetLastError": fn(*mut c_void) -> *const c_char;
        group_start = "ncclGroupStart": fn() -> Code;
        group_end = "ncclGroupEnd": fn() -> Code;
        all_reduce = "ncclAllReduce":
            fn(*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, *mut c_void) -> Code;
        reduce_scatter = "ncclReduceScatter":
            fn(*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, *mut c_void) -> Code;
        all_gather = "ncclAllGather":
            fn(*const c_void, *mut c_void, usize, c_int, *mut c_void, *mut c_void) -> Code;
        broadcast = "ncclBroadcast":
            fn(*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, *mut c_void) -> Code;
        send = "ncclSend": fn(*const c_void, usize, c_int, c_int, *mut c_void, *mut c_void) -> Code;
        receive = "ncclRecv": fn(*mut c_void, usize, c_int, c_int, *mut c_void, *mut c_void) -> Code;
    }
}

table! {
    /// The CUDA driver's functions.
    Cuda {
        pointer_attribute = "cuPointerGetAttribute": fn(*mut c_void, c_int, u64) -> c_int;
    }
}

/// Returns NCCL's name of a kind.
pub(super) fn datatype(kind: Kind) -> c_int {
    match kind {
        Kind::U8 => 1,
        Kind::I32 => 2,
        Kind::I64 => 4,
        Kind::F32 => 7,
        Kind::F64 => 8,
        Kind::Bf16 => 9,
    }
}

/// Returns NCCL's name of a reduction.
pub(super) fn operation(op: ReduceOp) -> c_int {
    match op {
        ReduceOp::Sum => 0,
        ReduceOp::Max => 2,
        ReduceOp::Min => 3,
        ReduceOp::Avg => 4,
    }
}
