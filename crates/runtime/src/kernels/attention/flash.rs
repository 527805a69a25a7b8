//! libtorch's flash attention on a CUDA device, with the logarithm that blocks are merged by.
//!
//! # Source
//! Dao 2023, arXiv:2307.08691.

use std::sync::OnceLock;

use crate::kernels::attention::{Attended, Gradients};
use crate::{ffi, Device, Kind, Result, Tensor};

/// Says whether the device runs the kernel: tried once, with one small block each way. What this process's first device
/// answers holds for all.
///
/// # Errors
/// [`Error::DeviceOutOfMemory`](crate::Error::DeviceOutOfMemory) where there was no room to try.
pub(super) fn runs(device: Device) -> Result<bool> {
    static RUNS: OnceLock<bool> = OnceLock::new();
    if let Some(runs) = RUNS.get() {
        return Ok(*runs);
    }
    let runs = match tried(device) {
        Ok(serves) => serves,
        Err(error) if error.is_out_of_memory() => return Err(error),
        // An older device, or a library built without it.
        Err(_) => false,
    };
    Ok(*RUNS.get_or_init(|| runs))
}

/// Attends from queries to keys that are all alike, and looks at what comes back.
fn tried(device: Device) -> Result<bool> {
    let block = Tensor::f_zeros([1, 1, 8, 8], (Kind::BFloat16, device))?;
    let (_, log_sum) = ffi::flash_forward([&block; 3], false)?;
    let _ = ffi::flash_backward(&block, [&block; 3], &block, &log_sum, false)?;
    // The backward reads one row after the other: what is merged must be laid out so.
    Ok(log_sum.size() == [1, 1, 8] && log_sum.kind() == Kind::Float)
}

/// [`super::forward`] of all keys, or of those up to the query's own.
pub(super) fn forward(inputs: [&Tensor; 3], causal: bool) -> Result<Attended> {
    let (y_bhsk, log_sum_bhs) = ffi::flash_forward(inputs, causal)?;
    Ok(Attended { y_bhsk, log_sum_bhs })
}

/// [`super::backward`] of the same, from a result that may be merged from several blocks, in any kind.
pub(super) fn backward(dy: &Tensor, inputs: [&Tensor; 3], attended: &Attended, causal: bool) -> Result<Gradients> {
    let kind = inputs[0].kind();
    let (dy, y_bhsk) = (dy.f_to_kind(kind)?, attended.y_bhsk.f_to_kind(kind)?);
    let log_sum_bhs = attended.log_sum_bhs.f_to_kind(Kind::Float)?.f_contiguous()?;
    let [dq_bhsk, dk_bhtk, dv_bhtk] = ffi::flash_backward(&dy, inputs, &y_bhsk, &log_sum_bhs, causal)?;
    Ok(Gradients { dq_bhsk, dk_bhtk, dv_bhtk })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// What a device computes is for a machine with one; here the call is refused in libtorch's words and leaves nothing.
    #[test]
    fn the_host_has_no_flash_kernel() {
        let block = Tensor::f_zeros([1, 1, 8, 8], (Kind::BFloat16, Device::Cpu)).unwrap();
        let error = forward([&block; 3], true).unwrap_err();
        assert!(matches!(&error, Error::Torch(words) if words.contains("'CPU' backend")), "{error}");
        let log_sum_bhs = Tensor::f_zeros([1, 1, 8], (Kind::Float, Device::Cpu)).unwrap();
        let attended = Attended { y_bhsk: block.shallow_clone(), log_sum_bhs };
        assert!(backward(&block, [&block; 3], &attended, true).is_err());
    }
}
