//! Models on rank-threads, as the tests of this folder make them.
#![allow(dead_code, reason = "each test of this folder compiles this module anew and uses its part of it")]

pub mod cut;

use std::sync::Arc;

use mp_comm::Communicator;
use mp_model::gradient::Completion;
use mp_model::regions::{Between, TensorGroup};
use mp_model::{build, Model, Options, Parameters};
use mp_plan::{Architecture, Degrees, Mesh, Partition};
use mp_runtime::rng::Stream;
use mp_runtime::{Device, Precision, Tensor};

/// One rank's model with what completes its gradients.
pub struct Rank {
    pub model: Model,
    pub completion: Completion,
    pub group: TensorGroup,
}

pub fn partition(architecture: &Architecture, tp: usize) -> Arc<Partition> {
    let mesh = Mesh::new(Degrees { tp, ..Degrees::default() }).unwrap();
    Arc::new(Partition::new(architecture, &mesh).unwrap())
}

/// All layers as one stage.
pub fn layers(architecture: &Architecture) -> [std::ops::Range<usize>; 1] {
    std::array::from_fn(|_| 0..architecture.layers)
}

pub fn rank(
    partition: &Arc<Partition>,
    comm: Arc<dyn Communicator>,
    between: Between,
    precision: Precision,
) -> mp_model::Result<Rank> {
    let group = TensorGroup { comm, between };
    let parameters = Parameters::new(partition, group.comm.rank().0, 7, precision, Device::Cpu)?;
    let completion = Completion::new(&parameters, &group)?;
    Ok(Rank {
        model: build(parameters, group.clone(), &layers(&partition.architecture), &Options::default())?,
        completion,
        group,
    })
}

/// Standard normal values, the same on every rank.
pub fn random(shape: &[i64], name: &str) -> Tensor {
    let count = shape.iter().product::<i64>() as u64;
    Tensor::from_slice(&Stream::new(9, name, 0).normals(0..count)).view(shape)
}

/// Takes this rank's part of a tensor along `dim`.
pub fn own_part(comm: &dyn Communicator, full: &Tensor, dim: i64) -> Tensor {
    let (length, parts) = (full.size()[dim as usize], comm.size() as i64);
    assert_eq!(length % parts, 0);
    full.narrow(dim, comm.rank().0 as i64 * (length / parts), length / parts)
}

/// Copies this rank's part of an activation between a tensor group's regions.
pub fn shard_between(group: &TensorGroup, full: &Tensor) -> Tensor {
    match group.between {
        Between::Replicated => full.copy(),
        Between::SequenceSharded => own_part(&*group.comm, full, 1).copy(),
    }
}

/// The largest difference of two tensors' elements.
pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    if a.numel() == 0 {
        return 0.0;
    }
    let kind = mp_runtime::Kind::Double;
    (a.to_kind(kind) - b.to_kind(kind)).abs().max().double_value(&[])
}
