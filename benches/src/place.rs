//! Where a bench computes, and what carries its tensors between ranks.

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ValueEnum;
use mp_comm::staged::Staged;
use mp_comm::Communicator;
use mp_model::accelerator::Cuda;
use mp_runtime::device::Numerics;
use mp_runtime::{device, Device};

/// The devices that benches know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    /// The host.
    Cpu,
    /// A CUDA device.
    Cuda,
}

/// Returns this rank's CUDA device, which several ranks may share.
///
/// # Errors
/// Where there is none, with the reason.
pub fn cuda(world: &dyn Communicator) -> Result<usize> {
    let why = || format!("no CUDA device ({})", device::cuda_absence().unwrap_or("libtorch finds none"));
    let index = device::of_local_rank(world.local_rank().0, device::cuda_devices()).with_context(why)?;
    device::select(index)?;
    // Products of single precision as on the host, and the fastest kernels.
    device::set_numerics(Numerics { deterministic: false, tf32: false })?;
    Ok(index)
}

/// Returns the device of a name, and the communicator for tensors there: the world's own on the host, through page-locked
/// memory on a CUDA device.
///
/// # Errors
/// Where there is no such device.
pub fn find(name: DeviceName, world: Arc<dyn Communicator>) -> Result<(Device, Arc<dyn Communicator>)> {
    match name {
        DeviceName::Cpu => Ok((Device::Cpu, world)),
        DeviceName::Cuda => {
            let index = cuda(&*world)?;
            let staged = Staged::new(world, Arc::new(Cuda::new(index)))?;
            Ok((Device::Cuda(index), Arc::new(staged)))
        }
    }
}
