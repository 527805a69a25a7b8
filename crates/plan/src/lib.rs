//! Planning of model-parallel layouts as pure data: no tensors, no communication, no files.
//!
//! Four steps lead from what a user types to what each rank holds, and each is a plain value that can be printed,
//! compared and serialised:
//!
//! 1. [`Architecture`]: a [`ModelConfig`] with every default filled in, and from it the list of all parameters
//!    ([`ParameterSpec`]): names, full shapes, initial values, and along what they may be cut;
//! 2. [`Mesh`]: the ranks arranged by axis (pipeline, data, context, tensor), and their groups;
//! 3. [`Partition`]: for every parameter the [`Placement`] on the tensor axis, that is, exactly which rows or columns
//!    each rank holds, how often each element is held, and what its gradient needs;
//! 4. [`Plan`]: all of the above with bytes a rank, as written to `plan.json`, and as a table for people.
//!
//! A pipeline adds what its ranks do, and in which order:
//!
//! 5. [`Stages`]: the layers over virtual stages, by cost or as the user says, and the stages over the ranks;
//! 6. [`Schedule`]: for every rank the list of [`Step`]s of one update (GPipe, 1F1B, interleaved, ZB-H1, ZB-V), which an
//!    executor runs as it is;
//! 7. [`deadlock`] and [`completeness`]: proofs that lists run to their end, and that they are one training step;
//! 8. [`simulate()`]: a timeline of the lists from the costs of the stages, and the idle share.
//!
//! And the choice between layouts is made from numbers:
//!
//! 9. [`Cluster`]: the machine, from a file or by name; [`Job`]: what is to be trained; [`Candidate`]: one layout of it;
//! 10. [`memory`]: what each rank keeps, by component; [`cost`]: what single operations take ([`CostModel`]); [`step`]: what
//!     a training step takes, by what it is spent on;
//! 11. [`search()`]: the best layouts under the memory limit, and what does not fit; [`ranking`]: the same as JSON and as tables; [`published`]: the runs that the model of
//!     time is held against; [`picture`]: a layout as a page of pictures.
//! 12. [`trial`]: what is built to time a stage; [`Estimator::replay`]: a step from such times; [`what_if`]: both as JSON and as
//!     tables.
//!
//! Everything that cannot be cut is refused with an [`Error`] that names the values and the legal degrees.
//!
//! # Examples
//!
//! A model for bytes, cut over four ranks:
//!
//! ```
//! use mp_plan::{Architecture, Mesh, ModelConfig, ParallelConfig, Partition, Plan, Precision, Storage};
//!
//! # fn main() -> mp_plan::Result<()> {
//! let model = ModelConfig { hidden: 64, layers: 2, heads: 4, kv_heads: 2, ..ModelConfig::default() };
//! let architecture = Architecture::resolve(&model, 257, 128)?;
//! let parallel = ParallelConfig { tp: 4, ..ParallelConfig::default() };
//! let mesh = Mesh::resolve(&parallel, 4, &architecture)?;
//! let partition = Partition::new(&architecture, &mesh)?;
//!
//! // The embedding's 257 rows make four shards of 65: three more rows, on the last rank, are padding.
//! let embedding = partition.get("embedding.weight").unwrap();
//! assert_eq!(embedding.local_shape(), [65, 64]);
//! assert_eq!(embedding.range(0), Some((0, 0..65)));
//! assert_eq!(embedding.range(3), Some((0, 195..257)));
//!
//! // Four ranks share two key heads of width 16, so each is held twice.
//! let key = partition.get("layers.0.attention.key.weight").unwrap();
//! assert_eq!(key.range(0), key.range(1));
//! assert_eq!(key.range(2), Some((0, 16..32)));
//! assert_eq!(key.replicas(), 2);
//!
//! // AdamW keeps two moments for each element.
//! let plan = Plan::new(&partition, Storage { precision: Precision::Bf16, moments: 2 });
//! println!("{}", plan.table());
//! assert_eq!(plan.rank_bytes.parameters, 2 * partition.local_elements());
//! # Ok(())
//! # }
//! ```
//!
//! `examples/hundred_parts.rs` cuts 10⁹ parameters in 100 parts; `examples/four_ranks.rs` goes from a user's
//! configuration to what one of four ranks holds; `examples/schedules.rs` draws every schedule.

pub mod architecture;
pub mod arrangement;
pub mod cache;
pub mod choice;
pub mod cluster;
pub mod completeness;
pub mod config;
pub mod cost;
pub mod deadlock;
pub mod degrees;
pub mod error;
pub mod idle;
pub mod job;
pub mod lora;
pub mod memory;
pub mod mesh;
mod pace;
pub mod parameters;
pub mod partition;
pub mod picture;
pub mod placement;
pub mod plan;
pub mod published;
pub mod ranking;
pub mod schedule;
pub mod search;
pub mod simulate;
pub mod space;
pub mod stages;
pub mod step;
pub mod storage;
mod table;
pub mod traffic;
pub mod trial;
mod waits;
pub mod what_if;
pub mod words;

pub use architecture::Architecture;
pub use arrangement::{Arrangement, Bucket, Unit, Zero};
pub use cache::cache_bytes;
pub use choice::ParallelKey;
pub use cluster::Cluster;
pub use completeness::Incomplete;
pub use config::{
    ArchitectureName, AttentionBias, ContextForm, ModelConfig, ParallelConfig, RecomputeName, RopeScaling, Switch,
    TransportName,
};
pub use cost::{Analytic, Collective, CostModel, Group, Measured, Terms};
pub use deadlock::Stuck;
pub use degrees::{
    check_all_to_all, check_sequence, check_tensor, check_zero, legal_tensor_degrees, recompute, sequence_multiple,
    sequence_parallel,
};
pub use error::{Error, Result};
pub use idle::{check_effect, Sequences};
pub use job::{Candidate, Executor, Job};
pub use lora::LoraConfig;
pub use memory::{MemoryModel, RankMemory, SUMMED_APART};
pub use mesh::{Axis, Coordinates, Degrees, Mesh};
pub use parameters::{Cut, Init, ParameterSpec};
pub use partition::{GradientSync, Partition, PartitionedParameter, Tie};
pub use picture::Page;
pub use placement::Placement;
pub use plan::{Plan, PlannedParameter, PlannedStages, PlannedWork};
pub use ranking::{Ranked, Ranking};
pub use schedule::{Payload, Schedule, ScheduleName, Step};
pub use search::{search, Each, Found};
pub use simulate::{simulate, Costs, Span, StageCosts, Timeline};
pub use space::Space;
pub use stages::{Folding, Stages};
pub use step::{Activity, ActivityKind, Estimate, Estimator, Replayed, Spent, StepTime, StepTimeline};
pub use storage::{Precision, RankBytes, Storage};
pub use traffic::{Traffic, Workload};
pub use trial::{Sizes, TimedStage, Trial};
pub use what_if::WhatIf;
