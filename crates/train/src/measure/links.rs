//! What lies between ranks: collectives by kind, group and size, and messages.

use std::sync::Arc;

use mp_comm::{Communicator, Rank, ReduceOp, Tag};
use mp_model::collective;
use mp_plan::cluster::measured::{CollectivePoints, Messages};
use mp_plan::cluster::{Network, Node};
use mp_plan::Collective;
use mp_runtime::{Kind, Tensor};

use super::bench::Bench;
use crate::Result;

const KINDS: [Collective; 4] =
    [Collective::AllReduce, Collective::AllGather, Collective::ReduceScatter, Collective::AllToAll];
/// Elements of four bytes.
const ELEMENTS: [usize; 7] = [16, 256, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 21];
const QUICK_ELEMENTS: [usize; 4] = [16, 1 << 12, 1 << 16, 1 << 19];
/// The most groups that are measured inside a node, and the most over several.
const MOST_GROUPS: usize = 4;

/// Lists the groups of training, each as this rank's of equally large ones: neighbours in a node; over nodes those of ranks
/// that are so far apart that one, some, or all of each node are in it.
fn cuts(rank: usize, ranks: usize, devices: usize) -> Vec<usize> {
    let divisors = |from: usize| (from..=devices).filter(|size| devices.is_multiple_of(*size)).collect();
    let mut colors: Vec<usize> = most(divisors(2)).into_iter().map(|size| rank / size).collect();
    if ranks > devices {
        colors.extend(most(divisors(1)).into_iter().rev().map(|stride| rank % stride));
    }
    colors
}

/// Leaves, of many sizes, the largest and the smallest ones.
fn most(mut sizes: Vec<usize>) -> Vec<usize> {
    while sizes.len() > MOST_GROUPS {
        sizes.remove(sizes.len() - 2);
    }
    sizes
}

/// Times every kind in every group.
pub(super) fn collectives(
    bench: &Bench<'_>,
    world: &Arc<dyn Communicator>,
    devices: usize,
) -> Result<Vec<CollectivePoints>> {
    let mut all = Vec::new();
    for color in cuts(world.rank().0, world.size(), devices) {
        let group = world.split(Some(color as u32), world.rank().0 as u32, "measured")?;
        let group = group.expect("a rank that names a color joins a group");
        let neighbours = bench.least(group.local_size() as f64)? as usize;
        for what in KINDS {
            let sizes = bench.either(&QUICK_ELEMENTS[..], &ELEMENTS[..]);
            let points = sizes.iter().map(|&elements| point(bench, &*group, what, elements)).collect::<Result<_>>()?;
            all.push(CollectivePoints { what, ranks: group.size(), neighbours, points });
        }
    }
    Ok(all)
}

fn ones(bench: &Bench<'_>, shape: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_ones(shape, (Kind::Float, bench.device())).map_err(mp_runtime::Error::from)?)
}

fn point(bench: &Bench<'_>, group: &dyn Communicator, what: Collective, elements: usize) -> Result<[f64; 2]> {
    let part = elements.div_ceil(group.size()) as i64;
    let ranks = group.size() as i64;
    let (whole, own) = bench.prepared(|| Ok((ones(bench, &[ranks, part])?, ones(bench, &[1, part])?)))?;
    let seconds = bench.seconds(|| {
        drop(match what {
            Collective::AllReduce => {
                collective::start_all_reduce(group, whole.shallow_clone(), ReduceOp::Max)?.wait()?
            }
            Collective::AllGather => collective::start_all_gather(group, &own, 0)?.wait()?,
            Collective::ReduceScatter => collective::start_reduce_scatter(group, &whole, 0)?.wait()?,
            Collective::AllToAll => collective::all_to_all(group, &whole)?,
        });
        Ok(())
    })?;
    Ok([(4 * ranks * part) as f64, seconds])
}

/// Times messages, half of the way there and back, between neighbours in a node and between nodes.
pub(super) fn messages(bench: &Bench<'_>, world: &Arc<dyn Communicator>, devices: usize) -> Result<Messages> {
    let (rank, ranks) = (world.rank().0, world.size());
    let mut messages = Messages::default();
    if devices > 1 {
        messages.inside = passed(bench, &**world, pair(rank, ranks, 1, devices))?;
    }
    if ranks > devices {
        messages.outside = passed(bench, &**world, pair(rank, ranks, devices, ranks))?;
    }
    Ok(messages)
}

/// Pairs ranks that are `stride` apart in blocks of `block` ranks, every second with the one behind it; returns a rank's peer, and
/// whether the rank is the first of the two.
fn pair(rank: usize, ranks: usize, stride: usize, block: usize) -> Option<(usize, bool)> {
    let place = rank % block;
    let first = (place / stride).is_multiple_of(2);
    let peer = if first { rank + stride } else { rank - stride };
    (peer < ranks && peer / block == rank / block).then_some((peer, first))
}

