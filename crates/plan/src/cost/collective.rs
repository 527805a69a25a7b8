//! Collectives by size, group and link.
//!
//! With `n` ranks on one link of bandwidth `β` and latency `α`, `S` bytes of a whole buffer:
//!
//! | collective | ring | tree |
//! |---|---|---|
//! | gather, scatter | `(n−1)·α + (n−1)/n · S/β` | |
//! | all-reduce | `2·(n−1)·α + 2·(n−1)/n · S/β` | `2·⌈log₂ n⌉·α + 2·S/β` |
//! | exchange | `(n−1)·α + (n−1)/n · S/β`, `S` what one rank gives | |
//!
//! Where `g` ranks of a group share each node, they scatter inside it, each reduces its part of `S/g` over the network with
//! its peers, and they gather. So a node's cards all carry a part. A part that does not leave the node costs the node's link
//! alone.
//!
//! # Source
//! Thakur et al. 2005, <https://doi.org/10.1177/1094342005051521>; Sanders et al. 2009 (two trees, full bandwidth).

use serde::{Deserialize, Serialize};

use crate::Cluster;

/// What ranks of a group do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Collective {
    /// All get the sum.
    AllReduce,
    /// All get all parts.
    AllGather,
    /// Each gets its part of the sum.
    ReduceScatter,
    /// Each gives each a part.
    AllToAll,
}

/// The ranks of a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    /// How many.
    pub size: usize,
    /// How many of them are in each node.
    pub neighbours: usize,
}

impl Group {
    /// Describes the group that a layout's axis makes on nodes of `devices`.
    pub(crate) fn of((size, neighbours): (usize, usize)) -> Self {
        Self { size, neighbours }
    }
}

/// One link as a group sees it.
struct Link {
    bandwidth: f64,
    latency: f64,
}

/// Returns the time of a collective.
pub(super) fn seconds(cluster: &Cluster, what: Collective, bytes: f64, group: Group) -> f64 {
    let Cluster { node, network, efficiency, .. } = cluster;
    let inside = Link { bandwidth: node.bandwidth * efficiency.node, latency: node.latency };
    let outside = Link { bandwidth: network.bandwidth * efficiency.network, latency: network.latency };
    over(&inside, &outside, what, bytes, group)
}

/// How much a collective has to do in one group beside another, whatever the rates of the links: a hop over the network counts as
/// two inside a node, a byte as ten, as on nodes of A100 and H100.
pub(super) struct Shares {
    /// Of the hops one behind the other, which is all that little data takes.
    pub(super) hops: f64,
    /// Of the bytes that pass a link, which is all that much data takes.
    pub(super) bytes: f64,
}

impl Shares {
    /// Compares two groups of more than one rank.
    pub(super) fn of(what: Collective, group: Group, known: Group) -> Self {
        let share = |inside: Link, outside: Link| {
            let effort = |group: Group| over(&inside, &outside, what, 1.0, group);
            effort(group) / effort(known)
        };
        let hop = |latency: f64| Link { bandwidth: f64::INFINITY, latency };
        let wire = |bandwidth: f64| Link { bandwidth, latency: 0.0 };
        Self { hops: share(hop(1.0), hop(2.0)), bytes: share(wire(1.0), wire(0.1)) }
    }
}

/// Returns the time of a collective over two links.
fn over(inside: &Link, outside: &Link, what: Collective, bytes: f64, group: Group) -> f64 {
    if group.size <= 1 {
        return 0.0;
    }
    let inner = group.neighbours.clamp(1, group.size);
    let outer = group.size.div_ceil(inner);
    if outer == 1 {
        return inside.seconds(what, bytes, inner);
    }
    match what {
        Collective::AllToAll => {
            // What stays in the node and what leaves it travel at once.
            let parts = group.size as f64;
            let near = inside.seconds(what, bytes * inner as f64 / parts, inner);
            let far = bytes * (parts - inner as f64) / parts / outside.bandwidth + outside.latency * (outer - 1) as f64;
            near.max(far)
        }
        Collective::AllReduce => {
            inside.seconds(Collective::ReduceScatter, bytes, inner)
                + outside.seconds(what, bytes / inner as f64, outer)
                + inside.seconds(Collective::AllGather, bytes, inner)
        }
        Collective::AllGather | Collective::ReduceScatter => {
            inside.seconds(what, bytes, inner) + outside.seconds(what, bytes / inner as f64, outer)
        }
    }
}

impl Link {
    fn seconds(&self, what: Collective, bytes: f64, ranks: usize) -> f64 {
        if ranks <= 1 {
            return 0.0;
        }
        let (hops, pass) = ((ranks - 1) as f64, bytes / self.bandwidth);
        let ring = hops * self.latency + hops / ranks as f64 * pass;
        match what {
            Collective::AllReduce => {
                let depth = f64::from(usize::BITS - (ranks - 1).leading_zeros());
                (2.0 * ring).min(2.0 * depth * self.latency + 2.0 * pass)
            }
            Collective::AllGather | Collective::ReduceScatter | Collective::AllToAll => ring,
        }
    }
}
