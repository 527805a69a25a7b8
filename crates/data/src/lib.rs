//! Training text for many ranks: from a file to the batches that each data-parallel rank reads, and nothing that
//! needs a tensor library or a communicator.
//!
//! A run's data is a chain of small pieces, in the order of the modules below:
//!
//! 1. a [`Corpus`] is UTF-8 text, embedded, from a file or a folder;
//! 2. a [`Tokenizer`] (bytes, or a Hugging Face `tokenizer.json`) turns it into [`Tokens`]; [`Indexed`] files hold tokens
//!    of any number of documents already, and are read in place;
//! 3. [`open`] and [`split()`] hold a part out for validation; what they give is a [`Part`];
//! 4. an [`Order`] says, for every sample number from zero on, where in the tokens the sample starts. It is a pure
//!    function of the seed: no state is kept, a run resumes at any step, and it does not depend on how many ranks read;
//! 5. a [`SampleSource`] fills a [`Sample`] by its number: inputs, targets and, where documents are packed, segments;
//!    a [`Blend`] makes one of several, with weights;
//! 6. a [`BatchPlan`] says which numbers a rank takes in a step, and [`Prefetch`] reads those [`Batch`]es ahead of time;
//! 7. [`Windows`] walk the held-out part so that every token is predicted exactly once.
//!
//! For fine-tuning there are [`Examples`] instead of a text, prompts with their answers, [`Packed`] into samples of which
//! only the answers' tokens are targets; a [`Template`] writes conversations.
//!
//! Before all that, [`tokenize()`] turns text, JSON lines and compressed files into [`Indexed`] ones.
//!
//! # Examples
//!
//! The second of two data-parallel ranks reads its share of three steps, then the validation part is walked once:
//!
//! ```
//! use std::sync::Arc;
//! use mp_data::{split, BatchPlan, Corpus, Prefetch, TextSource, Tokenizer, Validation, Windows};
//!
//! # fn main() -> mp_data::Result<()> {
//! let (seq, seed) = (32, 1);
//! let tokenizer = Tokenizer::load("bytes")?;
//! let corpus = Corpus::embedded();
//! let parts = split(&corpus, &tokenizer, &Validation::Fraction(0.1), seq)?;
//!
//! // A global batch of 8 sequences, on each of 2 ranks in 2 micro-batches of 2.
//! let plan = BatchPlan::new(8, 2, 2)?;
//! assert_eq!(plan.micro_batches(), 2);
//!
//! let source = Arc::new(TextSource::new(parts.train, seq, seed)?);
//! let mut reader = Prefetch::new(source, plan, 1, 0, 4)?;
//! for _step in 0..3 {
//!     for batch in reader.next_step()? {
//!         assert_eq!(batch.tokens.len(), 2 * seq);
//!         // Each target is the token that follows.
//!         assert_eq!(batch.tokens[1], batch.targets[0]);
//!     }
//! }
//!
//! let held_out = parts.validation.expect("a fraction above zero holds something out");
//! let predicted: usize = Windows::new(held_out.clone(), seq)?.batches(4, 0)?.map(|b| b.unwrap().target_count()).sum();
//! assert_eq!(predicted as u64, held_out.len() - 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! `huggingface` (on by default) reads `tokenizer.json` files through the `tokenizers` crate. Without it,
//! [`Tokenizer::load`] knows byte tokens and refuses anything else by name.

mod batch;
mod blend;
mod corpus;
mod error;
mod example;
mod examples;
mod file;
mod indexed;
mod inputs;
#[cfg(feature = "huggingface")]
mod learn;
mod masked;
mod mmap;
mod order;
mod packed;
mod part;
mod permutation;
mod prefetch;
mod sample;
mod source;
mod split;
mod tally;
mod template;
mod tokenize;
mod tokenizer;
mod tokens;
mod windows;
mod work;

pub use batch::{Batch, BatchPlan, IGNORED};
pub use blend::{seed_of, Blend, Ingredient};
pub use corpus::Corpus;
pub use error::{Error, Result};
pub use example::Reading;
pub use examples::{ExampleReader, Examples};
pub use indexed::{Element, Indexed, IndexedWriter};
pub use inputs::{Documents, Input};
#[cfg(feature = "huggingface")]
pub use learn::train_tokenizer;
pub use masked::{MaskedSource, Masking};
pub use mmap::Mapping;
pub use order::Order;
pub use packed::{Packed, PackedRows, PackedSource};
pub use part::Part;
pub use permutation::Permutation;
pub use prefetch::Prefetch;
pub use sample::{Attend, Piece, Sample, Targets};
pub use source::{SampleSource, TextSource};
pub use split::{open, open_whole, split, Split, Validation};
pub use tally::Tally;
pub use template::{Template, Written};
pub use tokenize::{tokenize, Job, Progress};
pub use tokenizer::Tokenizer;
pub use tokens::Tokens;
pub use windows::{WindowBatches, Windows};