fn passed(bench: &Bench<'_>, world: &dyn Communicator, pair: Option<(usize, bool)>) -> Result<Vec<[f64; 2]>> {
    let point = |&elements: &usize| -> Result<[f64; 2]> {
        let made = || ones(bench, &[elements as i64]);
        let (sent, received) = bench.prepared(|| Ok((made()?, made()?)))?;
        let both = bench.seconds_of(pair.is_some(), || {
            let Some((peer, first)) = pair else { return Ok(()) };
            let send = || collective::start_send(world, &sent, Rank(peer), TAG);
            let receive = || collective::start_receive(world, received.shallow_clone(), Rank(peer), TAG);
            drop(match first {
                true => (send()?.wait()?, receive()?.wait()?),
                false => (receive()?.wait()?, send()?.wait()?),
            });
            Ok(())
        })?;
        Ok([(4 * elements) as f64, both / 2.0])
    };
    bench.either(&QUICK_ELEMENTS[..], &ELEMENTS[..]).iter().map(point).collect()
}

const TAG: Tag = Tag(0);

/// Finds bandwidth and latency of the links in the times of gathers, for groups that were not measured; a link that there is not
/// is as given, or as that inside the node.
pub(super) fn rates(collectives: &[CollectivePoints], node: Node, network: Network) -> (Node, Network) {
    let link = |far: bool| {
        let gathers = collectives.iter().filter(|group| group.what == Collective::AllGather);
        let groups = gathers.filter(|group| (group.neighbours == 1) == far && (far || group.neighbours == group.ranks));
        let group = groups.max_by_key(|group| group.ranks)?;
        let (&[_, least], &[bytes, most]) = (group.points.first()?, group.points.last()?);
        let hops = (group.ranks - 1) as f64;
        let bandwidth = hops / group.ranks as f64 * bytes / (most - least).max(0.1 * most);
        Some((bandwidth, least / hops))
    };
    let inside = link(false);
    let node = inside.map_or(node, |(bandwidth, latency)| Node { bandwidth, latency, ..node });
    let network = match link(true).or(inside) {
        Some((bandwidth, latency)) => Network { bandwidth, latency },
        None => network,
    };
    (node, network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_neighbours_and_over_nodes_of_each_distance() {
        assert_eq!(cuts(3, 4, 4), [1, 0]);
        assert_eq!(cuts(5, 8, 4), [2, 1, 1, 1, 0], "pairs, a node, one of each node, two of each, all");
        assert_eq!(cuts(1, 2, 1), [0]);
        assert_eq!(cuts(0, 60, 60).len(), MOST_GROUPS);
        // No pair has a rank on either node.
        assert_eq!(cuts(3, 6, 3), [1, 0, 0]);
    }

    #[test]
    fn pairs_are_in_a_node_or_from_node_to_node() {
        let all = |ranks, stride, block| (0..ranks).map(|rank| pair(rank, ranks, stride, block)).collect::<Vec<_>>();
        let inside = [Some((1, true)), Some((0, false)), None, Some((4, true)), Some((3, false)), None];
        assert_eq!(all(6, 1, 3), inside, "two nodes of three");
        let outside = [Some((2, true)), Some((3, true)), Some((0, false)), Some((1, false)), None, None];
        assert_eq!(all(6, 2, 6), outside, "three nodes of two");
        assert_eq!(all(3, 1, 3), [Some((1, true)), Some((0, false)), None]);
    }

    #[test]
    fn links_are_found_again_in_the_times_that_they_make() {
        let times = |ranks: usize, neighbours: usize, bandwidth: f64, latency: f64| {
            let hops = (ranks - 1) as f64;
            let seconds = |bytes: f64| hops * latency + hops / ranks as f64 * bytes / bandwidth;
            let points = [64.0, 1e9].map(|bytes| [bytes, seconds(bytes)]).to_vec();
            CollectivePoints { what: Collective::AllGather, ranks, neighbours, points }
        };
        let preset = mp_plan::Cluster::preset("cpu").unwrap();
        let groups = [times(2, 2, 5e9, 1e-6), times(4, 4, 4e9, 2e-6), times(2, 1, 1e9, 1e-5), times(8, 4, 1.0, 1.0)];
        let (node, network) = rates(&groups, preset.node, preset.network);
        // The first point's own bytes are the error.
        let near = |one: f64, other: f64| assert!((one / other - 1.0).abs() < 0.05, "{one} {other}");
        near(node.bandwidth, 4e9);
        near(node.latency, 2e-6);
        near(network.bandwidth, 1e9);
        near(network.latency, 1e-5);
        let (_, network) = rates(&groups[..1], preset.node, preset.network);
        near(network.bandwidth, 5e9);
        assert_eq!(rates(&[], preset.node, preset.network), (preset.node, preset.network));
    }
}
