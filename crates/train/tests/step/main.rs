//! What a step of a rank sends and calls, beside what is planned of it, to the byte and call by call; and where its time goes.

mod bytes;
mod calls;
mod times;

use std::sync::Arc;
use std::time::Instant;

use mp_comm::ledger::{Entry, Ledger, Log};
use mp_comm::Communicator;
use mp_data::{Batch, Targets, TextSource, Tokens};
use mp_runtime::Device;
use mp_train::assemble::Allocated;
use mp_train::layout::Layout;
use mp_train::step::{Trainer, Work};
use mp_train::times::Times;
use mp_train::{Config, Result};

const SEQ: usize = 32;
/// Of the tokens that are read; a model may have more.
const VOCAB: usize = 37;

/// A small model of four layers, with more that is set.
fn config(sets: &[&str]) -> Config {
    let base = [
        "model.hidden=16",
        "model.layers=4",
        "model.heads=4",
        "model.kv_heads=2",
        "model.vocab=37",
        "train.seq=32",
        "train.global_batch=8",
        "parallel.bucket_bytes=8192",
    ];
    let sets: Vec<String> = base.iter().chain(sets).map(|set| (*set).to_string()).collect();
    Config::load(None, None, &sets).unwrap()
}

/// A rank after its second step.
struct Seen {
    layout: Layout,
    trainer: Trainer,
    /// Its places in the pipeline and in the data group.
    stage: usize,
    part: usize,
    /// What the second step called.
    called: Vec<Entry>,
    /// What the second step says that it took, and what a clock outside says, in seconds.
    times: Times,
    clock: f64,
}

/// Makes two steps: the first one also allocates.
fn second_step(world: Arc<dyn Communicator>, config: &Config) -> Result<Seen> {
    let log = Arc::new(Log::new());
    let world: Arc<dyn Communicator> = Arc::new(Ledger::new(world, Arc::clone(&log)));
    let layout = Layout::new(config, VOCAB, world.size())?;
    let groups = layout.groups(&world)?;
    let (stage, dp, part) = (groups.pp.rank().0, groups.dp.rank().0, groups.data.rank().0);
    let mut trainer = Allocated::new(config, &layout, &groups, Device::Cpu)?.trainer(config, &layout, groups)?;
    let tokens = (0..900).map(|at| at % VOCAB as u32).collect();
    let source = TextSource::new(Tokens::new("counted", tokens), SEQ, 1)?;
    let mut step = |step: u64| -> Result<_> {
        let mut batches = (0..layout.batches.micro_batches())
            .map(|micro| Batch::read(&source, layout.batches.samples(step - 1, dp, micro)))
            .collect::<mp_data::Result<Vec<_>>>()?;
        if config.model.next_sentence {
            batches.iter_mut().for_each(|batch| batch.labels = Some(vec![0; batch.batch]));
        }
        log.take();
        let work = Work { step, lr: 1e-3, batches: &batches, global_batch: 8, targets: Targets::Every };
        let begun = Instant::now();
        Ok((trainer.step(&work)?.times, begun.elapsed().as_secs_f64()))
    };
    step(1)?;
    let (times, clock) = step(2)?;
    Ok(Seen { layout, trainer, stage, part, called: log.take(), times, clock })
}
