//! The `mp-cli` binary.
fn main() {}
