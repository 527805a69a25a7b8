//! The one error type of this crate: what cannot be planned, with the values that stand in the way.

use crate::{
    completeness::Incomplete, deadlock::Stuck, mesh::Degrees, schedule::ScheduleName, stages::Folding, words::counted,
    Cluster, Zero,
};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What cannot be planned. `what` is a configuration key wherever there is one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that must be at least one.
    #[error("{what} is 0, and must be at least 1")]
    Zero {
        /// The size.
        what: &'static str,
    },

    /// A number outside its range.
    #[error("{what} is {value}, and must be {range}")]
    OutOfRange {
        /// The number's key.
        what: &'static str,
        /// Its value.
        value: f64,
        /// What is allowed, in words.
        range: &'static str,
    },

    /// A matrix that adapters cannot stand beside.
    #[error("lora.targets names \"{target}\", and can name {}", legal.join(", "))]
    Target {
        /// The name.
        target: String,
        /// Every name that would do.
        legal: Vec<String>,
    },

    /// A size beyond what integers of the plan can count.
    #[error("{what}: {value:e} is more than the {limit:e} that can be planned; lower it")]
    TooLarge {
        /// The size.
        what: &'static str,
        /// Its value, rounded.
        value: f64,
        /// The largest value allowed.
        limit: f64,
    },

    /// Lists of steps that would be too long.
    #[error(
        "{micro_batches} micro-batches through {stages} virtual stages are more than the {limit} passes of a step that can \
         be planned; raise parallel.micro_batch, or lower train.global_batch"
    )]
    TooManyPasses {
        /// The virtual stages.
        stages: usize,
        /// The micro-batches of a step.
        micro_batches: usize,
        /// The most passes.
        limit: usize,
    },

    /// Something that does not come out even.
    #[error("{what} {len} cannot be cut in {parts} ({by}); {by} may be {}", list(legal))]
    NotDivisible {
        /// What was to be cut.
        what: &'static str,
        /// How much of it there is.
        len: usize,
        /// What asks for that many parts.
        by: &'static str,
        /// The number of parts.
        parts: usize,
        /// The values of `by` that would work.
        legal: Vec<usize>,
    },

    /// Layers to be counted where none is computed again.
    #[error("parallel.recompute_every {every} counts layers that are computed again; set parallel.recompute = \"full\" with it")]
    RecomputeEvery {
        /// Every how many-th.
        every: usize,
    },

    /// A setting that would change nothing.
    #[error("{key} {value} changes nothing: {because}; {way_out}")]
    Idle {
        /// The setting's key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it is for, and what is missing for that.
        because: String,
        /// What to do.
        way_out: String,
    },

    /// Shares of what a single rank keeps.
    #[error("parallel.zero {zero} shares out among data ranks, and there is one; use 0, or more ranks in dp or cp")]
    NothingToShare {
        /// The ZeRO stage.
        zero: Zero,
    },

    /// Gradients or parameters shared out beside pipeline stages.
    #[error(
        "parallel.zero {zero} with parallel.pp {pp} would reduce and gather every stage anew for each micro-batch; \
         use zero 0 or 1 with pp, or zero {zero} with pp 1"
    )]
    ZeroWithStages {
        /// The ZeRO stage.
        zero: Zero,
        /// The pipeline degree.
        pp: usize,
    },

    /// Heads of odd width, whose elements rotary positions cannot pair.
    #[error(
        "model.head_dim {head_dim} is odd, and rotary positions turn pairs of elements; set model.head_dim to {}, or \
         model.heads so that model.hidden divides into even heads",
        head_dim.saturating_add(1)
    )]
    OddHeadDim {
        /// The width of one head.
        head_dim: usize,
    },

    /// A setting of rotary positions in a family that has none.
    #[error("model.rope_scaling is set, and only llama has rotary positions")]
    NoRotary,

    /// A setting of another family.
    #[error("{what} is set, and only {family} has it")]
    NotOfFamily {
        /// The setting's key.
        what: &'static str,
        /// The family that has it.
        family: &'static str,
    },

    /// A vocabulary too small for the tokenizer.
    #[error("model.vocab {vocab} is less than the tokenizer's {tokenizer} tokens")]
    Vocabulary {
        /// The model's vocabulary.
        vocab: usize,
        /// The tokenizer's.
        tokenizer: usize,
    },

    /// Training sequences longer than the model's longest.
    #[error("train.seq {seq} is more than model.max_seq {max_seq}")]
    SequenceTooLong {
        /// The length of training sequences.
        seq: usize,
        /// The longest sequence of the model.
        max_seq: usize,
    },

    /// Sequences that sequence parallelism cannot cut.
    #[error(
        "train.seq {seq} cannot be cut in {tp} (parallel.tp); \
         {nearest} would do, or parallel.sequence_parallel = false"
    )]
    Sequence {
        /// The length of training sequences.
        seq: usize,
        /// The tensor degree.
        tp: usize,
        /// The next longer sequence that can be cut.
        nearest: usize,
    },

    /// Sequences that context ranks cannot share.
    #[error(
        "sequences of {seq} tokens (train.seq) cannot be cut: over parallel.cp {cp}{} they must be a multiple of {multiple}; \
         {nearest:?} are nearest",
        if *tp > 1 { format!(", and parallel.tp {tp} by sequence_parallel,") } else { String::new() }
    )]
    ContextSequence {
        /// The length of training sequences.
        seq: usize,
        /// The context degree.
        cp: usize,
        /// The tensor degree, where it cuts activations along the sequence once more; 1 where it does not.
        tp: usize,
        /// What the length must be a multiple of.
        multiple: usize,
        /// The nearest lengths that are.
        nearest: Vec<usize>,
    },

    /// Heads that cannot be exchanged for positions.
    #[error(
        "{query} query heads and {key_value} key/value heads of a tensor rank cannot be dealt out to parallel.cp {cp} ranks; \
         {legal:?} would do, or parallel.context = \"ring\""
    )]
    Heads {
        /// The context degree.
        cp: usize,
        /// Query heads of a tensor rank.
        query: usize,
        /// Its key/value heads.
        key_value: usize,
        /// Degrees that would do.
        legal: Vec<usize>,
    },

    /// Degrees whose product is not the number of ranks.
    #[error("{} cannot make {}; {legal} would", asked.with_product(), counted(world, "rank"))]
    WorldSize {
        /// The degrees as typed; 0 is free.
        asked: Degrees,
        /// The number of ranks.
        world: usize,
        /// The nearest legal degrees.
        legal: Degrees,
    },

    /// An expert degree that does not fit into the data and context degrees.
    #[error("ep {ep} does not divide dp {dp} × cp {cp}")]
    ExpertDegree {
        /// The expert degree.
        ep: usize,
        /// The data degree.
        dp: usize,
        /// The context degree.
        cp: usize,
    },

    /// More virtual stages than layers.
    #[error(
        "model.layers {layers} cannot fill parallel.pp {pp} × {} of a rank; {}",
        counted(chunks, "chunk"),
        most_stages(*layers, *chunks)
    )]
    TooManyStages {
        /// The model's layers.
        layers: usize,
        /// The pipeline degree.
        pp: usize,
        /// The virtual stages of a rank.
        chunks: usize,
    },

    /// A split of layers with a stage that has none.
    #[error("parallel.split {split:?} leaves stage {stage} without layers; each needs at least 1")]
    EmptyStage {
        /// The layers of each virtual stage.
        split: Vec<usize>,
        /// The stage.
        stage: usize,
    },

    /// A split of layers over another number of stages.
    #[error(
        "parallel.split {split:?} names {} stages, and parallel.pp {pp} × {chunks} chunks are {}",
        split.len(),
        pp.saturating_mul(*chunks)
    )]
    SplitLength {
        /// The layers of each virtual stage.
        split: Vec<usize>,
        /// The pipeline degree.
        pp: usize,
        /// The virtual stages of a rank.
        chunks: usize,
    },

    /// A split of more or fewer layers than there are.
    #[error("parallel.split {split:?} sums to {sum}, and model.layers is {layers}")]
    SplitSum {
        /// The layers of each virtual stage.
        split: Vec<usize>,
        /// Their sum.
        sum: usize,
        /// The model's layers.
        layers: usize,
    },

    /// A V of other than two chunks.
    #[error("stages in a V are 2 chunks of each rank, down and up again; not {chunks}")]
    FoldingChunks {
        /// The virtual stages of a rank.
        chunks: usize,
    },

    /// A number of chunks that a schedule cannot run.
    #[error("parallel.chunks {chunks} with schedule {schedule}: {reason}")]
    Chunks {
        /// The schedule.
        schedule: ScheduleName,
        /// The virtual stages of a rank.
        chunks: usize,
        /// What it needs, and why.
        reason: &'static str,
    },

    /// Stages dealt to the ranks in another way than a schedule runs them.
    #[error("schedule {schedule} runs stages dealt as {:?}, not as {folding:?}", schedule.folding())]
    Folding {
        /// The schedule.
        schedule: ScheduleName,
        /// How the stages are dealt.
        folding: Folding,
    },

    /// A number of micro-batches that a schedule cannot run.
    #[error(
        "schedule {schedule} takes micro-batches in groups of parallel.pp {pp}, and {micro_batches} is no multiple; \
         {} would be: set train.global_batch and parallel.micro_batch so, or another schedule",
        either(nearest)
    )]
    MicroBatches {
        /// The schedule.
        schedule: ScheduleName,
        /// The micro-batches of a step.
        micro_batches: usize,
        /// The pipeline degree.
        pp: usize,
        /// The nearest multiples.
        nearest: Vec<usize>,
    },

    /// Step lists that do not run to their end.
    #[error(transparent)]
    Stuck(#[from] Stuck),

    /// Step lists that are no training step.
    #[error(transparent)]
    Incomplete(#[from] Incomplete),

    /// A cluster that cannot exist.
    #[error("cluster: {key} is {}, and {rule}", number(*value))]
    Cluster {
        /// The key in the cluster's file.
        key: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        rule: &'static str,
    },

    /// A cluster that nobody has named.
    #[error("cluster \"{name}\" is neither a file nor one of {}", Cluster::PRESETS.join(", "))]
    Preset {
        /// The name.
        name: String,
    },

    /// Micro-batches that do not come out even.
    #[error(
        "train.global_batch {global_batch} is no multiple of parallel.dp {dp} × parallel.micro_batch {micro_batch}; \
         change one of them"
    )]
    Batch {
        /// Sequences of a step.
        global_batch: usize,
        /// The data degree.
        dp: usize,
        /// Sequences of a micro-batch.
        micro_batch: usize,
    },

    /// Measured times for another number of stages.
    #[error("{given} measured stages are given for a layout of {stages}; each virtual stage needs one entry")]
    MeasuredStages {
        /// How many are given.
        given: usize,
        /// How many virtual stages there are.
        stages: usize,
    },

    /// A measured time that is none.
    #[error("a measured time of {seconds} s is given, and times must be finite and from 0")]
    MeasuredTime {
        /// The time.
        seconds: f64,
    },

    /// No layout at all.
    #[error("no layout of {ranks} ranks can cut this model as asked; {why}")]
    NoLayout {
        /// The number of ranks.
        ranks: usize,
        /// What stands in the way of one of those that were tried.
        why: String,
    },

    /// An axis along which nothing is cut yet.
    #[error("{axis} degree {degree}: models are not cut along this axis, so the degree can only be 1")]
    Uncut {
        /// The axis, in words.
        axis: &'static str,
        /// The degree asked for.
        degree: usize,
    },
}

