//! Devices, precisions, threads and memory figures.

use std::sync::OnceLock;

use crate::{ffi, Result};

pub use tch::Device;

/// The element kinds of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Everything in single precision.
    Fp32,
    /// Activations and weights in bfloat16; master weights, gradients and optimizer state in single precision.
    Bf16,
    /// Everything in double precision: how a wrong layout is told from rounding.
    Fp64,
}

impl Precision {
    /// Returns the kind of weights and activations.
    pub fn compute(self) -> tch::Kind {
        match self {
            Precision::Fp32 => tch::Kind::Float,
            Precision::Bf16 => tch::Kind::BFloat16,
            Precision::Fp64 => tch::Kind::Double,
        }
    }

    /// Returns the kind of gradients, master weights, optimizer state, losses and statistics.
    pub fn master(self) -> tch::Kind {
        match self {
            Precision::Fp32 | Precision::Bf16 => tch::Kind::Float,
            Precision::Fp64 => tch::Kind::Double,
        }
    }
}

/// Prepares the process for tensor work: call once, after MPI is initialised and before the first tensor.
///
/// Opens libtorch's CUDA library where there is one (a CUDA question asked earlier would disable CUDA for good), gives
/// each tensor operation `threads` threads, and tells malloc to keep what tensors free.
pub fn prepare(threads: usize) {
    cuda_library();
    set_threads(threads);
    ffi::keep_freed_memory();
}

/// Opens `libtorch_cuda.so` once; says what came of it.
fn cuda_library() -> &'static std::result::Result<(), String> {
    static OPENED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    OPENED.get_or_init(|| ffi::open_library("libtorch_cuda.so").map_err(|error| error.to_string()))
}

/// Says why libtorch's CUDA library is absent, or `None` where it was opened.
pub fn cuda_absence() -> Option<&'static str> {
    cuda_library().as_ref().err().map(String::as_str)
}

/// Says whether tensors can be put on a CUDA device.
pub fn cuda_available() -> bool {
    cuda_library().is_ok() && tch::Cuda::is_available()
}

/// Returns the number of CUDA devices.
pub fn cuda_devices() -> usize {
    if cuda_available() {
        tch::Cuda::device_count().max(0) as usize
    } else {
        0
    }
}

/// Returns the device of a rank by its number in its machine: several share one where there are more ranks than devices.
/// `None` where there is no device.
///
/// # Examples
/// ```
/// use mp_runtime::device::of_local_rank;
///
/// assert_eq!([0, 1, 2, 3].map(|rank| of_local_rank(rank, 2)), [Some(0), Some(1), Some(0), Some(1)]);
/// assert_eq!(of_local_rank(0, 0), None);
/// ```
pub fn of_local_rank(local_rank: usize, devices: usize) -> Option<usize> {
    local_rank.checked_rem(devices)
}

/// Makes a device the one that this thread and libraries in it use.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where there is no such device.
pub fn select(device: usize) -> Result<()> {
    ffi::select_device(device as i32)
}

/// Returns what tells a physical device apart from all others, in the same machine and elsewhere: the driver's number of it.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where there is no accelerator, [`Error::Library`](crate::Error::Library) where the
/// driver does not answer.
pub fn identity(device: usize) -> Result<[u8; 16]> {
    match has_accelerator() {
        true => ffi::identity(device as i32),
        // Says so in the words of all other calls.
        false => ffi::select_device(device as i32).map(|()| [0; 16]),
    }
}

/// Waits until all that was queued on a device is done; the host's work always is.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) if any of it failed.
pub fn synchronize(device: Device) -> Result<()> {
    match device {
        Device::Cuda(index) => ffi::synchronize_device(index as i32),
        _ => Ok(()),
    }
}

/// How devices compute where they have a choice. The host has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numerics {
    /// The same bits in every run, by kernels that may be slower.
    pub deterministic: bool,
    /// Products of single precision by tensor cores, which round their factors to 10 bits.
    pub tf32: bool,
}

/// Sets how devices compute, for the whole process: call once, before the first product on a device. Products of bfloat16
/// sum in single precision, whatever is set.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where there is no device.
pub fn set_numerics(numerics: Numerics) -> Result<()> {
    ffi::numerics(numerics.deterministic, numerics.tf32)
}

/// Gives every tensor operation of this process `threads` threads.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(threads.max(1) as i32);
}

/// Returns how many threads a tensor operation uses.
pub fn threads() -> usize {
    tch::get_num_threads().max(1) as usize
}

