//! What each rank of a layout keeps, by component.
//!
//! Parameters, gradients, masters and moments are those of [`Arrangement`]: exact, padding included. The rest is what is alive
//! at the fullest moment of a step, played through on paper.
//!
//! | file | is |
//! |---|---|
//! | `memory/sizes.rs` | the tensors of a job in a layout, in bytes |
//! | `memory/tape.rs` | memory as it is taken and given back |
//! | `memory/passes.rs` | the backward of a layer and of the exit, tensor by tensor |
//! | `memory/partial.rs` | what tensor ranks sum up at a step's end |
//! | `memory/lent.rs` | what data ranks have of each other's while gradients are reduced |
//! | `memory/ends.rs` | what a step takes behind its last backward |
//! | `memory/kept.rs` | what layers keep |
//! | `memory/fullest.rs` | how full a rank is while it runs its list |

mod ends;
mod fullest;
mod kept;
mod lent;
mod partial;
mod passes;
mod sizes;
mod tape;

use std::collections::{hash_map::Entry, HashMap};

use serde::{Deserialize, Serialize};

use crate::{
    Architecture, ArchitectureName, Arrangement, Candidate, Degrees, Job, Mesh, Partition, PartitionedParameter,
    RankBytes, Result, Stages, Step, Tie, Zero,
};

pub use ends::SUMMED_APART;
pub(crate) use kept::repeated;
pub use kept::Kept;
use lent::{lent, Lent};
pub use partial::{Partial, Pieces};

/// What one rank keeps at its fullest, by component.
///
/// # Units
/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankMemory {
    /// Parameters.
    pub parameters: usize,
    /// Gradients.
    pub gradients: usize,
    /// Master weights.
    pub master: usize,
    /// The optimizer's moments.
    pub moments: usize,
    /// What layers look up: the angles of rotary positions.
    pub tables: usize,
    /// What forwards keep for backwards that are still to come, at the fullest moment of the schedule.
    pub activations: usize,
    /// What the computation under way has beside that.
    pub workspace: usize,
    /// Messages under way, places ready for them, and values and gradients of others.
    pub buffers: usize,
}

impl RankMemory {
    /// The names of the components, as people read them.
    pub const NAMES: [&'static str; 8] =
        ["parameters", "gradients", "master weights", "moments", "tables", "activations", "workspace", "buffers"];

    /// Returns the components in the order of [`NAMES`](Self::NAMES).
    pub fn parts(&self) -> [usize; 8] {
        let Self { parameters, gradients, master, moments, tables, activations, workspace, buffers } = *self;
        [parameters, gradients, master, moments, tables, activations, workspace, buffers]
    }

    /// Adds everything up.
    pub fn total(&self) -> usize {
        self.parts().iter().sum()
    }
}

/// Bytes of the number that puts layers into the graph.
const ANCHOR: usize = 4;

/// What decides what a rank stores between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Held {
    part: Part,
    zero: Zero,
    parts: usize,
}

/// Which parameters they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Part {
    tp: usize,
    layers: usize,
    first: bool,
    last: bool,
}

/// Counts what ranks of layouts of one job keep; remembers what it has counted.
#[derive(Debug)]
pub struct MemoryModel<'a> {
    job: &'a Job,
    held: HashMap<Held, Counted>,
    parameters: HashMap<Part, Vec<PartitionedParameter>>,
    /// Elements that are copied to be summed over the tensor ranks, with the sequence cut or not.
    summed: HashMap<(Part, bool), usize>,
}

/// What has been counted of a rank.
#[derive(Debug)]
struct Counted {
    stored: RankBytes,
    elements: Elements,
    /// Bytes of values and gradients of others, in a step of one micro-batch and of more.
    lent: [Lent; 2],
    /// Bytes of copies for and of the data ranks, when passes are over.
    shared: usize,
}

/// Elements of a rank that reductions and updates work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Elements {
    /// All that it multiplies by.
    pub all: usize,
    /// Those that it updates.
    pub own: usize,
    /// Buckets that are reduced one after the other.
    pub buckets: usize,
    /// What lies before the layers where parameters are shared out, and its buckets.
    pub entrance: Pieces,
    /// What is summed up with tensor ranks.
    pub partial: Partial,
}

impl<'a> MemoryModel<'a> {
    /// Takes a job.
    pub fn new(job: &'a Job) -> Self {
        Self { job, held: HashMap::new(), parameters: HashMap::new(), summed: HashMap::new() }
    }

    /// Counts what a pipeline rank stores between steps, and the elements that it works on.
    ///
    /// # Errors
    /// As [`Partition::new`].
    pub fn stored(&mut self, candidate: &Candidate, stages: &Stages, rank: usize) -> Result<(RankBytes, Elements)> {
        let Counted { stored, elements, .. } = self.counted(Held::of(candidate, stages, rank))?;
        Ok((*stored, *elements))
    }

