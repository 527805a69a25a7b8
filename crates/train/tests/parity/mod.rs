//! Any layout must reproduce one rank: ten steps in double precision, every step's loss and norm, and every parameter's
//! gradient.
#![allow(missing_docs, dead_code)]

use std::sync::Arc;

use mp_comm::solo::Solo;
use mp_comm::Communicator;
use mp_data::{Batch, BatchPlan, ExampleReader, Packed, PackedSource, Reading, Tokenizer};
use mp_data::{Piece, Sample, SampleSource, Targets, TextSource, Tokens, IGNORED};
use mp_model::context::{Context, Form};
use mp_model::parameter::Sharing;
use mp_model::recompute::Recompute;
use mp_model::regions::{Between, TensorGroup};
use mp_model::{build, shard, Options, Parameters};
use mp_plan::{
    Architecture, ArchitectureName, Degrees, LoraConfig, Mesh, ModelConfig, Partition, Schedule, ScheduleName, Stages,
    Zero,
};
use mp_runtime::rng::Stream;
use mp_runtime::{Device, Kind, Precision, Tensor};
use mp_train::config::{OptimizerConfig, OptimizerName};
use mp_train::groups::Groups;
use mp_train::optimizer::optimizer;
use mp_train::step::{Method, Trainer, Work};
use mp_train::Result;

pub const STEPS: u64 = 10;
const GLOBAL_BATCH: usize = 8;
const SEQ: usize = 8;
/// Uneven for two and four ranks.
const VOCAB: usize = 37;
const SEED: u64 = 11;

/// What is trained, whatever the layout.
#[derive(Debug, Clone)]
pub struct Model {
    pub name: &'static str,
    pub config: ModelConfig,
    pub optimizer: OptimizerName,
    pub data: Data,
    pub lora: LoraConfig,
    /// Below the first norms: clipping takes part.
    pub clip_norm: f64,
}

/// What it is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    Text,
    /// Text of whose targets unevenly many count.
    Ignored,
    /// Prompts and completions of unequal lengths, packed.
    Examples,
}

/// How it is cut.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub tp: usize,
    pub dp: usize,
    pub pp: usize,
    pub cp: usize,
    pub form: Form,
    pub schedule: ScheduleName,
    pub between: Between,
    pub accumulation: usize,
    pub zero: Zero,
    pub recompute: Recompute,
}

/// What a step left behind.
#[derive(Debug)]
pub struct Trace {
    pub loss: f64,
    pub norm: f64,
    /// Of the parameters that this rank holds, in full.
    pub gradients: Vec<(String, Tensor)>,
}

pub fn models() -> Vec<Model> {
    let base =
        ModelConfig { hidden: 16, layers: 2, heads: 4, ffn: 24, vocab: VOCAB, max_seq: SEQ, ..ModelConfig::default() };
    let gpt2 = ModelConfig { architecture: ArchitectureName::Gpt2, ..base.clone() };
    let llama = ModelConfig { architecture: ArchitectureName::Llama, ..base };
    let adamw = OptimizerName::AdamW;
    let model = |name, config, optimizer| Model {
        name,
        config,
        optimizer,
        data: Data::Text,
        lora: LoraConfig::default(),
        clip_norm: 0.5,
    };
    let every = ["query", "key", "value", "output"].map(|name| format!("attention.{name}")).into_iter();
    let every: Vec<String> = every.chain(["gate", "up", "down"].map(|name| format!("mlp.{name}"))).collect();
    let lora = LoraConfig { rank: 3, alpha: 24.0, ..LoraConfig::default() };
    let dropped = LoraConfig { dropout: 0.1, targets: every, ..lora.clone() };
    vec![
        model("gpt2", gpt2.clone(), adamw),
        Model { lora, clip_norm: 0.05, ..model("gpt2 adapters", gpt2.clone(), adamw) },
        Model {
            lora: dropped,
            clip_norm: 0.05,
            // AdamW divides a gradient that is next to nothing, as a first factor's is at first, by as little: its rounding
            // errors would grow beyond the limit in ten steps.
            ..model("llama adapters", ModelConfig { kv_heads: 1, dropout: 0.1, ..llama.clone() }, OptimizerName::Sgd)
        },
        model("gpt2 untied", ModelConfig { tie_embeddings: Some(false), ..gpt2.clone() }, OptimizerName::Sgd),
        model("gpt2 dropout", ModelConfig { dropout: 0.1, ..gpt2.clone() }, adamw),
        Model { data: Data::Ignored, ..model("gpt2 with ignored targets", gpt2.clone(), adamw) },
        Model { data: Data::Examples, ..model("gpt2 with packed examples", gpt2, adamw) },
        Model {
            data: Data::Examples,
            ..model("llama with packed examples", ModelConfig { kv_heads: 2, ..llama.clone() }, adamw)
        },
        model("llama grouped", ModelConfig { kv_heads: 2, ..llama.clone() }, adamw),
        model("llama one kv head, biases", ModelConfig { kv_heads: 1, bias: Some(true), ..llama.clone() }, adamw),
        model("llama tied", ModelConfig { tie_embeddings: Some(true), ..llama.clone() }, adamw),
        model("llama dropout", ModelConfig { kv_heads: 2, dropout: 0.1, ..llama }, adamw),
    ]
}

