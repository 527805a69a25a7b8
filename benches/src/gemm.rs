//! The machine's own ceiling: the best rate of a matrix product that a rank reaches while its peers do the same.

use std::time::Instant;

use mp_comm::Communicator;
use mp_runtime::{device, Device, Kind, Tensor};

/// Side of the square matrices: beyond every cache, and enough work to hide the start.
fn side(device: Device) -> i64 {
    match device {
        Device::Cuda(_) => 8192,
        _ => 1536,
    }
}

/// Products that are timed; the best counts.
const TRIES: usize = 8;

/// Measures FLOP/s of one rank, all ranks of `world` at once.
///
/// # Errors
/// What libtorch or the barrier raise.
pub fn peak(world: &dyn Communicator, kind: Kind, device: Device) -> anyhow::Result<f64> {
    let side = side(device);
    let matrix = || Tensor::f_randn([side, side], (Kind::Float, device))?.f_to_kind(kind);
    let (a, b) = (matrix()?, matrix()?);
    let flop = 2.0 * (side as f64).powi(3);
    let mut best = 0.0f64;
    for _ in 0..TRIES {
        device::synchronize(device)?;
        world.barrier()?;
        let begun = Instant::now();
        let _product = a.f_matmul(&b)?;
        device::synchronize(device)?;
        best = best.max(flop / begun.elapsed().as_secs_f64());
    }
    Ok(best)
}
