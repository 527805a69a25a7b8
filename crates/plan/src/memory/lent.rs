//! What data ranks lend each other where they share gradients or parameters out: gathered values, and gradients of whole
//! buckets until those are reduced.

use crate::{Arrangement, Job, PartitionedParameter, Zero};

/// A part of a rank's model that is gathered and walked through as one: the entrance, a layer, or the exit, in order.
fn place(parameter: &PartitionedParameter, last: usize) -> usize {
    match parameter.spec.layer {
        Some(layer) => layer + 1,
        None if parameter.spec.is_entrance() => 0,
        None => last,
    }
}

/// Bytes of others that a rank has when the backward of the exit, of the last layer and of those before it begins.
pub(super) type Lent = [usize; 3];

/// Counts what is lent in a step of one micro-batch, and of more.
///
/// Values are gathered for the part in use and the one that follows. Gradients fill whole buckets, of which one more travels:
/// the one that was full last, if only in the micro-batch before.
pub(super) fn lent(job: &Job, parameters: &[PartitionedParameter], arrangement: &Arrangement) -> [Lent; 2] {
    if arrangement.zero() < Zero::Gradients {
        return [[0; 3]; 2];
    }
    let layers = parameters.iter().filter_map(|parameter| parameter.spec.layer).max().map_or(0, |layer| layer + 1);
    let last = layers + 1;
    // A table of both ends is used at both.
    let ends = |parameter: &PartitionedParameter| {
        let first = place(parameter, last);
        let tied = job.architecture.tie_embeddings && parameter.spec.name == "embedding.weight";
        (first, if tied { last } else { first })
    };
    let buckets: Vec<(usize, usize, usize)> = arrangement
        .trained()
        .map(|(_, bucket)| {
            let held = parameters[bucket.parameters.clone()].iter().map(ends);
            let (first, end) =
                held.fold((usize::MAX, 0), |(first, end), (one, other)| (first.min(one), end.max(other)));
            (first, end, bucket.range.len() * job.precision.state_bytes())
        })
        .collect();
    let part = |bytes: usize| bytes + bytes / arrangement.parts();
    let at = |place: usize, before: bool| {
        let filling = buckets.iter().filter(|(first, end, _)| *first <= place && place <= *end).map(|bucket| bucket.2);
        let full = buckets.iter().filter(|(first, ..)| *first > place).min_by_key(|(first, ..)| *first);
        // A bucket that fills again has been waited for.
        let earlier = buckets.iter().min_by_key(|(first, ..)| *first);
        let earlier = earlier.filter(|(first, end, _)| before && !(*first <= place && place <= *end));
        filling.sum::<usize>() + full.or(earlier).map_or(0, |bucket| part(bucket.2)) + values(job, arrangement, place)
    };
    [false, true].map(|before| [last, layers, layers.saturating_sub(1).max(1)].map(|place| at(place, before)))
}

/// Counts the gathered values of a part and of the one before it.
fn values(job: &Job, arrangement: &Arrangement, place: usize) -> usize {
    let units = arrangement.units();
    let elements = |place: usize| {
        let unit = units.get(place).map(|unit| &arrangement.buckets()[unit.buckets.clone()]);
        unit.map_or(0, |buckets| buckets.iter().map(|bucket| bucket.range.len()).sum::<usize>())
    };
    (elements(place) + place.checked_sub(1).map_or(0, elements)) * job.precision.parameter_bytes()
}
