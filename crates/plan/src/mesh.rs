//! The ranks, arranged by axis: coordinates, groups, and what an axis of degree 0 resolves to.
//!
//! From outer to inner the axes are pp, dp, cp, tp: neighbours in rank are neighbours on the tensor axis, which talks
//! most. The expert axis is no further dimension: it cuts the plane dp × cp into blocks of `ep`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    degrees::{can_cut, check_tensor},
    Architecture, Error, ParallelConfig, Result,
};

/// One way of arranging ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Pipeline: stages of consecutive layers.
    Pp,
    /// Data: parts of the batch.
    Dp,
    /// Context: parts of each sequence.
    Cp,
    /// Expert: blocks of the plane dp × cp.
    Ep,
    /// Tensor: rows and columns of each matrix.
    Tp,
}

impl Axis {
    /// All axes, outer to inner.
    pub const ALL: [Axis; 5] = [Axis::Pp, Axis::Dp, Axis::Cp, Axis::Ep, Axis::Tp];

    /// Returns the axis's short name, as in configurations and group names.
    pub fn name(self) -> &'static str {
        match self {
            Axis::Pp => "pp",
            Axis::Dp => "dp",
            Axis::Cp => "cp",
            Axis::Ep => "ep",
            Axis::Tp => "tp",
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The lengths of all axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Degrees {
    /// Pipeline degree.
    pub pp: usize,
    /// Data degree.
    pub dp: usize,
    /// Context degree.
    pub cp: usize,
    /// Tensor degree.
    pub tp: usize,
    /// Expert degree; divides `dp · cp`.
    pub ep: usize,
}

impl Default for Degrees {
    /// Returns the degrees of a single rank.
    fn default() -> Self {
        Self { pp: 1, dp: 1, cp: 1, tp: 1, ep: 1 }
    }
}

impl Degrees {
    /// Multiplies the degrees, or returns `None` when that overflows.
    pub fn product(&self) -> Option<usize> {
        self.pp.checked_mul(self.dp)?.checked_mul(self.cp)?.checked_mul(self.tp)
    }

    /// Writes the degrees with their product, when none of them is free.
    pub(crate) fn with_product(self) -> String {
        match self.product() {
            Some(product) if product > 0 => format!("{self} = {product}"),
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for Degrees {
    /// Writes `pp 1 × dp 2 × cp 1 × tp 2`, with `any` for zeros, and `ep` where it is in use.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |degree: usize| if degree == 0 { "any".to_string() } else { degree.to_string() };
        let [pp, dp, cp, tp] = [self.pp, self.dp, self.cp, self.tp].map(word);
        write!(f, "pp {pp} × dp {dp} × cp {cp} × tp {tp}")?;
        if self.ep > 1 {
            write!(f, " (ep {})", self.ep)?;
        }
        Ok(())
    }
}

/// A rank's place on the four axes whose product is the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Coordinates {
    /// The stage.
    pub pp: usize,
    /// The part of the batch.
    pub dp: usize,
    /// The part of the sequence.
    pub cp: usize,
    /// The part of each matrix.
    pub tp: usize,
}

/// The ranks arranged by axis.
///
/// # Examples
///
/// ```
/// use mp_plan::{Axis, Degrees, Mesh};
///
/// let mesh = Mesh::new(Degrees { dp: 2, tp: 2, ..Degrees::default() })?;
/// assert_eq!(mesh.group(Axis::Tp, 3), [2, 3]);
/// assert_eq!(mesh.group(Axis::Dp, 3), [1, 3]);
/// # Ok::<(), mp_plan::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Degrees", into = "Degrees")]
pub struct Mesh {
    degrees: Degrees,
}

impl Mesh {
    /// Arranges ranks by the given degrees.
    ///
    /// # Errors
    /// [`Error::Zero`] for a degree of 0, [`Error::ExpertDegree`] if `ep` does not divide `dp · cp`,
    /// [`Error::TooLarge`] if the world does not fit the 32 bits of a rank.
    pub fn new(degrees: Degrees) -> Result<Self> {
        let Degrees { pp, dp, cp, tp, ep } = degrees;
        for (what, degree) in [("pp", pp), ("dp", dp), ("cp", cp), ("tp", tp), ("ep", ep)] {
            if degree == 0 {
                return Err(Error::Zero { what });
            }
        }
        match degrees.product() {
            Some(world) if world <= i32::MAX as usize => {}
            _ => {
                let value = [pp, dp, cp, tp].iter().map(|&degree| degree as f64).product();
                return Err(Error::TooLarge { what: "ranks", value, limit: f64::from(i32::MAX) });
            }
        }
        if !(dp * cp).is_multiple_of(ep) {
            return Err(Error::ExpertDegree { ep, dp, cp });
        }
        Ok(Self { degrees })
    }

    /// Arranges `world` ranks as the configuration asks, choosing where it says 0.
    ///
    /// A free `pp` or `cp` is 1. A free `dp` is what the others leave. A free `tp` is what a given `dp` leaves; where
    /// both are free, it is 2 if the ranks are even in number and the model can be cut in two, else 1.
    ///
    /// # Errors
    /// [`Error::WorldSize`] if no choice makes `world` ranks, [`Error::NotDivisible`] if the model cannot be cut by the
    /// tensor degree.
    pub fn resolve(config: &ParallelConfig, world: usize, architecture: &Architecture) -> Result<Self> {
        if world == 0 {
            return Err(Error::Zero { what: "ranks" });
        }
        let asked = Degrees { pp: config.pp.max(1), dp: config.dp, cp: config.cp.max(1), tp: config.tp, ep: 1 };
        let rest = world / asked.pp.saturating_mul(asked.cp);
        let tp = match (asked.tp, asked.dp) {
            (0, 0) if rest.is_multiple_of(2) && can_cut(architecture, 2) => 2,
            (0, 0) => 1,
            (0, dp) => rest / dp,
            (tp, _) => tp,
        };
        let dp = if asked.dp == 0 { rest / tp } else { asked.dp };
        let degrees = Degrees { dp, tp, ..asked };
        if degrees.product() != Some(world) {
            return Err(Error::WorldSize { asked, world, legal: nearest_legal(&asked, world, architecture) });
        }
        check_tensor(architecture, tp)?;
        Self::new(degrees)
    }

    /// Returns the lengths of all axes.
    pub fn degrees(&self) -> Degrees {
        self.degrees
    }

    /// Returns the number of ranks.
    pub fn size(&self) -> usize {
        let Degrees { pp, dp, cp, tp, .. } = self.degrees;
        pp * dp * cp * tp
    }

    /// Returns the length of one axis.
    pub fn degree(&self, axis: Axis) -> usize {
        match axis {
            Axis::Pp => self.degrees.pp,
            Axis::Dp => self.degrees.dp,
            Axis::Cp => self.degrees.cp,
            Axis::Ep => self.degrees.ep,
            Axis::Tp => self.degrees.tp,
        }
    }

    /// Returns how far apart in rank neighbours on an axis are.
    fn stride(&self, axis: Axis) -> usize {
        let Degrees { dp, cp, tp, .. } = self.degrees;
        match axis {
            Axis::Tp => 1,
            // Both count in steps of whole tensor groups; ep goes on into dp where it exceeds cp.
            Axis::Cp | Axis::Ep => tp,
            Axis::Dp => tp * cp,
            Axis::Pp => tp * cp * dp,
        }
    }

    /// Returns a rank's place on one axis.
    ///
    /// # Panics
    /// If `rank` is not below [`size`](Self::size).
    pub fn coordinate(&self, axis: Axis, rank: usize) -> usize {
        assert!(rank < self.size(), "rank {rank} of a mesh of {}", self.size());
        rank / self.stride(axis) % self.degree(axis)
    }

    /// Returns a rank's place on all axes.
    ///
    /// # Panics
    /// If `rank` is not below [`size`](Self::size).
    pub fn coordinates(&self, rank: usize) -> Coordinates {
        let at = |axis| self.coordinate(axis, rank);
        Coordinates { pp: at(Axis::Pp), dp: at(Axis::Dp), cp: at(Axis::Cp), tp: at(Axis::Tp) }
    }

    /// Returns the rank at a place: the inverse of [`coordinates`](Self::coordinates).
    ///
    /// # Panics
    /// If a coordinate is not below its axis's degree.
    pub fn rank(&self, coordinates: &Coordinates) -> usize {
        let Coordinates { pp, dp, cp, tp } = *coordinates;
        let degrees = &self.degrees;
        assert!(
            pp < degrees.pp && dp < degrees.dp && cp < degrees.cp && tp < degrees.tp,
            "{coordinates:?} of a mesh of {degrees}"
        );
        ((pp * degrees.dp + dp) * degrees.cp + cp) * degrees.tp + tp
    }

    /// Lists the ranks that differ from `rank` on one axis alone, itself included, in ascending order.
    ///
    /// A rank's index in this list is its [`coordinate`](Self::coordinate) on the axis.
    ///
    /// # Panics
    /// If `rank` is not below [`size`](Self::size).
    pub fn group(&self, axis: Axis, rank: usize) -> Vec<usize> {
        let stride = self.stride(axis);
        let first = rank - self.coordinate(axis, rank) * stride;
        (0..self.degree(axis)).map(|index| first + index * stride).collect()
    }

    /// Returns the colour and key with which `rank` joins its group when a communicator is split.
    ///
    /// # Panics
    /// If `rank` is not below [`size`](Self::size).
    pub fn split_key(&self, axis: Axis, rank: usize) -> (u32, u32) {
        let key = self.coordinate(axis, rank);
        // A group's lowest rank belongs to no other group of the axis. `new` keeps ranks within 31 bits.
        let color = rank - key * self.stride(axis);
        (color as u32, key as u32)
    }
}

impl Mesh {
    /// Returns a rank's index among those that hold the same shards and see different tokens: the plane dp × cp.
    ///
    /// # Panics
    /// If `rank` is not below [`size`](Self::size).
    pub fn data_rank(&self, rank: usize) -> usize {
        let at = self.coordinates(rank);
        at.dp * self.degrees.cp + at.cp
    }

    /// Returns the colour and key with which `rank` joins the group of its plane dp × cp.
    ///
    /// # Panics
    /// If `rank` is not below [`size`](Self::size).
    pub fn data_split_key(&self, rank: usize) -> (u32, u32) {
        let key = self.data_rank(rank);
        // Both axes count in steps of whole tensor groups, and lie side by side.
        let color = rank - key * self.degrees.tp;
        (color as u32, key as u32)
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.degrees.fmt(f)
    }
}

impl TryFrom<Degrees> for Mesh {
    type Error = Error;

    fn try_from(degrees: Degrees) -> Result<Self> {
        Self::new(degrees)
    }
}

impl From<Mesh> for Degrees {
    fn from(mesh: Mesh) -> Self {
        mesh.degrees
    }
}

/// Finds degrees that make `world` ranks and can cut the model, as near as possible to those asked for.
fn nearest_legal(asked: &Degrees, world: usize, architecture: &Architecture) -> Degrees {
    // Stages and parts of the sequence as asked, where the ranks allow.
    let (pp, cp) = match asked.pp.checked_mul(asked.cp) {
        Some(outer) if world.is_multiple_of(outer) => (asked.pp, asked.cp),
        _ => (1, 1),
    };
    let rest = world / (pp * cp);
    let distance = |tp: &usize| match (asked.tp, asked.dp) {
        (0, dp) => (rest / tp).abs_diff(dp),
        (wanted, _) => tp.abs_diff(wanted),
    };
    let fits = |tp: &usize| rest.is_multiple_of(*tp) && can_cut(architecture, *tp);
    // One part is always legal, and no more parts than heads ever are.
    let tp = (1..=rest.min(architecture.heads)).filter(fits).min_by_key(distance).unwrap_or(1);
    Degrees { pp, dp: rest / tp, cp, tp, ep: 1 }
}
