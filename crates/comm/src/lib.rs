//! Communication between ranks: one object-safe trait, several backends.

mod arguments;
pub mod buffer;
pub mod call;
#[cfg(any(feature = "mpi", test))]
mod chunks;
pub mod communicator;
pub mod conformance;
pub mod error;
#[cfg(feature = "mpi")]
pub mod mpi;
mod reduce;
pub mod solo;
mod sync;
pub mod threads;

pub use buffer::{Buffer, BufferMut, ByteBuffer, Element, Kind, OwnedBuffer};
pub use call::Call;
pub use communicator::{Communicator, Rank, ReduceOp, Request, Tag};
pub use error::{Error, Result};
