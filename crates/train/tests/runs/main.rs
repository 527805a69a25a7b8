//! Whole runs on rank-threads.
#![allow(missing_docs)]

mod common;
mod interruptions;
mod whole;
