//! Which code this is, for what a checkpoint says of its origin.
//!
//! The program knows from what commit it was built, and a library that knew it too would be built anew at each one.

use std::sync::OnceLock;

static BUILT: OnceLock<String> = OnceLock::new();

/// Says which code this program is. The first word counts.
pub fn set_version(version: &str) {
    BUILT.get_or_init(|| version.into());
}

/// Returns which code this program is: what [it said](set_version), or this crate's release.
pub fn version() -> &'static str {
    BUILT.get().map_or(env!("CARGO_PKG_VERSION"), String::as_str)
}
