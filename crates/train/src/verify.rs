//! `verify`: proves on the user's own configuration, made small, that layouts compute what one rank computes.
//!
//! | file | is |
//! |---|---|
//! | `verify.rs` | the layouts one after the other, and the ranks' agreement on each |
//! | `verify/case.rs` | one layout |
//! | `verify/spelling.rs` | as it is written |
//! | `verify/cases.rs` | which layouts |
//! | `verify/shrink.rs` | the small model |
//! | `verify/trace.rs` | a few steps of training, through the very code that trains |
//! | `verify/compare.rs` | measures, limits, and why they are what they are |
//! | `verify/report.rs` | what is told |

mod case;
mod cases;
mod compare;
mod report;
mod settle;
mod shrink;
mod spelling;
mod trace;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use mp_comm::Communicator;
use mp_runtime::Device;

use crate::agree::agree;
use crate::config::Precision;
use crate::text::vocabulary;
use crate::{Config, Result};

pub use case::Case;
pub use cases::Which;
pub use compare::{Quantity, LIMIT, NOISE_LIMIT};
pub use report::{First, Listener, Outline, Report, Verdict, Worst};
pub use shrink::Shrunk;
pub use spelling::GRAMMAR;

use cases::Layouts;
use compare::{differences, noise};
use settle::{settle, Findings};
use trace::{Length, Trace};

/// Verifies layouts of as many ranks as `world` has or fewer. Collective; every rank gets the report.
///
/// # Errors
/// Input that cannot serve, before anything is trained. A failure in a layout's training is that layout's verdict, unless
/// ranks still wait for the failed one inside it: then this rank's error, which names the layout, is returned.
pub fn verify(
    config: &Config,
    world: &Arc<dyn Communicator>,
    device: Device,
    which: &Which,
    listener: &mut dyn Listener,
) -> Result<Report> {
    let prepared = || -> Result<(Shrunk, Layouts)> {
        let config = &config.for_ranks(world.size());
        let tokenizer = config.data.open_tokenizer()?;
        let vocab = vocabulary(config, &tokenizer);
        let configured = Case::configured(config, vocab, world.size());
        let shrunk = Shrunk::new(config, vocab, world.size(), which.stages(&configured), device)?;
        let layouts = which.layouts(world.size(), &shrunk, configured)?;
        Ok((shrunk, layouts))
    };
    let (shrunk, Layouts { cases, configured, not_run }) = agree(&**world, prepared())?;
    let precision = config.train.precision;
    let model = shrunk.words();
    listener.start(&Outline { model: &model, layouts: cases.len(), precision, not_run: not_run.as_deref() });
    let names = shrunk.names()?;
    let mut bench = Bench { names, shrunk, precision, world, device, oracles: HashMap::new() };
    let mut layouts = Vec::new();
    for case in &cases {
        listener.begin(case);
        let verdict = Verdict { configured: Some(*case) == configured, ..bench.verdict(case)? };
        listener.end(&verdict);
        layouts.push(verdict);
    }
    let pass = layouts.iter().all(|verdict| verdict.pass);
    Ok(Report { layouts, pass, not_run })
}

/// What all layouts are verified with.
struct Bench<'a> {
    shrunk: Shrunk,
    /// All parameters in execution order.
    names: Vec<String>,
    precision: Precision,
    world: &'a Arc<dyn Communicator>,
    device: Device,
    /// By global batch.
    oracles: HashMap<usize, Rc<Oracle>>,
}

/// What one rank makes of a global batch.
struct Oracle {
    exact: Trace,
    /// In the run's own precision, where that is another.
    rounded: Option<Trace>,
}

impl Bench<'_> {
    /// Verifies one layout. Collective over the world, of which the first ranks train.
    fn verdict(&mut self, case: &Case) -> Result<Verdict> {
        let rank = self.world.rank().0;
        let takes_part = rank < case.ranks();
        let group = self.world.split(takes_part.then_some(0), rank as u32, "layout")?;
        // The group, and with it whatever hangs on it, is gone before the ranks meet again.
        let found = match group {
            Some(group) => self.attempt(case, &group),
            None => Ok(Findings::nothing()),
        };
        settle(&**self.world, case, &self.names, found)
    }

    fn attempt(&mut self, case: &Case, group: &Arc<dyn Communicator>) -> Result<Findings> {
        let mut config = self.shrunk.config(case);
        let own = self.precision;
        config.train.precision = Precision::Fp64;
        let oracle = self.oracle(config.train.global_batch)?;
        let exact = trace::train(&config, group, self.device, Length::Full)?;
        let mut found = Findings::of(&differences(&exact, &oracle.exact)?, self.names.len());
        if let Some(rounded) = &oracle.rounded {
            config.train.precision = own;
            let trace = trace::train(&config, group, self.device, Length::Short)?;
            found.noise = noise(&trace, rounded, &oracle.exact)?;
        }
        Ok(found)
    }

    fn oracle(&mut self, global_batch: usize) -> Result<Rc<Oracle>> {
        if let Some(oracle) = self.oracles.get(&global_batch) {
            return Ok(Rc::clone(oracle));
        }
        let mut config = self.shrunk.config(&Case::default());
        config.train.global_batch = global_batch;
        config.parallel.micro_batch = global_batch;
        config.train.precision = Precision::Fp64;
        let exact = trace::one_rank(&config, self.device, Length::Full)?;
        config.train.precision = self.precision;
        let rounded = match self.precision {
            Precision::Fp64 => None,
            _ => Some(trace::one_rank(&config, self.device, Length::Short)?),
        };
        let oracle = Rc::new(Oracle { exact, rounded });
        self.oracles.insert(global_batch, Rc::clone(&oracle));
        Ok(oracle)
    }
}
