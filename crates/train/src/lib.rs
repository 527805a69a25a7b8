//! The training engine: everything between a configuration and a trained model.
//!
//! A run starts from a [`config::Config`], gets a folder ([`run_folder`]), writes [`records`] into its
//! [`metrics`], and saves and continues through [`checkpoint`]. Terminal output, command-line arguments and the choice
//! of a concrete communicator live above, in the binary.

pub mod code;
pub mod error;
pub mod config;
pub mod agree;
pub mod records;
pub mod metrics;
pub mod run_folder;
pub mod region;
pub mod standing;
pub mod checkpoint;
pub mod durable;
pub mod rates;
pub mod times;
pub mod groups;
pub mod layout;
pub mod cluster;
mod clock;
mod crowd;
pub mod memory;
mod room;
pub mod ledger;
pub mod assemble;
pub mod assembled;
pub mod traffic;
pub mod optimizer;
pub mod reduce;
pub mod pipeline;
pub mod step;
pub mod inference;
pub mod evaluate;
pub mod generate;
pub mod weights;
pub mod adapted;
pub mod huggingface;
pub mod state;
pub mod saving;
mod examples;
pub mod text;
pub mod audit;
mod finished;
pub mod measure;
pub mod choose;
pub mod run;
pub mod trial;
pub mod verify;

pub use config::Config;
pub use error::{Error, Result};
