//! Low-rank adapters: the `[lora]` section, and which parameters it adds beside a frozen model.
//!
//! A matrix `W: [d_out, d_in]` computes `x·Wᵀ + (alpha / rank) · (x·Aᵀ)·Bᵀ` with `A: [rank, d_in]` and `B: [d_out, rank]`.
//!
//! # Source
//! Hu et al. 2021, arXiv:2106.09685, §4.1.

use serde::{Deserialize, Serialize};

use crate::{Cut, Error, Init, ParameterSpec, Result};

/// What the names of the factors that read a matrix's input end with.
pub const FIRST_FACTOR: &str = "lora_a.weight";
/// What the names of the factors that write to a matrix's output end with.
pub const SECOND_FACTOR: &str = "lora_b.weight";

/// Says whether a parameter of this name is a factor of an adapter.
pub fn is_factor(name: &str) -> bool {
    name.ends_with(FIRST_FACTOR) || name.ends_with(SECOND_FACTOR)
}

/// The matrices of a layer that adapters can stand beside, those that read the same input together.
pub const TARGETS: [&[&str]; 4] = [
    &["attention.query", "attention.key", "attention.value"],
    &["attention.output"],
    &["mlp.gate", "mlp.up"],
    &["mlp.down"],
];

/// `[lora]`: low-rank adapters, trained in place of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rows of the first factor; 0: no adapters, the model itself is trained.
    pub rank: usize,
    /// What adapters add is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Probability with which an element of what adapters read is dropped in training.
    pub dropout: f64,
    /// The matrices beside which adapters stand, in every layer.
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let targets = ["attention.query", "attention.value"].map(String::from).to_vec();
        Self { rank: 0, alpha: 16.0, dropout: 0.0, targets }
    }
}

impl LoraConfig {
    /// Returns what adapters' outputs are multiplied by.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Says whether an adapter stands beside a matrix of each layer.
    pub fn adapts(&self, target: &str) -> bool {
        self.rank > 0 && self.targets.iter().any(|own| own == target)
    }

    /// Says whether other adapters compute the same of the same factors, whatever is dropped in training.
    pub fn computes_as(&self, other: &Self) -> bool {
        let within = |a: &Self, b: &Self| a.targets.iter().all(|target| b.targets.contains(target));
        let same = within(self, other) && within(other, self);
        same && self.rank == other.rank && self.alpha == other.alpha
    }

    /// Checks the section on its own.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] (alpha, dropout), [`Error::Zero`] (no targets).
    pub fn check(&self) -> Result<()> {
        let within = |what, value: f64, range, inside: bool| match inside && value.is_finite() {
            true => Ok(()),
            false => Err(Error::OutOfRange { what, value, range }),
        };
        within("lora.alpha", self.alpha, "finite and above 0", self.alpha > 0.0)?;
        within("lora.dropout", self.dropout, "at least 0 and below 1", (0.0..1.0).contains(&self.dropout))?;
        match self.targets.is_empty() {
            true => Err(Error::Zero { what: "the number of lora.targets" }),
            false => Ok(()),
        }
    }

    /// Lists the parameters of all adapters beside a model's, layer by layer: of the matrices that share an input first all
    /// first factors, side by side so that they multiply as one, then the second ones.
    pub(crate) fn parameters(&self, base: &[ParameterSpec]) -> Result<Vec<ParameterSpec>> {
        self.check()?;
        let find = |layer: usize, target: &str| {
            let name = format!("layers.{layer}.{target}.weight");
            base.iter().find(|parameter| parameter.name == name)
        };
        let legal = || TARGETS.iter().copied().flatten().filter(|target| find(0, target).is_some());
        if let Some(target) = self.targets.iter().find(|target| !legal().any(|legal| legal == target)) {
            let legal = legal().map(|target| target.to_string()).collect();
            return Err(Error::Target { target: target.clone(), legal });
        }
        let layers = base.iter().filter_map(|parameter| parameter.layer).max().map_or(0, |last| last + 1);
        let mut made = Vec::new();
        for layer in 0..layers {
            for group in TARGETS {
                let own = group.iter().filter(|target| self.adapts(target));
                let own: Vec<&ParameterSpec> = own.filter_map(|target| find(layer, target)).collect();
                made.extend(own.iter().map(|base| self.first(base)));
                made.extend(own.iter().map(|base| self.second(base)));
            }
        }
        Ok(made)
    }

    /// Draws the first factor as torch draws the weights of linear layers.
    fn first(&self, base: &ParameterSpec) -> ParameterSpec {
        let cut = match base.cut {
            Cut::QueryHeads { dim: 1 } | Cut::Hidden { dim: 1 } => base.cut,
            _ => Cut::Partial,
        };
        let init = Init::Uniform { bound: 1.0 / (base.shape[1] as f64).sqrt() };
        factor(base, FIRST_FACTOR, [self.rank, base.shape[1]], cut, init)
    }

    /// Starts the second factor at zero: an adapter changes nothing before its first update.
    fn second(&self, base: &ParameterSpec) -> ParameterSpec {
        let cut = match base.cut {
            Cut::QueryHeads { dim: 1 } | Cut::Hidden { dim: 1 } => Cut::Partial,
            cut => cut,
        };
        factor(base, SECOND_FACTOR, [base.shape[0], self.rank], cut, Init::Zeros)
    }
}

fn factor(base: &ParameterSpec, last: &str, shape: [usize; 2], cut: Cut, init: Init) -> ParameterSpec {
    let name = base.name.replace("weight", last);
    ParameterSpec { name, shape: shape.to_vec(), cut, init, decays: true, layer: base.layer, frozen: false }
}
