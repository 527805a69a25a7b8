//! From a configuration to a run that is about to make its first step.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use mp_comm::{Communicator, Rank};
use mp_data::{BatchPlan, Prefetch, SampleSource, Tokenizer};
use mp_plan::{Axis, Cluster};
use mp_runtime::Device;

use super::begin::{begin, same_place};
use super::Run;
use crate::agree::agree;
use crate::assemble::Allocated;
use crate::audit::DataLog;
use crate::checkpoint::{About, CheckpointStore, DirectoryStore};
use crate::choose::Chosen;
use crate::crowd::ranks_a_memory;
use crate::layout::Layout;
use crate::ledger::Watch;
use crate::measure;
use crate::memory;
use crate::metrics::Metrics;
use crate::rates::Rates;
use crate::records::{Observer, Start};
use crate::room::Full;
use crate::run_folder::{timestamp, RunFolder};
use crate::saving::{self, Saver};
use crate::standing::Standing;
use crate::step::Trainer;
use crate::text::{vocabulary, Text};
use crate::times::History;
use crate::{Config, Result};

/// Steps whose batches are read ahead.
const READ_AHEAD: usize = 2;

impl<'a> Run<'a> {
    pub(super) fn prepare(
        chosen: &'a Chosen,
        world: Arc<dyn Communicator>,
        device: Device,
        observer: &'a mut dyn Observer,
        through: impl FnOnce(Arc<dyn SampleSource>) -> Arc<dyn SampleSource>,
    ) -> Result<Self> {
        let config = &chosen.config;
        let sharing = ranks_a_memory(&*world, device)?;
        let machine = chosen.machine.as_ref();
        let (tokenizer, text, layout) = agree(&*world, input(config, machine, &*world, sharing, device))?;
        let known = known(config, machine, &layout, sharing, world.rank());
        let full = |error| known.explain(error);
        let folder = RunFolder::open(&*world, config)?;
        let (watch, trainer) = allocated(config, &world, &layout, device).map_err(full)?;
        let store = DirectoryStore::new(folder.checkpoints(), config.checkpoint.keep);
        let store = store.keeping_best(config.checkpoint.keep_best);
        let (resumed, base) = stand(config, &*world, &store, &trainer).map_err(full)?;
        let (step, samples, standing) =
            resumed.as_ref().map_or((0, 0, Standing::default()), |about| (about.step, about.samples, about.standing));
        agree(&*world, enough(config, &text, step, samples))?;
        let (metrics, data_log) = files(chosen, &*world, &layout, &folder, resumed.as_ref(), &text)?;
        let batches = layout.batches.after(step, samples);
        let reader = agree(&*world, reader(through(Arc::clone(&text.source)), batches, &trainer, step))?;
        if world.rank() == Rank(0) {
            observer.start(&told(config, &layout, &folder, resumed.as_ref(), &text));
        }
        let beside = metrics.iter().map(Metrics::handle).chain(data_log.iter().map(DataLog::handle));
        let beside = agree(&*world, beside.collect::<Result<Vec<_>>>())?;
        let saver = saver(config, &world, store, beside, &trainer).map_err(full)?;
        Ok(Self {
            config,
            machine,
            layout,
            tokenizer,
            reader,
            targets: text.source.targets(),
            windows: text.windows,
            trainer,
            rates: Rates::new(&config.optimizer, config.train.steps),
            saver,
            folder,
            standing,
            metrics,
            data_log,
            batches,
            observer,
            base,
            watch,
            sharing,
            history: History::default(),
            step,
            samples,
            saved: (step > 0).then_some(step),
        })
    }
}

/// Says what is known of this rank, should its device be full.
fn known<'a>(
    config: &'a Config,
    machine: Option<&'a Cluster>,
    layout: &'a Layout,
    sharing: usize,
    rank: Rank,
) -> Full<'a> {
    let stage = layout.partition.mesh.coordinate(Axis::Pp, rank.0);
    Full { config, layout, machine, sharing, stage }
}

/// Opens what the run reads and cuts the model, before anything is allocated or written.
fn input(
    config: &Config,
    machine: Option<&Cluster>,
    world: &dyn Communicator,
    sharing: usize,
    device: Device,
) -> Result<(Tokenizer, Text, Layout)> {
    config.check_dropout()?;
    let tokenizer = config.data.open_tokenizer()?;
    let layout = Layout::new(config, vocabulary(config, &tokenizer), world.size())?;
    let text = Text::open(config, &tokenizer, layout.partition.architecture.vocab)?;
    if !config.checkpoint.resume {
        text.check(config.train.steps.saturating_mul(config.train.global_batch as u64))?;
    }
    let checked = memory::check(config, &layout, sharing, device);
    checked.map_err(|error| known(config, machine, &layout, sharing, world.rank()).explain(error))?;
    Ok((tokenizer, text, layout))
}

/// Makes the model with what trains it, and what watches the memory that it takes. Collective.
fn allocated(
    config: &Config,
    world: &Arc<dyn Communicator>,
    layout: &Layout,
    device: Device,
) -> Result<(Watch, Trainer)> {
    let groups = layout.groups(world)?;
    // Before anything is allocated.
    let watch = agree(&**world, Watch::new(device))?;
    let allocated = match config.model.from {
        Some(_) => Allocated::to_be_loaded(config, layout, &groups, device),
        None => Allocated::new(config, layout, &groups, device),
    };
    Ok((watch, agree(&**world, allocated)?.trainer(config, layout, groups)?))
}

