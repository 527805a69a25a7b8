//! Benchmarks that anyone can run: `cargo xtask bench`.
//!
//! `configs/` holds the recipes, `peers/` the PyTorch programs that they are timed beside; the binary `train` measures
//! throughput with the split of its time, on the host or on a device.

pub mod correlation;
pub mod gemm;
pub mod layouts;
pub mod place;
pub mod verdict;
