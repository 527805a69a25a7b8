//! Initial values: each element drawn by its index in the full tensor, so that every layout starts from the same model.

use std::ops::Range;

use mp_plan::{Init, PartitionedParameter};
use mp_runtime::rng::{self, Stream};
use mp_runtime::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Draws a rank's shard of a parameter, padding zero.
///
/// # Shapes
/// - returns the local shape, in double precision
pub(crate) fn shard(parameter: &PartitionedParameter, tp_rank: usize, seed: u64) -> Result<Tensor> {
    let shape: Vec<i64> = parameter.local_shape().iter().map(|&n| n as i64).collect();
    let kind = (Kind::Double, Device::Cpu);
    // Draws the elements with these indices, and what they are multiplied by.
    let (draw, scale): (Draw, f64) = match parameter.spec.init {
        Init::Zeros => return Ok(Tensor::f_zeros(&shape[..], kind)?),
        Init::Ones => return Ok(Tensor::f_ones(&shape[..], kind)?),
        Init::Normal { std } => (Stream::normals, std),
        Init::Uniform { bound } => (uniform, bound),
        other => return Err(Error::Unbuilt(format!("initial values {other:?}"))),
    };
    let name = parameter.spec.name.clone();
    #[cfg(feature = "faults")]
    let name = crate::faults::slice(parameter, name);
    let stream = Stream::new(seed, &name, 0);
    let full = &parameter.spec.shape;
    let (dim, range) = parameter.range(tp_rank).unwrap_or((0, 0..full[0]));
    let made = Tensor::f_zeros(&shape[..], kind)?;
    let width: usize = full[1..].iter().product();
    if dim == 0 {
        // Whole rows: one run of the full tensor.
        let values = draw(&stream, (range.start * width) as u64..(range.end * width) as u64);
        let rows = made.f_narrow(0, 0, range.len() as i64)?;
        rows.f_view([-1])?.f_copy_(&Tensor::f_from_slice(&values)?)?;
    } else {
        let mut values = Vec::with_capacity(full[0] * range.len());
        for row in 0..full[0] {
            let start = (row * width) as u64;
            values.extend(draw(&stream, start + range.start as u64..start + range.end as u64));
        }
        made.f_narrow(1, 0, range.len() as i64)?
            .f_copy_(&Tensor::f_from_slice(&values)?.f_view([full[0] as i64, range.len() as i64])?)?;
    }
    let _ = made.shallow_clone().f_mul_scalar_(scale)?;
    Ok(made)
}

/// Draws the elements with some indices.
type Draw = fn(&Stream, Range<u64>) -> Vec<f64>;

/// Draws values between −1 and 1.
fn uniform(stream: &Stream, range: Range<u64>) -> Vec<f64> {
    let mut words = vec![0; (range.end - range.start) as usize];
    stream.words(range.start, &mut words);
    words.into_iter().map(|word| 2.0 * rng::unit(word) - 1.0).collect()
}
