//! A whole run: from a configuration to a trained model in its folder.
//!
//! | file | is |
//! |---|---|
//! | `run.rs` | the steps, with what is measured, told and saved between them |
//! | `run/prepare.rs` | everything before the first step |
//! | `run/begin.rs` | the checkpoint or weights that a run begins at |
//! | `run/end.rs` | everything after the last step |

mod begin;
mod end;
mod prepare;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use mp_comm::{BufferMut, Communicator, Rank};
use mp_data::{BatchPlan, Prefetch, SampleSource, Tally, Targets, Tokenizer};
use mp_plan::Cluster;
use mp_runtime::Device;

use crate::agree::{agree, agree_and_vote, Votes};
use crate::audit::DataLog;
use crate::checkpoint::About;
use crate::choose::choose;
use crate::evaluate::{evaluate, Walk};
use crate::layout::Layout;
use crate::ledger::Watch;
use crate::metrics::Metrics;
use crate::rates::Rates;
use crate::records::{EndReason, EvalRecord, Observer, Record, Report, StepRecord};
use crate::room::Full;
use crate::run_folder::RunFolder;
use crate::saving::{Saved, Saver};
use crate::standing::Standing;
use crate::step::{Trainer, Work};
use crate::times::{History, Times};
use crate::{Config, Error, Result};

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
    let chosen = choose(config, &world, device, observer)?;
    let mut run = Run::prepare(&chosen, world, device, observer, through)?;
    match run.steps(stop) {
        Ok(reason) => run.end(reason),
        // All ranks meet it at the same place: what was being saved before it can be completed.
        Err(error @ Error::NotFinite { .. }) => {
            run.complete()?;
            Err(error)
        }
        Err(error) => Err(run.explained(error)),
    }
}

/// A run under way.
struct Run<'a> {
    config: &'a Config,
    /// What it runs on, where that is known.
    machine: Option<&'a Cluster>,
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
    /// This rank's memory.
    watch: Watch,
    /// How many ranks take from the same memory.
    sharing: usize,
    /// This rank's time.
    history: History,
    /// Finished updates.
    step: u64,
    /// Samples that they have read.
    samples: u64,
    /// The update that was saved last.
    saved: Option<u64>,
}

impl<'a> Run<'a> {
    /// Says more of an error of this rank's, where more is known.
    fn explained(&self, error: Error) -> Error {
        let (config, layout, machine, sharing) = (self.config, &self.layout, self.machine, self.sharing);
        let stage = self.trainer.groups().pp.rank().0;
        Full { config, layout, machine, sharing, stage }.explain(error)
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
            let begun = Instant::now();
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
            let before = begun.elapsed().as_secs_f64();
            let saved = self.saver.advance(votes.settled);
            self.tell_saved(saved);
            let Some(batches) = batches else { return Ok(EndReason::Finished) };
            if votes.stop {
                return Ok(EndReason::Signal);
            }
            if votes.save && self.step > 0 {
                self.save(None, Ok(()))?;
            }
            let (record, read) = self.one(&batches, before)?;
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

    /// Makes a step, `before` which so many seconds went to reading and agreeing.
    fn one(&mut self, batches: &[mp_data::Batch], before: f64) -> Result<(StepRecord, Tally)> {
        let begun = Instant::now();
        let step = self.step + 1;
        let learning_rate = self.rates.at(step);
        let global_batch = self.config.train.global_batch;
        let targets = self.targets;
        self.watch.begin()?;
        let outcome = self.trainer.step(&Work { step, lr: learning_rate, batches, global_batch, targets })?;
        self.watch.end()?;
        self.history.push(Times { rest: outcome.times.rest + before, ..outcome.times });
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
            memory_bytes: self.watch.held(),
            memory_reserved_bytes: self.watch.reserved(),
            mfu: self.utilisation(step_seconds),
        };
        Ok((record, outcome.read))
    }

    /// Computes the share of all devices' peak that the model's FLOPs make of a step, where the peak is known. Frozen weights
    /// have no gradient, so that the usual count is not that of a run with adapters.
    fn utilisation(&self, step_seconds: f64) -> Option<f64> {
        let train = &self.config.train;
        if self.layout.partition.lora.is_some() {
            return None;
        }
        let peak = self.machine?.device.peak.of(train.precision.planned())? * self.world().size() as f64;
        let flops = self.layout.partition.architecture.flops_per_token(train.seq) * self.step_tokens() as f64;
        Some(flops / (step_seconds * peak))
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
}

/// Says whether something that happens every so many steps happens after this one; 0 is never.
fn due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

#[cfg(test)]
mod tests;
