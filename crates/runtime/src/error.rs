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
    /// Memory that the allocator did not get.
    #[error(
        "a tensor of {bytes} bytes found no memory{}; lower `parallel.micro_batch`, `train.seq` or the model's sizes",
        free.map(|free| format!(", {free} bytes are free")).unwrap_or_default()
    )]
    OutOfMemory {
        /// The bytes that were asked for.
        bytes: u64,
        /// The bytes that were free right after, where the system says so.
        free: Option<u64>,
    },
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

impl Error {
    /// Makes an error of libtorch's own words.
    pub(crate) fn of_torch(text: &str) -> Self {
        // The first lines say what is wrong; libtorch's own stack below them says nothing to a reader.
        let stack = ["\nException raised from", "\nframe #"];
        let end = stack.iter().filter_map(|mark| text.find(mark)).min().unwrap_or(text.len());
        let words = &text[..end];
        match refused_bytes(words) {
            Some(bytes) => Error::OutOfMemory { bytes, free: crate::device::free_bytes(tch::Device::Cpu) },
            None => Error::Torch(words.to_string()),
        }
    }
}

/// Reads how much the host's allocator was asked for in vain, where that is what the words say.
fn refused_bytes(words: &str) -> Option<u64> {
    let (_, after) = words.split_once("DefaultCPUAllocator:")?.1.split_once("you tried to allocate ")?;
    after.split(' ').next()?.parse().ok()
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Error::of_torch(&error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Tensor};

    #[test]
    fn no_memory_is_told_in_one_line_with_its_bytes() {
        let refused = Tensor::f_zeros([1 << 50], (Kind::Double, tch::Device::Cpu)).unwrap_err();
        let error = Error::from(refused);
        assert!(matches!(error, Error::OutOfMemory { bytes: 0x20_0000_0000_0000, free: Some(1..) }), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
    }

    #[test]
    fn a_stack_is_cut_off() {
        let square = Tensor::f_zeros([2, 2], (Kind::Double, tch::Device::Cpu)).unwrap();
        let error = Error::from(square.f_matmul(&square.f_narrow(0, 0, 1).unwrap()).unwrap_err()).to_string();
        assert!(error.contains("2x2") && !error.contains("frame #") && !error.contains("Exception raised"), "{error}");
    }
}
