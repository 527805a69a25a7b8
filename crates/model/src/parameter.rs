//! What a rank keeps of every parameter: its shard, in flat buffers of values, masters and gradients.

use std::ops::Range;
use std::sync::Arc;

use mp_comm::solo::Solo;
use mp_comm::{Communicator, ReduceOp};
use mp_plan::{Arrangement, ParameterSpec, Partition, PartitionedParameter, Tie, Zero};
use mp_runtime::flat::{Flat, Layout};
use mp_runtime::{Device, Kind, Precision, Tensor};

use crate::bucket::Bucket;
use crate::collective::{self, start_all_gather_into, Arriving};
use crate::deferral::{Deferral, DeferredProducts};
#[cfg(feature = "faults")]
use crate::faults::{active, Fault};
use crate::initial;
use crate::unit::{Residence, Unit};
use crate::weight::{Value, Weight};
use crate::{Error, Result};

/// How the data ranks divide the work of keeping and reducing.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// The ranks that hold the same shards and see different tokens.
    pub data: Arc<dyn Communicator>,
    /// What they share out.
    pub zero: Zero,
    /// Bytes of gradients that are reduced together.
    pub bucket_bytes: usize,
}

/// Bytes of a bucket where nobody says: enough that latency does not count, little enough that reductions start early.
pub const BUCKET_BYTES: usize = 25 << 20;

impl Sharing {
    /// Keeps everything on each of the data ranks.
    pub fn replicated(data: Arc<dyn Communicator>) -> Self {
        Self { data, zero: Zero::Replicated, bucket_bytes: BUCKET_BYTES }
    }
}

/// All parameters of one rank.
#[derive(Debug)]
pub struct Parameters {
    partition: Arc<Partition>,
    tp_rank: usize,
    sharing: Sharing,
    arrangement: Arrangement,
    values: Flat,
    /// Values in the optimizer's precision; absent where they are `values` themselves.
    masters: Option<Flat>,
    gradients: Flat,
    /// As the arrangement has them; none for frozen ones.
    buckets: Vec<Option<Arc<Bucket>>>,
    units: Vec<Arc<Unit>>,
    parts: Vec<Part>,
    anchor: Tensor,
    deferral: Arc<Deferral>,
}

impl Parameters {
    /// Allocates a rank's shards and draws their initial values, for a single data rank.
    ///
    /// Each element is drawn by its index in the full tensor, so every layout starts from the same model.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the device has no room.
    pub fn new(
        partition: &Arc<Partition>,
        tp_rank: usize,
        seed: u64,
        precision: Precision,
        device: Device,
    ) -> Result<Self> {
        let alone = Sharing::replicated(Arc::new(Solo::new("data")));
        Self::shared(partition, tp_rank, alone, seed, precision, device)
    }

    /// Allocates a rank's shards and draws their initial values.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the device has no room.
    pub fn shared(
        partition: &Arc<Partition>,
        tp_rank: usize,
        sharing: Sharing,
        seed: u64,
        precision: Precision,
        device: Device,
    ) -> Result<Self> {
        let made = Self::zeros(partition, tp_rank, sharing, precision, device)?;
        made.draw(seed, |_| true)?;
        Ok(made)
    }

    /// Draws the initial values of some parameters, whatever of them this rank keeps. Local to each rank.
    ///
    /// # Errors
    /// [`Error::Runtime`] where libtorch refuses.
    pub fn draw(&self, seed: u64, which: impl Fn(&ParameterSpec) -> bool) -> Result<()> {
        for (index, parameter) in self.partition.parameters.iter().enumerate() {
            if which(&parameter.spec) {
                self.load(index, &initial::shard(parameter, self.tp_rank, seed)?)?;
            }
        }
        Ok(())
    }

