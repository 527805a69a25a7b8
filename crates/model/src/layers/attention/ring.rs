//! Ring attention: every rank keeps its queries, and keys and values go once around the context group, each block being
//! attended to while the next is on its way.
//!
//! The block that a rank holds after `n` hops is that of rank `r − n`. Under a causal mask, of an earlier rank's two pieces
//! all queries see the first and none the second; a later rank's pieces are both seen by the second half of the queries and
//! by no others. So every block but the own is half a rank's queries times keys, without a mask. Where no query sees any key
//! of a block, as beyond a window, it only passes by.
//!
//! The backward keeps the own blocks and the merged result alone. Keys and values go around again, and behind them the
//! gradients of each block, collecting every rank's part on the way to its owner. At most two tensors of a rank are on their way
//! at a time: the gradients of a block, and the next keys and values.
//!
//! Every rank starts the same hops in the same order, whatever it computes between them, and also where it computes nothing.
//!
//! # Source
//! Liu et al. 2023, arXiv:2310.01889, §3 and algorithm 1.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use mp_comm::{Communicator, Rank, Tag};
use mp_runtime::kernels::attention::{self, Attended, Dropped, Mask};
use mp_runtime::{autograd, Tensor};

use crate::collective::{self, Arriving};
use crate::context;
use crate::layers::attention::mask::Visibility;
use crate::layers::attention::repeat;
use crate::layers::dropout::WeightDropout;
use crate::Result;

/// Tells keys and values from their gradients, which travel at the same time.
const BLOCKS: Tag = Tag(0);
const GRADIENTS: Tag = Tag(1);

/// The attention of one layer in one pass.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) comm: Arc<dyn Communicator>,
    /// Length of the full sequence.
    pub(super) seq: usize,
    pub(super) visibility: Visibility,
    pub(super) dropped: Option<WeightDropout>,
}

/// What a rank has to do with one rank's keys and values.
struct Block {
    queries: Range<i64>,
    keys: Range<i64>,
    mask: Mask,
    dropped: Option<Dropped>,
}

impl Ring {
    /// Attends from this rank's positions to all that they see.
    ///
    /// # Shapes
    /// - `q_bshk`: `[b, s / cp, h, k]`; `k_bshk`, `v_bshk`: `[b, s / cp, kv, k]`
    /// - returns `[b, s / cp, h, k]`
    ///
    /// # Communication
    /// Forward: `cp − 1` messages of `2·b·(s/cp)·kv·k` elements. Backward: as many again, and as many of the wide kind.
    pub(super) fn attend(self, q_bshk: &Tensor, k_bshk: &Tensor, v_bshk: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (q_bshk.f_detach()?, k_bshk.f_detach()?, v_bshk.f_detach()?);
        let (y, attended) = {
            let _off = autograd::no_grad();
            self.forward(&q.f_transpose(1, 2)?, Tensor::f_stack(&[&k, &v], 0)?)?
        };
        autograd::attach(&[q_bshk, k_bshk, v_bshk], &[y.shallow_clone()], move |gradients| {
            let Some(dy) = &gradients[0] else { return Ok(vec![None, None, None]) };
            let pair = Tensor::f_stack(&[&k, &v], 0)?;
            let (dq_bhsk, pair) = self.backward(&dy.f_contiguous()?, &q.f_transpose(1, 2)?, pair, &attended)?;
            let dq = dq_bhsk.f_to_kind(q.kind())?.f_transpose(1, 2)?;
            let pair = pair.f_to_kind(q.kind())?;
            Ok(vec![Some(dq), Some(pair.f_select(0, 0)?), Some(pair.f_select(0, 1)?)])
        })?;
        Ok(y.f_transpose(1, 2)?)
    }

    /// Returns the result, `[b, h, s, k]`, and what the backward keeps of it.
    fn forward(&self, q: &Tensor, mut pair: Tensor) -> Result<(Tensor, Attended)> {
        let (mut merged, heads) = (None::<Attended>, q.size()[1]);
        for hop in 0..self.comm.size() {
            let arriving = self.pass_on(hop, &pair)?;
            if let Some(block) = self.block(self.owner(hop), q)? {
                let own = q.f_narrow(2, block.queries.start, length(&block.queries))?;
                let [k, v] = seen(&pair, &block.keys, heads)?;
                let found = attention::forward(&own, &k, &v, &block.mask, block.dropped.as_ref())?;
                match &merged {
                    None => merged = Some(found.to_wide()?),
                    Some(all) => all.queries(block.queries.start, length(&block.queries))?.merge(&found)?,
                }
            }
            if let Some(next) = arriving {
                pair = next.wait()?;
            }
        }
        // The own block is the first, and of its keys each query sees at least its own.
        let Attended { y_bhsk, log_sum_bhs } = merged.expect("a group has a rank");
        let y = y_bhsk.f_to_kind(q.kind())?;
        let kept = Attended { y_bhsk: y.f_detach()?, log_sum_bhs };
        Ok((y, kept))
    }

