//! A run's configuration: one tree of plain values, its layers of origin, and the checks on single values.
//!
//! | file | is |
//! |---|---|
//! | `config.rs` | the sections and their defaults, which together are the preset `default` |
//! | `config/layers.rs` | preset, file and `--set`, laid over each other as TOML tables |
//! | `config/schema.rs` | from a table to the tree, with errors that name the nearest key or the expected type |
//! | `config/every.rs` | steps or time between checkpoints |
//! | `config/check.rs` | values of the right type that cannot be |
//! | `config/resume.rs` | what a continued run takes from its folder |
//! | `config/from.rs` | what is taken from the folder that a model comes from |
//!
//! Whether a layout fits a world size is decided in `mp-plan`, whether a text is long enough in `mp-data`.

mod check;
mod every;
mod from;
mod layers;
pub mod preset;
mod resume;
mod schema;

use std::path::{Path, PathBuf};

pub use every::Every;
pub(crate) use from::described;
pub(crate) use layers::placed;
use mp_data::{Tokenizer, Validation};
use mp_plan::{LoraConfig, ModelConfig, ParallelConfig};
pub(crate) use schema::explain;
use serde::{Deserialize, Serialize};

use crate::{cluster, Error, Result};

/// Everything that decides a run. The default is the preset `default`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
pub struct Config {
    /// The model's shape.
    pub model: ModelConfig,
    /// How model and batch are cut.
    pub parallel: ParallelConfig,
    /// The run as a whole.
    pub train: TrainConfig,
    /// The update rule and its rates.
    pub optimizer: OptimizerConfig,
    /// What is trained on.
    pub data: DataConfig,
    /// What is kept on the way.
    pub checkpoint: CheckpointConfig,
    /// What is measured on the way.
    pub eval: EvalConfig,
    /// Adapters that are trained in the model's place.
    pub lora: LoraConfig,
    /// Where the configuration comes from, in one word: the preset's or the file's name. Run folders are named by it.
    #[serde(skip)]
    pub label: String,
    /// The keys of dropouts of the folder `model.from` that are not all one, where the user has chosen none for all.
    #[serde(skip)]
    pub uneven_dropout: Option<String>,
}

/// The numbers that parameters are multiplied in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE single throughout.
    Fp32,
    /// bfloat16 products over single-precision master weights and gradients.
    Bf16,
    /// IEEE double throughout; for comparing layouts.
    Fp64,
}

impl Precision {
    /// Returns the name as configurations have it.
    pub fn name(self) -> &'static str {
        self.planned().name()
    }

    /// Returns how the tensor backend calls it.
    pub fn backend(self) -> mp_runtime::Precision {
        match self {
            Precision::Fp32 => mp_runtime::Precision::Fp32,
            Precision::Bf16 => mp_runtime::Precision::Bf16,
            Precision::Fp64 => mp_runtime::Precision::Fp64,
        }
    }

    /// Returns how the plan calls it.
    pub fn planned(self) -> mp_plan::Precision {
        match self {
            Precision::Fp32 => mp_plan::Precision::Fp32,
            Precision::Bf16 => mp_plan::Precision::Bf16,
            Precision::Fp64 => mp_plan::Precision::Fp64,
        }
    }
}

/// Where tensors live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceName {
    /// A CUDA device where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device; refused where there is none.
    Cuda,
}