    /// Allocates a rank's shards, all zero; of frozen parameters the values alone.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the device has no room.
    pub fn zeros(
        partition: &Arc<Partition>,
        tp_rank: usize,
        sharing: Sharing,
        precision: Precision,
        device: Device,
    ) -> Result<Self> {
        let bucket_elements = sharing.bucket_bytes / precision.master().elt_size_in_bytes();
        let arrangement =
            Arrangement::new(&partition.parameters, sharing.zero, sharing.data.size(), bucket_elements.max(1));
        let shape = |p: &PartitionedParameter| p.local_shape().iter().map(|&n| n as i64).collect::<Vec<_>>();
        let shapes = partition.parameters.iter().map(shape).collect();
        let layout = Layout::new(shapes, arrangement.ranges().to_vec(), arrangement.elements());
        let part = part(&arrangement, &sharing);
        let (owned, trained) = (arrangement.owned(part), arrangement.trained_ranges());
        let flat = |shared_from: Zero, kind: Kind| match sharing.zero >= shared_from {
            true => Flat::zeros_of(layout.clone(), &owned, kind, device),
            false => Flat::zeros_of(layout.clone(), &trained, kind, device),
        };
        let values = Flat::zeros_of(layout.clone(), &arrangement.kept(part), precision.compute(), device)?;
        let masters = match precision.compute() == precision.master() {
            true => None,
            false => Some(flat(Zero::Optimizer, precision.master())?),
        };
        let gradients = flat(Zero::Gradients, precision.master())?;
        let units = units(&arrangement, &sharing, &values)?;
        let made = Self {
            buckets: buckets(&arrangement, &sharing, &gradients)?,
            parts: parts(&arrangement, &units),
            units,
            partition: Arc::clone(partition),
            tp_rank,
            sharing,
            arrangement,
            values,
            masters,
            gradients,
            anchor: Tensor::f_zeros([], (Kind::Float, device))?.f_set_requires_grad(true)?,
            deferral: Arc::default(),
        };
        if let Some(table) = made.tied() {
            made.bucket(table)?.register_sum();
        }
        Ok(made)
    }

    /// Returns the plan that these are the shards of.
    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// Returns this rank's coordinate on the tensor axis.
    pub fn tp_rank(&self) -> usize {
        self.tp_rank
    }

    /// Returns how the data ranks share.
    pub fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    /// Returns where each parameter lies in a flat buffer.
    pub fn arrangement(&self) -> &Arrangement {
        &self.arrangement
    }

    /// Returns the elements whose optimizer state this rank keeps: those it updates, and whose gradient it has in full
    /// after a step's reductions.
    pub fn owned(&self) -> Vec<Range<usize>> {
        self.arrangement.owned(part(&self.arrangement, &self.sharing))
    }

    /// Returns which of some elements this rank owns.
    pub fn owned_of(&self, range: Range<usize>) -> Vec<Range<usize>> {
        self.arrangement.owned_of(part(&self.arrangement, &self.sharing), range)
    }

    /// Returns which of some elements this rank keeps values of: at least those it owns.
    ///
    /// # Errors
    /// [`Error::Runtime`] where libtorch refuses.
    pub fn kept_of(&self, range: Range<usize>) -> Result<Vec<Range<usize>>> {
        Ok(self.values.pieces(range)?.into_iter().map(|(piece, _)| piece).collect())
    }

    /// Returns the values as layers multiply by them: all of them, or this rank's part where the data ranks share them out.
    pub fn values(&self) -> &Flat {
        &self.values
    }

    /// Returns the values in the optimizer's precision: all that this rank owns, or more. Frozen parameters may have none.
    pub fn masters(&self) -> &Flat {
        self.masters.as_ref().unwrap_or(&self.values)
    }

    /// Returns the gradients: all that this rank owns, or more.
    pub fn gradients(&self) -> &Flat {
        &self.gradients
    }

    /// Allocates zeros for what this rank owns, in the optimizer's precision.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the device has no room.
    pub fn state(&self) -> Result<Flat> {
        let like = self.masters();
        Ok(Flat::zeros_of(like.layout().clone(), &self.owned(), like.all().kind(), self.device())?)
    }

