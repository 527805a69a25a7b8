//! From full tensors to a rank's shards, and back.

use mp_comm::Communicator;
use mp_plan::PartitionedParameter;
use mp_runtime::flat::Flat;
use mp_runtime::Tensor;

use crate::{collective, Error, Parameters, Result};

/// Copies this rank's part of a full tensor into its place in a flat buffer; padding is left as it is.
///
/// # Shapes
/// - `full`: the parameter's full shape
///
/// # Errors
/// [`Error::Shape`] if it is another.
pub fn scatter(parameters: &Parameters, index: usize, full: &Tensor, into: &Flat) -> Result<()> {
    let parameter = &parameters.partition().parameters[index];
    let expected: Vec<i64> = parameter.spec.shape.iter().map(|&n| n as i64).collect();
    if full.size() != expected {
        let what = format!("parameter `{}`", parameter.spec.name);
        return Err(Error::Shape { what, shape: full.size(), expected: format!("{expected:?}") });
    }
    let (dim, range) = parameter.range(parameters.tp_rank()).unwrap_or((0, 0..parameter.spec.shape[0]));
    let (dim, length) = (dim as i64, range.len() as i64);
    let own = full.f_narrow(dim, range.start as i64, length)?;
    into.view(index)?.f_narrow(dim, 0, length)?.f_copy_(&own)?;
    Ok(())
}

/// Joins the shards of one parameter from a flat buffer, on every rank of the tensor group.
///
/// # Shapes
/// - returns the parameter's full shape, without padding
///
/// # Communication
/// One all-gather of the shard.
///
/// # Errors
/// [`Error::Comm`] if it fails.
pub fn gather(parameters: &Parameters, index: usize, from: &Flat, group: &dyn Communicator) -> Result<Tensor> {
    let parameter = &parameters.partition().parameters[index];
    let shard = from.view(index)?;
    if parameter.range(0).is_none() {
        return Ok(shard.f_detach()?);
    }
    let all = collective::all_gather(group, &shard.f_unsqueeze(0)?, 0)?;
    joined(parameter, &all)
}

/// Takes each element once out of `[tp, …local]`.
fn joined(parameter: &PartitionedParameter, all: &Tensor) -> Result<Tensor> {
    let mut dim = 0;
    let mut parts = Vec::new();
    for rank in (0..all.size()[0] as usize).step_by(parameter.replicas()) {
        let Some((cut, range)) = parameter.range(rank) else { continue };
        dim = cut as i64;
        parts.push(all.f_select(0, rank as i64)?.f_narrow(dim, 0, range.len() as i64)?);
    }
    Ok(Tensor::f_cat(&parts, dim)?)
}