/// Returns the libtorch release that this crate was compiled against, `"2.11.0"` for instance.
pub fn libtorch_version() -> &'static str {
    env!("MP_LIBTORCH_VERSION")
}

/// Memory that tensors on a device hold, as its allocator counts it.
///
/// On the host these are the bytes that tensors asked for, all of this process's, to the byte: malloc's rounding is not in
/// them, nor memory that a tensor only views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStats {
    /// Bytes allocated now.
    pub current_bytes: u64,
    /// Bytes allocated at most since the last [`reset_peak`].
    pub peak_bytes: u64,
    /// Bytes taken from an accelerator at most; `None` on the host, whose allocator hands on what it is asked for.
    pub reserved_bytes: Option<u64>,
}

/// Asks a device's allocator.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) for an accelerator that is not there.
///
/// # Examples
/// ```
/// use mp_runtime::{device, Device, Kind, Tensor};
///
/// device::reset_peak(Device::Cpu)?;
/// let before = device::memory(Device::Cpu)?;
/// drop(Tensor::f_zeros([1000], (Kind::Float, Device::Cpu))?);
/// let after = device::memory(Device::Cpu)?;
/// assert_eq!(after.current_bytes, before.current_bytes);
/// assert_eq!(after.peak_bytes, before.current_bytes + 4000);
/// # Ok::<(), mp_runtime::Error>(())
/// ```
pub fn memory(device: Device) -> Result<MemoryStats> {
    let Device::Cuda(index) = device else {
        let (current, peak) = ffi::host_memory();
        return Ok(MemoryStats { current_bytes: current as u64, peak_bytes: peak as u64, reserved_bytes: None });
    };
    let (current, peak, reserved) = ffi::memory(index as i32)?;
    Ok(MemoryStats { current_bytes: current as u64, peak_bytes: peak as u64, reserved_bytes: Some(reserved as u64) })
}

/// Starts a new peak, from what is allocated now.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) for an accelerator that is not there.
pub fn reset_peak(device: Device) -> Result<()> {
    match device {
        Device::Cuda(index) => ffi::reset_peak(index as i32),
        _ => {
            ffi::reset_host_peak();
            Ok(())
        }
    }
}

/// Returns the most memory that this process has held, in bytes: the allocator's peak on a device, the resident set's
/// on the host, 0 where the system does not say.
pub fn peak_bytes(device: Device) -> u64 {
    match device {
        Device::Cuda(_) => memory(device).map_or(0, |stats| stats.peak_bytes),
        _ => resident_peak().unwrap_or(0),
    }
}

/// Returns the bytes that this process could still take, or `None` where the system does not say. On a device these are
/// free, or idle in this process's allocator; what other processes do next is not known.
pub fn free_bytes(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => free_host_bytes(),
        Device::Cuda(index) => ffi::free_memory(index as i32).ok().map(|(free, idle)| (free + idle) as u64),
        _ => None,
    }
}

fn free_host_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let line = |text: String| text.lines().find_map(|line| line.strip_prefix("MemAvailable:").map(str::to_string));
    let kib: u64 = line(read("/proc/meminfo")?)?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    // A container may have less than the machine, and sees its own limit at the root.
    let limit = number("/sys/fs/cgroup/memory.max");
    // What files have cached there counts as used, and makes room when asked.
    let statistics = read("/sys/fs/cgroup/memory.stat").unwrap_or_default();
    let cached = statistics.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    let used = number("/sys/fs/cgroup/memory.current").map(|used| used.saturating_sub(cached.unwrap_or(0)));
    let left = limit.zip(used).map(|(limit, used)| limit.saturating_sub(used));
    Some(left.map_or(kib * 1024, |left| left.min(kib * 1024)))
}

/// Reads the resident set's peak from the kernel.
fn resident_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Returns the state of libtorch's own generator on the host, or on the accelerator.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where there is no accelerator.
pub fn generator_state(on_accelerator: bool) -> Result<crate::Tensor> {
    ffi::generator_state(on_accelerator)
}

/// Puts a state of [`generator_state`] back.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where there is no accelerator, or the state is not one.
pub fn set_generator_state(on_accelerator: bool, state: &crate::Tensor) -> Result<()> {
    ffi::set_generator_state(on_accelerator, state)
}

/// Says whether libtorch sees an accelerator.
pub fn has_accelerator() -> bool {
    cuda_library().is_ok() && ffi::has_accelerator()
}
