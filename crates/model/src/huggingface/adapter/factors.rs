//! Our factors as boxes of published tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use mp_plan::lora::{FIRST_FACTOR, SECOND_FACTOR};
use mp_plan::LoraConfig;

use super::modules::{Module, Modules};
use crate::huggingface::inventory::prefix;
use crate::huggingface::{Refusal, Result};

/// What comes before a module's name in PEFT's files.
const BEFORE: &str = "base_model.model.";
/// What comes after it.
const FIRST: &str = "lora_A.weight";
const SECOND: &str = "lora_B.weight";

/// One of our factors as a box of a published tensor; both keep `[rows, columns]` alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    /// Our name.
    pub parameter: String,
    /// Our full shape.
    pub shape: [usize; 2],
    /// The tensor's name.
    pub tensor: String,
    /// Its shape.
    pub tensor_shape: [usize; 2],
    /// Where in it our first element lies.
    pub corner: [usize; 2],
}

impl Factor {
    /// Returns the box of the tensor in which a box of the factor lies.
    pub fn region(&self, of_factor: &[Range<usize>]) -> Vec<Range<usize>> {
        let moved = |(range, corner): (&Range<usize>, usize)| range.start + corner..range.end + corner;
        of_factor.iter().zip(self.corner).map(moved).collect()
    }
}

/// How the adapters of matrices lie that are one module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// All read one first factor, and each has its rows of the second.
    Shared,
    /// The first factors are stacked, and the second ones are blocks on a diagonal.
    Blocks,
}

/// Lists where all factors lie, module by module.
pub(super) fn factors(modules: &Modules, lora: &LoraConfig, form: Form) -> Vec<Factor> {
    modules.all.iter().flat_map(|module| of_module(module, lora, form)).collect()
}

fn of_module(module: &Module, lora: &LoraConfig, form: Form) -> Vec<Factor> {
    let &Module { layer, inputs, outputs, .. } = module;
    let (rank, count) = (lora.rank, module.adapted(lora).count());
    let width = if form == Form::Blocks { count * rank } else { rank };
    let tensor = |last: &str| format!("{BEFORE}{}.{last}", module.name);
    let pair = |(index, part): (usize, &super::modules::Part)| {
        let parameter = |last: &str| format!("layers.{layer}.{}.{last}", part.target);
        let block = if form == Form::Blocks { index * rank } else { 0 };
        let first = Factor {
            parameter: parameter(FIRST_FACTOR),
            shape: [rank, inputs],
            tensor: tensor(FIRST),
            tensor_shape: [width, inputs],
            corner: [block, 0],
        };
        let second = Factor {
            parameter: parameter(SECOND_FACTOR),
            shape: [part.rows.len(), rank],
            tensor: tensor(SECOND),
            tensor_shape: [outputs, width],
            corner: [part.rows.start, block],
        };
        [first, second]
    };
    module.adapted(lora).enumerate().flat_map(pair).collect()
}

/// Holds tensors that files have against those that must be there, and gives factors the names that the files have: those of
/// a bare model lack the prefix that a model with a head puts before them.
pub(super) fn check(factors: &mut [Factor], modules: &Modules, stored: &[(String, Vec<usize>)]) -> Result<()> {
    let expected: BTreeMap<&str, [usize; 2]> =
        factors.iter().map(|factor| (factor.tensor.as_str(), factor.tensor_shape)).collect();
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for (name, shape) in stored {
        let longer = name.strip_prefix(BEFORE).map(|rest| format!("{BEFORE}{}{rest}", prefix(modules.family)));
        let Some(tensor) =
            [Some(name.clone()), longer].into_iter().flatten().find(|name| expected.contains_key(&**name))
        else {
            return Err(foreign(name));
        };
        let expected = expected[tensor.as_str()];
        if *shape != expected {
            return Err(Refusal::Factor { name: name.clone(), found: shape.clone(), expected: expected.into() });
        }
        if let Some(first) = found.insert(tensor, name.clone()) {
            return Err(Refusal::TwiceTensor { first, second: name.clone() });
        }
    }
    let missing: BTreeSet<&str> = expected.into_keys().filter(|name| !found.contains_key(*name)).collect();
    if let Some(first) = missing.first() {
        return Err(Refusal::MissingTensor { name: (*first).into(), count: missing.len() });
    }
    for factor in factors {
        factor.tensor.clone_from(&found[&factor.tensor]);
    }
    Ok(())
}

/// Says why a tensor is not taken.
fn foreign(name: &str) -> Refusal {
    let rule = match name {
        name if name.contains("lora_embedding") => "adapters stand beside matrices, not beside embeddings",
        name if name.contains("lora_magnitude") => "matrices keep their magnitudes",
        name if name.contains("modules_to_save") => "whole modules are not kept beside adapters",
        _ => "`target_modules` selects no module of the model that it belongs to",
    };
    Refusal::Foreign { name: name.into(), rule: rule.into() }
}
