//! The one error type of this crate.

use crate::Kind;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between ranks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes that are no whole number of elements, or not aligned for them.
    #[error("{bytes} bytes at alignment {align} do not hold elements of {kind:?}")]
    Layout {
        /// The element kind asked for.
        kind: Kind,
        /// The length in bytes.
        bytes: usize,
        /// The largest power of two that divides the address.
        align: usize,
    },
}
