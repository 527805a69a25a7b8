//! What models compute beside products and libtorch's own operations: rotary positions and RMSNorm with their
//! backward, attention by blocks, dropout by place with its random words, norms of long vectors, and runs of a dim.

pub mod attention;
pub mod dropout;
pub mod norm;
pub mod rms_norm;
pub mod rotary;
pub mod runs;
pub mod words;
