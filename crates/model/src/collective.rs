//! Collectives over tensors, of the host or of a device.

use mp_comm::{Communicator, Rank, ReduceOp, Request, Tag};
use mp_runtime::Tensor;

use crate::buffers::{lend, Received, Sent};
use crate::{Error, Result};

/// A tensor whose value is on its way.
#[derive(Debug)]
#[must_use = "the value is complete when it is waited for"]
pub struct Arriving {
    request: Request,
    tensor: Tensor,
    /// The dim along which a gathered value is still to be joined, with the number of parts.
    join: Option<(i64, i64)>,
}

impl Arriving {
    /// Says whether the value is there, and moves the operation forward.
    ///
    /// # Errors
    /// [`Error::Comm`] if the operation failed.
    pub fn is_complete(&mut self) -> Result<bool> {
        Ok(self.request.is_complete()?)
    }

    /// Waits for the value.
    ///
    /// # Errors
    /// [`Error::Comm`] if the operation failed.
    pub fn wait(self) -> Result<Tensor> {
        let _span = tracing::trace_span!("wait").entered();
        drop(self.request.wait()?);
        match self.join {
            Some((dim, parts)) => join(&self.tensor, dim, parts),
            None => Ok(self.tensor),
        }
    }
}

/// Marks a collective for whoever listens: the group and how many bytes this rank hands over.
fn span(call: &'static str, group: &dyn Communicator, tensor: &Tensor) -> tracing::span::EnteredSpan {
    let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    tracing::trace_span!("collective", call, group = group.name(), bytes).entered()
}

/// Reduces a contiguous tensor in place over a group.
///
/// # Errors
/// [`Error::Comm`] if the operation failed, [`Error::Runtime`] if the tensor is not contiguous.
pub fn all_reduce(group: &dyn Communicator, tensor: &mut Tensor, op: ReduceOp) -> Result<()> {
    let _span = span("all_reduce", group, tensor);
    Ok(group.all_reduce(Received::new(tensor)?.buffer()?, op)?)
}

/// Starts reducing a contiguous tensor in place; it must not be touched before the result is waited for.
///
/// # Errors
/// As [`all_reduce`].
pub fn start_all_reduce(group: &dyn Communicator, tensor: Tensor, op: ReduceOp) -> Result<Arriving> {
    let _span = span("start_all_reduce", group, &tensor);
    Ok(Arriving { request: group.start_all_reduce(lend(&tensor)?, op)?, tensor, join: None })
}

/// Starts joining every rank's tensor along `dim`, in rank order.
///
/// # Errors
/// As [`all_reduce`].
pub fn start_all_gather(group: &dyn Communicator, shard: &Tensor, dim: i64) -> Result<Arriving> {
    let _span = span("start_all_gather", group, shard);
    let parts = group.size() as i64;
    let shard = shard.f_contiguous()?;
    let mut shape = shard.size();
    shape.insert(0, parts);
    let tensor = Tensor::f_empty(&shape[..], (shard.kind(), shard.device()))?;
    let request = group.start_all_gather(lend(&shard)?, lend(&tensor)?)?;
    Ok(Arriving { request, tensor, join: Some((dim, parts)) })
}

/// Starts sending a contiguous tensor, which must not change before it is waited for.
///
/// # Errors
/// As [`all_reduce`].
pub fn start_send(group: &dyn Communicator, tensor: &Tensor, to: Rank, tag: Tag) -> Result<Arriving> {
    let _span = span("start_send", group, tensor);
    let request = group.start_send(lend(tensor)?, to, tag)?;
    Ok(Arriving { request, tensor: tensor.shallow_clone(), join: None })
}

/// Starts receiving into a contiguous tensor, not to be touched before it is waited for.
///
/// # Errors
/// As [`all_reduce`].
pub fn start_receive(group: &dyn Communicator, into: Tensor, from: Rank, tag: Tag) -> Result<Arriving> {
    let _span = span("start_receive", group, &into);
    let request = group.start_receive(lend(&into)?, from, tag)?;
    Ok(Arriving { request, tensor: into, join: None })
}

/// Starts sending a contiguous tensor to one rank and receiving into one from another rank; the value is the received one.
///
/// All ranks of the group start it, in the same order among its collectives. Until it is waited for, the tensor that is sent
/// must not change, and the other not be touched.
///
/// # Errors
/// As [`all_reduce`].
pub fn start_send_receive(
    group: &dyn Communicator,
    tensor: &Tensor,
    to: Rank,
    into: Tensor,
    from: Rank,
    tag: Tag,
) -> Result<Arriving> {
    let _span = span("start_send_receive", group, tensor);
    let request = group.start_send_receive(lend(tensor)?, to, lend(&into)?, from, tag)?;
    Ok(Arriving { request, tensor: into, join: None })
}

