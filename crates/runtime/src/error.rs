//! The one error type of this crate.

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in the tensor backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused an operation; its own words.
    #[error("libtorch: {0}")]
    Torch(String),
    /// A custom function's backward, or a hook, failed or panicked.
    #[error("in a backward callback: {0}")]
    Callback(String),
    /// A tensor that is not what an operation needs.
    #[error("{what}: a tensor of shape {shape:?} and kind {kind:?} does not serve, {wanted} is needed")]
    Tensor {
        /// The operation.
        what: &'static str,
        /// The shape given.
        shape: Vec<i64>,
        /// The kind given.
        kind: tch::Kind,
        /// What would do.
        wanted: &'static str,
    },
    /// Tensors of a flat buffer that do not stack.
    #[error("tensors of a flat buffer stack side by side and with one width: {shape:?} does not follow {first:?}")]
    NotNeighbours {
        /// The shape of the first.
        first: Vec<i64>,
        /// The shape of the one that does not follow.
        shape: Vec<i64>,
    },
    /// Elements that a flat buffer does not hold in one piece.
    #[error("elements {range:?} of {elements} are not held here in one piece")]
    NotHeld {
        /// The elements asked for.
        range: std::ops::Range<usize>,
        /// How many the layout has.
        elements: usize,
    },
    /// A library that was asked for and could not be opened.
    #[error("{library} cannot be opened: {reason}")]
    Library {
        /// Its name.
        library: String,
        /// The loader's words.
        reason: String,
    },
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        // The first lines say what is wrong; libtorch's own stack below them says nothing to a reader.
        let text = error.to_string();
        let end = text.find("\nException raised from").unwrap_or(text.len());
        Error::Torch(text[..end].to_string())
    }
}
