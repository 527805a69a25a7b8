//! What data ranks have of each other's while gradients are reduced: gathered values, gradients of whole buckets until those
//! are reduced, and sums that are not where they belong yet.

use crate::{Arrangement, Job, PartitionedParameter, Zero};

/// A part of a rank's model that is gathered and walked through as one: the entrance, a layer, or the exit, in order.
fn place(parameter: &PartitionedParameter, last: usize) -> usize {
    match parameter.spec.layer {
        Some(layer) => layer + 1,
        None if parameter.spec.is_entrance() => 0,
        None => last,
    }
}

/// Bytes of others that a rank has in the backward of each of its parts: from its begin on, and at most as it ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lent(Vec<[usize; 2]>);

impl Lent {
    /// Returns them in the backward of the entrance (0), of the rank's layers, or of the exit (the layers and one more).
    pub(super) fn at(&self, place: usize) -> [usize; 2] {
        self.0.get(place).copied().unwrap_or_default()
    }

    /// Returns the most as any of them ends.
    pub(super) fn most(&self) -> usize {
        self.0.iter().map(|[_, ends]| *ends).max().unwrap_or(0)
    }
}

/// Counts what is lent in a step of one micro-batch, and of more.
///
/// Values are gathered for the part in use and the one that follows. Gradients that are shared out fill whole buckets, of which
/// one more travels, with room for its sum: the one that was full last, if only in the micro-batch before. As the next one is
/// full it starts, and then the earlier one is waited for. Where gradients are not shared out, only sums come on top, and only
/// in the last micro-batch.
pub(super) fn lent(job: &Job, parameters: &[PartitionedParameter], arrangement: &Arrangement) -> [Lent; 2] {
    if arrangement.zero() == Zero::Replicated {
        return [Lent::default(), Lent::default()];
    }
    let layers = parameters.iter().filter_map(|parameter| parameter.spec.layer).max().map_or(0, |layer| layer + 1);
    let walk = Walk::new(job, parameters, arrangement, layers + 1);
    [false, true].map(|before| Lent((0..=layers + 1).map(|place| walk.at(place, before)).collect()))
}

/// A bucket on the walk.
#[derive(Debug, Clone, Copy)]
struct Filling {
    /// The first and the last part that adds to it.
    first: usize,
    end: usize,
    /// What the bucket takes while it fills, and what its sum does.
    whole: usize,
    sum: usize,
}

struct Walk<'a> {
    job: &'a Job,
    arrangement: &'a Arrangement,
    last: usize,
    /// By their place in the buffers.
    buckets: Vec<Filling>,
}

impl<'a> Walk<'a> {
    fn new(job: &'a Job, parameters: &[PartitionedParameter], arrangement: &'a Arrangement, last: usize) -> Self {
        // A table of both ends is used at both.
        let ends = |parameter: &PartitionedParameter| {
            let first = place(parameter, last);
            let tied = job.architecture.tie_embeddings && parameter.spec.name == "embedding.weight";
            (first, if tied { last } else { first })
        };
        let filling = |bucket: &crate::Bucket| {
            let held = parameters[bucket.parameters.clone()].iter().map(ends);
            let (first, end) =
                held.fold((usize::MAX, 0), |(first, end), (one, other)| (first.min(one), end.max(other)));
            let bytes = bucket.range.len() * job.precision.state_bytes();
            let whole = if arrangement.zero() >= Zero::Gradients { bytes } else { 0 };
            Filling { first, end, whole, sum: bytes / arrangement.parts() }
        };
        let buckets = arrangement.trained().map(|(_, bucket)| filling(bucket)).collect();
        Self { job, arrangement, last, buckets }
    }

    /// Counts what there is as the backward of a part begins, and the most as it ends. `before`: whether there was a
    /// micro-batch before.
    fn at(&self, place: usize, before: bool) -> [usize; 2] {
        let fills = |bucket: &&Filling| bucket.first <= place && place <= bucket.end;
        let mut filling: usize = self.buckets.iter().filter(fills).map(|bucket| bucket.whole).sum();
        let full = self.buckets.iter().filter(|bucket| bucket.first > place).min_by_key(|bucket| bucket.first);
        // A bucket that fills again has been waited for.
        let earlier = self.buckets.iter().min_by_key(|bucket| bucket.first);
        let earlier = earlier.filter(|bucket| before && !fills(bucket));
        // Gathers of the forward in between are behind its reduction, which gives the gradients back, not the sum.
        let over = self.arrangement.zero() == Zero::Parameters;
        let earlier = earlier.map_or(0, |bucket| bucket.sum + if over { 0 } else { bucket.whole });
        let mut travels = full.map_or(earlier, |bucket| bucket.whole + bucket.sum);
        let values = self.values(place);
        let mut most = [filling + travels + values; 2];
        // The backward fills the last ones first.
        for bucket in self.buckets.iter().rev().filter(|bucket| bucket.first == place) {
            most[1] = most[1].max(filling + bucket.sum + travels + values);
            filling -= bucket.whole;
            travels = bucket.whole + bucket.sum;
        }
        most
    }

    /// Counts the gathered values of a part and of the one before it. The entrance's backward multiplies by nothing.
    fn values(&self, place: usize) -> usize {
        let units = self.arrangement.units();
        let elements = |place: usize| {
            let unit = units.get(place).map(|unit| &self.arrangement.buckets()[unit.buckets.clone()]);
            unit.map_or(0, |buckets| buckets.iter().map(|bucket| bucket.range.len()).sum::<usize>())
        };
        let own = if place > 0 { elements(place) } else { 0 };
        let previous = if place > 1 { elements(place - 1) } else { 0 };
        let table = if place == self.last && self.job.architecture.tie_embeddings { elements(0) } else { 0 };
        (own + previous + table) * self.job.precision.parameter_bytes()
    }
}
