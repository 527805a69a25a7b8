//! The one error type of this crate.

use crate::{Call, Kind, Rank, ReduceOp};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between ranks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes that are no whole number of elements, or not aligned for them.
    #[error("{bytes} bytes at alignment {align} do not hold elements of {kind:?}")]
    Layout {
        /// The element kind asked for.
        kind: Kind,
        /// The length in bytes.
        bytes: usize,
        /// The largest power of two that divides the address.
        align: usize,
    },
    /// A buffer on a device in a call of a communicator that moves host memory alone.
    #[error(
        "{call} in group {group}: a buffer lies on device {device}, which this communicator cannot reach: \
         carry it through host memory with `Staged`, or use `Nccl`"
    )]
    OutOfReach {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// The device's index.
        device: usize,
    },
    /// One buffer on a device, the other of the same call on the host.
    #[error("{call} in group {group}: one buffer lies on a device and the other on the host; put both on one side")]
    MixedPlaces {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
    },
    /// What a device's own library refused.
    #[error("device {device}: {doing} failed with {message}")]
    Device {
        /// The device's index.
        device: usize,
        /// What was asked of it, `"copying to the host"` for instance.
        doing: &'static str,
        /// The library's own words.
        message: String,
    },
    /// NCCL, or the driver that it needs, cannot be used.
    #[error(
        "NCCL cannot be used: {path}: {reason}; install NCCL 2.18 or later and a driver, put their folders on \
         LD_LIBRARY_PATH, or set parallel.transport=mpi"
    )]
    NcclLibrary {
        /// The library's path, as it was asked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An NCCL that is too old.
    #[error("{path} is NCCL {found}, and {needed} or later is needed: install that, or set parallel.transport=mpi")]
    NcclVersion {
        /// The library's path, as it was asked for.
        path: String,
        /// Its version.
        found: String,
        /// The oldest that serves.
        needed: String,
    },
    /// An error that NCCL reported. The group is of no more use.
    #[error("{call} in group {group}: {function} of {bytes} bytes failed with {message} (code {code})")]
    Nccl {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// The NCCL function.
        function: &'static str,
        /// How many bytes this rank handed over.
        bytes: usize,
        /// NCCL's result code.
        code: i32,
        /// NCCL's own words.
        message: String,
    },
    /// A call that took longer than the group's patience. The group is of no more use.
    #[error(
        "{call} in group {group}: {function} did not come to an end within {seconds} s, so that the group's NCCL \
         communicator was aborted"
    )]
    NcclTimeout {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// The NCCL function, or `"the device"` for what was queued.
        function: &'static str,
        /// The patience, in seconds.
        seconds: f64,
    },
    /// Ranks that NCCL did not join, told alike on all of them. There is no group.
    #[error("NCCL does not start in group {group}: rank {}: {reason}", rank.0)]
    NcclStart {
        /// The group's name.
        group: String,
        /// A rank that met something; one that did no more than wait speaks only where all did.
        rank: Rank,
        /// What it met.
        reason: String,
    },
    /// A way to carry tensors that cannot be had.
    #[error("parallel.transport={asked}: {reason}")]
    Transport {
        /// What was asked for.
        asked: String,
        /// Why it cannot be had, and the way out.
        reason: String,
    },
    /// Two ranks of a group with one device between them.
    #[error(
        "group {group}: ranks {} and {} have one device, which NCCL refuses: start one rank a device, or set \
         parallel.transport=mpi", first.0, second.0
    )]
    SharedDevice {
        /// The group's name.
        group: String,
        /// One rank.
        first: Rank,
        /// Another.
        second: Rank,
    },
    /// A buffer, a list of counts or a message of another length than the call needs.
    #[error("{call} in group {group}: {what} holds {found} instead of {expected}")]
    Length {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// Which buffer, list of counts or message, and its unit where that is not the element.
        what: &'static str,
        /// How many elements (counts, bytes) the call needs there.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A buffer that does not divide into one equal run a rank.
    #[error("{call} in group {group}: {len} elements do not divide into {size} equal runs")]
    NotDivisible {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// The buffer's length in elements.
        len: usize,
        /// The group's size.
        size: usize,
    },
    /// Two buffers of one call, or the two ends of a message, of different element kinds.
    #[error("{call} in group {group}: elements of {found:?} where {expected:?} was expected")]
    Kind {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// The kind of the first buffer.
        expected: Kind,
        /// The kind of the other one.
        found: Kind,
    },
    /// A rank that is not in the group.
    #[error("{call} in group {group}: rank {} is not below the group's size {size}", rank.0)]
    NoSuchRank {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// The rank asked for.
        rank: Rank,
        /// The group's size.
        size: usize,
    },
    /// A blocking send to the sender itself, which could wait for ever; a started one is fine.
    #[error("{call} in group {group}: rank {} blocks on a message to itself", rank.0)]
    ToItself {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// The rank.
        rank: Rank,
    },
    /// A paired send and receive of which one end alone is the rank itself: the other end would find no counterpart.
    #[error(
        "{call} in group {group}: rank {} sends to rank {} and receives from rank {}: a rank that does one with itself \
         does both", rank.0, to.0, from.0
    )]
    Unpaired {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// The rank.
        rank: Rank,
        /// Where it sends.
        to: Rank,
        /// Where it receives from.
        from: Rank,
    },
    /// A reduction that is not defined for the element kind.
    #[error("{call} in group {group}: {op:?} is not defined for elements of {kind:?}")]
    UnsupportedOp {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// The reduction.
        op: ReduceOp,
        /// The element kind.
        kind: Kind,
    },
    /// Two ranks that met in one collective but meant different ones.
    #[error("group {group}: rank {} called {first_call} while rank {} called {second_call}", first.0, second.0)]
    Mismatch {
        /// The group's name.
        group: String,
        /// One rank.
        first: Rank,
        /// What it called, with kind, length, reduction and root where they apply.
        first_call: String,
        /// Another rank.
        second: Rank,
        /// What that one called.
        second_call: String,
    },
    /// A peer whose own arguments to the same collective were refused.
    #[error("group {group}: rank {} could not take part: {reason}", peer.0)]
    PeerRefused {
        /// The group's name.
        group: String,
        /// The peer.
        peer: Rank,
        /// Why it was refused.
        reason: Box<Error>,
    },
    /// A peer that panicked, ended or dropped its handle and will never take part.
    #[error("{call} in group {group}: rank {} is gone", peer.0)]
    PeerGone {
        /// The call that waited.
        call: Call,
        /// The group's name.
        group: String,
        /// The peer.
        peer: Rank,
    },
    /// A receive that nothing can answer, since the only rank that could is the one that waits.
    #[error("{call} in group {group}: nothing was sent with tag {tag}, and nobody else could send it")]
    NeverSent {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// The message's tag.
        tag: u16,
    },
    /// A split of a group whose other ranks do not exist.
    #[error(
        "group {group} has no other ranks to make a group {part} with: it stands for one rank alone and serves to time it; \
         train on a communicator with peers"
    )]
    PeersAbsent {
        /// The group's name.
        group: String,
        /// The name of the group that was to be made.
        part: String,
    },
    /// An error that the MPI library reported.
    #[error("{call} in group {group}{}: {function} of {bytes} bytes failed with {message} (code {code})", with(peer))]
    Mpi {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// The other rank of a message, or a broadcast's root.
        peer: Option<Rank>,
        /// How many bytes this rank handed over.
        bytes: usize,
        /// The MPI function.
        function: &'static str,
        /// MPI's error code.
        code: i32,
        /// MPI's own words.
        message: String,
    },
    /// MPI could not be started as this crate needs it.
    #[error("{function} failed with {message} (code {code})")]
    Start {
        /// The MPI function.
        function: &'static str,
        /// MPI's error code.
        code: i32,
        /// MPI's own words.
        message: String,
    },
    /// An MPI library that does not let several threads of a process call it in turn.
    #[error("the MPI library grants {provided} where MPI_THREAD_SERIALIZED or better is needed")]
    ThreadLevel {
        /// What it grants.
        provided: &'static str,
    },
    /// MPI was started, or ended, already in this process.
    #[error("MPI was already {what} in this process")]
    Lifecycle {
        /// `"initialized"` or `"finalized"`.
        what: &'static str,
    },
    /// A failure made on purpose by [`Faulty`](crate::faulty::Faulty).
    #[error("{call} in group {group}: failed on purpose at call {count}")]
    Injected {
        /// The call.
        call: Call,
        /// The group's name.
        group: String,
        /// Its position among the calls of the handle, from 1.
        count: u64,
    },
}

/// Names the peer of an MPI call that has one.
fn with(peer: &Option<Rank>) -> String {
    peer.map(|peer| format!(" with rank {}", peer.0)).unwrap_or_default()
}
