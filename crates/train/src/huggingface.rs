//! Folders as transformers publishes them: read as weights at any layout, taken in as run folders, and written.
//!
//! | file | is |
//! |---|---|
//! | `huggingface/folder.rs` | a folder as a [`WeightSource`](crate::weights::WeightSource) |
//! | `huggingface/import.rs` | from such a folder to a run folder |
//! | `huggingface/export.rs` | from a checkpoint to such a folder |
//! | `huggingface/shards.rs` | tensors over files of at most so many bytes |
//! | `huggingface/tokens.rs` | the tokenizer, and the tokens that mark texts |
//!
//! What keys and names mean is known to [`mp_model::huggingface`].

mod export;
mod folder;
mod import;
mod shards;
mod tokens;

pub use export::{export, Export};
pub use folder::Folder;
pub use import::import;

/// The file that makes a folder one of a published model.
pub(crate) const CONFIG: &str = "config.json";
/// The file of all tensors.
const SINGLE: &str = "model.safetensors";
/// The file that says in which file each tensor lies.
const INDEX: &str = "model.safetensors.index.json";
/// The tokenizer's file.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
