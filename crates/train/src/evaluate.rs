//! The mean loss over held-out text.

use mp_comm::{BufferMut, ReduceOp};
use mp_data::{Windows, IGNORED};
use mp_model::{Model, Pass};
use mp_runtime::autograd;

use crate::groups::Groups;
use crate::step::tensors;
use crate::Result;

/// Computes the mean loss over consecutive windows, in nats; the data ranks share the batches. Collective over the
/// world; every rank gets the mean.
///
/// `limit` is the number of batches of `batch` windows; 0 takes all.
///
/// # Errors
/// Whatever a layer or a collective raises.
pub fn evaluate(model: &Model, groups: &Groups, windows: &Windows, batch: usize, limit: usize) -> Result<f64> {
    let _span = tracing::info_span!("evaluate").entered();
    let _off = autograd::no_grad();
    let device = model.parameters().device();
    let mut sums = [0.0f64; 2];
    let own = windows.batches(batch, limit)?.skip(groups.dp.rank().0).step_by(groups.dp.size());
    for batch in own {
        let (tokens, targets) = tensors(&batch, device)?;
        sums[0] += model.loss_sum(&Pass::evaluation(&tokens), &targets)?.double_value(&[]);
        sums[1] += batch.targets.iter().filter(|&&target| target != IGNORED).count() as f64;
    }
    groups.dp.all_reduce(BufferMut::new(&mut sums), ReduceOp::Sum)?;
    Ok(sums[0] / sums[1])
}
