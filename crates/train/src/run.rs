//! A whole run: from a configuration to a trained model in its folder.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use mp_comm::{BufferMut, Communicator, Rank, ReduceOp};
use mp_data::{BatchPlan, Prefetch, SampleSource, Tally, Targets, Tokenizer};
use mp_runtime::{device, Device};

use crate::adapted::mark;
use crate::agree::{agree, agree_and_vote, Votes};
use crate::assemble::Allocated;
use crate::audit::DataLog;
use crate::checkpoint::{About, CheckpointReader, CheckpointStore, DirectoryStore, Verify};
use crate::evaluate::{evaluate, Walk};
use crate::generate::{self, Prompt, Sampling, Wish};
use crate::layout::Layout;
use crate::memory;
use crate::metrics::Metrics;
use crate::rates::Rates;
use crate::records::{EndReason, EndRecord, EvalRecord, Observer, Record, Report, Start, StepRecord};
use crate::run_folder::RunFolder;
use crate::saving::{self, Saved, Saver};
use crate::standing::Standing;
use crate::state;
use crate::step::{Trainer, Work};
use crate::text::{vocabulary, Text};
use crate::weights;
use crate::{Config, Error, Result};

/// Steps whose batches are read ahead.
const READ_AHEAD: usize = 2;
/// What the sample at the end of a run starts with, and how long it goes on.
const PROMPT: &str = "The ";
const SAMPLE_TOKENS: usize = 200;
const SAMPLE_TEMPERATURE: f64 = 0.8;

