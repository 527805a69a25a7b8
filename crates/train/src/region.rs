//! Boxes of tensors: how a run of a rank's flat elements lies in the full tensor, and copying what two boxes share.

use std::ops::Range;

use mp_plan::PartitionedParameter;

/// A box: one range of each dim; none for a single number.
pub type Region = Vec<Range<usize>>;

/// A box of a full tensor, and the same elements in a rank's shard, where they lie in one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The box in the full tensor.
    pub region: Region,
    /// The elements of the shard, counted from its first.
    pub local: Range<usize>,
}

/// Returns the box that is a whole tensor.
pub fn whole(shape: &[usize]) -> Region {
    shape.iter().map(|&dim| 0..dim).collect()
}

/// Counts the elements of a box.
pub fn volume(region: &[Range<usize>]) -> usize {
    region.iter().map(Range::len).product()
}

/// Returns what two boxes share, if they do.
pub fn common(a: &[Range<usize>], b: &[Range<usize>]) -> Option<Region> {
    let shared: Region = a.iter().zip(b).map(|(a, b)| a.start.max(b.start)..a.end.min(b.end)).collect();
    shared.iter().all(|range| range.start < range.end).then_some(shared)
}

/// Finds the elements `within` of a tensor rank's shard in the full tensor, in order; padding is left out.
pub fn pieces(parameter: &PartitionedParameter, tp_rank: usize, within: Range<usize>) -> Vec<Piece> {
    let shape = parameter.local_shape();
    let cut = parameter.range(tp_rank);
    let mut found = Vec::new();
    let mut at = within.start;
    for mut region in boxes(&shape, within) {
        let local = at..at + volume(&region);
        at = local.end;
        let mut length = local.len();
        if let Some((dim, range)) = &cut {
            let valid = region[*dim].start.min(range.len())..region[*dim].end.min(range.len());
            // What is padded is padded at the end of dim 0, so that what is left still lies in one run.
            assert!(*dim == 0 || valid.len() == region[*dim].len(), "padding along dim {dim}");
            length = length / region[*dim].len().max(1) * valid.len();
            region[*dim] = range.start + valid.start..range.start + valid.end;
        }
        if length > 0 {
            found.push(Piece { region, local: local.start..local.start + length });
        }
    }
    found
}

/// Cuts a run of a row-major tensor's elements in the fewest boxes, each of which is a run itself.
fn boxes(shape: &[usize], run: Range<usize>) -> Vec<Region> {
    if run.is_empty() {
        return Vec::new();
    }
    let Some((&rows, inner_shape)) = shape.split_first() else { return vec![Vec::new()] };
    let inner: usize = inner_shape.iter().product();
    debug_assert!(run.end <= rows * inner);
    let (first, last) = (run.start.div_ceil(inner), run.end / inner);
    let within_row = |row: usize, run: Range<usize>| {
        let run = run.start - row * inner..run.end - row * inner;
        boxes(inner_shape, run).into_iter().map(move |rest| std::iter::once(row..row + 1).chain(rest).collect())
    };
    if first > last {
        return within_row(last, run).collect();
    }
    let mut found = Vec::new();
    if run.start < first * inner {
        found.extend(within_row(first - 1, run.start..first * inner));
    }
    if first < last {
        found.push(std::iter::once(first..last).chain(whole(inner_shape)).collect());
    }
    found.extend(within_row(last, last * inner..run.end));
    found
}