/// `[train]`: the run as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer updates.
    pub steps: u64,
    /// Sequences in an update, over all ranks.
    pub global_batch: usize,
    /// Target tokens in a sequence.
    pub seq: usize,
    /// The numbers that parameters are multiplied in.
    pub precision: Precision,
    /// Decides initial values, sample order and dropout.
    pub seed: u64,
    /// The gradient's norm is cut down to this; 0: never.
    pub clip_norm: f64,
    /// Evaluations in a row without a lower loss that end the run; 0: any number is put up with.
    pub patience: u64,
    /// Where tensors live.
    pub device: DeviceName,
    /// Whether a device gives the same bits in every run, by kernels that may be slower. The CPU always does.
    pub deterministic: bool,
    /// Whether a device multiplies single precision with factors rounded to 10 bits (TF32).
    pub tf32: bool,
    /// Threads of each rank; 0: the node's cores divided by its ranks.
    pub threads: usize,
    /// The run folder's name below `out`; unset: the configuration's name and the time.
    pub name: Option<String>,
    /// The folder of run folders.
    pub out: PathBuf,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 400,
            global_batch: 16,
            seq: 128,
            precision: Precision::Fp32,
            seed: 1,
            clip_norm: 1.0,
            patience: 0,
            device: DeviceName::Auto,
            deterministic: false,
            tf32: false,
            threads: 0,
            name: None,
            out: "runs".into(),
        }
    }
}

/// The update rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    AdamW,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// The courses that a learning rate takes after its warm-up; see [`crate::rates`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ScheduleName {
    /// Stays.
    Constant,
    /// Falls along a line.
    Linear,
    /// Falls along half a cosine.
    Cosine,
    /// Stays, then falls along a line over the last steps.
    Wsd,
}

/// `[optimizer]`: the update rule and its rates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The update rule.
    pub name: OptimizerName,
    /// The learning rate at its highest.
    pub lr: f64,
    /// The learning rate that schedules fall to; unset: a tenth of `lr`.
    pub min_lr: Option<f64>,
    /// AdamW: how much of the running means of gradient and squared gradient stays in a step.
    pub betas: [f64; 2],
    /// AdamW: added to the root of the squared gradient's mean.
    pub eps: f64,
    /// Decay of matrices; vectors do not decay.
    pub weight_decay: f64,
    /// SGD: how much of the running gradient stays in a step.
    pub momentum: f64,
    /// The learning rate's course.
    pub schedule: ScheduleName,
    /// Steps over which the learning rate rises; unset: a tenth of the steps, at most 100.
    pub warmup: Option<u64>,
    /// Steps over which it falls; 0: all after the warm-up (linear, cosine), the last tenth of the run (wsd).
    pub decay: u64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: OptimizerName::AdamW,
            lr: 2e-3,
            min_lr: None,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            momentum: 0.9,
            schedule: ScheduleName::Cosine,
            warmup: None,
            decay: 0,
        }
    }
}

/// What the files of `[data]` hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataFormat {
    /// Text, or tokens; every one is to be predicted.
    Text,
    /// JSON lines with a prompt and its completion, of which the completion is to be predicted.
    Completion,
    /// JSON lines with a conversation's messages, of which the assistant's are to be predicted.
    Chat,
}

impl std::fmt::Display for DataFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DataFormat::Text => "text",
            DataFormat::Completion => "completion",
            DataFormat::Chat => "chat",
        })
    }
}

/// `[data]`: what is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// What the files hold.
    pub format: DataFormat,
    /// A UTF-8 text file, a folder of them, or the common name of a `.bin` and an `.idx` file; unset: the embedded corpus. JSON
    /// lines, or a folder of them, where `format` is not text.
    pub path: Option<PathBuf>,
    /// Several of those with their weights, instead of one.
    pub blend: Vec<BlendConfig>,
    /// Whether attention reaches from one document to another in the same sample; unset: yes in text, and never between
    /// examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attend_across: Option<bool>,
    /// `bytes`, or the path of a `tokenizer.json`; empty where the model's folder has none.
    pub tokenizer: String,
    /// The fraction that is held out, by documents where there are several, or the path of other data.
    pub validation: Validation,
}

/// One source of `data.blend`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlendConfig {
    /// What `data.path` can be.
    pub path: PathBuf,
    /// Its share of the samples, against the sum of all weights.
    pub weight: f64,
    /// How often it may be read at most; unset: as often as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
}

/// The built-in tokenizer's name.
const BYTES: &str = "bytes";

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            format: DataFormat::Text,
            path: None,
            blend: Vec::new(),
            attend_across: None,
            tokenizer: BYTES.into(),
            validation: Validation::default(),
        }
    }
}