/// All layouts of `ranks` ranks.
pub fn layouts(ranks: usize) -> Vec<Layout> {
    let mut layouts = Vec::new();
    for tp in (1..=ranks).filter(|tp| ranks.is_multiple_of(*tp)) {
        for between in [Between::Replicated, Between::SequenceSharded] {
            for accumulation in [1, 2] {
                for zero in Zero::ALL.into_iter().filter(|&zero| zero == Zero::Replicated || ranks > tp) {
                    layouts.push(Layout { tp, dp: ranks / tp, between, accumulation, zero, ..ONE_RANK });
                }
            }
        }
    }
    layouts
}

/// All layouts of `ranks` ranks with more than one stage, each with every schedule that the model's layers allow.
pub fn staged_layouts(ranks: usize, layers: usize) -> Vec<Layout> {
    let mut layouts = Vec::new();
    for pp in (2..=ranks).filter(|pp| ranks.is_multiple_of(*pp)) {
        let rest = ranks / pp;
        for tp in (1..=rest).filter(|tp| rest.is_multiple_of(*tp)) {
            for schedule in ScheduleName::ALL {
                if pp * schedule.default_chunks() > layers {
                    continue;
                }
                let base = Layout { tp, dp: rest / tp, pp, schedule, accumulation: 4, ..ONE_RANK };
                layouts.push(base);
                if tp > 1 {
                    let recompute = Recompute::Full { every: 2 };
                    layouts.push(Layout { between: Between::SequenceSharded, recompute, ..base });
                }
                if base.dp > 1 {
                    layouts.push(Layout { zero: Zero::Optimizer, recompute: Recompute::Selective, ..base });
                }
            }
        }
    }
    layouts
}

/// All layouts of `ranks` ranks that share sequences, in both forms, beside every other axis and option.
pub fn context_layouts(ranks: usize, kv_heads: usize, layers: usize) -> Vec<Layout> {
    let mut layouts = Vec::new();
    // Pieces of a sequence of eight are two tokens long over two ranks, one over four: no further cut beside four.
    for cp in [2, 4].into_iter().filter(|cp| ranks.is_multiple_of(*cp)) {
        let rest = ranks / cp;
        for form in [Form::Ring, Form::AllToAll] {
            if form == Form::AllToAll && mp_plan::check_all_to_all(4, kv_heads, 1, cp).is_err() {
                continue;
            }
            let base = Layout { cp, form, dp: rest, accumulation: 2, ..ONE_RANK };
            layouts.push(base);
            for zero in [Zero::Optimizer, Zero::Gradients, Zero::Parameters] {
                layouts.push(Layout { zero, recompute: Recompute::Full { every: 1 }, ..base });
            }
            if rest == 2 {
                let cut = Layout { dp: 1, tp: 2, ..base };
                if form == Form::Ring || mp_plan::check_all_to_all(4, kv_heads, 2, cp).is_ok() {
                    layouts.push(cut);
                    layouts.push(Layout { between: Between::SequenceSharded, ..cut });
                }
                for schedule in [ScheduleName::OneFOneB, ScheduleName::ZbV] {
                    if 2 * schedule.default_chunks() <= layers {
                        layouts.push(Layout { dp: 1, pp: 2, schedule, zero: Zero::Optimizer, ..base });
                    }
                }
            }
        }
    }
    layouts
}

