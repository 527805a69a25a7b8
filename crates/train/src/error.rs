//! The one error type of this crate, and who is to blame: the input, or the run.

use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in a run, from its configuration to its last checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A step with other than the planned micro-batches.
    #[error("the step has {given} micro-batches, and its schedule is for {planned}")]
    MicroBatches {
        /// How many there are.
        given: usize,
        /// How many the schedule runs.
        planned: usize,
    },
    /// A global batch that teaches nothing.
    #[error(
        "no target of the global batch of step {step} counts; check the data's masks, or raise `train.global_batch`"
    )]
    NoTargets {
        /// The step, counted from 1.
        step: u64,
    },
    /// A step after one that failed.
    #[error("an earlier step failed with messages under way; what it left cannot be told from this step's, so make the trainer anew")]
    Failed,
    /// A list of steps that cannot run as it is.
    #[error("pipeline rank {rank} cannot do this step of its schedule, for something before it is missing: {step}")]
    Schedule {
        /// The step, in words.
        step: String,
        /// The rank on the pipeline axis.
        rank: usize,
    },
    /// A configuration that is no TOML.
    #[error("{origin} is not valid TOML: {reason}")]
    Syntax {
        /// The file, or the argument as typed.
        origin: String,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A `--set` that assigns nothing.
    #[error("`--set {text}` assigns nothing; write it as `section.key=value`, `train.steps=100` for instance")]
    Assignment {
        /// The argument as typed.
        text: String,
    },
    /// A preset that does not exist.
    #[error("there is no preset `{name}`{}; the presets are {}", did_you_mean(nearest), known.join(", "))]
    UnknownPreset {
        /// The name as typed.
        name: String,
        /// The most similar known name, if one is close.
        nearest: Option<String>,
        /// All names.
        known: Vec<String>,
    },
    /// A configuration key that does not exist.
    #[error("unknown configuration key `{key}`{}; {section} has {}", did_you_mean(nearest), known.join(", "))]
    UnknownKey {
        /// The whole key, section included.
        key: String,
        /// The most similar known key, if one is close.
        nearest: Option<String>,
        /// The section that was looked through, as messages name it.
        section: String,
        /// The keys that it has.
        known: Vec<String>,
    },
    /// A configuration value of a wrong type, or a word that is none of a key's choices.
    #[error("`{key}` is {value}, but must be {expected}")]
    WrongType {
        /// The whole key.
        key: String,
        /// The value as TOML.
        value: String,
        /// What the key takes.
        expected: String,
    },
    /// A configuration value of the right type that cannot be.
    #[error("`{key}` is {value}, but {rule}")]
    Config {
        /// The whole key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it must be and why, with the way out.
        rule: String,
    },
    /// A file that describes no machine.
    #[error("the cluster `{}` cannot be used: {problem}", path.display())]
    Cluster {
        /// The file.
        path: PathBuf,
        /// Which of its keys is wrong, and what it takes.
        problem: String,
    },
    /// A model that a machine has no room for.
    #[error(
        "weights, gradients{} take {} on this {memory}, {} on each of its {ranks} {}, and {} are free; \
         make the model smaller, cut it over more {memory}s (`parallel.tp`, `parallel.pp`), or share its state out \
         (`parallel.zero`)",
        // What checkpoints are written from lies in the host's memory.
        if *memory == "device" { " and optimizer state" } else { ", optimizer state and the copy that checkpoints are written from" },
        size(rank_bytes.saturating_mul(*ranks as u64)), size(*rank_bytes), if *ranks == 1 { "rank" } else { "ranks" },
        size(*free)
    )]
    Memory {
        /// Whose memory it is: `"machine"` or `"device"`.
        memory: &'static str,
        /// Bytes that a rank stores between steps, and for checkpoints.
        rank_bytes: u64,
        /// Ranks on the machine.
        ranks: usize,
        /// Bytes that are free there.
        free: u64,
    },
    /// Memory that a device did not get, before a run or while it was under way.
    #[error("{source}; this rank's part of the plan is {kept}; {way_out}")]
    DeviceMemory {
        /// What the device says.
        source: Box<Error>,
        /// What the plan says that the rank keeps, by component.
        kept: String,
        /// Settings that would fit.
        way_out: String,
    },
    /// A shard that a machine has no room for, to time it.
    #[error(
        "one micro-batch through {layers} layers of a stage takes {bytes} bytes ({}) on one rank, and {free} ({}) are free on \
         this machine; time a layout with a smaller `parallel.micro_batch`, or cut its matrices over more ranks (`parallel.tp`)",
        size(*bytes), size(*free)
    )]
    Trial {
        /// The layers.
        layers: usize,
        /// What one rank keeps while it runs and updates them.
        bytes: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A model that fits in no layout.
    #[error(
        "no layout of {ranks} {} fits: the nearest, {nearest}, keeps {} on its fullest rank, {} more than the {} that a rank may; \
         make the model or `train.seq` smaller, or start more ranks",
        if *ranks == 1 { "rank" } else { "ranks" }, size(*bytes), size(bytes.saturating_sub(*room)), size(*room)
    )]
    NoRoom {
        /// The number of ranks.
        ranks: usize,
        /// The layout that lacks least, in words.
        nearest: String,
        /// What its fullest rank keeps.
        bytes: u64,
        /// What a rank may keep.
        room: u64,
    },
    /// A layout that cannot be.
    #[error(transparent)]
    Plan(#[from] mp_plan::Error),
    /// Data that cannot be trained on.
    #[error(transparent)]
    Data(#[from] mp_data::Error),
    /// A failure between ranks.
    #[error(transparent)]
    Comm(#[from] mp_comm::Error),
    /// A failure of a layer.
    #[error(transparent)]
    Model(#[from] mp_model::Error),
    /// A failure of the tensor backend.
    #[error(transparent)]
    Runtime(#[from] mp_runtime::Error),
    /// A file that was asked for and cannot be read.
    #[error("`{}` cannot be read: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that could not be written while the run was under way.
    #[error("`{}` cannot be written: {source}{}", path.display(), mend_write(source))]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that a flag names and that could not be written when there was something to write.
    #[error("`{flag}` \"{}\" cannot be written: {source}; name a file elsewhere", path.display())]
    Output {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Ranks on nodes of which nothing can be measured.
    #[error(
        "a machine is measured with as many ranks on each node, consecutive ones, and there are {counts} on a node; start \
         equally many with `--map-by slot` or `--map-by ppr:N:node`, or name the machine (`parallel.cluster`)"
    )]
    Nodes {
        /// The ranks of each node, ascending.
        counts: String,
    },
    /// A text that cannot be continued.
    #[error("prompt {number} {problem}")]
    Prompt {
        /// Which, from 1.
        number: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A text whose loss is no number.
    #[error("the loss is not a finite number: the weights are none, or they are too large for `train.precision`")]
    Unmeasurable,
    /// Scores that nothing can be chosen by.
    #[error(
        "the scores after {position} tokens of prompt {prompt} are no finite numbers: the weights are none, or they are too \
         large for `train.precision`"
    )]
    Scores {
        /// The prompt's number, from 1.
        prompt: u64,
        /// Tokens before.
        position: usize,
    },
    /// A run folder that cannot serve.
    #[error("the run folder `{}` {problem}", path.display())]
    RunFolder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it, with the way out.
        problem: String,
    },
    /// A checkpoint that cannot be trusted or does not fit.
    #[error("the checkpoint `{}` cannot be used: {problem}", path.display())]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// Which file differs in what, with the way out.
        problem: String,
    },
    /// A published model that cannot be used, or a model that cannot be published.
    #[error("the model `{}` cannot be used: {problem}", path.display())]
    Published {
        /// Its folder.
        path: PathBuf,
        /// The key, tensor or file, and what of it is not computed.
        problem: String,
    },
    /// A quantity that left the numbers.
    #[error(
        "the {what} of step {step} is not a finite number; lower `optimizer.lr`, lengthen `optimizer.warmup`, or set \
         `train.clip_norm`"
    )]
    NotFinite {
        /// The step, counted from 1.
        step: u64,
        /// The quantity.
        what: &'static str,
    },
    /// Ranks that worked on other samples than the order deals out to them.
    #[error(
        "the ranks did not read samples {first} to {} of step {step}, each in its turn and once, but others ({count} in all \
         where {expected} were dealt out): a reader is at fault; what was saved before this step is right, so go on from there \
         with `checkpoint.resume=true`, and report it",
        end - 1
    )]
    Samples {
        /// The step, counted from 1.
        step: u64,
        /// The first sample of its global batch.
        first: u64,
        /// The sample after its last one.
        end: u64,
        /// How many samples the ranks have read, together.
        count: u64,
        /// How many they should have.
        expected: u64,
    },
    /// A layout under verification that could not be trained, while other ranks still wait in it.
    #[error("the layout {layout}: {source}")]
    Layout {
        /// The layout as it is typed.
        layout: String,
        /// What this rank met.
        source: Box<Error>,
    },
    /// Another rank failed, and says itself why.
    #[error("rank {rank} failed")]
    Peer {
        /// The rank in the world.
        rank: usize,
        /// Whether what it met [is the input's fault](Error::is_input).
        input: bool,
    },
}

