//! The end of a run in good order: the last measurement, the last save, and a text that the model writes.

use std::sync::Arc;

use mp_comm::{BufferMut, Rank, ReduceOp};
use mp_data::Tokenizer;
use mp_plan::Cluster;

use super::Run;
use crate::agree::agree;
use crate::generate::{self, Prompt, Sampling, Wish};
use crate::ledger::{self, Ledger, WORTH_MEASURING};
use crate::measure::{measure, Effort};
use crate::records::{EndReason, EndRecord, Record, Report};
use crate::step::Trainer;
use crate::{Error, Result};

/// What the sample starts with, and how long it goes on.
const PROMPT: &str = "The ";
const SAMPLE_TOKENS: usize = 200;
const SAMPLE_TEMPERATURE: f64 = 0.8;

impl Run<'_> {
    /// Measures the whole validation part, saves with what was measured, and lets the model write. A signal asks for no
    /// more than the save.
    pub(super) fn end(mut self, reason: EndReason) -> Result<Report> {
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
        self.account(reason, WORTH_MEASURING)?;
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

    /// Sets what was measured beside what was predicted, where a step was made. Collective.
    pub(super) fn account(&mut self, reason: EndReason, worth_measuring: f64) -> Result<()> {
        let world = self.world();
        let memory = ledger::account(self.config, &self.layout, &self.trainer, &self.watch)?;
        let measured = self.machine_at_the_end(reason, worth_measuring)?;
        let machine = self.machine.or(measured.as_ref());
        let time = ledger::account_time(self.config, &self.layout, machine, &*world, &self.history)?;
        let (Some(memory), Some(time)) = (memory, time) else { return Ok(()) };
        let ledger = Ledger { memory, time };
        let first = self.metrics.is_some();
        let written = if first { ledger.write(&self.folder.ledger()) } else { Ok(()) };
        agree(&*world, written)?;
        if first {
            self.observer.ledger(&ledger);
        }
        Ok(())
    }

    /// Measures the machine where none is known, its time can be planned, and the steps took `worth_measuring` seconds on any
    /// rank, so that this does not count. One that cannot be measured stays unknown: the run has done what it was for. Collective.
    fn machine_at_the_end(&self, reason: EndReason, worth_measuring: f64) -> Result<Option<Cluster>> {
        if self.machine.is_some() || self.layout.partition.lora.is_some() || reason == EndReason::Signal {
            return Ok(None);
        }
        let world = self.world();
        let mut seconds = [self.history.seconds()];
        world.all_reduce(BufferMut::new(&mut seconds), ReduceOp::Max)?;
        if seconds[0] < worth_measuring {
            return Ok(None);
        }
        let device = self.trainer.parameters().device();
        match measure(&world, device, Effort::Quick(self.config.train.precision.planned()), &mut ()) {
            Ok(machine) => Ok(Some(machine)),
            Err(Error::Comm(error)) => Err(error.into()),
            Err(_) => Ok(None),
        }
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
