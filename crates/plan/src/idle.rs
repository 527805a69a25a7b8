//! Options that would change nothing where they stand: refused, so that nobody counts on what is not there.

use crate::{
    degrees::recompute, mesh::Degrees, Architecture, ContextForm, Error, Mesh, ParallelConfig, RecomputeName, Result,
    ScheduleName, Switch,
};

/// What a model trains on, as its attention sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequences {
    /// Tokens of a sequence.
    pub seq: usize,
    /// Whether attention stays within each of the documents that lie in one sequence.
    pub within_documents: bool,
}

/// Checks that every option that is set changes something on this mesh. What is left to the planner, and the values that it
/// chooses by itself, never fail.
///
/// # Errors
/// [`Error::Idle`] for the first option that does not, with the way out; [`Error::RecomputeEvery`].
///
/// # Examples
/// ```
/// use mp_plan::{check_effect, Architecture, Mesh, ModelConfig, ParallelConfig, ScheduleName, Sequences, Switch};
///
/// let architecture = Architecture::resolve(&ModelConfig::default(), 256, 128)?;
/// let config = ParallelConfig { schedule: Switch::Set(ScheduleName::ZbH1), ..ParallelConfig::default() };
/// let mesh = Mesh::resolve(&config, 1, &architecture)?;
/// let error = check_effect(&config, &mesh, &architecture, Sequences { seq: 128, within_documents: false }).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "parallel.schedule zb-h1 changes nothing: it orders the work of pipeline stages, and parallel.pp is 1; leave it out, \
///      or set parallel.pp to 2 or more"
/// );
/// # Ok::<(), mp_plan::Error>(())
/// ```
pub fn check_effect(
    config: &ParallelConfig,
    mesh: &Mesh,
    architecture: &Architecture,
    sequences: Sequences,
) -> Result<()> {
    let Degrees { pp, cp, tp, .. } = mesh.degrees();
    if let (Switch::Set(name), 1) = (config.schedule, pp) {
        let idle = || alone("parallel.schedule", name.to_string(), "orders the work of pipeline stages", "parallel.pp");
        require(name == ScheduleName::OneFOneB, idle)?;
    }
    let idle =
        || alone("parallel.chunks", config.chunks.to_string(), "counts the virtual stages of a rank", "parallel.pp");
    require(pp > 1 || config.chunks <= 1, idle)?;
    let idle = || alone("parallel.context", "all-to-all".into(), "is a way between context ranks", "parallel.cp");
    require(cp > 1 || config.context == ContextForm::Ring, idle)?;
    let idle = || {
        let does = "cuts activations over tensor ranks";
        alone("parallel.sequence_parallel", "true".into(), does, "parallel.tp")
    };
    require(tp > 1 || config.sequence_parallel != Switch::Set(true), idle)?;
    let (name, every) = recompute(config)?;
    let layers = architecture.layers;
    require(every <= layers, || Error::Idle {
        key: "parallel.recompute_every",
        value: every.to_string(),
        because: format!("of {layers} layers (model.layers) the first alone would be computed again, as with {layers}"),
        way_out: format!("set it to {layers} or less"),
    })?;
    match (name, every) {
        (RecomputeName::Selective, _) => check_selective(config.context, mesh, architecture, sequences),
        (RecomputeName::None | RecomputeName::Full, _) => Ok(()),
    }
}

/// Refuses what `idle` words unless `holds`.
fn require(holds: bool, idle: impl FnOnce() -> Error) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(idle()),
    }
}

/// Words an option that needs several ranks of an axis that has one.
fn alone(key: &'static str, value: String, does: &str, degree: &str) -> Error {
    let because = format!("it {does}, and {degree} is 1");
    Error::Idle { key, value, because, way_out: format!("leave it out, or set {degree} to 2 or more") }
}

/// Refuses to compute the attention's core again where it keeps nothing but its inputs, its result and a number for each
/// query: what could be dropped are weights, which are kept where some of them are dropped out, and key/value heads repeated
/// for the query heads that share them.
fn check_selective(
    context: ContextForm,
    mesh: &Mesh,
    architecture: &Architecture,
    Sequences { seq, within_documents }: Sequences,
) -> Result<()> {
    let Degrees { tp, cp, .. } = mesh.degrees();
    // The exchange gives each context rank a part of the tensor rank's heads.
    let parts = tp * cp;
    let shared = architecture.heads / parts > (architecture.kv_heads / parts).max(1);
    let because = match architecture.window.filter(|&window| window < seq) {
        _ if !architecture.causal() => "attention in both directions keeps no weights".into(),
        _ if cp > 1 && context == ContextForm::Ring => format!("the ring over parallel.cp {cp} keeps no weights"),
        _ if within_documents => "attention within documents (data.attend_across = false, or a data.format of examples) keeps no weights".into(),
        Some(window) => format!("attention in a window of {window} (model.window) keeps no weights"),
        None if architecture.dropout == 0.0 && !shared => {
            "without model.dropout, and with a key/value head for each query head of a rank, fused attention keeps no weights"
                .into()
        }
        None => return Ok(()),
    };
    Err(Error::Idle {
        key: "parallel.recompute",
        value: "selective".into(),
        because,
        way_out: "set it to \"none\", or to \"full\"".into(),
    })
}