/// Trains as `config` says on all ranks of `world`. Collective; every rank gets the report.
///
/// `stop` may be set at any time, on any rank: the run then saves after the step under way and ends with reason
/// `signal`. `observer` is called on rank 0 alone.
///
/// # Errors
/// Input that cannot serve, before anything is allocated or written (a checkpoint that cannot be continued from: before
/// anything of its run is changed); later whatever a step raises, with all complete checkpoints intact.
pub fn train(
    config: &Config,
    world: Arc<dyn Communicator>,
    device: Device,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Report> {
    run(config, world, device, stop, observer, |source| source)
}

/// [`train`]s on samples that are read `through` what is made of the data's own source.
fn run(
    config: &Config,
    world: Arc<dyn Communicator>,
    device: Device,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
    through: impl FnOnce(Arc<dyn SampleSource>) -> Arc<dyn SampleSource>,
) -> Result<Report> {
    let mut run = Run::prepare(config, world, device, observer, through)?;
    match run.steps(stop) {
        Ok(reason) => run.end(reason),
        // All ranks meet it at the same place: what was being saved before it can be completed.
        Err(error @ Error::NotFinite { .. }) => {
            run.complete()?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// A run under way.
struct Run<'a> {
    config: &'a Config,
    layout: Layout,
    tokenizer: Tokenizer,
    reader: Prefetch,
    /// Which samples it reads.
    batches: BatchPlan,
    /// Which targets of the samples count.
    targets: Targets,
    windows: Option<Box<dyn Walk>>,
    trainer: Trainer,
    rates: Rates,
    saver: Saver,
    /// Behind the saver: what that has under way ends before another program may have the folder.
    folder: RunFolder,
    standing: Standing,
    /// On rank 0 alone.
    metrics: Option<Metrics>,
    /// On rank 0 alone: which samples the steps have read.
    data_log: Option<DataLog>,
    observer: &'a mut dyn Observer,
    /// What tells the model under adapters from others.
    base: Option<String>,
    /// Finished updates.
    step: u64,
    /// Samples that they have read.
    samples: u64,
    /// The update that was saved last.
    saved: Option<u64>,
}

impl<'a> Run<'a> {
    fn prepare(
        config: &'a Config,
        world: Arc<dyn Communicator>,
        device: Device,
        observer: &'a mut dyn Observer,
        through: impl FnOnce(Arc<dyn SampleSource>) -> Arc<dyn SampleSource>,
    ) -> Result<Self> {
        let input = || -> Result<_> {
            config.check_dropout()?;
            let tokenizer = config.data.open_tokenizer()?;
            let layout = Layout::new(config, vocabulary(config, &tokenizer), world.size())?;
            let text = Text::open(config, &tokenizer, layout.partition.architecture.vocab)?;
            if !config.checkpoint.resume {
                text.check(config.train.steps.saturating_mul(config.train.global_batch as u64))?;
            }
            memory::check(config, &layout, &*world, device)?;
            Ok((tokenizer, text, layout))
        };
        let (tokenizer, text, layout) = agree(&*world, input())?;
        let folder = RunFolder::open(&*world, config)?;
        let groups = layout.groups(&world)?;
        let allocated = match config.model.from {
            Some(_) => Allocated::to_be_loaded(config, &layout, &groups, device),
            None => Allocated::new(config, &layout, &groups, device),
        };
        let trainer = agree(&*world, allocated)?.trainer(config, &layout, groups)?;

        let (keep, keep_best) = (config.checkpoint.keep, config.checkpoint.keep_best);
        let store = DirectoryStore::new(folder.checkpoints(), keep).keeping_best(keep_best);
        let first = world.rank() == Rank(0);
        agree(&*world, if first { store.sweep() } else { Ok(()) })?;
        let (resumed, base) = agree(&*world, begin(config, &store, &trainer))?;
        let precision_before = resumed.as_ref().and_then(About::precision);
        agree(&*world, same_place(&*world, &store, config, resumed.as_ref()))?;
        let (step, samples, standing) =
            resumed.as_ref().map_or((0, 0, Standing::default()), |about| (about.step, about.samples, about.standing));
        let left = (config.train.steps.saturating_sub(step)).saturating_mul(config.train.global_batch as u64);
        agree(&*world, text.check(samples.saturating_add(left)))?;
        let opened = match first {
            true => opening(config, &layout, &folder, resumed.as_ref(), &text.source).map(Some),
            false => Ok(None),
        };
        let (metrics, data_log) = agree(&*world, opened)?.unzip();
        let batches = layout.batches.after(step, samples);
        let (rank, ahead) = (trainer.groups().dp.rank().0, READ_AHEAD * batches.micro_batches());
        let reader = Prefetch::new(through(Arc::clone(&text.source)), batches, rank, step, ahead);
        let reader = agree(&*world, reader.map_err(Error::from))?;
        if first {
            observer.start(&Start {
                ranks: world.size(),
                layout: layout.words(config.train.precision),
                parameters: layout.partition.architecture.parameter_count() as u64,
                adapters: layout.partition.lora.as_ref().map(|_| trained(&layout)),
                steps: config.train.steps,
                first_step: step + 1,
                precision: config.train.precision,
                precision_before,
                run_dir: folder.path().into(),
                train_tokens: text.source.len_tokens(),
                validation_tokens: text.validation_tokens,
            });
        }
        let rates = Rates::new(&config.optimizer, config.train.steps);
        let saved = (step > 0).then_some(step);
        let losses = saving::losses(&*world, &store, keep_best)?;
        let beside = metrics.iter().map(Metrics::handle).chain(data_log.iter().map(DataLog::handle));
        let beside = agree(&*world, beside.collect::<Result<Vec<_>>>())?;
        let mut saver = Saver::new(&config.checkpoint, Arc::new(store), Arc::clone(&world), losses).beside(beside);
        agree(&*world, saver.prepare(&trainer))?;
        Ok(Self {
            config,
            layout,
            tokenizer,
            reader,
            targets: text.source.targets(),
            windows: text.windows,
            trainer,
            rates,
            saver,
            folder,
            standing,
            metrics,
            data_log,
            batches,
            observer,
            base,
            step,
            samples,
            saved,
        })
    }

    fn world(&self) -> Arc<dyn Communicator> {
        Arc::clone(&self.trainer.groups().world)
    }

    /// Makes all steps, or as many as there is time for.
    fn steps(&mut self, stop: &AtomicBool) -> Result<EndReason> {
        let world = self.world();
        // What rank 0 could not write is told to the others at the head of the next step.
        let mut written = Ok(());
        loop {
            let (due_next, _) = self.reader.position();
            let ready = written.and_then(|()| match self.step < self.config.train.steps {
                true => Ok(Some(self.reader.next_step()?)),
                false => Ok(None),
            });
            let (settled, ready) = match self.saver.settled() {
                Ok(settled) => (settled, ready),
                Err(error) => (true, Err(error)),
            };
            let votes = Votes { stop: stop.load(Ordering::Relaxed), save: self.saver.is_time(), settled };
            let (batches, votes) = agree_and_vote(&*world, ready, votes)?;
            let saved = self.saver.advance(votes.settled);
            self.tell_saved(saved);
            let Some(batches) = batches else { return Ok(EndReason::Finished) };
            if votes.stop {
                return Ok(EndReason::Signal);
            }
            if votes.save && self.step > 0 {
                self.save(None, Ok(()))?;
            }
            let (record, read) = self.one(&batches)?;
            // In this order, so that a killed run's metrics never know of a step whose samples are not in the log.
            written = self.log_samples(due_next, read).and_then(|()| self.tell(Record::Step(record.clone())));
            if self.metrics.is_some() {
                self.observer.step(&record);
            }
            let mut loss = None;
            if due(self.config.eval.every, self.step) && self.step < self.config.train.steps {
                let (measured, told) = self.evaluate(self.config.eval.batches)?;
                written = written.and(told);
                loss = self.judge(measured)?;
            }
            // The last step's is saved with its loss, which comes of the whole validation part.
            let due = self.saver.is_due(self.step) && self.step < self.config.train.steps;
            if due || loss.is_some_and(|loss| self.saver.is_among_best(loss)) {
                self.save(loss, std::mem::replace(&mut written, Ok(())))?;
            }
            if self.standing.exhausts(self.config.train.patience) {
                agree(&*world, written)?;
                return Ok(EndReason::Patience);
            }
        }
    }

    /// Takes rank 0's measurement for all, and lets it count.
    fn judge(&mut self, measured: Option<f64>) -> Result<Option<f64>> {
        let Some(loss) = measured else { return Ok(None) };
        let mut loss = [loss];
        self.world().broadcast(BufferMut::new(&mut loss), Rank(0))?;
        self.standing.hear(loss[0]);
        Ok(Some(loss[0]))
    }

    fn one(&mut self, batches: &[mp_data::Batch]) -> Result<(StepRecord, Tally)> {
        let begun = Instant::now();
        let step = self.step + 1;
        let learning_rate = self.rates.at(step);
        let global_batch = self.config.train.global_batch;
        let targets = self.targets;
        let outcome = self.trainer.step(&Work { step, lr: learning_rate, batches, global_batch, targets })?;
        self.step = step;
        self.samples += global_batch as u64;
        let step_seconds = begun.elapsed().as_secs_f64();
        let record = StepRecord {
            step,
            loss: outcome.loss,
            learning_rate,
            gradient_norm: outcome.gradient_norm,
            tokens: self.tokens(),
            tokens_per_second: self.step_tokens() as f64 / step_seconds,
            step_seconds,
            memory_bytes: device::peak_bytes(self.trainer.parameters().device()),
        };
        Ok((record, outcome.read))
    }

    fn step_tokens(&self) -> u64 {
        (self.config.train.global_batch * self.config.train.seq) as u64
    }

    /// Target tokens since the run began.
    fn tokens(&self) -> u64 {
        self.samples * self.config.train.seq as u64
    }

    /// Notes on rank 0 which samples the step after `done` finished ones has read.
    ///
    /// They are those that are due by the reader's own count, once the samples that all ranks have `read` prove to be the
    /// same: the numbers come with the samples from where those are read.
    fn log_samples(&mut self, done: u64, read: Tally) -> Result<()> {
        let Some(log) = &mut self.data_log else { return Ok(()) };
        let first = self.batches.samples(done, 0, 0).start;
        let all = first..first + self.batches.global_batch() as u64;
        // Each data rank's share is read by all the ranks that work on it together.
        let together = self.trainer.groups().world.size() / self.batches.dp();
        let expected = Tally::of(all.clone()).times(together as u64);
        if read != expected {
            let (count, expected) = (read.count, expected.count);
            return Err(Error::Samples { step: self.step, first: all.start, end: all.end, count, expected });
        }
        log.write(self.step, all)
    }

    /// Writes a line of metrics, on rank 0.
    fn tell(&mut self, record: Record) -> Result<()> {
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(&record))
    }

    /// Measures the validation loss over `limit` global batches of windows (0: all), where there is a validation part;
    /// returns it with whether it could be told.
    ///
    /// What fails inside the measurement is returned at once, never agreed: the other ranks may be waiting in it.
    fn evaluate(&mut self, limit: usize) -> Result<(Option<f64>, Result<()>)> {
        let Some(windows) = &self.windows else { return Ok((None, Ok(()))) };
        let batch = self.layout.batches.micro_batch();
        // The same windows under every layout.
        let limit = limit.saturating_mul(self.config.train.global_batch / batch);
        let loss = evaluate(self.trainer.assembled(), &**windows, batch, limit)?;
        if !loss.is_finite() {
            return Err(Error::NotFinite { step: self.step, what: "validation loss" });
        }
        let record = EvalRecord { step: self.step, loss };
        let told = self.tell(Record::Eval(record.clone()));
        if self.metrics.is_some() {
            self.observer.eval(&record);
        }
        Ok((Some(loss), told))
    }

    /// Begins to save the state after this step, where it has not been; `validation_loss` is what was measured at it, and
    /// `written` whether the logs have all of it on this rank: if not, the save fails, on all ranks.
    fn save(&mut self, validation_loss: Option<f64>, written: Result<()>) -> Result<()> {
        if self.saved == Some(self.step) {
            return written;
        }
        let (samples, tokens, standing) = (self.samples, self.tokens(), self.standing);
        let (base, chain) = (self.base.clone(), self.data_log.as_ref().map(DataLog::chain));
        let about =
            About { samples, tokens, validation_loss, standing, base, chain, ..About::new(self.step, self.config) };
        let earlier = self.saver.begin(&self.trainer, about, written)?;
        self.tell_saved(earlier);
        self.saved = Some(self.step);
        match self.config.checkpoint.asynchronous {
            true => Ok(()),
            false => self.complete(),
        }
    }

    /// Completes the save under way. Collective.
    fn complete(&mut self) -> Result<()> {
        let saved = self.saver.finish()?;
        self.tell_saved(saved);
        Ok(())
    }

    fn tell_saved(&mut self, saved: Option<Saved>) {
        if let Some(Saved { step, path: Some(path) }) = saved {
            self.observer.checkpoint(step, &path);
        }
    }

    /// Measures the whole validation part, saves with what was measured, and lets the model write. A signal asks for no
    /// more than the save.
    fn end(mut self, reason: EndReason) -> Result<Report> {
        let world = self.world();
        let (mut validation_loss, mut written) = (None, Ok(()));
        if reason != EndReason::Signal {
            let (measured, told) = match self.evaluate(0) {
                // All ranks meet it; what was learned until here is saved all the same.
                Err(error @ Error::NotFinite { .. }) => {
                    self.save(None, Ok(()))?;
                    self.complete()?;
                    return Err(error);
                }
                evaluated => evaluated?,
            };
            written = told;
            validation_loss = match reason {
                // It was this step's evaluation that ended the run, and it counts once.
                EndReason::Patience => measured,
                _ => self.judge(measured)?,
            };
        }
        // One agreement for the measurement's line, also where there is nothing left to save.
        agree(&*world, written)?;
        self.save(validation_loss, Ok(()))?;
        self.complete()?;
        let Self { trainer, tokenizer, config, folder, mut metrics, observer, step, .. } = self;
        let sample = match reason {
            EndReason::Signal => None,
            EndReason::Finished | EndReason::Patience => sample(trainer, &tokenizer, config.train.seed)?,
        };
        let end = Record::End(EndRecord { step, reason });
        let told = metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(&end));
        let kept = match (&sample, metrics.is_some()) {
            (Some(text), true) => folder.write_sample(text),
            _ => Ok(()),
        };
        agree(&*world, told.and(kept))?;
        let report = Report { run_dir: folder.path().into(), step, validation_loss, sample, reason };
        if metrics.is_some() {
            observer.end(&report);
        }
        Ok(report)
    }
}

/// Lets the first data rank's model write a text, where it learned to; the other ranks wait and get an empty one.
fn sample(trainer: Trainer, tokenizer: &Tokenizer, seed: u64) -> Result<Option<String>> {
    let architecture = &trainer.parameters().partition().architecture;
    if !architecture.causal() {
        return Ok(None);
    }
    let max_seq = architecture.max_seq;
    let world = Arc::clone(&trainer.groups().world);
    let model = agree(&*world, trainer.into_writing())?;
    let model = model.assembled();
    // A tokenizer may drop all of the prompt, and a model may have fewer positions.
    let prompt = Prompt::new(0, PROMPT, tokenizer, max_seq);
    let sampling = Sampling { temperature: SAMPLE_TEMPERATURE, seed, ..Sampling::default() };
    let (stops, ends) = (Vec::new(), Vec::new());
    let wish = Wish { sampling, max_new_tokens: SAMPLE_TOKENS, stops, ends, batch: 1, cached: true };
    // Where the data ranks share parameters out, all of them take part, and write the same.
    let writes = model.is_shared_out() || model.groups.data.rank() == Rank(0);
    let text = match (prompt, writes) {
        (Ok(prompt), true) => generate::write(model, tokenizer, &[prompt], &wish, &mut |_, _| ())
            .map(|written| written.into_iter().map(|written| written.prompt + &written.text).collect()),
        _ => Ok(String::new()),
    };
    agree(&*world, text).map(Some)
}

/// Counts the elements of the parameters that are trained.
fn trained(layout: &Layout) -> u64 {
    let trained = layout.partition.parameters.iter().filter(|parameter| !parameter.spec.frozen);
    trained.map(|parameter| parameter.spec.shape.iter().product::<usize>() as u64).sum()
}

/// Says whether something that happens every so many steps happens after this one; 0 is never.
fn due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// Continues from the newest checkpoint where the configuration says so, and returns what it says of the run; otherwise takes
/// the weights from where the model comes from. Under adapters also returns the [`mark`] of the model.
fn begin(config: &Config, store: &DirectoryStore, trainer: &Trainer) -> Result<(Option<About>, Option<String>)> {
    let resumed = if config.checkpoint.resume { latest(store, trainer)? } else { None };
    let proof = Verify::shared(&*trainer.groups().world);
    let base = match &config.model.from {
        // What a run freezes is in none of its checkpoints.
        Some(from) if config.lora.rank > 0 => Some(adapted(config, from, trainer, resumed.is_none())?),
        Some(from) if resumed.is_none() => {
            weights::load(trainer.parameters(), &*weights::open_merged(from, config.model.base.as_deref(), proof)?)?;
            None
        }
        _ => None,
    };
    let Some(reader) = resumed else { return Ok((None, base)) };
    let about = reader.manifest().about.clone();
    if let (Some(from), Some(then), Some(now)) = (&config.model.from, &about.base, &base) {
        if then != now {
            return Err(Error::Checkpoint { path: reader.path().into(), problem: weights::changed(from) });
        }
    }
    state::restore(trainer, reader)?;
    Ok((Some(about), base))
}

/// Loads the model under adapters, and where the run begins those that are beside it already; returns its mark.
fn adapted(config: &Config, from: &Path, trainer: &Trainer, begins: bool) -> Result<String> {
    let proof = Verify::shared(&*trainer.groups().world);
    let source = weights::open(from, config.model.base.as_deref(), proof)?;
    match source.adapters() {
        Some(_) if begins => weights::load(trainer.parameters(), &*source)?,
        _ => weights::load_base(trainer.parameters(), &*source)?,
    }
    mark(&*source)
}

/// Opens the newest checkpoint of a run, where there is one.
fn latest(store: &DirectoryStore, trainer: &Trainer) -> Result<Option<Box<dyn CheckpointReader>>> {
    store.latest(Verify::shared(&*trainer.groups().world))
}

/// Refuses to go on where ranks found different checkpoints, as nodes with folders of their own do, or one of another order
/// than the configuration's. Collective.
fn same_place(
    world: &dyn Communicator,
    store: &DirectoryStore,
    config: &Config,
    resumed: Option<&About>,
) -> Result<()> {
    let place = resumed.map_or([0; 3], |about| [about.step, about.samples, about.seed]);
    // As they are, and with all bits turned over, whose least is the most's.
    let mut bounds = [place, place.map(|number| !number)].concat().iter().map(|&n| n as i64).collect::<Vec<_>>();
    world.all_reduce(BufferMut::new(&mut bounds), ReduceOp::Min)?;
    let refused = |problem| Err(Error::RunFolder { path: store.root().into(), problem });
    for (index, what) in ["step", "sample", "seed"].into_iter().enumerate() {
        let (least, most) = (bounds[index] as u64, !bounds[index + 3] as u64);
        if least != most {
            return refused(format!(
                "holds {what} {least} on some ranks and {what} {most} on others; put it where all nodes see it"
            ));
        }
    }
    match resumed {
        Some(about) if about.seed != config.train.seed => {
            let (held, asked) = (about.seed, config.train.seed);
            refused(format!("holds a checkpoint of seed {held}, and `train.seed` is {asked}; one of them was changed"))
        }
        _ => Ok(()),
    }
}

/// Opens the run folder's files, on rank 0 alone.
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

#[cfg(test)]
mod tests;
