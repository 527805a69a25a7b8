//! Planning of model-parallel layouts as pure data: no tensors, no communication, no files.

pub mod config;

pub use config::{ArchitectureName, ModelConfig, ParallelConfig, RopeScaling, Switch};
