//! Which degrees can cut a model: the one place where a layout is refused.

use crate::{mesh::Degrees, Architecture, Error, Mesh, ParallelConfig, RecomputeName, Result, Switch, Zero};

/// The largest degree that is named as an alternative.
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

/// Returns what the length of sequences must be a multiple of: each of `cp` context ranks holds two pieces, which sequence
/// parallelism cuts in `tp` parts (1 where it does not); one context rank holds sequences of any length.
pub fn sequence_multiple(cp: usize, tp: usize) -> usize {
    match cp {
        1 => tp,
        _ => 2 * cp * tp,
    }
}

/// Checks that sequences of `seq` tokens can be cut over `cp` context ranks, and in `tp` parts each as sequence
/// parallelism does; 1 where it does not.
///
/// # Errors
/// [`Error::Sequence`], which names the next longer sequence that can, and [`Error::ContextSequence`] for more than one
/// context rank.
pub fn check_sequence(seq: usize, cp: usize, tp: usize) -> Result<()> {
    for (what, size) in [("parallel.tp", tp), ("parallel.cp", cp), ("train.seq", seq)] {
        if size == 0 {
            return Err(Error::Zero { what });
        }
    }
    let multiple = sequence_multiple(cp, tp);
    if seq.is_multiple_of(multiple) {
        return Ok(());
    }
    if cp == 1 {
        return Err(Error::Sequence { seq, tp, nearest: seq.div_ceil(tp).saturating_mul(tp) });
    }
    let below = seq / multiple * multiple;
    let nearest = [below, below.saturating_add(multiple)].into_iter().filter(|&length| length > 0).collect();
    Err(Error::ContextSequence { seq, cp, tp, multiple, nearest })
}

/// Decides whether activations are cut along the sequence: as the user says, or with more than one part where it divides.
///
/// # Errors
/// As [`check_sequence`], if the user asks for what does not divide.
pub fn sequence_parallel(choice: Switch<bool>, seq: usize, cp: usize, tp: usize) -> Result<bool> {
    match choice {
        Switch::Set(true) => check_sequence(seq, cp, tp).map(|()| true),
        Switch::Set(false) => Ok(false),
        Switch::Auto => Ok(tp > 1 && check_sequence(seq, cp, tp).is_ok()),
    }
}

/// Checks that heads can be dealt out for positions to `cp` context ranks: each tensor rank's query heads must be a
/// multiple of `cp`, and its key/value heads a multiple or, each then held by several ranks, a divisor of it.
///
/// # Errors
/// [`Error::Heads`], with the degrees that would do.
pub fn check_all_to_all(heads: usize, kv_heads: usize, tp: usize, cp: usize) -> Result<()> {
    let (query, key_value) = (heads / tp, (kv_heads / tp).max(1));
    let fits = |cp: usize| query.is_multiple_of(cp) && (key_value.is_multiple_of(cp) || cp.is_multiple_of(key_value));
    if fits(cp) {
        return Ok(());
    }
    let legal = (1..=query.min(LARGEST_NAMED)).filter(|&degree| fits(degree)).collect();
    Err(Error::Heads { cp, query, key_value, legal })
}
