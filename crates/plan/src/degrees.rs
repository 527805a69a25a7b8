//! Which degrees can cut a model: the one place where a layout is refused.

use crate::{mesh::Degrees, Architecture, Error, Mesh, ParallelConfig, RecomputeName, Result, Switch, Zero};

/// The largest tensor degree that is named as an alternative.
const LARGEST_NAMED: usize = 1024;

/// Refuses a degree above 1 on the axis along which models are not cut.
pub(crate) fn refuse_uncut(degrees: &Degrees) -> Result<()> {
    match degrees.ep {
        1 => Ok(()),
        degree => Err(Error::Uncut { axis: "expert", degree }),
    }
}

/// Checks that a model's heads and MLP can be cut in `tp` parts.
///
/// Query heads and MLP columns must divide. Key/value heads must divide, or be divided: where there are fewer of them
/// than parts, each is held by `tp / kv_heads` ranks.
///
/// # Errors
/// [`Error::NotDivisible`], which names every tensor degree that would work (up to 1024).
pub fn check_tensor(architecture: &Architecture, tp: usize) -> Result<()> {
    if tp == 0 {
        return Err(Error::Zero { what: "parallel.tp" });
    }
    match obstacle(architecture, tp) {
        None => Ok(()),
        Some((what, len)) => Err(Error::NotDivisible {
            what,
            len,
            by: "parallel.tp",
            parts: tp,
            legal: legal_tensor_degrees(architecture),
        }),
    }
}

/// Returns whether `tp` parts, at least one, can share a model.
pub(crate) fn can_cut(architecture: &Architecture, tp: usize) -> bool {
    obstacle(architecture, tp).is_none()
}

/// Lists the tensor degrees up to 1024 that can cut a model.
pub fn legal_tensor_degrees(architecture: &Architecture) -> Vec<usize> {
    let largest = architecture.heads.min(LARGEST_NAMED);
    (1..=largest).filter(|&tp| can_cut(architecture, tp)).collect()
}

/// Returns the first size that `tp` parts cannot share, if any.
fn obstacle(architecture: &Architecture, tp: usize) -> Option<(&'static str, usize)> {
    let &Architecture { heads, kv_heads, ffn, .. } = architecture;
    if !heads.is_multiple_of(tp) {
        Some(("model.heads", heads))
    } else if !kv_heads.is_multiple_of(tp) && !tp.is_multiple_of(kv_heads) {
        Some(("model.kv_heads", kv_heads))
    } else if !ffn.is_multiple_of(tp) {
        Some(("model.ffn", ffn))
    } else {
        None
    }
}

/// Decides what the backward computes again, and of whole layers every how many-th; 0 where no whole layer is.
///
/// # Errors
/// [`Error::RecomputeEvery`] for layers to be counted where none is computed again.
pub fn recompute(config: &ParallelConfig) -> Result<(RecomputeName, usize)> {
    let name = config.recompute.unwrap_or(RecomputeName::None);
    match (name, config.recompute_every) {
        (RecomputeName::Full, every) => Ok((name, every.max(1))),
        (_, 0) => Ok((name, 0)),
        (_, every) => Err(Error::RecomputeEvery { every }),
    }
}

/// Checks that the data ranks of a mesh can share out what is asked; returns it.
///
/// # Errors
/// [`Error::NothingToShare`] with a single data rank; [`Error::ZeroWithStages`] for gradients or parameters with more
/// than one pipeline stage: each micro-batch would reduce or gather all of them again.
pub fn check_zero(zero: Zero, mesh: &Mesh) -> Result<Zero> {
    let Degrees { pp, dp, cp, .. } = mesh.degrees();
    if zero > Zero::Replicated && dp * cp == 1 {
        return Err(Error::NothingToShare { zero });
    }
    if zero >= Zero::Gradients && pp > 1 {
        return Err(Error::ZeroWithStages { zero, pp });
    }
    Ok(zero)
}

/// Checks that sequences of `seq` tokens can be cut in `tp` parts, as sequence parallelism does.
///
/// # Errors
/// [`Error::Sequence`], which names the next longer sequence that can.
pub fn check_sequence(seq: usize, tp: usize) -> Result<()> {
    if tp == 0 {
        return Err(Error::Zero { what: "parallel.tp" });
    }
    if seq == 0 {
        return Err(Error::Zero { what: "train.seq" });
    }
    if !seq.is_multiple_of(tp) {
        return Err(Error::Sequence { seq, tp, nearest: seq.div_ceil(tp).saturating_mul(tp) });
    }
    Ok(())
}

/// Decides whether activations are cut along the sequence: as the user says, or with more than one part where it divides.
///
/// # Errors
/// [`Error::Sequence`] if the user asks for what does not divide.
pub fn sequence_parallel(choice: Switch<bool>, seq: usize, tp: usize) -> Result<bool> {
    match choice {
        Switch::Set(true) => check_sequence(seq, tp).map(|()| true),
        Switch::Set(false) => Ok(false),
        Switch::Auto => Ok(tp > 1 && check_sequence(seq, tp).is_ok()),
    }
}
