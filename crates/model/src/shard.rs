//! From full tensors to a rank's shards, and back.

use mp_comm::{Communicator, ReduceOp};
use mp_plan::{PartitionedParameter, Zero};
use mp_runtime::flat::Flat;
use mp_runtime::Tensor;

use crate::parameter::put;
use crate::{collective, Error, Parameters, Result};

/// Gives a parameter the values of a full tensor, whatever of it this rank keeps.
///
/// # Shapes
/// - `full`: the parameter's full shape
///
/// # Errors
/// [`Error::Shape`] if it is another.
pub fn load(parameters: &Parameters, index: usize, full: &Tensor) -> Result<()> {
    parameters.load(index, &shard(parameters, index, full)?)
}

/// Copies this rank's part of a full tensor into its place in a flat buffer of the optimizer's state.
///
/// # Shapes
/// - `full`: the parameter's full shape
///
/// # Errors
/// [`Error::Shape`] if it is another.
pub fn scatter(parameters: &Parameters, index: usize, full: &Tensor, into: &Flat) -> Result<()> {
    put(into, index, &shard(parameters, index, full)?)
}

/// Cuts this tensor rank's shard out of a full tensor, padding zero.
fn shard(parameters: &Parameters, index: usize, full: &Tensor) -> Result<Tensor> {
    let parameter = &parameters.partition().parameters[index];
    let expected: Vec<i64> = parameter.spec.shape.iter().map(|&n| n as i64).collect();
    if full.size() != expected {
        let what = format!("parameter `{}`", parameter.spec.name);
        return Err(Error::Shape { what, shape: full.size(), expected: format!("{expected:?}") });
    }
    let Some((dim, range)) = parameter.range(parameters.tp_rank()) else { return Ok(full.shallow_clone()) };
    let (dim, length) = (dim as i64, range.len() as i64);
    let shape: Vec<i64> = parameter.local_shape().iter().map(|&n| n as i64).collect();
    let shard = Tensor::f_zeros(&shape[..], (full.kind(), full.device()))?;
    shard.f_narrow(dim, 0, length)?.f_copy_(&full.f_narrow(dim, range.start as i64, length)?)?;
    Ok(shard)
}

/// Joins one parameter from the flat buffers of all ranks that hold parts of it; every rank of the tensor and of the
/// data group gets it.
///
/// # Shapes
/// - returns the parameter's full shape, without padding
///
/// # Communication
/// Where the data ranks share out, one all-reduce of the shard over them; one all-gather of it over the tensor group.
///
/// # Errors
/// [`Error::Comm`] if it fails.
pub fn gather(parameters: &Parameters, index: usize, from: &Flat, group: &dyn Communicator) -> Result<Tensor> {
    let parameter = &parameters.partition().parameters[index];
    let shard = whole_shard(parameters, index, from)?;
    if parameter.range(0).is_none() {
        return Ok(shard.f_detach()?);
    }
    let all = collective::all_gather(group, &shard.f_unsqueeze(0)?, 0)?;
    joined(parameter, &all)
}

/// Puts a tensor rank's shard together from what the data ranks own of it.
fn whole_shard(parameters: &Parameters, index: usize, from: &Flat) -> Result<Tensor> {
    if parameters.sharing().zero == Zero::Replicated {
        return Ok(from.view(index)?);
    }
    let (range, shape) = (from.layout().range(index), from.layout().shape(index));
    let mut elements = Tensor::f_zeros([range.len() as i64], (from.all().kind(), from.all().device()))?;
    for piece in parameters.owned_of(range.clone()) {
        let place = elements.f_narrow(0, (piece.start - range.start) as i64, piece.len() as i64)?;
        place.shallow_clone().f_copy_(&from.range(piece)?)?;
    }
    // All others hold zeros where one owns: the sum is exact.
    collective::all_reduce(&*parameters.sharing().data, &mut elements, ReduceOp::Sum)?;
    Ok(elements.f_view(shape)?)
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
