//! Sharded layers, one a file. Each takes its weights and its tensor group when it is made.

pub mod attention;
pub mod cross_entropy;
pub mod dense;
pub mod dropout;
pub mod embedding;
pub mod linear;
pub mod low_rank;
pub mod mlp;
pub mod next_sentence;
pub mod norm;
