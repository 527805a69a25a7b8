//! Communication between ranks: one object-safe trait, several backends.

pub mod buffer;
pub mod communicator;
pub mod error;

pub use buffer::{Buffer, BufferMut, ByteBuffer, Element, Kind, OwnedBuffer};
pub use communicator::{Communicator, Rank, ReduceOp, Request, Tag};
pub use error::{Error, Result};
