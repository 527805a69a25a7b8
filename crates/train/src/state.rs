//! A trainer's state into a checkpoint, and back: full tensors, whatever the layout that wrote them.
//!
//! `model.safetensors` holds the masters under the parameters' names; `optimizer.safetensors` holds each of the
//! optimizer's flat buffers, `first_moment.<parameter>` for instance.

use std::path::PathBuf;

use mp_comm::{Rank, Tag};
use mp_model::collective::{start_receive, start_send};
use mp_model::{shard, Parameters};
use mp_plan::{ParameterSpec, Partition, Tie, Zero};
use mp_runtime::flat::Flat;
use mp_runtime::{bytes, Kind, Tensor};

use crate::agree::agree;
use crate::checkpoint::{CheckpointReader, CheckpointStore, CheckpointWriter, Dtype, Entry};
use crate::step::Trainer;
use crate::weights::{self, CheckpointWeights};
use crate::{Config, Error, Result};

pub(crate) const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Carries tensors to the rank that writes; no schedule is under way meanwhile.
const TENSORS: Tag = Tag(u16::MAX);

/// One flat buffer with the file and the prefix that its tensors are saved under.
struct Part<'a> {
    file: &'static str,
    prefix: String,
    flat: &'a Flat,
}

fn parts<'a>(trainer: &'a Trainer, parameters: &'a Parameters) -> Vec<Part<'a>> {
    let mut parts = vec![Part { file: MODEL, prefix: String::new(), flat: parameters.masters() }];
    for (name, flat) in trainer.optimizer().state() {
        parts.push(Part { file: OPTIMIZER, prefix: format!("{name}."), flat });
    }
    parts
}

/// What a checkpoint says beside the tensors.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Finished updates.
    pub step: u64,
    /// Target tokens trained on so far.
    pub tokens: u64,
    /// The run's configuration.
    pub config: &'a Config,
}

/// Saves a trainer. Collective over the world: each stage's first tensor group gathers (those of all data ranks where
/// they share out), rank 0 writes; returns the checkpoint's folder on rank 0.
///
/// # Errors
/// [`Error::Write`] on rank 0 where the disk refuses, [`Error::Peer`] on the others; earlier checkpoints are intact.
pub fn save(trainer: &Trainer, store: &dyn CheckpointStore, progress: &Progress<'_>) -> Result<Option<PathBuf>> {
    let _span = tracing::info_span!("save", step = progress.step).entered();
    let groups = trainer.groups();
    let mut written = Ok(None);
    let shared = trainer.parameters().sharing().zero != Zero::Replicated;
    if shared || groups.data.rank() == Rank(0) {
        let mut scribe = (groups.world.rank() == Rank(0)).then(|| Scribe::new(store, progress.step));
        gather(trainer, scribe.as_mut())?;
        written = scribe.map(|scribe| scribe.commit(progress)).transpose();
    }
    agree(&*groups.world, written)
}

/// Writes until the disk refuses, and remembers why: the gathering goes on, for the other ranks take part in it.
struct Scribe {
    writer: Result<Box<dyn CheckpointWriter>>,
}

impl Scribe {
    fn new(store: &dyn CheckpointStore, step: u64) -> Self {
        Self { writer: store.begin(step) }
    }

    fn attempt(&mut self, write: impl FnOnce(&mut dyn CheckpointWriter) -> Result<()>) {
        if let Ok(writer) = &mut self.writer {
            if let Err(error) = write(&mut **writer) {
                self.writer = Err(error);
            }
        }
    }

    fn commit(self, progress: &Progress<'_>) -> Result<PathBuf> {
        self.writer?.commit(progress.tokens, progress.config)
    }
}

/// Gathers one tensor after the other on the first rank of the pipeline, and hands each to the scribe where there is one.
fn gather(trainer: &Trainer, mut scribe: Option<&mut Scribe>) -> Result<()> {
    let parameters = trainer.parameters();
    let parts = parts(trainer, parameters);
    let owners = owners(trainer);
    for file in [MODEL, OPTIMIZER] {
        let own: Vec<&Part<'_>> = parts.iter().filter(|part| part.file == file).collect();
        let entries = entries(trainer.whole(), &own)?;
        if let Some(scribe) = &mut scribe {
            scribe.attempt(|writer| writer.file(file, &entries));
        }
        for part in own {
            for (parameter, &owner) in trainer.whole().parameters.iter().zip(&owners) {
                let full = one(trainer, &parameter.spec, owner, part.flat)?;
                if let (Some(scribe), Some(full)) = (&mut scribe, full) {
                    let elements = bytes::view(&full)?;
                    scribe.attempt(|writer| writer.append(elements));
                }
            }
        }
    }
    Ok(())
}

