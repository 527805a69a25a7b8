//! The mean loss over held-out text.

use mp_comm::{BufferMut, ReduceOp};
use mp_data::{Windows, IGNORED};
use mp_plan::Zero;

use crate::pipeline::forward_only;
use crate::step::Trainer;
use crate::Result;

/// Computes the mean loss over consecutive windows, in nats; the data ranks share the batches. Collective over the
/// world; every rank gets the mean.
///
/// `limit` is the number of batches of `batch` windows; 0 takes all.
///
/// # Errors
/// Whatever a layer or a collective raises.
pub fn evaluate(trainer: &Trainer, windows: &Windows, batch: usize, limit: usize) -> Result<f64> {
    let _span = tracing::info_span!("evaluate").entered();
    let groups = trainer.groups();
    let mut sums = [0.0f64; 2];
    let walk = windows.batches(batch, limit)?;
    let rounds = walk.remaining().div_ceil(groups.dp.size());
    let mut own = walk.skip(groups.dp.rank().0).step_by(groups.dp.size());
    // Where parameters are shared out, every data rank takes part in every pass, if only to give its part of them.
    let shared = trainer.parameters().sharing().zero == Zero::Parameters;
    for _ in 0..rounds {
        let next = own.next().transpose()?;
        let counts = next.is_some();
        let Some(batch) =
            next.map_or_else(|| shared.then(|| windows.batch(0..1)).transpose(), |batch| Ok(Some(batch)))?
        else {
            continue;
        };
        let own = trainer.own(&batch)?;
        let shape = trainer.activation_shape(batch.batch, own.positions.count());
        let (line, model) = (trainer.line(), trainer.model());
        let loss = forward_only(line, model, &own.pass(), shape, |last, hidden| last.loss_sum(hidden, &own.targets))?;
        if let (Some(loss), true) = (loss, counts) {
            sums[0] += loss.double_value(&[]);
            let targets = batch.targets.iter().filter(|&&target| target != IGNORED).count();
            sums[1] += targets as f64 / groups.cp.size() as f64;
        }
    }
    for group in [&groups.data, &groups.pp] {
        group.all_reduce(BufferMut::new(&mut sums), ReduceOp::Sum)?;
    }
    Ok(sums[0] / sums[1])
}