const ONE_RANK: Layout = Layout {
    tp: 1,
    dp: 1,
    pp: 1,
    cp: 1,
    form: Form::Ring,
    schedule: ScheduleName::OneFOneB,
    between: Between::Replicated,
    accumulation: 1,
    zero: Zero::Replicated,
    recompute: Recompute::None,
};

/// One rank, no accumulation: what every layout is held against.
pub fn oracle(model: &Model) -> Result<Vec<Trace>> {
    train(model, ONE_RANK, Arc::new(Solo::new("world")))
}

/// Trains under a layout; every rank gets the full trace.
pub fn train(model: &Model, layout: Layout, world: Arc<dyn Communicator>) -> Result<Vec<Trace>> {
    let Layout { tp, dp, pp, cp, form, schedule, between, accumulation, zero, recompute } = layout;
    let architecture = Architecture::resolve(&model.config, VOCAB, SEQ)?;
    let mesh = Mesh::new(Degrees { tp, dp, pp, cp, ..Degrees::default() })?;
    let stages =
        Stages::new(&architecture, architecture.max_seq, pp, schedule.default_chunks(), schedule.folding(), None)?;
    let schedule = Schedule::new(schedule, stages, accumulation, architecture.tie_embeddings && model.lora.rank == 0)?;
    schedule.check()?;
    let groups = Groups::new(&world, &mesh, schedule.stages.tied_ranks())?;
    let rank = groups.pp.rank().0;
    let whole = Arc::new(Partition::new(&architecture, &mesh)?.adapted(&model.lora)?);
    let partition = Arc::new(whole.of_rank(&schedule.stages, rank));
    // Small enough that every model fills several.
    let sharing = Sharing { data: Arc::clone(&groups.data), zero, bucket_bytes: 4096 };
    let parameters = Parameters::shared(&partition, groups.tp.rank().0, sharing, SEED, Precision::Fp64, Device::Cpu)?;
    let config = OptimizerConfig { name: model.optimizer, weight_decay: 0.1, momentum: 0.9, ..Default::default() };
    let optimizer = optimizer(&config, &parameters)?;
    let group = TensorGroup { comm: Arc::clone(&groups.tp), between };
    let context = Context { comm: Arc::clone(&groups.cp), form };
    let clip_norm = model.clip_norm;
    let options = Options { context: context.clone(), recompute };
    let source = source(model.data)?;
    let model = build(parameters, group, &schedule.stages.rank_layers(rank), &options)?;
    let method = Method { whole, context, between, schedule, seed: SEED, clip_norm };
    let mut trainer = Trainer::new(groups, model, optimizer, method)?;
    let plan = BatchPlan::new(GLOBAL_BATCH, GLOBAL_BATCH / dp / accumulation, dp)?;
    (1..=STEPS).map(|step| one_step(&mut trainer, &plan, step, &*source)).collect()
}

fn one_step(trainer: &mut Trainer, plan: &BatchPlan, step: u64, source: &dyn SampleSource) -> Result<Trace> {
    let targets = source.targets();
    let rank = trainer.groups().dp.rank().0;
    let batches = (0..plan.micro_batches()).map(|micro| Batch::read(source, plan.samples(step - 1, rank, micro)));
    let batches = batches.collect::<mp_data::Result<Vec<_>>>()?;
    let outcome = trainer.step(&Work { step, lr: 1e-2, batches: &batches, global_batch: GLOBAL_BATCH, targets })?;
    let parameters = trainer.parameters();
    let gradients = (0..parameters.partition().parameters.len())
        .filter(|&index| !parameters.partition().parameters[index].spec.frozen)
        .map(|index| {
            let name = parameters.partition().parameters[index].spec.name.clone();
            Ok((name, shard::gather(parameters, index, parameters.gradients(), &*trainer.groups().tp)?.copy()))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Trace { loss: outcome.loss, norm: outcome.gradient_norm, gradients })
}

fn source(data: Data) -> Result<Box<dyn SampleSource>> {
    Ok(match data {
        Data::Text => Box::new(text()?),
        Data::Ignored => Box::new(Ignoring { text: text()? }),
        Data::Examples => Box::new(examples()?),
    })
}

/// Prompts and completions of bytes below the vocabulary, two to nine tokens long with the one that ends them: rows hold one
/// to four, and from one to eight targets.
fn examples() -> Result<PackedSource> {
    let mut words = vec![0; 600];
    Stream::new(7, "examples", 0).words(0, &mut words);
    let mut letters = words.iter().map(|word| char::from(1 + (word % (VOCAB as u32 - 1)) as u8));
    let mut text = |letters_wanted: usize| letters.by_ref().take(letters_wanted).collect::<String>();
    let line = |number: usize| {
        let (prompt, completion) = (text([1, 0, 4, 2, 5, 1, 3][number % 7]), text(1 + [0, 2, 1, 2, 0][number % 5]));
        format!("{}\n", serde_json::json!({ "prompt": prompt, "completion": completion }))
    };
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, (0..40).map(line).collect::<String>()).expect("a file");
    let tokenizer = Tokenizer::bytes();
    let reader =
        ExampleReader { tokenizer: &tokenizer, reading: Reading::Completion(0), vocab: VOCAB, seq: SEQ, threads: 1 };
    Ok(PackedSource::new(Packed::new(reader.read(file.path())?, SEQ)?, SEED))
}