    /// Returns the bytes that values, gradients and masters take.
    ///
    /// # Units
    /// Bytes.
    pub fn bytes(&self) -> [usize; 3] {
        [self.values.bytes(), self.gradients.bytes(), self.masters.as_ref().map_or(0, Flat::bytes)]
    }

    /// Returns the kind of weights and activations.
    pub fn compute_kind(&self) -> Kind {
        self.values.all().kind()
    }

    /// Returns the device that everything lies on.
    pub fn device(&self) -> Device {
        self.values.all().device()
    }

    /// Gives a parameter values, whatever of it this rank keeps. Local to each rank.
    ///
    /// # Shapes
    /// - `shard`: this tensor rank's shard, padding included
    ///
    /// # Errors
    /// [`Error::Runtime`] where the shape is another.
    pub fn load(&self, index: usize, shard: &Tensor) -> Result<()> {
        put(&self.values, index, shard)?;
        self.masters.as_ref().map_or(Ok(()), |masters| put(masters, index, shard))
    }

    /// Makes updated masters the values that layers multiply by. Collective over the data ranks.
    ///
    /// # Communication
    /// Where optimizer state is shared out and values are not, one all-gather of each bucket's values; the next starts before
    /// one is waited for.
    ///
    /// # Errors
    /// [`Error::Comm`] if one fails.
    pub fn publish(&self) -> Result<()> {
        if let Some(masters) = &self.masters {
            for range in self.owned() {
                self.values.range(range.clone())?.f_copy_(&masters.range(range)?)?;
            }
        }
        if !matches!(self.sharing.zero, Zero::Optimizer | Zero::Gradients) {
            return Ok(());
        }
        let part = part(&self.arrangement, &self.sharing);
        // Each has a copy of the own part; those of all buckets would be as much as this rank owns.
        let mut travelling: Option<Arriving> = None;
        for (index, bucket) in self.arrangement.trained() {
            let own = self.values.range(self.arrangement.own_part(index, part))?.f_detach_copy()?;
            let whole = self.values.range(bucket.range.clone())?;
            let earlier = travelling.replace(start_all_gather_into(&*self.sharing.data, &own, whole)?);
            earlier.map_or(Ok(()), |values| values.wait().map(drop))?;
        }
        travelling.map_or(Ok(()), |values| values.wait().map(drop))
    }

    /// Begins a step: gradients are zero, and reduced once each parameter has been used in so many micro-batches.
    ///
    /// Outside a step backward passes add to whole gradients, where this rank keeps them, and nothing is reduced.
    ///
    /// # Errors
    /// [`Error::Runtime`] where libtorch refuses.
    pub fn begin_step(&self, micro_batches: usize) -> Result<()> {
        self.buckets.iter().flatten().try_for_each(|bucket| bucket.begin(micro_batches))
    }

    /// Waits until the gradients that this rank owns are summed over the data ranks.
    ///
    /// # Errors
    /// [`Error::Unused`] with the first parameter that was not used as often as was announced;
    /// [`Error::GradientMissing`] if a sum was not made; [`Error::Comm`].
    pub fn finish_reduction(&self) -> Result<()> {
        let lacks = |index: &usize| {
            let bucket = &self.buckets[self.bucket_index(*index)];
            bucket.as_ref().is_some_and(|bucket| bucket.lacks(&self.gradients.layout().range(*index)))
        };
        if let Some(index) = (0..self.partition.parameters.len()).find(lacks) {
            return Err(Error::Unused { parameter: self.partition.parameters[index].spec.name.clone() });
        }
        // In the order in which a backward pass fills them.
        self.buckets.iter().rev().flatten().try_for_each(|bucket| bucket.finish())
    }

