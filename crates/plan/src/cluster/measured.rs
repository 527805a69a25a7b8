//! What a machine was measured to do, point by point: `[measured]` of its file, between whose points
//! [`crate::Measured`] interpolates.

use serde::{Deserialize, Serialize};

use super::require;
use crate::{cost::Collective, Precision, Result};

/// `[measured]`: points in any order. What has no point is taken from the rest of the file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Points {
    /// Products of `m × k` by `k × n`, while all ranks of a node multiply.
    pub products: ByPrecision<Product>,
    /// A fused attention with its backward, by the FLOPs of one of its passes.
    ///
    /// # Units
    /// FLOP, then FLOP a second.
    pub attention: ByPrecision<[f64; 2]>,
    /// Operations element by element, by what they read and write, without their start.
    ///
    /// # Units
    /// Bytes, then bytes a second.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<[f64; 2]>,
    /// Collectives, by kind and group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub collectives: Vec<CollectivePoints>,
    /// Messages from rank to rank.
    pub messages: Messages,
}

/// Points of each precision; none where it was not measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ByPrecision<T> {
    /// In bfloat16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bf16: Vec<T>,
    /// In 32 bits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fp32: Vec<T>,
    /// In 64 bits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fp64: Vec<T>,
}

/// A product's shape and rate: `[m, n, k, FLOP/s]`, its start included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Product(
    /// Rows of the first matrix.
    pub usize,
    /// Columns of the second.
    pub usize,
    /// What is summed over.
    pub usize,
    /// Its rate, FLOP a second.
    pub f64,
);

/// Times of one collective in groups of one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectivePoints {
    /// Which.
    pub what: Collective,
    /// Ranks of each group; all groups of that size are at work.
    pub ranks: usize,
    /// How many of a group's ranks share a node.
    pub neighbours: usize,
    /// Of the whole buffer, also where a rank gives or gets a part.
    ///
    /// # Units
    /// Bytes, then seconds.
    pub points: Vec<[f64; 2]>,
}

/// Times of messages.
///
/// # Units
/// Bytes, then seconds from the start to the arrival.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Messages {
    /// Inside a node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inside: Vec<[f64; 2]>,
    /// Between nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outside: Vec<[f64; 2]>,
}

// By hand: points need no default for a list of them to have one.
impl<T> Default for ByPrecision<T> {
    fn default() -> Self {
        Self { bf16: Vec::new(), fp32: Vec::new(), fp64: Vec::new() }
    }
}

impl<T> ByPrecision<T> {
    /// Returns the points of a precision.
    pub fn of(&self, precision: Precision) -> &[T] {
        match precision {
            Precision::Bf16 => &self.bf16,
            Precision::Fp32 => &self.fp32,
            Precision::Fp64 => &self.fp64,
        }
    }

    /// Returns the points of a precision, to change.
    pub fn of_mut(&mut self, precision: Precision) -> &mut Vec<T> {
        match precision {
            Precision::Bf16 => &mut self.bf16,
            Precision::Fp32 => &mut self.fp32,
            Precision::Fp64 => &mut self.fp64,
        }
    }
}

impl Points {
    /// Checks that every point can be, and that products make a grid.
    pub(super) fn check(&self) -> Result<()> {
        let Self { products, attention, memory, collectives, messages } = self;
        for (key, products) in [
            ("measured.products.bf16", &products.bf16),
            ("measured.products.fp32", &products.fp32),
            ("measured.products.fp64", &products.fp64),
        ] {
            for &Product(m, n, k, rate) in products {
                for length in [m, n, k] {
                    require(length > 0, key, length as f64, "must be a length of at least 1 in [m, n, k, FLOP/s]")?;
                }
                positive(key, rate)?;
            }
            grid(key, products)?;
        }
        let pairs = [
            ("measured.attention.bf16", &attention.bf16),
            ("measured.attention.fp32", &attention.fp32),
            ("measured.attention.fp64", &attention.fp64),
            ("measured.memory", memory),
            ("measured.messages.inside", &messages.inside),
            ("measured.messages.outside", &messages.outside),
        ];
        let groups = collectives.iter().map(|group| ("measured.collectives.points", &group.points));
        for (key, points) in pairs.into_iter().chain(groups) {
            points.iter().flatten().try_for_each(|&value| positive(key, value))?;
        }
        for group in collectives {
            let (key, ranks) = ("measured.collectives.ranks", group.ranks);
            require(ranks > 1, key, ranks as f64, "must be at least 2")?;
            let (key, neighbours) = ("measured.collectives.neighbours", group.neighbours);
            require((1..=ranks).contains(&neighbours), key, neighbours as f64, "must be from 1 to the group's ranks")?;
        }
        let groups: Vec<_> = collectives.iter().map(|group| (group.what, group.ranks, group.neighbours)).collect();
        let twice = |(place, group): (usize, &(Collective, usize, usize))| groups[..place].contains(group);
        match groups.iter().enumerate().find(|&entry| twice(entry)) {
            Some((_, &(_, ranks, _))) => {
                let rule =
                    "must not come twice with one collective and neighbours: give all points of a group in one entry";
                require(false, "measured.collectives.ranks", ranks as f64, rule)
            }
            None => Ok(()),
        }
    }
}

fn positive(key: &'static str, value: f64) -> Result<()> {
    require(value > 0.0 && value.is_finite(), key, value, "must be finite and above 0")
}

/// Refuses products that are not every length of each dim with every length of the others, once.
fn grid(key: &'static str, products: &[Product]) -> Result<()> {
    let mut shapes: Vec<[usize; 3]> = products.iter().map(|&Product(m, n, k, _)| [m, n, k]).collect();
    let count = shapes.len();
    shapes.sort_unstable();
    shapes.dedup();
    let lengths = |dim: usize| {
        let mut lengths: Vec<usize> = shapes.iter().map(|shape| shape[dim]).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths.len()
    };
    let full = lengths(0) * lengths(1) * lengths(2);
    let rule = "shapes must make a grid: each m with each n and each k, once";
    require(shapes.len() == count && count == full, key, count as f64, rule)
}