    fn counted(&mut self, held: Held) -> Result<&Counted> {
        match self.held.entry(held) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let parameters = held.part.known(&mut self.parameters, self.job)?;
                Ok(place.insert(held.count(self.job, parameters)))
            }
        }
    }

    /// Counts the bytes of what is copied to be summed over the tensor ranks.
    fn summed(&mut self, part: Part, sequence_parallel: bool) -> Result<usize> {
        let elements = match self.summed.entry((part, sequence_parallel)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                let parameters = part.known(&mut self.parameters, self.job)?;
                *place.insert(ends::summed(parameters, sequence_parallel))
            }
        };
        Ok(elements * self.job.precision.state_bytes())
    }

    /// Counts what each rank of the pipeline keeps, with the order in which it computes.
    ///
    /// # Errors
    /// As [`Partition::new`].
    pub fn ranks(&mut self, candidate: &Candidate, stages: &Stages, orders: &[Vec<Step>]) -> Result<Vec<RankMemory>> {
        let all = self.ranks_within(usize::MAX, candidate, stages, orders)?;
        Ok(all.expect("memory has no limit"))
    }

    /// The same, unless a rank exceeds `limit`: then nobody asks for the others.
    pub(crate) fn ranks_within(
        &mut self,
        limit: usize,
        candidate: &Candidate,
        stages: &Stages,
        orders: &[Vec<Step>],
    ) -> Result<Option<Vec<RankMemory>>> {
        let job = self.job;
        let kept = Kept::of(job, candidate);
        let mut rank = |(rank, order): (usize, &Vec<Step>)| -> Result<RankMemory> {
            let held = Held::of(candidate, stages, rank);
            let summed = self.summed(held.part, candidate.sequence_parallel)?;
            let Counted { stored, lent, shared, .. } = self.counted(held)?;
            // Gradients that are kept whole are reduced in the last micro-batch, others in each.
            let nothing = Lent::default();
            let lent = match candidate.zero >= Zero::Gradients {
                true => [&lent[usize::from(candidate.micro_batches(job) > 1)]; 2],
                false => [&nothing, &lent[0]],
            };
            let ends = summed.max(*shared);
            let fullest = kept.fullest(candidate, stages, rank, order, lent).or_ends(ends);
            Ok(RankMemory {
                parameters: stored.parameters,
                gradients: stored.gradients,
                master: stored.master,
                moments: stored.moments,
                tables: tables(job),
                activations: fullest.activations + kept.batch(candidate.micro_batches(job)),
                workspace: fullest.workspace,
                buffers: fullest.buffers,
            })
        };
        let mut all = Vec::with_capacity(orders.len());
        for place in orders.iter().enumerate() {
            let memory = rank(place)?;
            if memory.total() > limit {
                return Ok(None);
            }
            all.push(memory);
        }
        Ok(Some(all))
    }
}

/// Counts the cosine and the sine of each pair of a head's elements at each position, which all layers of a rank share, and
/// the number that puts layers into the graph.
fn tables(job: &Job) -> usize {
    let Architecture { name, max_seq, head_dim, .. } = job.architecture;
    let angles = if name == ArchitectureName::Llama { max_seq * head_dim } else { 0 };
    angles * job.precision.parameter_bytes() + ANCHOR
}

impl Part {
    /// Finds the parameters among those that were listed before, or lists them.
    fn known<'a>(
        self,
        known: &'a mut HashMap<Part, Vec<PartitionedParameter>>,
        job: &Job,
    ) -> Result<&'a [PartitionedParameter]> {
        Ok(match known.entry(self) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(self.parameters(&job.architecture)?),
        })
    }

    /// Lists the parameters. All layers are alike, so that as many of a model of no others lie alike.
    fn parameters(&self, architecture: &Architecture) -> Result<Vec<PartitionedParameter>> {
        let architecture = Architecture { layers: self.layers, ..architecture.clone() };
        let mesh = Mesh::new(Degrees { tp: self.tp, ..Degrees::default() })?;
        let mut parameters = Partition::new(&architecture, &mesh)?.parameters;
        let tied = architecture.tie_embeddings && self.first != self.last;
        let table = |parameter: &PartitionedParameter| parameter.spec.name == "embedding.weight";
        parameters.retain(|parameter| match parameter.spec.layer {
            Some(_) => true,
            None if parameter.spec.is_entrance() => self.first || (tied && table(parameter)),
            None => self.last,
        });
        // A rank of neither end holds no table.
        let tie = if self.first { Tie::Original } else { Tie::Copy };
        parameters.iter_mut().filter(|parameter| tied && table(parameter)).for_each(|parameter| parameter.tie = tie);
        Ok(parameters)
    }
}

/// Counts what a rank with an entrance gathers for it.
fn entrance(arrangement: &Arrangement) -> Pieces {
    let buckets = arrangement.units().first().map_or(&[][..], |unit| &arrangement.buckets()[unit.buckets.clone()]);
    Pieces { count: buckets.len(), elements: buckets.iter().map(|bucket| bucket.range.len()).sum() }
}

impl Held {
    fn of(candidate: &Candidate, stages: &Stages, rank: usize) -> Self {
        let part = Part {
            tp: candidate.tp,
            layers: stages.rank_layers(rank).iter().map(|layers| layers.len()).sum(),
            first: stages.rank_of(0) == rank,
            last: stages.rank_of(stages.count() - 1) == rank,
        };
        Self { part, zero: candidate.zero, parts: candidate.data() }
    }

    fn count(&self, job: &Job, parameters: &[PartitionedParameter]) -> Counted {
        let arrangement = Arrangement::new(parameters, self.zero, self.parts, job.bucket_elements);
        let elements = Elements {
            all: arrangement.trained_elements(),
            own: arrangement.own_elements(),
            buckets: arrangement.trained().count(),
            entrance: entrance(&arrangement),
            partial: Partial::of(parameters),
        };
        Counted {
            stored: arrangement.bytes(&job.storage()),
            elements,
            lent: lent(job, parameters, &arrangement),
            shared: ends::shared(job, &arrangement),
        }
    }
}
