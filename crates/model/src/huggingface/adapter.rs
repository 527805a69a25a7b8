//! Adapters as PEFT publishes them: what an `adapter_config.json` says, both ways, and where our factors lie among the tensors
//! of an `adapter_model.safetensors`.
//!
//! | file | is |
//! |---|---|
//! | `adapter/keys.rs` | the keys, both ways |
//! | `adapter/modules.rs` | the modules of transformers that adapters stand beside, and names that select them |
//! | `adapter/factors.rs` | our factors as boxes of published tensors |
//!
//! PEFT puts one adapter beside a module. Where a module is several of our matrices, GPT-2's `c_attn`, each of ours has an
//! adapter of its own. Inwards all of them read the one first factor. Outwards the first factors are stacked and the second
//! ones stand in blocks on a diagonal, `n·rank` wide; `alpha` grows with it, so that the scale stays.

mod factors;
mod keys;
mod modules;

use mp_plan::{Architecture, LoraConfig};

pub use factors::Factor;
pub use keys::AdapterConfig;

use super::{Family, Result};
use factors::Form;
use modules::Modules;

/// The name under which a file of tensors keeps the adapters that it was written from, as JSON, among its metadata.
pub const NOTE: &str = "mp_lora";
/// No module is as wide as this.
const MOST_RANK: usize = 1 << 31;
/// The file that describes adapters.
const FILE: &str = "adapter_config.json";

/// Adapters among published tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapters {
    /// Which they are.
    pub lora: LoraConfig,
    /// Where each factor lies.
    pub factors: Vec<Factor>,
}

impl Adapters {
    /// Finds the adapters of a model among tensors of these names and shapes; `note` is what the file keeps as [`NOTE`].
    ///
    /// # Errors
    /// [`Refusal`](super::Refusal) naming the module that has no adapters here, or a tensor that is missing, has no place or has another
    /// shape.
    pub fn take(
        config: &AdapterConfig,
        note: Option<&str>,
        architecture: &Architecture,
        stored: &[(String, Vec<usize>)],
    ) -> Result<Self> {
        let family = Family::of(architecture)?;
        let modules = Modules::new(family, architecture);
        let targets = modules.targets(config)?;
        let noted = note.and_then(|note| serde_json::from_str::<LoraConfig>(note).ok());
        // No rank is wider than the module's; one that no machine holds would be multiplied below.
        let possible = noted.filter(|lora| lora.rank <= config.rank.min(MOST_RANK));
        let own = possible.filter(|lora| config.is_written_as(&modules.keys(lora)));
        let (lora, form) = match own {
            // Dropout is no part of the file of tensors: who edits the configuration decides.
            Some(lora) => (LoraConfig { dropout: config.dropout, ..lora }, Form::Blocks),
            None => (config.plain(targets)?, Form::Shared),
        };
        let mut factors = factors::factors(&modules, &lora, form);
        factors::check(&mut factors, &modules, stored)?;
        Ok(Self { lora, factors })
    }

    /// Says how adapters of ours are published.
    ///
    /// # Errors
    /// [`Refusal::NoCounterpart`](super::Refusal::NoCounterpart) for a model that transformers does not compute.
    pub fn publish(lora: &LoraConfig, architecture: &Architecture) -> Result<Self> {
        let modules = Modules::new(Family::of(architecture)?, architecture);
        Ok(Self { lora: lora.clone(), factors: factors::factors(&modules, lora, Form::Blocks) })
    }

    /// Writes the `adapter_config.json` of adapters of ours; `base` is what PEFT finds the model under.
    ///
    /// # Errors
    /// [`Refusal::NoCounterpart`](super::Refusal::NoCounterpart) for a model that transformers does not compute.
    pub fn config(
        lora: &LoraConfig,
        architecture: &Architecture,
        base: &str,
    ) -> Result<serde_json::Map<String, serde_json::Value>> {
        let family = Family::of(architecture)?;
        Ok(Modules::new(family, architecture).keys(lora).write(lora, family, base))
    }
}
