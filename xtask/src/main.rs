//! Set-up, tests, benches.
fn main() {}