/// A text of whose targets unevenly many count, over samples as over positions.
struct Ignoring {
    text: TextSource,
}

impl SampleSource for Ignoring {
    fn seq(&self) -> usize {
        self.text.seq()
    }

    fn len_tokens(&self) -> u64 {
        self.text.len_tokens()
    }

    fn samples_per_epoch(&self) -> u64 {
        self.text.samples_per_epoch()
    }

    fn targets(&self) -> Targets {
        Targets::Counted
    }

    fn sample(&self, number: u64, into: &mut Sample) -> mp_data::Result<()> {
        self.text.sample(number, into)?;
        let counted = [1, 0, 8, 2, 5, 0, 7, 3][number as usize % 8];
        into.targets[counted..].fill(IGNORED);
        Ok(())
    }

    fn pieces(&self, number: u64) -> mp_data::Result<Vec<Piece>> {
        self.text.pieces(number)
    }
}

fn text() -> Result<TextSource> {
    let mut words = vec![0; 600];
    Stream::new(5, "text", 0).words(0, &mut words);
    let ids = words.iter().map(|word| word % VOCAB as u32).collect();
    Ok(TextSource::new(Tokens::new("random tokens", ids), SEQ, SEED)?)
}

/// Compares two traces; says where they first differ, in execution order, and by how much.
///
/// Losses and norms to 1e-10 relative. A tensor's gradient: max|Δ| ≤ 1e-10 · max(max|g of the tensor|, 1e-3 · max|g of
/// the model|), for some gradients (a key bias's) are zero but for rounding.
pub fn compare(got: &[Trace], expected: &[Trace]) -> std::result::Result<(), String> {
    if (got.len(), expected.len()) != (STEPS as usize, STEPS as usize) {
        return Err(format!("{} steps against {} of one rank, where {STEPS} are asked for", got.len(), expected.len()));
    }
    for (step, (got, expected)) in got.iter().zip(expected).enumerate() {
        for (what, a, b) in [("loss", got.loss, expected.loss), ("norm", got.norm, expected.norm)] {
            if !within((a - b).abs(), 1e-10 * b.abs()) {
                return Err(format!("step {}: {what} {a} where one rank has {b}", step + 1));
            }
        }
        let model_scale = expected.gradients.iter().map(|(_, gradient)| scale(gradient)).fold(0.0, f64::max);
        for (name, a) in &got.gradients {
            let found = expected.gradients.iter().find(|(other, _)| other == name);
            let (_, b) = found.ok_or_else(|| format!("one rank has no {name}"))?;
            let allowed = 1e-10 * scale(b).max(1e-3 * model_scale);
            let worst = scale(&(a - b));
            if !within(worst, allowed) {
                return Err(format!("step {}: gradient of {name} differs by {worst:e}, allowed {allowed:e}", step + 1));
            }
        }
    }
    Ok(())
}

/// What is no number is not within anything.
fn within(difference: f64, allowed: f64) -> bool {
    difference <= allowed
}

fn scale(tensor: &Tensor) -> f64 {
    assert_eq!(tensor.kind(), Kind::Double);
    tensor.abs().max().double_value(&[])
}
