//! How a rank's parameters lie in its flat buffers: in groups that multiply as one matrix, in buckets whose gradients
//! are reduced together, and, where the data ranks share storage, in equal parts of each bucket.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{lora::FIRST_FACTOR, PartitionedParameter, RankBytes, Storage, Tie};

/// Elements to which a group's start is aligned: whole cache lines for every kind that is trained in.
pub const ALIGNMENT: usize = 64;

/// What data ranks share out among themselves instead of each keeping all of it.
///
/// # Source
/// Rajbhandari et al. 2019, arXiv:1910.02054, §5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Zero {
    /// Nothing.
    #[default]
    Replicated,
    /// Optimizer state: moments and master weights.
    Optimizer,
    /// Optimizer state and gradients.
    Gradients,
    /// Optimizer state, gradients and parameters.
    Parameters,
}

impl Zero {
    /// All stages, in order.
    pub const ALL: [Zero; 4] = [Zero::Replicated, Zero::Optimizer, Zero::Gradients, Zero::Parameters];
}

impl TryFrom<u8> for Zero {
    type Error = String;

    fn try_from(stage: u8) -> Result<Self, String> {
        Self::ALL.get(usize::from(stage)).copied().ok_or_else(|| format!("{stage} is no ZeRO stage: 0, 1, 2 or 3"))
    }
}

impl From<Zero> for u8 {
    fn from(zero: Zero) -> u8 {
        zero as u8
    }
}

impl std::fmt::Display for Zero {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", u8::from(*self))
    }
}

/// Neighbouring parameters whose gradients are reduced together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its elements, padding included; divides by the number of parts.
    pub range: Range<usize>,
    /// Its parameters.
    pub parameters: Range<usize>,
    /// Whether they are frozen, all of them: there is nothing to reduce, and nobody owns them.
    pub frozen: bool,
}

/// Neighbouring buckets that are gathered together where parameters are shared out: what comes before the layers, one
/// layer, or what comes after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The layer, if it is one.
    pub layer: Option<usize>,
    /// Its buckets.
    pub buckets: Range<usize>,
}

/// Where each parameter of a rank lies in every flat buffer.
///
/// # Examples
///
/// ```
/// use mp_plan::{Architecture, Arrangement, Degrees, Mesh, ModelConfig, Partition, Zero};
///
/// let architecture = Architecture::resolve(&ModelConfig::default(), 256, 64)?;
/// let partition = Partition::new(&architecture, &Mesh::new(Degrees::default())?)?;
/// let shared = Arrangement::new(&partition.parameters, Zero::Optimizer, 4, 100_000);
/// assert!(shared.buckets().iter().all(|bucket| bucket.range.len() % 4 == 0));
/// assert_eq!(4 * shared.own_elements(), shared.elements());
/// # Ok::<(), mp_plan::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrangement {
    zero: Zero,
    parts: usize,
    ranges: Vec<Range<usize>>,
    buckets: Vec<Bucket>,
    units: Vec<Unit>,
}

impl Arrangement {
    /// Arranges parameters in their order, for `parts` data ranks.
    ///
    /// A bucket closes once it holds `bucket_elements`; with [`Zero::Parameters`] it also ends with its unit. A table that
    /// two pipeline ranks hold has one of its own, so that both reduce it in the same pieces and keep the same bits; frozen
    /// parameters and trained ones do not share any.
    ///
    /// # Panics
    /// If `parts` is 0.
    pub fn new(parameters: &[PartitionedParameter], zero: Zero, parts: usize, bucket_elements: usize) -> Self {
        assert!(parts > 0, "a model is shared by at least one data rank");
        let parts = if zero == Zero::Replicated { 1 } else { parts };
        let made = Self { zero, parts, ranges: Vec::new(), buckets: Vec::new(), units: Vec::new() };
        made.filled(parameters, bucket_elements)
    }

    fn filled(mut self, parameters: &[PartitionedParameter], bucket_elements: usize) -> Self {
        let granule = ALIGNMENT * self.parts;
        let (mut start, mut first, mut end) = (0, 0, 0usize);
        for (index, parameter) in parameters.iter().enumerate() {
            let last = index.checked_sub(1).map(|index| &parameters[index]);
            let opens_unit = last.is_none_or(|last| part(last) != part(parameter));
            let frozen = last.is_some_and(|last| last.spec.frozen);
            if last.is_none_or(|last| !multiplies_with(last, parameter)) {
                end = end.next_multiple_of(ALIGNMENT);
                let alone = parameter.tie != Tie::None || last.is_some_and(|last| last.tie != Tie::None);
                let thaws = frozen != parameter.spec.frozen;
                let ends_here = alone || thaws || (self.zero == Zero::Parameters && opens_unit);
                if index > first && (end - start >= bucket_elements || ends_here) {
                    end = end.next_multiple_of(granule);
                    self.buckets.push(Bucket { range: start..end, parameters: first..index, frozen });
                    (start, first) = (end, index);
                }
            }
            if self.zero == Zero::Parameters && opens_unit {
                self.open_unit(parameter.spec.layer);
            }
            self.ranges.push(end..end + parameter.local_elements());
            end += parameter.local_elements();
        }
        if let Some(last) = parameters.last() {
            let (range, frozen) = (start..end.next_multiple_of(granule), last.spec.frozen);
            self.buckets.push(Bucket { range, parameters: first..parameters.len(), frozen });
        }
        if let Some(unit) = self.units.last_mut() {
            unit.buckets.end = self.buckets.len();
        }
        self
    }