/// Gathers one parameter where it lies and brings it to the first rank of the pipeline; returns it there, on the first
/// tensor rank of the first data rank at least.
fn one(trainer: &Trainer, spec: &ParameterSpec, owner: usize, flat: &Flat) -> Result<Option<Tensor>> {
    let (groups, parameters) = (trainer.groups(), trainer.parameters());
    let here = groups.pp.rank().0;
    let full = match here == owner {
        true => Some(shard::gather(parameters, parameters.index(&spec.name)?, flat, &*groups.tp)?),
        false => None,
    };
    let full = full.map(|full| full.f_contiguous()).transpose().map_err(mp_runtime::Error::from)?;
    let carries = groups.tp.rank() == Rank(0) && groups.data.rank() == Rank(0);
    match (owner, full) {
        (0, full) => Ok(full),
        (_, Some(full)) if carries => {
            let _over = start_send(&*groups.pp, &full, Rank(0), TENSORS)?.wait()?;
            Ok(None)
        }
        (owner, None) if carries && here == 0 => {
            let shape: Vec<i64> = spec.shape.iter().map(|&n| n as i64).collect();
            let place = Tensor::f_empty(&shape[..], (flat.all().kind(), flat.all().device()));
            let place = place.map_err(mp_runtime::Error::from)?;
            Ok(Some(start_receive(&*groups.pp, place, Rank(owner), TENSORS)?.wait()?))
        }
        _ => Ok(None),
    }
}

/// Finds the pipeline rank that each parameter of the whole model is saved from.
fn owners(trainer: &Trainer) -> Vec<usize> {
    let stages = trainer.line().stages;
    let held: Vec<Partition> = (0..stages.pp()).map(|rank| trainer.whole().of_rank(stages, rank)).collect();
    let owner = |name: &str| {
        let owns = |held: &Partition| held.get(name).is_some_and(|parameter| parameter.tie != Tie::Copy);
        held.iter().position(owns).expect("each parameter lies on some rank")
    };
    trainer.whole().parameters.iter().map(|parameter| owner(&parameter.spec.name)).collect()
}

fn entries(whole: &Partition, parts: &[&Part<'_>]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for part in parts {
        let dtype = dtype(part.flat.all().kind())?;
        for parameter in &whole.parameters {
            entries.push(Entry::new(format!("{}{}", part.prefix, parameter.spec.name), dtype, &parameter.spec.shape));
        }
    }
    Ok(entries)
}

fn dtype(kind: Kind) -> Result<Dtype> {
    match kind {
        Kind::Double => Ok(Dtype::F64),
        Kind::Float => Ok(Dtype::F32),
        other => Err(mp_model::Error::Kind(other).into()),
    }
}

/// Puts a checkpoint's tensors into a trainer's buffers, each rank its own shards. Local to each rank.
///
/// # Errors
/// [`Error::Checkpoint`] if a tensor is missing or of another shape.
pub fn restore(trainer: &Trainer, reader: Box<dyn CheckpointReader>) -> Result<()> {
    let _span = tracing::info_span!("restore").entered();
    let parameters = trainer.parameters();
    for part in parts(trainer, parameters).into_iter().filter(|part| part.file != MODEL) {
        for (index, parameter) in parameters.partition().parameters.iter().enumerate() {
            let name = format!("{}{}", part.prefix, parameter.spec.name);
            let stored = reader.read(part.file, &name)?;
            if stored.entry.shape != parameter.spec.shape {
                let (got, wanted) = (&stored.entry.shape, &parameter.spec.shape);
                let problem = format!("`{name}` has shape {got:?} where the model has {wanted:?}");
                return Err(Error::Checkpoint { path: reader.path().into(), problem });
            }
            let kind = stored.entry.dtype.kind();
            let shape: Vec<i64> = stored.entry.shape.iter().map(|&n| n as i64).collect();
            let full = bytes::tensor(&stored.bytes, &shape, kind)?;
            shard::scatter(parameters, index, &full, part.flat)?;
        }
    }
    weights::load(parameters, &CheckpointWeights::new(reader))
}