impl DataConfig {
    /// Loads the tokenizer.
    ///
    /// # Errors
    /// [`Error::Config`] if there is none: a model may come without; [`Error::Data`] for a file that is none.
    pub fn open_tokenizer(&self) -> Result<Tokenizer> {
        if self.tokenizer.is_empty() {
            let rule = "must name a `tokenizer.json`, for the folder of the model has none";
            return Err(Error::Config { key: "data.tokenizer", value: "unset".into(), rule: rule.into() });
        }
        Ok(Tokenizer::load(&self.tokenizer)?)
    }

    /// Returns the folder of the tokenizer's file, where a tokenizer has one: other files beside it say more of it.
    pub fn tokenizer_folder(&self) -> Option<&Path> {
        match self.tokenizer == BYTES {
            true => None,
            false => Path::new(&self.tokenizer).parent(),
        }
    }
}

/// `[checkpoint]`: what is kept on the way. The end of a run always saves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps or time between checkpoints.
    pub every: Every,
    /// How many of the newest are kept; 0: all.
    pub keep: usize,
    /// How many of those with the lowest validation losses are kept beside; an evaluation among them is saved at once.
    pub keep_best: usize,
    /// Whether checkpoints are written behind the next steps, from a copy in memory.
    pub asynchronous: bool,
    /// Whether to continue the run that the folder holds.
    pub resume: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: Every::Steps(100), keep: 2, keep_best: 0, asynchronous: true, resume: false }
    }
}

/// `[eval]`: what is measured on the way. The last evaluation is always over the whole validation part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Steps between evaluations; 0: only at the end.
    pub every: u64,
    /// Batches in an evaluation; 0: the whole validation part.
    pub batches: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { every: 100, batches: 0 }
    }
}