    fn open_unit(&mut self, layer: Option<usize>) {
        let bucket = self.buckets.len();
        if let Some(unit) = self.units.last_mut() {
            unit.buckets.end = bucket;
        }
        self.units.push(Unit { layer, buckets: bucket..bucket });
    }

    /// Returns what the data ranks share out.
    pub fn zero(&self) -> Zero {
        self.zero
    }

    /// Returns how many parts each bucket is cut in; 1 where nothing is shared out.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Returns the elements of a whole flat buffer, padding included.
    pub fn elements(&self) -> usize {
        self.buckets.last().map_or(0, |bucket| bucket.range.end)
    }

    /// Returns the elements of trained parameters, padding included.
    pub fn trained_elements(&self) -> usize {
        self.trained().map(|(_, bucket)| bucket.range.len()).sum()
    }

    /// Returns the elements that one data rank owns, padding included.
    pub fn own_elements(&self) -> usize {
        self.trained_elements() / self.parts
    }

    /// Returns the elements whose values one data rank keeps, padding included.
    pub fn kept_elements(&self) -> usize {
        match self.zero {
            Zero::Parameters => self.elements() / self.parts,
            _ => self.elements(),
        }
    }

    /// Lists the buckets of trained parameters with their indices.
    pub fn trained(&self) -> impl Iterator<Item = (usize, &Bucket)> {
        self.buckets.iter().enumerate().filter(|(_, bucket)| !bucket.frozen)
    }

    /// Returns the elements of each parameter.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Returns the buckets, in order.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Returns the units, in order; none unless parameters are shared out.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// Returns the part of a bucket that a data rank owns.
    ///
    /// # Panics
    /// If there is no such bucket or part.
    pub fn own_part(&self, bucket: usize, part: usize) -> Range<usize> {
        assert!(part < self.parts, "part {part} of {}", self.parts);
        let range = &self.buckets[bucket].range;
        let length = range.len() / self.parts;
        range.start + part * length..range.start + (part + 1) * length
    }

    /// Returns everything that a data rank owns, neighbours joined: its parts of what is trained.
    pub fn owned(&self, part: usize) -> Vec<Range<usize>> {
        joined(self.trained().map(|(bucket, _)| self.own_part(bucket, part)))
    }

    /// Returns the elements whose values a data rank keeps.
    pub fn kept(&self, part: usize) -> Vec<Range<usize>> {
        match self.zero {
            Zero::Parameters => joined((0..self.buckets.len()).map(|bucket| self.own_part(bucket, part))),
            _ => joined(self.buckets.iter().map(|bucket| bucket.range.clone())),
        }
    }

    /// Returns the elements of trained parameters, whoever owns them.
    pub fn trained_ranges(&self) -> Vec<Range<usize>> {
        joined(self.trained().map(|(_, bucket)| bucket.range.clone()))
    }

    /// Returns which of some elements a data rank owns.
    pub fn owned_of(&self, part: usize, range: Range<usize>) -> Vec<Range<usize>> {
        let common = |own: Range<usize>| own.start.max(range.start)..own.end.min(range.end);
        self.owned(part).into_iter().map(common).filter(|piece| !piece.is_empty()).collect()
    }

    /// Returns what a rank stores between steps: exactly what it allocates.
    pub fn bytes(&self, storage: &Storage) -> RankBytes {
        let whole = storage.bytes(self.trained_elements());
        let own = storage.bytes(self.own_elements());
        let choose = |shared_from: Zero, whole: usize, own: usize| if self.zero >= shared_from { own } else { whole };
        RankBytes {
            parameters: storage.bytes(self.kept_elements()).parameters,
            gradients: choose(Zero::Gradients, whole.gradients, own.gradients),
            master: choose(Zero::Optimizer, whole.master, own.master),
            moments: choose(Zero::Optimizer, whole.moments, own.moments),
        }
    }
}

/// Joins neighbours.
fn joined(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut made: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match made.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => made.push(range),
        }
    }
    made
}

/// Says in which part of a model a parameter lies: before the layers, in one, or after them; adapters of a layer are a part
/// of their own.
fn part(parameter: &PartitionedParameter) -> (bool, Option<usize>, bool) {
    (parameter.spec.is_entrance(), parameter.spec.layer, parameter.spec.frozen)
}

/// Says whether a parameter is stacked on the one before it: both are of one kind ("weight", "bias") and one layer, and
/// share their input, as query, key and value do.
fn multiplies_with(last: &PartitionedParameter, next: &PartitionedParameter) -> bool {
    family(&next.spec.name).is_some_and(|next| family(&last.spec.name) == Some(next))
}

/// Returns what a name has before and behind the word that tells it from those that share its input, if it has such a word.
fn family(name: &str) -> Option<(&str, &str)> {
    // The factors of adapters that read one input, too.
    let behind = if name.ends_with(FIRST_FACTOR) { 2 } else { 1 };
    let end = (0..behind).try_fold(name.len(), |end, _| name[..end].rfind('.'))?;
    let start = name[..end].rfind('.').map_or(0, |dot| dot + 1);
    ["query", "key", "value", "gate", "up"].contains(&&name[start..end]).then(|| (&name[..start], &name[end..]))
}
