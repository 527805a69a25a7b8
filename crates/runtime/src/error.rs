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
    /// Memory that a device's allocator did not get.
    #[error(
        "a tensor of {} found no memory on CUDA device {device}: {}; lower `parallel.micro_batch`, `train.seq` or the \
         model's sizes, or cut the model over more devices", size(*bytes), report(*total, *free, *allocated, *idle)
    )]
    DeviceOutOfMemory {
        /// The device's index.
        device: usize,
        /// The bytes that were asked for, to three digits or so, as all that follows.
        bytes: u64,
        /// What the device has.
        total: u64,
        /// What nobody holds of it.
        free: u64,
        /// What tensors of this process hold.
        allocated: Option<u64>,
        /// What this process's allocator holds beside them.
        idle: Option<u64>,
    },
    /// Memory that CUDA or one of its libraries did not get for itself, beside what the allocator holds: contexts, kernels, handles,
    /// page-locked memory of the host.
    #[error(
        "CUDA found no memory beside the tensors ({0}); start fewer ranks on the device, or lower `parallel.micro_batch`, \
         `train.seq` or the model's sizes"
    )]
    NoMemoryBeside(String),
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
        // The first lines say what is wrong; libtorch's own stack below them says nothing to a reader, nor where CUDA's codes are
        // explained.
        let late = "\nCUDA kernel errors might be asynchronously reported";
        let below = ["\nException raised from", "\nframe #", "\nSearch for `", late];
        let end = below.iter().filter_map(|mark| text.find(mark)).min().unwrap_or(text.len());
        let words = &text[..end];
        if BESIDE.iter().any(|mark| words.contains(mark)) {
            return Error::NoMemoryBeside(words.to_string());
        }
        if text.contains(late) {
            return Error::Torch(format!(
                "{words} (of this call or an earlier one: CUDA_LAUNCH_BLOCKING=1 tells which)"
            ));
        }
        let refused = || {
            refused_bytes(words).map(|bytes| {
                let free = crate::device::free_bytes(tch::Device::Cpu);
                Error::OutOfMemory { bytes, free }
            })
        };
        device_refusal(words).or_else(refused).unwrap_or_else(|| Error::Torch(words.to_string()))
    }

    /// Says whether memory was asked for in vain, of the host or of a device.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::OutOfMemory { .. } | Error::DeviceOutOfMemory { .. } | Error::NoMemoryBeside(_))
    }
}

/// What the runtime and cuBLAS say where they themselves find no memory.
const BESIDE: [&str; 2] = ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"];

/// Reads how much the host's allocator was asked for in vain, where that is what the words say.
fn refused_bytes(words: &str) -> Option<u64> {
    let (_, after) = words.split_once("DefaultCPUAllocator:")?.1.split_once("you tried to allocate ")?;
    after.split(' ').next()?.parse().ok()
}

/// Reads what a device's allocator says when it was asked in vain.
fn device_refusal(words: &str) -> Option<Error> {
    let after = |mark: &str| Some(words.split_once(mark)?.1);
    let rest = after("out of memory. Tried to allocate ")?;
    let before = |mark: &str| {
        // The last two words before it are a number and its unit.
        let mut backwards = rest.split_once(mark)?.0.rsplitn(3, ' ');
        let (unit, number) = (backwards.next()?, backwards.next()?);
        amount(number, unit)
    };
    // Releases before 2.1 had it all in brackets.
    let device = after("GPU ")?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    let (total, free, allocated, idle) = match after("has a total capac") {
        Some(capacity) => (
            leading(capacity.split_once(" of ")?.1),
            before(" is free"),
            before(" is allocated by PyTorch"),
            before(" is reserved by PyTorch but unallocated"),
        ),
        None => {
            let (held, reserved) = (before(" already allocated"), before(" reserved in total"));
            (
                before(" total capacity"),
                before(" free"),
                held,
                reserved.zip(held).map(|(all, held)| all.saturating_sub(held)),
            )
        }
    };
    Some(Error::DeviceOutOfMemory { device, bytes: leading(rest)?, total: total?, free: free?, allocated, idle })
}

/// Reads the amount that a text begins with: `2.00 GiB is free`.
fn leading(text: &str) -> Option<u64> {
    let mut words = text.split(' ');
    let (number, unit) = (words.next()?, words.next()?);
    amount(number, unit.trim_end_matches('.'))
}

/// The units of libtorch's allocator, and ours.
const UNITS: [(&str, f64); 4] = [("GiB", 1_073_741_824.0), ("MiB", 1_048_576.0), ("KiB", 1024.0), ("bytes", 1.0)];

fn amount(number: &str, unit: &str) -> Option<u64> {
    let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let number: f64 = number.trim_start_matches('(').parse().ok()?;
    Some((number * bytes) as u64)
}

fn size(bytes: u64) -> String {
    let (unit, one) = UNITS.into_iter().find(|(_, one)| bytes as f64 >= *one).unwrap_or(("bytes", 1.0));
    match unit {
        "bytes" => format!("{bytes} bytes"),
        _ => format!("{:.2} {unit}", bytes as f64 / one),
    }
}

