//! What work takes on a machine: products by shape, attention, operations element by element, messages and collectives.
//!
//! [`CostModel`] answers for one operation at a time; [`crate::step`] makes a training step of them. [`Analytic`] knows a
//! machine by its [`Cluster`] alone:
//!
//! - a product of `m × k` by `k × n` takes the longer of `2·m·n·k / (peak · share(m, n, k))`, with the share that
//!   [`Efficiency`] states, and its bytes over the memory's bandwidth;
//! - operations element by element take their bytes over the memory's bandwidth, and each a start;
//! - collectives run as rings, or as trees where those are faster, inside a node, over the network, or first the one and
//!   then the other, each rank with its share of the bytes: what leaves a node leaves it through all its devices' cards.
//!
//! [`Measured`] knows it by points that were measured there; [`of`] chooses between the two.

pub mod collective;
pub mod layer;
pub mod measured;
pub mod terms;

use crate::{cluster::Efficiency, Cluster, Precision};

pub use collective::{Collective, Group};
pub use measured::{of, Measured};
pub use terms::Terms;

/// What single operations take on a machine.
///
/// # Units
/// Sizes in bytes and elements, times in seconds.
pub trait CostModel: Send + Sync {
    /// Returns the rate that utilisation is measured by, FLOP a second; `None` where it is unknown, and then no other answer
    /// about products counts.
    fn peak(&self, precision: Precision) -> Option<f64>;

    /// Returns the time of `count` products of `m × k` by `k × n` that are started as one.
    fn product(&self, count: usize, shape: [usize; 3], precision: Precision) -> f64;

    /// Returns the time of a fused attention that does so many FLOPs; `None` where its rate is unknown.
    fn attention(&self, flop: f64, precision: Precision) -> Option<f64>;

    /// Returns the time of `starts` operations that read and write so many bytes together.
    fn memory(&self, bytes: f64, starts: usize) -> f64;

    /// Returns the time of a collective over `bytes` bytes: of the whole buffer, also where a rank gives or gets a part.
    fn collective(&self, what: Collective, bytes: f64, group: Group) -> f64;

    /// Returns the time of a message from rank to rank.
    fn message(&self, bytes: f64, inside_node: bool) -> f64;

    /// Returns the share of what is sent that moves while the device computes: all of it, unless a machine says less.
    fn overlap(&self) -> f64 {
        1.0
    }
}

/// What a machine's data sheet and a few shares say.
#[derive(Debug, Clone)]
pub struct Analytic {
    cluster: Cluster,
}

impl Analytic {
    /// Takes a machine.
    pub fn new(cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone() }
    }

    /// Returns the share of the peak that a product of `[m, n, k]` reaches.
    fn share(&self, shape: [usize; 3]) -> f64 {
        let efficiency = &self.cluster.efficiency;
        shape.iter().fold(efficiency.matrix, |share, &len| share * len as f64 / (len as f64 + efficiency.matrix_half))
    }
}

impl CostModel for Analytic {
    fn peak(&self, precision: Precision) -> Option<f64> {
        self.cluster.device.peak.of(precision)
    }

    fn product(&self, count: usize, shape: [usize; 3], precision: Precision) -> f64 {
        let Some(peak) = self.peak(precision) else { return f64::INFINITY };
        let [m, n, k] = shape.map(|len| len as f64);
        let computed = 2.0 * m * n * k / (peak * self.share(shape));
        let moved = (m * k + k * n + m * n) * precision.parameter_bytes() as f64 / self.cluster.device.memory_bandwidth;
        let work = count as f64 * computed.max(moved / self.cluster.efficiency.memory);
        work / self.cluster.efficiency.program + self.cluster.efficiency.launch
    }

    fn attention(&self, flop: f64, precision: Precision) -> Option<f64> {
        let Efficiency { attention, program, launch, .. } = self.cluster.efficiency;
        Some(flop / (self.peak(precision)? * attention * program) + launch)
    }

    fn memory(&self, bytes: f64, starts: usize) -> f64 {
        let Efficiency { memory, program, .. } = self.cluster.efficiency;
        let rate = self.cluster.device.memory_bandwidth * memory * program;
        bytes / rate + starts as f64 * self.cluster.efficiency.launch
    }

    fn collective(&self, what: Collective, bytes: f64, group: Group) -> f64 {
        collective::seconds(&self.cluster, what, bytes, group)
    }

    fn message(&self, bytes: f64, inside_node: bool) -> f64 {
        let Cluster { node, network, efficiency, .. } = &self.cluster;
        match inside_node {
            true => node.latency + bytes / (node.bandwidth * efficiency.node),
            false => network.latency + bytes / (network.bandwidth * efficiency.network),
        }
    }

    fn overlap(&self) -> f64 {
        self.cluster.efficiency.overlap
    }
}
