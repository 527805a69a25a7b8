//! Whole runs on rank-threads.

mod common;
mod interruptions;
mod times;
mod whole;
