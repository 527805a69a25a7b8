//! The tensor backend: libtorch, reached through tch and a small C++ shim.
//!
//! Here lies everything that knows how tensors work inside: [`autograd`] functions written in Rust, the views of their
//! memory that communication needs ([`bytes`]), the counter-based random numbers ([`rng`]) that make results
//! independent of the layout, the flat buffers ([`flat`]) that parameters are views of, and the update rules
//! ([`update`]). Ranks, groups and models are unknown here.

pub mod autograd;
pub mod bytes;
pub mod device;
pub mod error;
mod ffi;
pub mod flat;
pub mod kernels;
pub mod rng;
pub mod stream;
pub mod update;

pub use device::{Device, Precision};
pub use error::{Error, Result};
pub use tch::{Kind, Reduction, TchError, Tensor};