fn report(total: u64, free: u64, allocated: Option<u64>, idle: Option<u64>) -> String {
    let mut report = format!("{} of its {} are free", size(free), size(total));
    if let Some(bytes) = allocated {
        report += &format!(", tensors of this process hold {}", size(bytes));
    }
    if let Some(bytes) = idle {
        report += &format!(", its allocator {} more", size(bytes));
    }
    report
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

    const GIB: f64 = 1_073_741_824.0;
    const MIB: f64 = 1_048_576.0;

    /// The words of the release that this is built with, of those before it, and of those before 2.1, as people have shown
    /// them.
    #[test]
    fn a_devices_refusal_is_read() {
        let now = "CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of 31.47 GiB of which \
                   12.73 GiB is free. Including non-PyTorch memory, this process has 18.73 GiB memory in use. Of the \
                   allocated memory 9.08 GiB is allocated by PyTorch, and 9.35 GiB is reserved by PyTorch but \
                   unallocated. If reserved but unallocated memory is large try setting \
                   PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for \
                   Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)";
        let shared =
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 1 has a total capacity of 79.11 GiB of which \
                      512.00 KiB is free. Process 1234 has 40.00 GiB memory in use. Including non-PyTorch memory, this \
                      process has 39.10 GiB memory in use. Of the allocated memory 38.00 GiB is allocated by PyTorch, \
                      and 615.50 MiB is reserved by PyTorch but unallocated.";
        let before = "CUDA out of memory. Tried to allocate 1.70 GiB. GPU 0 has a total capacty of 6.00 GiB of which \
                      0 bytes is free. Of the allocated memory 2.93 GiB is allocated by PyTorch, and 2.30 GiB is \
                      reserved by PyTorch but unallocated.";
        let old = "CUDA out of memory. Tried to allocate 2.26 GiB (GPU 0; 6.00 GiB total capacity; 781.59 MiB already \
                   allocated; 3.03 GiB free; 1.24 GiB reserved in total by PyTorch) ";
        let cases = [
            (now, (0, [22.78 * GIB, 31.47 * GIB, 12.73 * GIB, 9.08 * GIB, 9.35 * GIB])),
            (shared, (1, [20.0 * MIB, 79.11 * GIB, 0.5 * MIB, 38.0 * GIB, 615.5 * MIB])),
            (before, (0, [1.7 * GIB, 6.0 * GIB, 0.0, 2.93 * GIB, 2.3 * GIB])),
            (old, (0, [2.26 * GIB, 6.0 * GIB, 3.03 * GIB, 781.59 * MIB, 1.24 * GIB - 781.59 * MIB])),
        ];
        for (words, (index, amounts)) in cases {
            let error = Error::of_torch(words);
            let Error::DeviceOutOfMemory { device, bytes, total, free, allocated, idle } = error else {
                panic!("{words} was read as {error}")
            };
            assert_eq!(device, index, "{words}");
            let read = [bytes, total, free, allocated.unwrap(), idle.unwrap()];
            for (read, expected) in read.into_iter().zip(amounts) {
                // Whole bytes of each, and of the difference of two.
                assert!((read as f64 - expected).abs() <= 2.0, "{words}: {read} for {expected}");
            }
        }
    }

    #[test]
    fn a_devices_refusal_is_told_in_one_line() {
        let words = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total capacity of 23.65 GiB of which \
                     11.06 MiB is free. Including non-PyTorch memory, this process has 23.60 GiB memory in use. Of the \
                     allocated memory 22.90 GiB is allocated by PyTorch, and 0 bytes is reserved by PyTorch but \
                     unallocated.\nException raised from malloc at CUDACachingAllocator.cpp:1";
        let error = Error::of_torch(words);
        assert!(error.is_out_of_memory());
        assert_eq!(
            error.to_string(),
            "a tensor of 2.00 GiB found no memory on CUDA device 3: 11.06 MiB of its 23.65 GiB are free, tensors of this \
             process hold 22.90 GiB, its allocator 0 bytes more; lower `parallel.micro_batch`, `train.seq` or the model's \
             sizes, or cut the model over more devices"
        );
    }

    /// As libtorch 2.11 says it.
    #[test]
    fn an_error_of_cuda_is_told_in_one_line() {
        let words = "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegalAddress' in \
                     https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information.\nCUDA \
                     kernel errors might be asynchronously reported at some other API call, so the stacktrace below might \
                     be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with \
                     `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n";
        assert_eq!(
            Error::of_torch(words).to_string(),
            "libtorch: CUDA error: an illegal memory access was encountered (of this call or an earlier one: \
             CUDA_LAUNCH_BLOCKING=1 tells which)"
        );
    }

    #[test]
    fn memory_that_cuda_lacks_for_itself_is_told_with_the_way_out() {
        let runtime = "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda for \
                       more information.\nCUDA kernel errors might be asynchronously reported at some other API call, so \
                       the stacktrace below might be incorrect.\n";
        let cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`";
        for (words, told) in [(runtime, "CUDA error: out of memory"), (cublas, cublas)] {
            let error = Error::of_torch(words);
            assert!(error.is_out_of_memory());
            assert_eq!(
                error.to_string(),
                format!(
                    "CUDA found no memory beside the tensors ({told}); start fewer ranks on the device, or lower \
                     `parallel.micro_batch`, `train.seq` or the model's sizes"
                )
            );
        }
    }

    #[test]
    fn other_words_stay() {
        let words = "CUDA out of memory. Tried to allocate much";
        assert!(matches!(Error::of_torch(words), Error::Torch(kept) if kept == words));
    }
}