/// Writes `1, 2, 4 or 8`.
/// Writes a number as a person would type it: with an exponent where it has many digits.
fn number(value: f64) -> String {
    match value == 0.0 || (1e-6..1e15).contains(&value.abs()) {
        true => value.to_string(),
        false => format!("{value:e}"),
    }
}

fn list(values: &[usize]) -> String {
    match values {
        [] => "nothing".into(),
        [only] => format!("only {only}"),
        several => either(several),
    }
}

/// Writes `4 or 8`, or a lone `4`.
fn either(values: &[usize]) -> String {
    let words: Vec<String> = values.iter().map(usize::to_string).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

/// Writes the largest degrees at which every stage has a layer.
fn most_stages(layers: usize, chunks: usize) -> String {
    match layers / chunks {
        0 => format!("parallel.pp × parallel.chunks may be at most {layers}"),
        most => format!("parallel.pp may be at most {most}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_values_and_legal_degrees() {
        let error =
            Error::NotDivisible { what: "model.heads", len: 12, by: "parallel.tp", parts: 5, legal: vec![1, 2, 3, 4] };
        assert_eq!(
            error.to_string(),
            "model.heads 12 cannot be cut in 5 (parallel.tp); parallel.tp may be 1, 2, 3 or 4"
        );
    }

    #[test]
    fn free_degrees_are_told_from_typed_ones() {
        let legal = Degrees { dp: 2, tp: 2, ..Degrees::default() };
        let free = Error::WorldSize { asked: Degrees { dp: 0, tp: 3, ..Degrees::default() }, world: 4, legal };
        assert_eq!(
            free.to_string(),
            "pp 1 × dp any × cp 1 × tp 3 cannot make 4 ranks; pp 1 × dp 2 × cp 1 × tp 2 would"
        );
        let typed = Error::WorldSize { asked: Degrees { dp: 2, tp: 3, ..Degrees::default() }, world: 4, legal };
        assert_eq!(
            typed.to_string(),
            "pp 1 × dp 2 × cp 1 × tp 3 = 6 cannot make 4 ranks; pp 1 × dp 2 × cp 1 × tp 2 would"
        );
    }
}
