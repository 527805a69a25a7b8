//! The flags as typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "mp-cli", version, about = "Trains large models split over many processes.")]
#[command(after_help = "Start it once for each rank, for example: mpirun -n 4 mp-cli train")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model. With nothing else said: a small one, on text that comes with the program.
    Train(Train),
    /// Show how a model would be cut over ranks, without training it. Needs no mpirun.
    Plan(Plan),
    /// Prove on a small model like the configured one that layouts compute what one rank computes.
    Verify(Verify),
    /// Measure how well a model predicts a text.
    Eval(Eval),
    /// Let a model go on with a text.
    Generate(Generate),
    /// Look into checkpoints, check them, and make others of them. Needs no mpirun.
    #[command(subcommand)]
    Checkpoint(Checkpoint),
    /// Make data, look into them, and prove which of them a run has read. Needs no mpirun.
    #[command(subcommand)]
    Data(Data),
    /// Look at what this machine offers, and say how to mend what is missing.
    Doctor(Doctor),
}

/// `mp-cli train`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "SIGTERM, SIGINT or SIGUSR1 makes a run save and end in good order, with exit code 0. mpirun hands SIGUSR1 on \
                        to its ranks and waits; on the others it ends them about a quarter of a second later, saved or not, and exits with 1."
)]
pub struct Train {
    #[command(flatten)]
    pub configuration: Configuration,
    #[command(flatten)]
    pub output: Output,
    /// Write all spans and events as JSON lines into this folder, one file a rank.
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// Write a time line of steps, micro-batches, layers and collectives into this folder, for Perfetto or
    /// chrome://tracing: `trace-rank0.json`, `trace-rank1.json` and so on.
    #[arg(long, value_name = "DIR")]
    pub trace: Option<PathBuf>,
    /// Which events are logged: error, warn, info, debug, trace, or filters such as mp_train=debug.
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
}

