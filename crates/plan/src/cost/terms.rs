//! Time by what it is spent on.

use std::ops::{Add, AddAssign, Mul};

use serde::{Deserialize, Serialize};

/// Time by what it is spent on; the parts of a step sum to the whole.
///
/// # Units
/// Seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Products with weights.
    pub products: f64,
    /// The attention's core.
    pub attention: f64,
    /// Operations element by element: norms, activations, sums, losses, and gradients that are added up.
    pub elements: f64,
    /// Waiting for collectives of the tensor group.
    pub tensor: f64,
    /// Waiting for messages of the context group.
    pub context: f64,
    /// What the backward computes again, collectives included.
    pub recompute: f64,
    /// Waiting for other stages.
    pub bubble: f64,
    /// Waiting for collectives of the data ranks, and for the table at both ends.
    pub data: f64,
    /// The optimizer's update.
    pub optimizer: f64,
}

impl Terms {
    /// The names of the parts, as people read them.
    pub const NAMES: [&'static str; 9] = [
        "products",
        "attention",
        "element-wise operations",
        "tensor collectives",
        "context messages",
        "recompute",
        "bubble",
        "data collectives",
        "optimizer",
    ];

    /// Returns the parts in the order of [`NAMES`](Self::NAMES).
    pub fn parts(&self) -> [f64; 9] {
        [
            self.products,
            self.attention,
            self.elements,
            self.tensor,
            self.context,
            self.recompute,
            self.bubble,
            self.data,
            self.optimizer,
        ]
    }

    /// Adds everything up.
    pub fn total(&self) -> f64 {
        self.parts().iter().sum()
    }

    /// Adds up all but waiting for other stages.
    pub(crate) fn work(&self) -> f64 {
        Self { bubble: 0.0, ..*self }.total()
    }
}

impl Add for Terms {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            products: self.products + other.products,
            attention: self.attention + other.attention,
            elements: self.elements + other.elements,
            tensor: self.tensor + other.tensor,
            context: self.context + other.context,
            recompute: self.recompute + other.recompute,
            bubble: self.bubble + other.bubble,
            data: self.data + other.data,
            optimizer: self.optimizer + other.optimizer,
        }
    }
}

impl AddAssign for Terms {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<f64> for Terms {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self {
            products: self.products * factor,
            attention: self.attention * factor,
            elements: self.elements * factor,
            tensor: self.tensor * factor,
            context: self.context * factor,
            recompute: self.recompute * factor,
            bubble: self.bubble * factor,
            data: self.data * factor,
            optimizer: self.optimizer * factor,
        }
    }
}