    /// Sums the gradient of a table that is both embedding and head over the two ranks that hold it. Its bucket is
    /// reduced after that: once the data ranks share out, the two would own different parts of it.
    ///
    /// # Communication
    /// One all-reduce of the table's shard over the pair.
    ///
    /// # Errors
    /// [`Error::Comm`] if it fails; [`Error::NotHere`] if this rank holds no such table.
    pub fn sum_tied(&self, pair: &dyn Communicator) -> Result<()> {
        let table = self.tied().ok_or(Error::NotHere { what: "a table of both ends of the model" })?;
        let bucket = self.bucket(table)?;
        let mut gradient = bucket.sum(self.gradients.layout().range(table))?;
        #[cfg(feature = "faults")]
        let pair: &dyn Communicator = if active(Fault::TiedUnsummed) { &Solo::new("fault") } else { pair };
        collective::all_reduce(pair, &mut gradient, ReduceOp::Sum)?;
        bucket.summed()
    }

    /// Finds the table that another rank of the pipeline holds and trains too.
    fn tied(&self) -> Option<usize> {
        let shared = |parameter: &PartitionedParameter| parameter.tie != Tie::None && !parameter.spec.frozen;
        self.partition.parameters.iter().position(shared)
    }

    fn bucket_index(&self, parameter: usize) -> usize {
        self.arrangement.buckets().partition_point(|bucket| bucket.parameters.end <= parameter)
    }

    /// Finds the bucket of a trained parameter.
    fn bucket(&self, parameter: usize) -> Result<&Arc<Bucket>> {
        let bucket = self.buckets[self.bucket_index(parameter)].as_ref();
        bucket.ok_or(Error::NotHere { what: "a gradient of a frozen parameter" })
    }

    /// Puts off the products for weights in backward passes, until [`take_deferred`](Self::take_deferred).
    pub fn defer_products(&self) {
        self.deferral.begin();
    }

    /// Takes the products that were put off.
    pub fn take_deferred(&self) -> DeferredProducts {
        self.deferral.take()
    }

    /// Finds a parameter's index in the partition.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn index(&self, name: &str) -> Result<usize> {
        let found = self.partition.parameters.iter().position(|parameter| parameter.spec.name == name);
        found.ok_or_else(|| Error::UnknownParameter(name.to_string()))
    }

    /// Hands out one parameter. Each handle is used once in each pass.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn weight(&self, name: &str) -> Result<Weight> {
        let index = self.index(name)?;
        self.joined(index..index + 1)
    }

    /// Hands out neighbouring parameters as one matrix, stacked along dim 0.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`], and [`Error::Runtime`] if they are no neighbours.
    pub fn stacked(&self, names: &[String]) -> Result<Weight> {
        let first = self.index(&names[0])?;
        let last = self.index(&names[names.len() - 1])?;
        self.joined(first..last + 1)
    }

    fn joined(&self, indices: Range<usize>) -> Result<Weight> {
        let layout = self.values.layout();
        let index = self.bucket_index(indices.start);
        let value =
            match self.units.iter().zip(self.arrangement.units()).find(|(_, unit)| unit.buckets.contains(&index)) {
                Some((unit, _)) => Value::Shared(Arc::clone(unit)),
                None => Value::Resident(self.values.joined(indices.clone())?),
            };
        let bucket = self.buckets[index].clone();
        let range = layout.span(indices.clone());
        if let Some(bucket) = &bucket {
            bucket.register(range.clone());
        }
        Ok(Weight {
            shape: layout.stacked(indices)?,
            value,
            range,
            gradient_kind: self.gradients.all().kind(),
            bucket,
            anchor: self.anchor.shallow_clone(),
            deferral: Arc::clone(&self.deferral),
        })
    }

    /// Returns when the values of the model's entrance are there.
    pub fn entrance(&self) -> Residence {
        self.residence(0, None)
    }

    /// Returns when the values of a layer are there.
    pub fn layer(&self, layer: usize) -> Residence {
        let index = self.parts.iter().position(|part| part.layer == Some(layer));
        index.map_or_else(Residence::default, |index| {
            // The entrance multiplies by nothing in its backward.
            let previous = (index > 1).then(|| index - 1);
            self.residence(index, previous)
        })
    }

    /// Returns when the values of the model's exit are there.
    pub fn exit(&self) -> Residence {
        let Some(last) = self.parts.len().checked_sub(1) else { return Residence::default() };
        let mut residence = self.residence(last, last.checked_sub(1));
        if self.partition.architecture.tie_embeddings {
            residence.own.extend(self.parts[0].units.iter().cloned());
        }
        residence
    }

    fn residence(&self, index: usize, previous: Option<usize>) -> Residence {
        let units = |index: usize| self.parts.get(index).map(|part| part.units.clone()).unwrap_or_default();
        Residence { own: units(index), next: units(index + 1), previous: previous.map(units).unwrap_or_default() }
    }
}

