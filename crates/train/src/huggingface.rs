//! Folders as transformers publishes them: read as weights at any layout, taken in as run folders, and written.
//!
//! | file | is |
//! |---|---|
//! | `huggingface/folder.rs` | a folder as a [`WeightSource`](crate::weights::WeightSource) |
//! | `huggingface/adapter.rs` | a folder of adapters as another |
//! | `huggingface/import.rs` | from such a folder to a run folder |
//! | `huggingface/export.rs` | from a checkpoint to such a folder |
//! | `huggingface/export_adapter.rs` | from one of adapters to a folder of them |
//! | `huggingface/shards.rs` | tensors over files of at most so many bytes |
//! | `huggingface/tokens.rs` | the tokenizer, and the tokens that mark texts |
//!
//! What keys and names mean is known to [`mp_model::huggingface`].

mod adapter;
mod export;
mod export_adapter;
mod folder;
mod import;
mod shards;
mod tokens;

pub use adapter::Adapter;
pub use export::{export, export_merged, Export};
pub use export_adapter::export_adapter;
pub use folder::Folder;
pub use import::import;

/// The file that makes a folder one of a published model.
pub(crate) const CONFIG: &str = "config.json";
/// The file of all tensors.
const SINGLE: &str = "model.safetensors";
/// The file that says in which file each tensor lies.
const INDEX: &str = "model.safetensors.index.json";
/// The file that makes a folder one of adapters, and that of their tensors.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER: &str = "adapter_model.safetensors";
/// The tokenizer's file.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