/// `mp-cli plan`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --cluster: where each parameter of the configured layout lies. With it: the best layouts for that machine. \
                        Degrees and options that the configuration sets stay as they are; the others are chosen."
)]
pub struct Plan {
    #[command(flatten)]
    pub configuration: Configuration,
    /// How many ranks to cut the model over; default: those that mpirun started, else 1; with --cluster, all its devices.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number_of_ranks)]
    pub ranks: Option<usize>,
    /// Choose the layout for this machine: a TOML file, or one of a100-80, h100, h200, cpu.
    #[arg(long, value_name = "FILE|NAME")]
    pub cluster: Option<String>,
    /// Measure this machine with all ranks that mpirun started, and write it into this file, for --cluster.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cluster", "ranks", "best", "html", "simulate", "out"])]
    pub measure: Option<PathBuf>,
    /// With --cluster: how many layouts to show.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "cluster")]
    pub best: usize,
    /// Write a page of pictures: a step in time, the memory of each rank, and where the matrices lie; with --cluster, of the best
    /// layout.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// With --cluster: time the stages of the best N layouts on this machine, and replay the cluster's step with those times;
    /// default: 3, or 1 where the degrees that are set leave no choice.
    #[arg(long, value_name = "N", num_args = 0..=1, requires = "cluster")]
    pub simulate: Option<Option<usize>>,
    /// The folder that plan.json is written into.
    #[arg(long, value_name = "DIR", default_value = ".", conflicts_with = "cluster")]
    pub out: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Start it on as many ranks as layouts may take, for example: mpirun -n 4 mp-cli verify")]
pub struct Verify {
    #[command(flatten)]
    pub configuration: Configuration,
    /// all: every mesh, every pair of options, and the configured layout; exhaustive: every combination; or a list such as
    /// tp2pp2,dp4zero3,configured.
    #[arg(long, value_name = "all|exhaustive|LIST", default_value = "all")]
    pub layouts: String,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli checkpoint`.
#[derive(Debug, Subcommand)]
pub enum Checkpoint {
    /// Say what a checkpoint holds.
    Inspect(Inspect),
    /// Compare every byte with its checksum, and see that every element is there once.
    Verify(VerifyCheckpoints),
    /// Write a checkpoint anew: in other files, in another precision, or without the optimizer's state.
    Convert(Convert),
    /// Write the mean of several checkpoints' weights, computed in double precision.
    Average(Average),
    /// Take a model that transformers saved, or adapters that PEFT saved, into a new run folder.
    Import(Import),
    /// Write a checkpoint's model as a folder that transformers loads, or its adapters as one that PEFT loads.
    Export(Export),
}

/// `mp-cli checkpoint import`.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// The model's folder: config.json and model.safetensors, whole or in parts; or adapter_config.json and
    /// adapter_model.safetensors.
    pub model: PathBuf,
    /// The run folder to make.
    #[arg(long, value_name = "RUN")]
    pub out: PathBuf,
    /// The model under the adapters; default: the folder that adapter_config.json names.
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// One configuration key of the run, such as data.tokenizer=FILE; may come several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub sets: Vec<String>,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli checkpoint export`.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// A run folder, whose newest checkpoint is meant, or a checkpoint's own folder.
    pub checkpoint: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Of a run that trained adapters: write the model with the adapters folded in.
    #[arg(long)]
    pub merged: bool,
    /// Of a run that trained adapters: write them alone, as PEFT does.
    #[arg(long, conflicts_with_all = ["merged", "shard_bytes", "dropout"])]
    pub adapter: bool,
    /// The model under the adapters; default: the one that the run began from. With --adapter it is only named, and may be
    /// what a hub calls it.
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The most bytes of a file of tensors; a larger tensor has a file of its own.
    #[arg(long, value_name = "BYTES", default_value_t = 5_000_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub shard_bytes: u64,
    /// The dropout that config.json speaks of; default: the run's.
    #[arg(long, value_name = "PROBABILITY")]
    pub dropout: Option<f64>,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli checkpoint inspect`.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// A run folder, whose newest checkpoint is meant, or a checkpoint's own folder.
    pub checkpoint: PathBuf,
    /// List the tensors.
    #[arg(long)]
    pub tensors: bool,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli checkpoint verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyCheckpoints {
    /// Run folders, all of whose checkpoints are meant, or checkpoints' own folders.
    #[arg(required = true)]
    pub checkpoints: Vec<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli checkpoint convert`.
#[derive(Debug, clap::Args)]
pub struct Convert {
    /// A run folder, whose newest checkpoint is meant, or a checkpoint's own folder.
    pub checkpoint: PathBuf,
    /// Leave the optimizer's state out: what is left can be evaluated and trained from, not resumed.
    #[arg(long)]
    pub model_only: bool,
    #[command(flatten)]
    pub made: Made,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli checkpoint average`.
#[derive(Debug, clap::Args)]
pub struct Average {
    /// Run folders, whose newest checkpoints are meant, or checkpoints' own folders.
    #[arg(required = true)]
    pub checkpoints: Vec<PathBuf>,
    #[command(flatten)]
    pub made: Made,
    #[command(flatten)]
    pub output: Output,
}

/// What a new checkpoint is to be.
#[derive(Debug, clap::Args)]
pub struct Made {
    /// The run folder to make around the new checkpoint.
    #[arg(long, value_name = "RUN")]
    pub out: PathBuf,
    /// How many files each of model and optimizer is written in.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub files: usize,
    /// The precision of the model's elements; default: as they are.
    #[arg(long, value_name = "fp64|fp32|bf16|fp16")]
    pub precision: Option<String>,
}

/// `mp-cli data`.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// Turn text, JSON lines and compressed files into token files (Megatron-LM's .bin and .idx).
    Tokenize(Tokenize),
    /// Learn a byte-level BPE tokenizer from text.
    TrainTokenizer(TrainTokenizer),
    /// Say what token files hold.
    Inspect(DataInspect),
    /// Prove from a run's own log that it read every sample in order, skipped none and repeated none.
    Audit(Audit),
}

/// `mp-cli data tokenize`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A plain file is one document. Of files called .jsonl, .ndjson or .json (and of others, where --field is given) \
                  each line is an object with a document in a field. Files may be compressed with gzip or zstd."
)]
pub struct Tokenize {
    /// Files, folders, patterns such as 'part-*.jsonl.zst', or - for standard input.
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<String>,
    /// "bytes", or a tokenizer.json.
    #[arg(long, value_name = "FILE")]
    pub tokenizer: String,
    /// What to write: PREFIX.bin and PREFIX.idx.
    #[arg(long, value_name = "PREFIX")]
    pub out: PathBuf,
    /// The field of JSON lines that holds the document; default: text.
    #[arg(long, value_name = "NAME")]
    pub field: Option<String>,
    /// The token that ends a document, by name or id; default: the tokenizer's own.
    #[arg(long, value_name = "TOKEN", conflicts_with = "no_eod")]
    pub eod: Option<String>,
    /// Append no token to documents.
    #[arg(long)]
    pub no_eod: bool,
    /// How many threads tokenize; default: one a core.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli data train-tokenizer`.
#[derive(Debug, clap::Args)]
pub struct TrainTokenizer {
    /// Files, folders, patterns, or - for standard input, as of tokenize.
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<String>,
    /// How many tokens it may have.
    #[arg(long, value_name = "N")]
    pub vocab: usize,
    /// The file to write.
    #[arg(long, value_name = "tokenizer.json")]
    pub out: PathBuf,
    /// The field of JSON lines that holds the document; default: text.
    #[arg(long, value_name = "NAME")]
    pub field: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli data inspect`.
#[derive(Debug, clap::Args)]
pub struct DataInspect {
    /// The files' common name.
    pub prefix: PathBuf,
    /// Read all of the files, and say whether they contradict themselves anywhere.
    #[arg(long)]
    pub verify: bool,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli data audit`.
#[derive(Debug, clap::Args)]
pub struct Audit {
    /// The run's folder.
    pub run: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli doctor`.
#[derive(Debug, clap::Args)]
pub struct Doctor {
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli eval`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "For example: mp-cli eval --set model.from=runs/a --set data.path=held-out.txt\nThe text is cut into \
                  consecutive windows of train.seq tokens; each predicts all of its tokens but the first."
)]
pub struct Eval {
    #[command(flatten)]
    pub configuration: Configuration,
    /// Windows in a pass of a rank.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batch: usize,
    #[command(flatten)]
    pub output: Output,
}

/// `mp-cli generate`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "For example: mp-cli generate --set model.from=runs/a --prompt 'Once' --max-new-tokens 50\nWith neither \
                  --prompt nor --prompts it asks for one after the other, where a person is there to ask."
)]
pub struct Generate {
    #[command(flatten)]
    pub configuration: Configuration,
    /// The text to go on with.
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts")]
    pub prompt: Option<String>,
    /// A file of them: one a line, or (.jsonl) one JSON string or object with "prompt" a line.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// The most tokens to write.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_new_tokens: usize,
    /// Divides the scores of tokens: lower is more certain, 0 always takes the most likely token.
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Choose among so many of the most likely tokens only; 0: all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Choose among the fewest most likely tokens whose probabilities sum to P.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f64,
    /// Choose among tokens at least P times as likely as the most likely one.
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub min_p: f64,
    /// Make tokens that the text already holds less likely; 1 does not.
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f64,
    /// End before this string; may come several times.
    #[arg(long = "stop", value_name = "TEXT")]
    pub stops: Vec<String>,
    /// Decides the choices: the same seed writes the same text.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Prompts that a model continues side by side.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub batch: usize,
    /// Keep no keys and values: read the whole text again for each token. Slow; to compare.
    #[arg(long)]
    pub no_cache: bool,
    #[command(flatten)]
    pub output: Output,
}

/// Where a configuration comes from.
#[derive(Debug, clap::Args)]
pub struct Configuration {
    /// A TOML file of configuration keys, laid over the preset.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// A configuration by name: default, shakespeare, gpt2-124m, llama-1b.
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// One configuration key, laid over all others, such as train.steps=500; may come several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub sets: Vec<String>,
}

/// Where results go.
#[derive(Debug, clap::Args)]
pub struct Output {
    /// Print the result as JSON on standard output, and everything for people on standard error; or write it to a file.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// Reads a number of ranks.
fn number_of_ranks(text: &str) -> Result<usize, &'static str> {
    text.parse().map_err(|_| "must be a whole number from 1")
}

impl Configuration {
    /// Reads the configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(&self) -> mp_train::Result<mp_train::Config> {
        mp_train::Config::load(self.config.as_deref(), self.preset.as_deref(), &self.sets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_presets_are_all_named() {
        let mut command = Args::command();
        let help = command.find_subcommand_mut("train").unwrap().render_long_help().to_string();
        for name in mp_train::config::preset::names() {
            assert!(help.contains(name), "{name}");
        }
    }

    #[test]
    fn a_plan_is_for_a_number_of_ranks() {
        for ranks in ["-1", "two", "1.5"] {
            let error = Args::try_parse_from(["mp-cli", "plan", "--ranks", ranks]).unwrap_err().to_string();
            let message = format!("invalid value '{ranks}' for '--ranks <N>': must be a whole number from 1");
            assert!(error.contains(&message), "{error}");
        }
    }

    #[test]
    fn help_and_handbook_leave_ranks_the_same_time() {
        let time = "about a quarter of a second";
        let help = Args::command().find_subcommand_mut("train").unwrap().render_long_help().to_string();
        assert!(help.split_whitespace().collect::<Vec<_>>().join(" ").contains(time), "{help}");
        assert!(include_str!("../../../docs/configuration.md").contains(time));
    }

    #[test]
    fn json_takes_a_file_or_none() {
        let json = |words: &[&str]| match Args::try_parse_from(words).unwrap().command {
            Command::Plan(plan) => plan.output.json,
            other => panic!("{other:?}"),
        };
        assert_eq!(json(&["mp-cli", "plan"]), None);
        assert_eq!(json(&["mp-cli", "plan", "--json"]), Some("-".into()));
        assert_eq!(json(&["mp-cli", "plan", "--json", "a.json", "--ranks", "4"]), Some("a.json".into()));
        assert_eq!(json(&["mp-cli", "plan", "--json", "--ranks", "4"]), Some("-".into()));
    }
}
