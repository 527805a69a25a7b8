//! What models compute beside products and libtorch's own operations: rotary positions and RMSNorm with their
//! backward, and dropout by place.

pub mod dropout;
pub mod rms_norm;
pub mod rotary;
