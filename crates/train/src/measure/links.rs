//! What lies between ranks: collectives by kind, group and size, and messages.

use std::sync::Arc;

use mp_comm::{Communicator, Rank, ReduceOp, Tag};
use mp_model::collective;
use mp_plan::cluster::measured::{CollectivePoints, Messages};
use mp_plan::cluster::{Network, Node};
use mp_plan::Collective;
use mp_runtime::{Device, Kind, Tensor};

use super::bench::Bench;
use crate::Result;

const KINDS: [Collective; 4] =
    [Collective::AllReduce, Collective::AllGather, Collective::ReduceScatter, Collective::AllToAll];
/// Elements of four bytes.
const ELEMENTS: [usize; 7] = [16, 256, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 21];
const QUICK_ELEMENTS: [usize; 4] = [16, 1 << 12, 1 << 16, 1 << 19];
/// The most sizes of groups that are measured inside a node.
const MOST_SIZES: usize = 4;

/// A way to cut the world in groups of one size.
struct Cut {
    /// This rank's group.
    color: usize,
}

/// Lists the groups of training: neighbours in a node, the whole world, and over several nodes those that have one rank on each.
fn cuts(rank: usize, ranks: usize, devices: usize) -> Vec<Cut> {
    let sizes = (2..=devices).filter(|size| ranks.is_multiple_of(*size));
    let mut sizes: Vec<usize> = sizes.collect();
    // Of many the largest and the smallest ones.
    while sizes.len() > MOST_SIZES {
        sizes.remove(sizes.len() - 2);
    }
    let mut cuts: Vec<Cut> = sizes.into_iter().map(|size| Cut { color: rank / size }).collect();
    if ranks > devices {
        if devices > 1 {
            cuts.push(Cut { color: rank % devices });
        }
        cuts.push(Cut { color: 0 });
    }
    cuts
}

/// Times every kind in every group.
pub(super) fn collectives(
    bench: &Bench<'_>,
    world: &Arc<dyn Communicator>,
    devices: usize,
) -> Result<Vec<CollectivePoints>> {
    let mut all = Vec::new();
    for cut in cuts(world.rank().0, world.size(), devices) {
        let group = world.split(Some(cut.color as u32), world.rank().0 as u32, "measured")?;
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

fn point(bench: &Bench<'_>, group: &dyn Communicator, what: Collective, elements: usize) -> Result<[f64; 2]> {
    let part = elements.div_ceil(group.size()) as i64;
    let ranks = group.size() as i64;
    let ones = |shape: &[i64]| Tensor::f_ones(shape, (Kind::Float, Device::Cpu)).map_err(mp_runtime::Error::from);
    let (whole, own) = (ones(&[ranks, part])?, ones(&[1, part])?);
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
    // Every second rank with the one behind it.
    let pair = |stride: usize| {
        let first = (rank / stride).is_multiple_of(2);
        let peer = if first { rank + stride } else { rank - stride };
        (peer < ranks).then_some((peer, first))
    };
    let mut messages = Messages::default();
    if devices > 1 {
        messages.inside = passed(bench, &**world, pair(1))?;
    }
    if ranks > devices {
        messages.outside = passed(bench, &**world, pair(devices))?;
    }
    Ok(messages)
}

fn passed(bench: &Bench<'_>, world: &dyn Communicator, pair: Option<(usize, bool)>) -> Result<Vec<[f64; 2]>> {
    let point = |&elements: &usize| -> Result<[f64; 2]> {
        let ones = || Tensor::f_ones([elements as i64], (Kind::Float, Device::Cpu)).map_err(mp_runtime::Error::from);
        let (sent, received) = (ones()?, ones()?);
        let both = bench.seconds(|| {
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
    fn groups_are_neighbours_and_over_nodes_columns_and_all() {
        let colors = |rank, ranks, devices| cuts(rank, ranks, devices).iter().map(|cut| cut.color).collect::<Vec<_>>();
        assert_eq!(colors(3, 4, 4), [1, 0]);
        assert_eq!(colors(5, 8, 4), [2, 1, 1, 0], "pairs, a node, the second of each node, all");
        assert_eq!(colors(1, 2, 1), [0]);
        assert_eq!(colors(0, 60, 60).len(), MOST_SIZES);
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
