//! The machine's own ceiling: the best rate of a matrix product that a rank reaches while its peers do the same.

use std::time::Instant;

use mp_comm::Communicator;
use mp_runtime::{Device, Kind, Tensor};

/// Side of the square matrices: beyond every cache, and enough work to hide the start.
const SIDE: i64 = 1536;
/// Products that are timed; the best counts.
const TRIES: usize = 8;

/// Measures FLOP/s of one rank, all ranks of `world` at once.
///
/// # Errors
/// What libtorch or the barrier raise.
pub fn peak(world: &dyn Communicator, kind: Kind) -> anyhow::Result<f64> {
    let matrix = || Tensor::f_randn([SIDE, SIDE], (Kind::Float, Device::Cpu))?.f_to_kind(kind);
    let (a, b) = (matrix()?, matrix()?);
    let flop = 2.0 * (SIDE as f64).powi(3);
    let mut best = 0.0f64;
    for _ in 0..TRIES {
        world.barrier()?;
        let begun = Instant::now();
        let _product = a.f_matmul(&b)?;
        best = best.max(flop / begun.elapsed().as_secs_f64());
    }
    Ok(best)
}