    /// Returns the gradients of queries, `[b, h, s, k]`, and of keys and values, `[2, b, s, kv, k]`, in the wide kind.
    fn backward(&self, dy: &Tensor, q: &Tensor, mut pair: Tensor, attended: &Attended) -> Result<(Tensor, Tensor)> {
        let kind = attention::wide(q.kind());
        let dq = Tensor::f_zeros(q.size(), (kind, q.device()))?;
        let mut own = None::<Tensor>;
        let mut behind = None::<Arriving>;
        for hop in 0..self.comm.size() {
            let arriving = self.pass_on(hop, &pair)?;
            let collected = match self.block(self.owner(hop), q)? {
                Some(block) => self.block_backward(dy, q, &pair, attended, &block, &dq)?,
                None => Tensor::f_zeros(pair.size(), (kind, q.device()))?,
            };
            // What other ranks found for this block has travelled while this rank's part was computed.
            if let Some(others) = behind.take() {
                let _ = collected.shallow_clone().f_add_(&others.wait()?)?;
            }
            match own {
                None => own = Some(collected),
                Some(_) => behind = Some(self.shift(&collected, GRADIENTS)?),
            }
            if let Some(next) = arriving {
                pair = next.wait()?;
            }
        }
        let own = own.expect("a group has a rank");
        if let Some(others) = behind {
            let _ = own.shallow_clone().f_add_(&others.wait()?)?;
        }
        Ok((dq, own))
    }

    /// Adds one block's part to `dq`, and returns that of its keys and values.
    fn block_backward(
        &self,
        dy: &Tensor,
        q: &Tensor,
        pair: &Tensor,
        attended: &Attended,
        block: &Block,
        dq: &Tensor,
    ) -> Result<Tensor> {
        let (start, count) = (block.queries.start, length(&block.queries));
        let part = |x: &Tensor| x.f_narrow(2, start, count);
        let [k, v] = seen(pair, &block.keys, q.size()[1])?;
        let (dy, attended) = (part(dy)?, attended.queries(start, count)?);
        let found = attention::backward(&dy, [&part(q)?, &k, &v], &attended, &block.mask, block.dropped.as_ref())?;
        let _ = part(dq)?.f_add_(&found.dq_bhsk)?;
        let collected = Tensor::f_zeros(pair.size(), (dq.kind(), dq.device()))?;
        for (index, gradient) in [found.dk_bhtk, found.dv_bhtk].iter().enumerate() {
            let into = collected.f_select(0, index as i64)?.f_narrow(1, block.keys.start, length(&block.keys))?;
            into.shallow_clone().f_copy_(&shared(gradient, pair.size()[3], dq.kind())?)?;
        }
        Ok(collected)
    }

    /// Returns whose keys and values are here after some hops.
    fn owner(&self, hop: usize) -> usize {
        (self.comm.rank().0 + self.comm.size() - hop) % self.comm.size()
    }

    /// Says what there is to do with a rank's keys and values, if anything.
    fn block(&self, owner: usize, q: &Tensor) -> Result<Option<Block>> {
        let (rank, s) = (self.comm.rank().0, q.size()[2]);
        let (queries, keys) = match owner.cmp(&rank) {
            Ordering::Less if self.visibility.causal => (0..s, 0..s / 2),
            Ordering::Greater if self.visibility.causal => (s / 2..s, 0..s),
            _ => (0..s, 0..s),
        };
        let positions = |rank: usize, part: &Range<i64>| {
            let all = context::positions(self.seq, self.comm.size(), rank)?;
            Ok::<_, crate::Error>(all.part(part.start as usize..part.end as usize))
        };
        let (here, there) = (positions(rank, &queries)?, positions(owner, &keys)?);
        let Some(mask) = self.visibility.between(&here, &there, q.device())? else { return Ok(None) };
        let dropped = match &self.dropped {
            None => None,
            Some(dropout) => {
                let mask = dropout.mask(&here, &there, q)?;
                Some(Dropped { mask, probability: dropout.probability() })
            }
        };
        Ok(Some(Block { queries, keys, mask, dropped }))
    }

    /// Starts the next hop of keys and values, where one follows.
    fn pass_on(&self, hop: usize, pair: &Tensor) -> Result<Option<Arriving>> {
        match hop + 1 < self.comm.size() {
            true => self.shift(pair, BLOCKS).map(Some),
            false => Ok(None),
        }
    }

    /// Starts sending to the next rank and receiving from the one before.
    fn shift(&self, tensor: &Tensor, tag: Tag) -> Result<Arriving> {
        let (rank, size) = (self.comm.rank().0, self.comm.size());
        let (next, before) = (Rank((rank + 1) % size), Rank((rank + size - 1) % size));
        collective::start_send_receive(&*self.comm, tensor, next, tensor.f_empty_like()?, before, tag)
    }
}

fn length(range: &Range<i64>) -> i64 {
    range.end - range.start
}

/// Takes some keys and values out of `[2, b, s, kv, k]`, each head repeated for the queries that share it: `[b, h, t, k]`.
fn seen(pair: &Tensor, keys: &Range<i64>, heads: i64) -> Result<[Tensor; 2]> {
    let group = heads / pair.size()[3];
    let one = |index: i64| {
        let held = pair.f_select(0, index)?.f_narrow(1, keys.start, length(keys))?;
        Ok::<_, crate::Error>(repeat(&held, group)?.f_transpose(1, 2)?)
    };
    Ok([one(0)?, one(1)?])
}

/// Sums the gradients of the heads that share one: `[b, h, t, k]` to `[b, t, kv, k]`.
fn shared(gradient: &Tensor, kv: i64, kind: mp_runtime::Kind) -> Result<Tensor> {
    let size = gradient.size();
    let grouped = gradient.f_reshape([size[0], kv, size[1] / kv, size[2], size[3]])?;
    Ok(grouped.f_sum_dim_intlist([2i64].as_slice(), false, kind)?.f_transpose(1, 2)?)
}
