//! One file a command.

pub mod checkpoint;
pub mod doctor;
pub mod plan;
pub mod train;
pub mod verify;
