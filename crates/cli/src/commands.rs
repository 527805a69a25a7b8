//! One file a command.

pub mod checkpoint;
pub mod data;
pub mod doctor;
pub mod eval;
pub mod generate;
pub mod plan;
pub mod train;
pub mod verify;
