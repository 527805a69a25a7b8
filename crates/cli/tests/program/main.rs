//! The program as a user starts it, alone and under mpirun.

mod checkpoints;
mod common;
mod data;
mod finetuning;
mod generate;
mod handbook;
mod inputs;
mod ledger;
mod no_gpu;
mod outputs;
mod pictures;
mod planning;
mod ranks;
mod runs;
mod simulate;
mod verify;
