//! The modules of transformers that adapters can stand beside, and the names that select them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use mp_plan::lora::TARGETS;
use mp_plan::{Architecture, LoraConfig};

use super::keys::{AdapterConfig, Written};
use super::FILE;
use crate::huggingface::{Family, Refusal, Result};

/// All modules of a model.
#[derive(Debug)]
pub(super) struct Modules {
    pub family: Family,
    /// Those that adapters can stand beside, layer by layer.
    pub all: Vec<Module>,
    /// The names of those and of all others that have parameters.
    names: BTreeSet<String>,
}

/// A module, and our matrices in it.
#[derive(Debug)]
pub(super) struct Module {
    /// Its name: `transformer.h.0.attn.c_attn`.
    pub name: String,
    pub layer: usize,
    /// Width of what it reads.
    pub inputs: usize,
    /// Width of what it writes.
    pub outputs: usize,
    pub parts: Vec<Part>,
}

/// One of our matrices.
#[derive(Debug)]
pub(super) struct Part {
    /// As `lora.targets` calls it.
    pub target: &'static str,
    /// What it writes of the module's output.
    pub rows: Range<usize>,
}

/// Says whether a name of `target_modules` selects a module: PEFT compares the ends.
fn selects(name: &str, module: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl Module {
    /// Returns the name without what stands before the layer's number, and that.
    fn in_layer(&self) -> &str {
        let number = format!(".{}.", self.layer);
        self.name.split_once(&number).map_or(self.name.as_str(), |(_, rest)| rest)
    }

    /// Returns those of our matrices that have adapters.
    pub fn adapted<'a>(&'a self, lora: &'a LoraConfig) -> impl Iterator<Item = &'a Part> {
        self.parts.iter().filter(|part| lora.adapts(part.target))
    }
}

impl Modules {
    pub fn new(family: Family, architecture: &Architecture) -> Self {
        let (mut all, mut names): (Vec<Module>, _) = (Vec::new(), BTreeSet::new());
        for place in family.places(architecture) {
            let Some((name, kind)) = place.tensor.rsplit_once('.') else { continue };
            names.insert(name.to_string());
            let ours = place.parameter.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
            let Some((layer, rest)) = ours.filter(|_| kind == "weight") else { continue };
            let known = |target: &&&str| rest.strip_suffix(".weight") == Some(**target);
            let Some(&target) = TARGETS.into_iter().flatten().find(known) else { continue };
            let part = Part { target, rows: place.start..place.start + place.shape[0] };
            match all.last_mut().filter(|module| module.name == name) {
                Some(module) => module.parts.push(part),
                None => all.push(Module {
                    name: name.into(),
                    layer: layer.parse().expect("a layer is a number"),
                    inputs: place.shape[1],
                    outputs: place.rows,
                    parts: vec![part],
                }),
            }
        }
        Self { family, all, names }
    }

    /// Lists the matrices of ours that a configuration puts adapters beside.
    ///
    /// # Errors
    /// [`Refusal::Value`] for a name that selects nothing, what has no adapters here, or modules of some layers only.
    pub fn targets(&self, config: &AdapterConfig) -> Result<Vec<String>> {
        let value = serde_json::json!(config.targets).to_string();
        let refuse = |rule: String| {
            let (key, value) = ("target_modules".to_string(), value.clone());
            Err(Refusal::Value { file: FILE, key, value, rule })
        };
        let known = |module: &String| self.all.iter().any(|known| known.name == *module);
        let beside = || {
            let kinds: BTreeSet<&str> = self.all.iter().map(Module::in_layer).collect();
            kinds.into_iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(", ")
        };
        for target in &config.targets {
            let mut selected = self.names.iter().filter(|module| selects(target, module)).peekable();
            if selected.peek().is_none() {
                return refuse(format!(
                    "the model has no module `{target}`; adapters are computed beside {}",
                    beside()
                ));
            }
            if let Some(other) = selected.find(|module| !known(module)) {
                return refuse(format!("`{target}` selects `{other}`; adapters are computed beside {}", beside()));
            }
        }
        let is_selected = |module: &Module| config.targets.iter().any(|target| selects(target, &module.name));
        let mut targets = Vec::new();
        for target in TARGETS.into_iter().flatten() {
            let mut beside = self.all.iter().filter(|module| module.parts.iter().any(|part| part.target == *target));
            let Some(first) = beside.next() else { continue };
            let wanted = is_selected(first);
            if let Some(other) = beside.find(|module| is_selected(module) != wanted) {
                let (with, without) = if wanted { (first, other) } else { (other, first) };
                let rule = format!(
                    "that is `{}` and not `{}`: adapters stand beside a matrix in all layers or none",
                    with.name, without.name
                );
                return refuse(rule);
            }
            if wanted {
                targets.push(target.to_string());
            }
        }
        Ok(targets)
    }

    /// Says how adapters of ours are published.
    pub fn keys(&self, lora: &LoraConfig) -> Written {
        let wanted: Vec<&Module> = self.all.iter().filter(|module| module.adapted(lora).next().is_some()).collect();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for module in wanted.iter().filter(|module| module.layer == 0) {
            let count = module.adapted(lora).count();
            counts.extend(self.select(module.in_layer(), &wanted).into_iter().map(|name| (name, count)));
        }
        let mut several: Vec<usize> = counts.values().copied().collect();
        several.sort_unstable();
        several.dedup();
        let common = if several.len() == 1 { several[0] } else { 1 };
        let others = || counts.iter().filter(|(_, &count)| count != common);
        Written {
            rank: lora.rank * common,
            alpha: lora.alpha * common as f64,
            ranks: others().map(|(name, count)| (name.clone(), lora.rank * count)).collect(),
            alphas: others().map(|(name, &count)| (name.clone(), lora.alpha * count as f64)).collect(),
            names: counts.keys().cloned().collect(),
        }
    }

    /// Finds the shortest name that selects a module of every layer and nothing that has no adapters; where there is none,
    /// the full names.
    fn select(&self, in_layer: &str, wanted: &[&Module]) -> Vec<String> {
        let ends = in_layer.rmatch_indices('.').map(|(at, _)| &in_layer[at + 1..]).chain([in_layer]);
        let is_wanted = |module: &String| wanted.iter().any(|wanted| wanted.name == *module);
        let only = |end: &&str| self.names.iter().filter(|module| selects(end, module)).all(is_wanted);
        match ends.into_iter().find(only) {
            Some(end) => vec![end.to_string()],
            None => {
                let same = wanted.iter().filter(|module| module.in_layer() == in_layer);
                same.map(|module| module.name.clone()).collect()
            }
        }
    }
}