/// Starts joining every rank's elements in `whole`, in rank order.
///
/// # Shapes
/// - `shard`: `[n]`
/// - `whole`: `[size · n]`, not to be touched before it is waited for
///
/// # Errors
/// As [`all_reduce`].
pub fn start_all_gather_into(group: &dyn Communicator, shard: &Tensor, whole: Tensor) -> Result<Arriving> {
    let _span = span("start_all_gather", group, shard);
    let request = group.start_all_gather(lend(shard)?, lend(&whole)?)?;
    Ok(Arriving { request, tensor: whole, join: None })
}

/// Joins every rank's tensor along `dim`, in rank order.
///
/// # Errors
/// As [`all_reduce`].
pub fn all_gather(group: &dyn Communicator, shard: &Tensor, dim: i64) -> Result<Tensor> {
    let _span = span("all_gather", group, shard);
    let parts = group.size() as i64;
    let shard = shard.f_contiguous()?;
    let mut shape = shard.size();
    shape.insert(0, parts);
    let mut gathered = Tensor::f_empty(&shape[..], (shard.kind(), shard.device()))?;
    group.all_gather(Sent::new(&shard)?.buffer()?, Received::new(&mut gathered)?.buffer()?)?;
    join(&gathered, dim, parts)
}

/// Starts summing over a group and keeping this rank's part along `dim`.
///
/// # Errors
/// As [`all_reduce`], and [`Error::Shape`] if the dim does not divide.
pub fn start_reduce_scatter(group: &dyn Communicator, full: &Tensor, dim: i64) -> Result<Arriving> {
    let _span = span("start_reduce_scatter", group, full);
    let (send, tensor) = scattered(group, full, dim)?;
    let request = group.start_reduce_scatter(lend(&send)?, lend(&tensor)?, ReduceOp::Sum)?;
    Ok(Arriving { request, tensor, join: None })
}

/// Sums over a group and keeps this rank's part along `dim`.
///
/// # Errors
/// As [`start_reduce_scatter`].
pub fn reduce_scatter(group: &dyn Communicator, full: &Tensor, dim: i64) -> Result<Tensor> {
    let _span = span("reduce_scatter", group, full);
    let (send, mut tensor) = scattered(group, full, dim)?;
    group.reduce_scatter(Sent::new(&send)?.buffer()?, Received::new(&mut tensor)?.buffer()?, ReduceOp::Sum)?;
    Ok(tensor)
}

/// Sends the `i`-th entry of dim 0 to rank `i`, and returns what every rank sent here, in rank order.
///
/// # Shapes
/// - `parts`: `[size, …]`
/// - returns the same, contiguous
///
/// # Errors
/// As [`all_reduce`].
pub fn all_to_all(group: &dyn Communicator, parts: &Tensor) -> Result<Tensor> {
    let _span = span("all_to_all", group, parts);
    let parts = parts.f_contiguous()?;
    let mut received = Tensor::f_empty(parts.size(), (parts.kind(), parts.device()))?;
    group.all_to_all(Sent::new(&parts)?.buffer()?, Received::new(&mut received)?.buffer()?)?;
    Ok(received)
}

/// Turns `[parts, …]` into one tensor joined along `dim` of the rest.
fn join(gathered: &Tensor, dim: i64, parts: i64) -> Result<Tensor> {
    let mut shape = gathered.size()[1..].to_vec();
    shape[dim as usize] *= parts;
    Ok(gathered.f_movedim_int(0, dim)?.f_reshape(&shape[..])?)
}

/// Brings a tensor in the order of the ranks that its parts go to, and makes room for this rank's part.
fn scattered(group: &dyn Communicator, full: &Tensor, dim: i64) -> Result<(Tensor, Tensor)> {
    let length = part_length(group, full, dim)?;
    let mut shape = full.size();
    shape[dim as usize] = length;
    let tensor = Tensor::f_empty(&shape[..], (full.kind(), full.device()))?;
    let mut cut = full.size();
    cut[dim as usize] = group.size() as i64;
    cut.insert(dim as usize + 1, length);
    let send = full.f_reshape(&cut[..])?.f_movedim_int(dim, 0)?.f_contiguous()?;
    Ok((send, tensor))
}

fn part_length(group: &dyn Communicator, full: &Tensor, dim: i64) -> Result<i64> {
    let (length, parts) = (full.size()[dim as usize], group.size() as i64);
    if length % parts != 0 {
        let expected = format!("a multiple of {parts} along dim {dim}");
        return Err(Error::Shape {
            what: format!("a tensor to cut over {}", group.name()),
            shape: full.size(),
            expected,
        });
    }
    Ok(length / parts)
}