/// Checks that there are samples for the steps that are left behind `step` finished ones.
fn enough(config: &Config, text: &Text, step: u64, samples: u64) -> Result<()> {
    let left = (config.train.steps.saturating_sub(step)).saturating_mul(config.train.global_batch as u64);
    text.check(samples.saturating_add(left))
}

/// Begins to read what this data rank takes behind `step` finished ones.
fn reader(source: Arc<dyn SampleSource>, batches: BatchPlan, trainer: &Trainer, step: u64) -> Result<Prefetch> {
    let (rank, ahead) = (trainer.groups().dp.rank().0, READ_AHEAD * batches.micro_batches());
    Ok(Prefetch::new(source, batches, rank, step, ahead)?)
}

/// Finds on all ranks the place that the run begins at: what the checkpoint says that it goes on from, and the mark of the
/// model under adapters. Collective.
fn stand(
    config: &Config,
    world: &dyn Communicator,
    store: &DirectoryStore,
    trainer: &Trainer,
) -> Result<(Option<About>, Option<String>)> {
    agree(world, if world.rank() == Rank(0) { store.sweep() } else { Ok(()) })?;
    let (resumed, base) = agree(world, begin(config, store, trainer))?;
    agree(world, same_place(world, store, config, resumed.as_ref()))?;
    Ok((resumed, base))
}

/// Makes what saves the run, with the files `beside` its checkpoints. Collective.
fn saver(
    config: &Config,
    world: &Arc<dyn Communicator>,
    store: DirectoryStore,
    beside: Vec<(PathBuf, File)>,
    trainer: &Trainer,
) -> Result<Saver> {
    let losses = saving::losses(&**world, &store, config.checkpoint.keep_best)?;
    let mut saver = Saver::new(&config.checkpoint, Arc::new(store), Arc::clone(world), losses).beside(beside);
    agree(&**world, saver.prepare(trainer))?;
    Ok(saver)
}

/// Says what the run is, for whoever watches.
fn told(config: &Config, layout: &Layout, folder: &RunFolder, resumed: Option<&About>, text: &Text) -> Start {
    Start {
        ranks: layout.partition.mesh.size(),
        layout: layout.words(config.train.precision),
        parameters: layout.partition.architecture.parameter_count() as u64,
        adapters: layout.partition.lora.as_ref().map(|_| trained(layout)),
        steps: config.train.steps,
        first_step: resumed.map_or(0, |about| about.step) + 1,
        precision: config.train.precision,
        precision_before: resumed.and_then(About::precision),
        run_dir: folder.path().into(),
        train_tokens: text.source.len_tokens(),
        validation_tokens: text.validation_tokens,
    }
}

/// Counts the elements of the parameters that are trained.
fn trained(layout: &Layout) -> u64 {
    let trained = layout.partition.parameters.iter().filter(|parameter| !parameter.spec.frozen);
    trained.map(|parameter| parameter.spec.shape.iter().product::<usize>() as u64).sum()
}

/// Opens the run folder's files, on rank 0 alone. Collective.
fn files(
    chosen: &Chosen,
    world: &dyn Communicator,
    layout: &Layout,
    folder: &RunFolder,
    resumed: Option<&About>,
    text: &Text,
) -> Result<(Option<Metrics>, Option<DataLog>)> {
    let opened = || {
        let measured = chosen.machine.as_ref().filter(|_| chosen.measured);
        note(folder, measured, world.size())?;
        opening(&chosen.config, layout, folder, resumed, &text.source)
    };
    let opened = if world.rank() == Rank(0) { opened().map(Some) } else { Ok(None) };
    Ok(agree(world, opened)?.unzip())
}

/// Keeps what was measured to choose the layout, so that the run is held against the same machine when it goes on.
fn note(folder: &RunFolder, measured: Option<&Cluster>, ranks: usize) -> Result<()> {
    let when = format!("{} UTC", timestamp(SystemTime::now()));
    measured.map_or(Ok(()), |machine| folder.write_machine(&measure::text(machine, ranks, &when)))
}

/// Writes what the run folder says of the run, and opens its logs.
fn opening(
    config: &Config,
    layout: &Layout,
    folder: &RunFolder,
    resumed: Option<&About>,
    source: &Arc<dyn SampleSource>,
) -> Result<(Metrics, DataLog)> {
    // First, for it refuses a checkpoint that is not where the log is.
    let data_log = DataLog::open(&folder.data_log(), resumed, Arc::clone(source))?;
    let step = resumed.map_or(0, |about| about.step);
    if step > 0 {
        // Not earlier: a checkpoint that does not fit must not change what the folder says of its run.
        folder.write_config(config)?;
    }
    let plan = serde_json::to_string(&layout.plan(config)).expect("a plan is plain data");
    folder.write_plan(&plan)?;
    Ok((Metrics::open(&folder.metrics(), step)?, data_log))
}