impl Config {
    /// Reads a configuration: the preset (or the default one), under the file, under each `section.key=value`.
    ///
    /// Relative paths in `[data]` and `model.from` start at the working directory and come out absolute. With `checkpoint.resume` and a
    /// run folder that holds a checkpoint, the rest comes from that run, `[model]`, `[data]`, `train.seq` and
    /// `train.seed` for good; only `[parallel]` never does.
    ///
    /// # Errors
    /// [`Error::Read`], [`Syntax`](crate::Error::Syntax),
    /// [`Assignment`](crate::Error::Assignment), [`UnknownPreset`](crate::Error::UnknownPreset),
    /// [`UnknownKey`](crate::Error::UnknownKey), [`WrongType`](crate::Error::WrongType), what
    /// [`validate`](Self::validate) refuses, and [`RunFolder`](crate::Error::RunFolder) where a `--set` contradicts the
    /// run that is continued.
    pub fn load(file: Option<&Path>, preset: Option<&str>, sets: &[String]) -> Result<Self> {
        let layers = layers::Layers::read(file, preset, sets)?;
        let config = match layers.resolve()?.continued(file) {
            Some(run) => resume::over(&layers, run)?,
            None => from::resolve(&layers, layers.resolve()?)?,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks every value on its own and against its neighbours.
    ///
    /// # Errors
    /// [`Error::Config`] for the first value that cannot be.
    pub fn validate(&self) -> Result<()> {
        check::all(self)
    }

    /// Writes the form that repeats the run: everything but the run folder's name and the wish to continue it.
    pub fn to_toml(&self) -> String {
        let mut saved = self.clone();
        saved.train.name = None;
        saved.checkpoint.resume = false;
        toml::to_string(&saved).expect("a tree of plain values is TOML")
    }

    /// Returns what stands on so many ranks: a layout that the planner chose for another number is open again.
    #[must_use]
    pub fn for_ranks(&self, ranks: usize) -> Self {
        Self { parallel: self.parallel.for_ranks(ranks), ..self.clone() }
    }

    /// Refuses to train a model whose folder drops unevenly.
    ///
    /// # Errors
    /// [`Error::Published`].
    pub fn check_dropout(&self) -> Result<()> {
        let Some(keys) = &self.uneven_dropout else { return Ok(()) };
        let problem = format!("it drops unevenly ({keys}), which is not computed; choose one `model.dropout` for all");
        Err(Error::Published { path: self.model.from.clone().unwrap_or_default(), problem })
    }

    /// Makes the paths of `[data]`, and that of a cluster's file, independent of the working directory.
    fn with_absolute_paths(mut self) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        if cluster::is_file(&self.parallel.cluster) {
            self.parallel.cluster = absolute(Path::new(&self.parallel.cluster)).to_string_lossy().into_owned();
        }
        self.model.from = from::absolute(self.model.from);
        self.model.base = from::absolute(self.model.base);
        // Nothing, as `--set data.path=` has it, is no path.
        self.data.path = self.data.path.as_deref().filter(|path| !path.as_os_str().is_empty()).map(absolute);
        for source in &mut self.data.blend {
            source.path = absolute(&source.path);
        }
        if let Validation::File(path) = &mut self.data.validation {
            *path = absolute(path);
        }
        if self.data.tokenizer != BYTES && !self.data.tokenizer.is_empty() {
            self.data.tokenizer = absolute(Path::new(&self.data.tokenizer)).to_string_lossy().into_owned();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_survives_toml() {
        let config = Config::default();
        config.validate().unwrap();
        let back: Config = toml::from_str(&config.to_toml()).unwrap();
        assert_eq!(back, config);
    }

    #[test]
    fn every_key_survives_toml() {
        let sets = [
            "model.architecture=gpt2",
            "model.tie_embeddings=false",
            "parallel.sequence_parallel=false",
            "parallel.tp=4",
            "train.precision=bf16",
            "train.device=cuda",
            "train.deterministic=true",
            "train.tf32=true",
            "parallel.transport=nccl",
            "optimizer.name=sgd",
            "optimizer.schedule=wsd",
            "optimizer.min_lr=1e-5",
            "optimizer.warmup=3",
            "data.path=/a/b.txt",
            "data.validation=/a/c.txt",
            "data.attend_across=false",
            "data.format=completion",
            "eval.batches=7",
            "checkpoint.every=10m",
            "checkpoint.asynchronous=false",
        ];
        let config = Config::load(None, None, &sets.map(String::from)).unwrap();
        let mut back: Config = toml::from_str(&config.to_toml()).unwrap();
        back.label.clone_from(&config.label);
        assert_eq!(back, config);
    }

    #[test]
    fn blends_survive_toml_with_absolute_paths() {
        let set = "data.blend=[{path=\"a\", weight=0.7}, {path=\"/b\", weight=3, epochs=2}]";
        let config = Config::load(None, None, &[set.into()]).unwrap();
        let back: Config = toml::from_str(&config.to_toml()).unwrap();
        assert_eq!(back.data, config.data);
        let here = std::env::current_dir().unwrap();
        let paths: Vec<_> = config.data.blend.iter().map(|source| source.path.clone()).collect();
        assert_eq!(paths, [here.join("a"), "/b".into()]);
        assert_eq!((config.data.blend[1].weight, config.data.blend[1].epochs), (3.0, Some(2.0)));
    }

    #[test]
    fn the_saved_form_neither_names_the_folder_nor_continues() {
        let sets = ["train.name=a".to_string(), "checkpoint.resume=true".to_string()];
        let saved = Config::load(None, None, &sets).unwrap().to_toml();
        let back: Config = toml::from_str(&saved).unwrap();
        assert_eq!((back.train.name, back.checkpoint.resume), (None, false));
    }

    #[test]
    fn paths_come_out_absolute() {
        let sets = ["data.path=a.txt".to_string(), "data.validation=b.txt".to_string()];
        let config = Config::load(None, None, &sets).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(config.data.path, Some(here.join("a.txt")));
        assert_eq!(config.data.validation, Validation::File(here.join("b.txt")));
        assert_eq!(config.data.tokenizer, "bytes");
    }
}
