//! What a verification found, as values for a table and for JSON.

use serde::Serialize;

use super::compare::{Quantity, LIMIT, NOISE_LIMIT};
use super::Case;
use crate::config::Precision;

/// Listens to a verification, on every rank.
pub trait Listener {
    /// Called once, before the first layout.
    fn start(&mut self, outline: &Outline<'_>);
    /// Called before each layout.
    fn begin(&mut self, case: &Case);
    /// Called after each layout.
    fn end(&mut self, verdict: &Verdict);
}

/// What is about to be verified.
#[derive(Debug, Clone, Copy)]
pub struct Outline<'a> {
    /// The model in words.
    pub model: &'a str,
    /// How many layouts.
    pub layouts: usize,
    /// The run's own precision.
    pub precision: Precision,
    /// Why the configured layout is not among them, where it was to be.
    pub not_run: Option<&'a str>,
}

/// What was found of one layout.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// The layout as it is typed.
    pub layout: String,
    /// How many ranks it takes.
    pub ranks: usize,
    /// Whether it is the one that the configuration trains under.
    pub configured: bool,
    /// The largest relative difference in double precision; the largest number where one is not finite.
    pub worst: f64,
    /// The first tensor in execution order, of the first step, that differs; where none does, the one that comes nearest.
    pub tensor: Option<String>,
    /// Whether everything agrees.
    pub pass: bool,
    /// The largest relative difference of each quantity.
    pub differences: Worst,
    /// The first difference above the limit.
    pub first: Option<First>,
    /// The difference from one rank in the run's own precision, in parts of the rounding expected; absent in double
    /// precision.
    pub noise: Option<f64>,
    /// What ended the layout's training.
    pub error: Option<String>,
}

/// The largest relative difference of each quantity, over all steps and tensors.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Worst {
    /// Of the loss.
    pub loss: f64,
    /// Of the clip norm.
    pub norm: f64,
    /// Of gradients.
    pub gradient: f64,
    /// Of updated values.
    pub value: f64,
}

/// Where a layout first differs.
#[derive(Debug, Clone, Serialize)]
pub struct First {
    /// The step, from 1; 0 is before the first.
    pub step: usize,
    /// What differs: gradient, loss, clip norm, value.
    pub quantity: &'static str,
    /// Whose.
    pub tensor: Option<String>,
    /// By how much, relative.
    pub by: f64,
}

/// What was found of all layouts.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// By layout.
    pub layouts: Vec<Verdict>,
    /// Whether all agree.
    pub pass: bool,
    /// Why the configured layout is not among them, where it was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_run: Option<String>,
}

impl Worst {
    pub(super) fn of(by_quantity: &[f64]) -> Self {
        let of = |quantity: Quantity| by_quantity[quantity as usize];
        Self {
            loss: of(Quantity::Loss),
            norm: of(Quantity::Norm),
            gradient: of(Quantity::Gradient),
            value: of(Quantity::Value),
        }
    }

    pub(super) fn all(&self) -> f64 {
        self.loss.max(self.norm).max(self.gradient).max(self.value)
    }
}

impl Verdict {
    /// Says in one sentence what is wrong; `None` where nothing is.
    pub fn complaint(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(error.clone());
        }
        if let Some(First { step, quantity, tensor, by }) = &self.first {
            let whose = tensor.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
            let when = if *step == 0 { "before the first step".to_string() } else { format!("in step {step}") };
            let then = match (&self.tensor, tensor) {
                (Some(name), None) => format!("; the first tensor to differ is {name}"),
                _ => String::new(),
            };
            return Some(format!(
                "the {quantity}{whose} differs by {by:.1e} {when}, where {LIMIT:.0e} is allowed{then}"
            ));
        }
        let noise = self.noise.filter(|noise| *noise > NOISE_LIMIT)?;
        Some(format!("differs by {noise:.1} × the rounding expected, where {NOISE_LIMIT} is allowed"))
    }
}
