//! Attention by exchange: each rank gives away its positions of most heads for all positions of a few, attends, and takes
//! its positions back.
//!
//! # Source
//! Jacobs et al. 2023, arXiv:2309.14509, §3.

use std::ops::Range;
use std::sync::Arc;

use mp_comm::Communicator;
use mp_runtime::{autograd, Tensor};

use crate::layers::attention::repeat;
use crate::{collective, Result};

/// Attends with `core`, which gets queries, keys and values of whole sequences, `[b, s, h / cp, k]`, in natural order,
/// and which of this tensor rank's query heads they are.
///
/// # Shapes
/// - `q`: `[b, s / cp, h, k]`; `k`, `v`: `[b, s / cp, kv, k]`
/// - returns `[b, s / cp, h, k]`
///
/// # Communication
/// Forward and backward: an all-to-all of queries, keys and values, `b·(s/cp)·(h + 2·max(kv, cp))·k` elements, and one of
/// the result, `b·(s/cp)·h·k`.
pub(super) fn attend(
    comm: &Arc<dyn Communicator>,
    [q, k, v]: [&Tensor; 3],
    core: impl FnOnce([&Tensor; 3], Range<usize>) -> Result<Tensor>,
) -> Result<Tensor> {
    let cp = comm.size() as i64;
    // Fewer key/value heads than ranks: several ranks hold the same.
    let copies = (cp / k.size()[2]).max(1);
    let (k, v) = (repeat(k, copies)?, repeat(v, copies)?);
    let (h, kv) = (q.size()[2] / cp, k.size()[2] / cp);
    let dealt = |x: &Tensor, heads: i64| {
        let size = x.size();
        x.f_view([size[0], size[1], cp, heads, size[3]])
    };
    let fused = Tensor::f_cat(
        &[dealt(&q.f_contiguous()?, h)?, dealt(&k.f_contiguous()?, kv)?, dealt(&v.f_contiguous()?, kv)?],
        3,
    )?;
    let parts = exchange(comm, &fused, Way::ToHeads)?.f_split_with_sizes([h, kv, kv].as_slice(), 2)?;
    let first = comm.rank().0 * h as usize;
    let y = core([&parts[0], &parts[1], &parts[2]], first..first + h as usize)?;
    let (b, s, k) = (q.size()[0], q.size()[1], q.size()[3]);
    Ok(exchange(comm, &y, Way::ToPositions)?.f_reshape([b, s, cp * h, k])?)
}

/// What is given for what.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// `[b, s / cp, cp, h, k]` to `[b, s, h, k]`.
    ToHeads,
    /// `[b, s, h, k]` to `[b, s / cp, cp, h, k]`.
    ToPositions,
}

/// Exchanges, in the graph: a permutation over all ranks, so that the gradient goes the other way.
fn exchange(comm: &Arc<dyn Communicator>, x: &Tensor, way: Way) -> Result<Tensor> {
    let one_way = |comm: &dyn Communicator, x: &Tensor, way: Way| match way {
        Way::ToHeads => to_heads(comm, x),
        Way::ToPositions => to_positions(comm, x),
    };
    let y = {
        let _off = autograd::no_grad();
        one_way(&**comm, x, way)?
    };
    let comm = Arc::clone(comm);
    autograd::attach(&[x], &[y.shallow_clone()], move |gradients| {
        let Some(dy) = &gradients[0] else { return Ok(vec![None]) };
        let back = match way {
            Way::ToHeads => Way::ToPositions,
            Way::ToPositions => Way::ToHeads,
        };
        Ok(vec![Some(one_way(&*comm, dy, back)?)])
    })?;
    Ok(y)
}

fn to_heads(comm: &dyn Communicator, x: &Tensor) -> Result<Tensor> {
    let [b, s, cp, h, k] = x.size()[..] else { unreachable!("five dims, as `exchange` says") };
    let ranks = collective::all_to_all(comm, &x.f_movedim_int(2, 0)?)?.f_view([cp, b, 2, s / 2, h, k])?;
    // Rank r holds pieces r and 2·cp − 1 − r: the first ones rise with the rank, the second ones fall.
    let (rising, falling) = (ranks.f_select(2, 0)?, ranks.f_select(2, 1)?.f_flip([0i64])?);
    let pieces = Tensor::f_cat(&[rising, falling], 0)?;
    Ok(pieces.f_movedim_int(0, 1)?.f_reshape([b, cp * s, h, k])?)
}

fn to_positions(comm: &dyn Communicator, x: &Tensor) -> Result<Tensor> {
    let [b, s, h, k] = x.size()[..] else { unreachable!("four dims, as `exchange` says") };
    let cp = comm.size() as i64;
    let pieces = x.f_reshape([b, 2 * cp, s / (2 * cp), h, k])?.f_movedim_int(1, 0)?;
    let (rising, falling) = (pieces.f_narrow(0, 0, cp)?, pieces.f_narrow(0, cp, cp)?.f_flip([0i64])?);
    let ranks = Tensor::f_stack(&[rising, falling], 2)?.f_view([cp, b, s / cp, h, k])?;
    Ok(collective::all_to_all(comm, &ranks)?.f_movedim_int(0, 2)?.f_contiguous()?)
}