/// Copies what two boxes share. `from` and `into` are the elements of whole boxes, row-major, `width` bytes each.
///
/// # Panics
/// If a slice is not as long as its box.
pub fn copy(from: &[u8], source: &[Range<usize>], into: &mut [u8], target: &[Range<usize>], width: usize) {
    assert_eq!((from.len(), into.len()), (volume(source) * width, volume(target) * width));
    let Some(shared) = common(source, target) else { return };
    // Trailing dims that are whole in both are one run with the dim before them.
    let whole_in_both = |dim: &usize| shared[*dim] == source[*dim] && shared[*dim] == target[*dim];
    let joined = (0..shared.len()).rev().take_while(whole_in_both).count();
    let outer = shared.len().saturating_sub(joined + 1);
    let run = volume(&shared[outer..]) * width;
    let offset = |place: &[Range<usize>], index: &[usize]| {
        let steps = place.iter().zip(index);
        steps.fold(0, |offset, (range, &at)| offset * range.len() + at - range.start) * width
    };
    let mut index: Vec<usize> = shared.iter().map(|range| range.start).collect();
    loop {
        let (start, end) = (offset(source, &index), offset(target, &index));
        into[end..end + run].copy_from_slice(&from[start..start + run]);
        // The next index of the outer dims, the last of them fastest.
        let Some(dim) = (0..outer).rev().find(|&dim| index[dim] + 1 < shared[dim].end) else { return };
        index[dim] += 1;
        for later in dim + 1..outer {
            index[later] = shared[later].start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp_plan::{Architecture, ArchitectureName, Degrees, Mesh, ModelConfig, Partition};
    use proptest::prelude::*;

    fn indices(shape: &[usize], region: &[Range<usize>]) -> Vec<usize> {
        let count = volume(&whole(shape));
        let inside = |flat: &usize| {
            let mut rest = *flat;
            let place = shape.iter().rev().map(|&dim| {
                let at = rest % dim;
                rest /= dim;
                at
            });
            place.zip(region.iter().rev()).all(|(at, range)| range.contains(&at))
        };
        (0..count).filter(inside).collect()
    }

    proptest! {
        #[test]
        fn boxes_are_the_run_in_order(shape in prop::collection::vec(1..5usize, 0..4), a in 0..200usize, b in 0..200usize) {
            let count: usize = shape.iter().product();
            let run = (a % (count + 1)).min(b % (count + 1))..(a % (count + 1)).max(b % (count + 1));
            let found: Vec<usize> = boxes(&shape, run.clone()).iter().flat_map(|region| indices(&shape, region)).collect();
            prop_assert_eq!(found, run.collect::<Vec<_>>());
        }

        #[test]
        fn copies_are_of_what_is_shared(
            dims in prop::collection::vec((1..6usize, 0..6usize, 0..6usize, 0..6usize, 0..6usize), 0..4),
        ) {
            let shape: Vec<usize> = dims.iter().map(|dim| dim.0).collect();
            let range = |size: usize, a: usize, b: usize| a.min(b).min(size)..a.max(b).min(size);
            let source: Region = dims.iter().map(|&(size, a, b, _, _)| range(size, a, b)).collect();
            let target: Region = dims.iter().map(|&(size, _, _, a, b)| range(size, a, b)).collect();
            // Each element of the source is called by its place in the full tensor, counted from 1.
            let names = |region: &[Range<usize>]| indices(&shape, region).into_iter().map(|at| at as u8 + 1).collect::<Vec<_>>();
            let mut into = vec![0; volume(&target)];
            copy(&names(&source), &source, &mut into, &target, 1);
            let known = names(&source);
            let expected: Vec<u8> = names(&target).into_iter().map(|name| if known.contains(&name) { name } else { 0 }).collect();
            prop_assert_eq!(into, expected);
        }
    }

    #[test]
    fn a_model_is_the_sum_of_its_ranks_pieces() {
        let config = ModelConfig {
            architecture: ArchitectureName::Llama,
            hidden: 16,
            heads: 4,
            kv_heads: 2,
            ffn: 24,
            layers: 1,
            ..ModelConfig::default()
        };
        let architecture = Architecture::resolve(&config, 37, 8).unwrap();
        let mesh = Mesh::new(Degrees { tp: 4, ..Degrees::default() }).unwrap();
        for parameter in &Partition::new(&architecture, &mesh).unwrap().parameters {
            let mut times = vec![0; volume(&whole(&parameter.spec.shape))];
            for rank in 0..4 {
                // In two runs that end anywhere.
                let elements = parameter.local_elements();
                for within in [0..elements / 3, elements / 3..elements] {
                    for piece in pieces(parameter, rank, within.clone()) {
                        assert_eq!(piece.local.len(), volume(&piece.region), "{piece:?}");
                        assert!(within.start <= piece.local.start && piece.local.end <= within.end);
                        indices(&parameter.spec.shape, &piece.region).into_iter().for_each(|at| times[at] += 1);
                    }
                }
            }
            assert!(times.iter().all(|&n| n == parameter.replicas()), "{}: {times:?}", parameter.spec.name);
        }
    }
}