/// Returns which part of each bucket this rank owns.
fn part(arrangement: &Arrangement, sharing: &Sharing) -> usize {
    match arrangement.parts() {
        1 => 0,
        _ => sharing.data.rank().0,
    }
}

fn buckets(arrangement: &Arrangement, sharing: &Sharing, gradients: &Flat) -> Result<Vec<Option<Arc<Bucket>>>> {
    let (part, line) = (part(arrangement, sharing), Arc::default());
    let bucket = |(index, bucket): (usize, &mp_plan::Bucket)| -> Result<Option<Arc<Bucket>>> {
        if bucket.frozen {
            return Ok(None);
        }
        let whole = match sharing.zero >= Zero::Gradients {
            true => None,
            false => Some(gradients.range(bucket.range.clone())?),
        };
        let own = gradients.range(arrangement.own_part(index, part))?;
        Ok(Some(Arc::new(Bucket::new(bucket.range.clone(), sharing.zero, &sharing.data, &line, whole, own))))
    };
    arrangement.buckets().iter().enumerate().map(bucket).collect()
}

fn units(arrangement: &Arrangement, sharing: &Sharing, values: &Flat) -> Result<Vec<Arc<Unit>>> {
    let part = part(arrangement, sharing);
    let shard = |index: usize| -> Result<(Range<usize>, Tensor)> {
        Ok((arrangement.buckets()[index].range.clone(), values.range(arrangement.own_part(index, part))?))
    };
    let unit = |unit: &mp_plan::Unit| -> Result<Arc<Unit>> {
        let shards = unit.buckets.clone().map(shard).collect::<Result<_>>()?;
        Ok(Arc::new(Unit::new(&sharing.data, shards)))
    };
    arrangement.units().iter().map(unit).collect()
}

/// What a model runs through in one go, with the units that are there meanwhile.
#[derive(Debug)]
struct Part {
    layer: Option<usize>,
    units: Vec<Arc<Unit>>,
}

/// Joins the units of each layer: its own parameters and its adapters.
fn parts(arrangement: &Arrangement, units: &[Arc<Unit>]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (planned, unit) in arrangement.units().iter().zip(units) {
        let begun = parts.iter_mut().find(|part| planned.layer.is_some() && part.layer == planned.layer);
        match begun {
            Some(part) => part.units.push(Arc::clone(unit)),
            None => parts.push(Part { layer: planned.layer, units: vec![Arc::clone(unit)] }),
        }
    }
    parts
}

/// Copies what a flat buffer holds of a parameter from its shard.
pub(crate) fn put(flat: &Flat, index: usize, shard: &Tensor) -> Result<()> {
    let shape = flat.layout().shape(index);
    if shard.size() != shape {
        let (what, expected) = ("a parameter's shard".to_string(), format!("{shape:?}"));
        return Err(Error::Shape { what, shape: shard.size(), expected });
    }
    let range = flat.layout().range(index);
    let elements = shard.f_reshape([-1])?;
    for (piece, mut place) in flat.pieces(range.clone())? {
        place.f_copy_(&elements.f_narrow(0, (piece.start - range.start) as i64, piece.len() as i64)?)?;
    }
    Ok(())
}
