//! The one error type of this crate.

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The plan does not fit the model.
    #[error(transparent)]
    Plan(#[from] mp_plan::Error),
    /// The tensor backend failed.
    #[error(transparent)]
    Runtime(#[from] mp_runtime::Error),
    /// A collective failed.
    #[error(transparent)]
    Comm(#[from] mp_comm::Error),
    /// A tensor of an unexpected shape.
    #[error("{what}: shape {shape:?} where {expected} is expected")]
    Shape {
        /// What the tensor is.
        what: String,
        /// Its shape.
        shape: Vec<i64>,
        /// What was expected, in words or numbers.
        expected: String,
    },
    /// An element kind that does not travel between ranks.
    #[error("tensors of kind {0:?} cannot be sent to other ranks")]
    Kind(mp_runtime::Kind),
    /// A name that no parameter of the model has.
    #[error("the model has no parameter `{0}`")]
    UnknownParameter(String),
    /// Something that a plan may name and no layer computes.
    #[error("{0} has no counterpart among the layers")]
    Unbuilt(String),
    /// A part of the model that a step left out.
    #[error("elements {elements:?} of the gradient still wait for {missing} contributions at the end of a step")]
    GradientMissing {
        /// The bucket.
        elements: std::ops::Range<usize>,
        /// How many uses are missing.
        missing: usize,
    },
    /// A parameter that a step has not used, or not as often as announced.
    #[error("`{parameter}` still waits for contributions to its gradient at the end of a step")]
    Unused {
        /// Its name.
        parameter: String,
    },
    /// A part of the model that a step went through more often than announced.
    #[error("elements {elements:?} of the gradient got more contributions than the step has micro-batches")]
    GradientTwice {
        /// The bucket.
        elements: std::ops::Range<usize>,
    },
    /// Work for another stage.
    #[error("this stage does not have {what}")]
    NotHere {
        /// What was asked of it.
        what: &'static str,
    },
    /// A sequence longer than the model's positions.
    #[error("a sequence of {seq} tokens is longer than the model's max_seq of {max_seq}")]
    TooLong {
        /// Its length.
        seq: usize,
        /// The longest allowed.
        max_seq: usize,
    },
    /// A pass over other positions than its rank attends from.
    #[error("a pass over positions {held:?} on a rank of the context axis that holds {expected:?}")]
    Positions {
        /// What the pass holds.
        held: Vec<std::ops::Range<usize>>,
        /// What the rank holds.
        expected: Vec<std::ops::Range<usize>>,
    },
}

impl From<mp_runtime::TchError> for Error {
    fn from(error: mp_runtime::TchError) -> Self {
        Error::Runtime(error.into())
    }
}

/// Errors inside a backward closure reach the caller of the backward pass through the tensor backend.
impl From<Error> for mp_runtime::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Runtime(inner) => inner,
            other => mp_runtime::Error::Callback(other.to_string()),
        }
    }
}
