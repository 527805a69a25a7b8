//! Fused kernels, each with its own backward: fewer passes over memory and fewer saved tensors than the same
//! arithmetic in single operations.

pub mod dropout;
pub mod rms_norm;
pub mod rotary;
