//! Sharded layers and the models made of them: where a plan, the tensor backend and a communicator meet.
//!
//! Reading order: how tensors travel ([`collective`], and on devices [`accelerator`]); what a rank keeps of every parameter ([`parameter`]); the
//! conjugate [`regions`] between replicated and sharded activations; the sharded [`layers`]; the [`models`]; and
//! [`mod@build`], which turns a partition into a [`Stage`].

pub mod accelerator;
mod bucket;
pub mod buffers;
pub mod build;
pub mod cache;
pub mod collective;
pub mod context;
pub mod deferral;
pub mod error;
#[cfg(feature = "faults")]
pub mod faults;
pub mod gradient;
pub mod huggingface;
mod initial;
pub mod layers;
pub mod models;
pub mod parameter;
pub mod pass;
pub mod recompute;
pub mod regions;
pub mod shard;
pub mod shards;
pub mod stage;
pub mod unit;
pub mod weight;

pub use build::build;
pub use error::{Error, Result};
pub use parameter::Parameters;
pub use pass::Pass;
pub use shards::Options;
pub use stage::{Goal, Model, Stage};