impl Error {
    /// Says whether the input is at fault: the command exits with 2. Otherwise the run failed: it exits with 1.
    pub fn is_input(&self) -> bool {
        match self {
            Error::Syntax { .. }
            | Error::Assignment { .. }
            | Error::UnknownPreset { .. }
            | Error::UnknownKey { .. }
            | Error::WrongType { .. }
            | Error::Config { .. }
            | Error::Cluster { .. }
            | Error::Memory { .. }
            | Error::Trial { .. }
            | Error::NoRoom { .. }
            | Error::Nodes { .. }
            | Error::Plan(_)
            | Error::Read { .. }
            | Error::RunFolder { .. }
            | Error::Prompt { .. }
            | Error::NoTargets { .. }
            | Error::Published { .. }
            | Error::Checkpoint { .. } => true,
            // The background reader's end is the one data error that is no property of the data.
            Error::Data(error) => !matches!(error, mp_data::Error::ReaderStopped { .. }),
            Error::Comm(_)
            | Error::Model(_)
            | Error::Runtime(_)
            | Error::Write { .. }
            | Error::Output { .. }
            | Error::NotFinite { .. }
            | Error::Scores { .. }
            | Error::Unmeasurable
            | Error::MicroBatches { .. }
            | Error::Failed
            | Error::Samples { .. }
            | Error::Layout { .. }
            | Error::Schedule { .. } => false,
            Error::Peer { input, .. } => *input,
            Error::DeviceMemory { source, .. } => source.is_input(),
        }
    }
}

/// Writes bytes for people.
fn size(bytes: u64) -> String {
    mp_plan::words::size(bytes as usize)
}

/// Words the most similar name as a question.
fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// Returns the most similar of `known`, where one is similar at all.
pub(crate) fn nearest(name: &str, known: impl IntoIterator<Item = impl AsRef<str>>) -> Option<String> {
    let scored = known.into_iter().map(|word| (strsim::jaro_winkler(name, word.as_ref()), word));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b));
    // Below this the two words share little more than a letter.
    best.filter(|(score, _)| *score > 0.75).map(|(_, word)| word.as_ref().to_string())
}

/// Says what to do where the disk is the reason.
fn mend_write(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded => "; free some space or set `train.out` to another disk, then resume",
        FileTooLarge => "; raise the limit on file sizes (`ulimit -f`), then resume",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_error_counts_as_what_the_peer_met() {
        assert!(Error::Peer { rank: 1, input: true }.is_input());
        assert!(!Error::Peer { rank: 1, input: false }.is_input());
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::Write { path: "runs/a".into(), source };
        assert!(error.to_string().contains("free some space"), "{error}");
        assert!(!error.is_input());
    }
}
