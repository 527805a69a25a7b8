//! Communication between ranks: one object-safe trait, several backends.
//!
//! A [`Communicator`] is one rank's handle of a process group. Code that is written for `Arc<dyn Communicator>` runs
//! unchanged on
//!
//! - [`solo::Solo`], a group of one, which answers at once;
//! - [`threads::Threads`], ranks as threads of one process over shared memory, for tests and small runs;
//! - `mpi::Mpi`, ranks as processes over an MPI library (with the feature `mpi`, on by default);
//! - [`nccl::Nccl`], ranks with a GPU each, over NCCL, which is looked for at run time;
//! - [`staged::Staged`], any of the others for buffers on a device, through page-locked host memory;
//!
//! and under the decorators [`ledger::Ledger`], which records every call, [`stopwatch::Stopwatch`], which adds up how long
//! callers are held up, and [`faulty::Faulty`], which fails on purpose.
//! [`conformance::run`] is the suite that they all pass, and that a new backend should. Where only one rank's time counts,
//! [`absent::Absent`] stands for a group whose other ranks do not exist; no run can start with it.
//!
//! Blocking calls borrow their memory as a [`Buffer`] or a [`BufferMut`]; calls that `start_` something own it as an
//! [`OwnedBuffer`] until their [`Request`] gives it back. Both are typed at run time, by [`Kind`], so that the trait stays
//! object-safe. Memory on a device is a [`DeviceMemory`]; what communication needs of the device is an [`Accelerator`], and
//! [`accelerator`] says in what order things happen there. [`fake::FakeDevice`] is one for tests.
//!
//! # Examples
//! The mean of what four ranks hold, and a message around their ring:
//! ```
//! use mp_comm::{threads, BufferMut, Rank, ReduceOp, Tag};
//!
//! let results = threads::run(4, |comm| {
//!     let (rank, size) = (comm.rank().0, comm.size());
//!
//!     let mut mean = [rank as f64];
//!     comm.all_reduce(BufferMut::new(&mut mean), ReduceOp::Avg)?;
//!
//!     let receive = comm.start_receive(vec![0i64].into(), Rank((rank + size - 1) % size), Tag(0))?;
//!     let send = comm.start_send(vec![rank as i64].into(), Rank((rank + 1) % size), Tag(0))?;
//!     let left = receive.wait()?.to_vec::<i64>()[0];
//!     send.wait()?;
//!     Ok::<_, mp_comm::Error>((mean[0], left))
//! });
//! assert_eq!(results, [(1.5, 3), (1.5, 0), (1.5, 1), (1.5, 2)]);
//! ```
//! With MPI the same code runs in a program that `mpirun -n 4` starts; `examples/ring.rs` is one:
//! ```no_run
//! # #[cfg(feature = "mpi")] {
//! let world = mp_comm::mpi::Mpi::initialize()?;
//! let comm = world.communicator();
//! comm.barrier()?;
//! # }
//! # Ok::<(), mp_comm::Error>(())
//! ```
//!
//! # Linking
//! The build script compiles one C file with `$MPICC`, or `mpicc`. It gives this package's own tests and examples a run
//! path to the MPI library (`$MP_RPATH`, or what the compiler wrapper says) and exports the folder, so that a dependent's
//! build script can do the same with `DEP_MP_COMM_MPI_MPI_LIB`. Tests that start ranks use `$MP_MPIRUN`, or the
//! launcher beside the wrapper. Without the feature `mpi` no MPI library is needed.

pub mod absent;
pub mod accelerator;
mod arguments;
pub mod buffer;
pub mod call;
mod chunks;
pub mod clock;
pub mod communicator;
pub mod conformance;
pub mod error;
pub mod fake;
pub mod faulty;
pub mod ledger;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
mod reduce;
pub mod solo;
pub mod staged;
pub mod stopwatch;
mod sync;
pub mod threads;
pub mod transport;

pub use accelerator::{Accelerator, Event, Pinned, Stream};
pub use buffer::{Buffer, BufferMut, ByteBuffer, DeviceMemory, DeviceRun, Element, Kind, OwnedBuffer, Place};
pub use call::Call;
pub use clock::{Clock, Mark};
pub use communicator::{Communicator, Rank, ReduceOp, Request, Tag};
pub use error::{Error, Result};
