//! Bytes that a rank's share of a model takes: parameters, gradients, master weights, optimizer moments.

use serde::{Deserialize, Serialize};

use crate::Zero;

/// In what numbers a model is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Everything in 32 bits.
    #[default]
    Fp32,
    /// Parameters in bfloat16; gradients, master weights and moments in 32 bits.
    Bf16,
    /// Everything in 64 bits.
    Fp64,
}

impl Precision {
    /// Returns its name, as configurations and cluster files have it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Bf16 => "bf16",
            Precision::Fp32 => "fp32",
            Precision::Fp64 => "fp64",
        }
    }

    /// Returns the bytes of one element of a parameter, as the model multiplies by it.
    ///
    /// # Units
    /// Bytes.
    pub fn parameter_bytes(self) -> usize {
        match self {
            Precision::Bf16 => 2,
            Precision::Fp32 => 4,
            Precision::Fp64 => 8,
        }
    }

    /// Returns the bytes of one element of a gradient, a master weight or a moment.
    ///
    /// # Units
    /// Bytes.
    pub fn state_bytes(self) -> usize {
        match self {
            Precision::Bf16 | Precision::Fp32 => 4,
            Precision::Fp64 => 8,
        }
    }

    /// Returns whether parameters have a second, wider copy that the optimizer updates.
    pub fn has_master(self) -> bool {
        self.parameter_bytes() < self.state_bytes()
    }
}

/// What is kept for each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// The numbers.
    pub precision: Precision,
    /// Moments of the optimizer: 2 for AdamW, 1 for SGD with momentum, 0 without.
    pub moments: usize,
}

impl Storage {
    /// Returns the bytes that `elements` elements take, of which `trained` are trained; of the others there are values alone.
    pub fn bytes_of(&self, elements: usize, trained: usize) -> RankBytes {
        let parameters = elements * self.precision.parameter_bytes();
        RankBytes { parameters, ..self.bytes(trained) }
    }

    /// Returns the bytes that `elements` elements take.
    pub fn bytes(&self, elements: usize) -> RankBytes {
        let state = elements * self.precision.state_bytes();
        RankBytes {
            parameters: elements * self.precision.parameter_bytes(),
            gradients: state,
            master: if self.precision.has_master() { state } else { 0 },
            moments: self.moments * state,
        }
    }
}

/// What one rank stores of a model between steps.
///
/// # Units
/// Bytes. Exact for the elements; an allocator may round up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RankBytes {
    /// Parameters.
    pub parameters: usize,
    /// Gradients.
    pub gradients: usize,
    /// Master weights.
    pub master: usize,
    /// The optimizer's moments.
    pub moments: usize,
}

impl RankBytes {
    /// Divides what `parts` data ranks share out, rounded up.
    pub fn shared(self, zero: Zero, parts: usize) -> Self {
        let over = |from: Zero, bytes: usize| if zero >= from { bytes.div_ceil(parts) } else { bytes };
        Self {
            parameters: over(Zero::Parameters, self.parameters),
            gradients: over(Zero::Gradients, self.gradients),
            master: over(Zero::Optimizer, self.master),
            moments: over(Zero::Optimizer, self.moments),
        }
    }

    /// Adds everything up.
    pub fn total(&self) -> usize {
        self.parameters + self.gradients + self.master + self.moments
    }
}
