//! The machine that a job runs on: nodes of like devices, a link inside each node, a network between them.
//!
//! A cluster is a TOML file or one of the [presets](Cluster::preset); nothing in it is about a model. Rates are what data
//! sheets state, and [`Efficiency`] says which share of them real programs see: constants of the hardware and its libraries,
//! fitted once a kind of machine and never a model or layout.
//!
//! # Examples
//!
//! ```
//! use mp_plan::Cluster;
//!
//! let text = r#"
//!     [node]
//!     count = 4
//!     devices = 8
//!     bandwidth = 450e9
//!     latency = 5e-6
//!     [device]
//!     name = "H100-SXM"
//!     memory_bytes = 85_899_345_920
//!     memory_bandwidth = 3.35e12
//!     peak.bf16 = 989e12
//!     [network]
//!     bandwidth = 50e9
//!     latency = 1e-5
//! "#;
//! let cluster: Cluster = toml::from_str(text).unwrap();
//! cluster.check()?;
//! assert_eq!(cluster.ranks(), 32);
//! # Ok::<(), mp_plan::Error>(())
//! ```

pub mod measured;
mod presets;

use serde::{Deserialize, Serialize};

use crate::{Error, Precision, Result};

/// Nodes of like devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The nodes.
    pub node: Node,
    /// One device.
    pub device: Device,
    /// What joins the nodes.
    pub network: Network,
    /// Which share of the stated rates programs see.
    #[serde(default)]
    pub efficiency: Efficiency,
    /// What was measured there, which goes before rates and shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<measured::Points>,
    /// What of each rank's memory is for what a program keeps beside the tensors that layouts are counted by; in no file.
    ///
    /// # Units
    /// Bytes.
    #[serde(skip)]
    pub set_aside: usize,
}

/// What becomes of a rank's memory.
///
/// # Units
/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Room {
    /// All of it.
    pub memory_bytes: usize,
    /// The share that [`Efficiency::reserve`] leaves for gaps between tensors and for libraries.
    pub reserve_bytes: usize,
    /// What the program keeps beside tensors: [`Cluster::set_aside`].
    pub set_aside_bytes: usize,
    /// The rest, which a layout may fill.
    pub layout_bytes: usize,
}

/// `[node]`: devices that share a fast link.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// How many nodes there are.
    pub count: usize,
    /// Devices of a node; each runs one rank.
    pub devices: usize,
    /// Memory of all devices of a node together, as on a host whose ranks share it; 0: `devices` times the device's.
    ///
    /// # Units
    /// Bytes.
    #[serde(default)]
    pub memory_bytes: usize,
    /// What one device can send to others of its node at once, in one direction.
    ///
    /// # Units
    /// Bytes a second.
    pub bandwidth: f64,
    /// From the start of a message inside a node to its arrival, without its bytes; a collective's start included.
    ///
    /// # Units
    /// Seconds.
    pub latency: f64,
}

/// `[device]`: one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// What people call it.
    pub name: String,
    /// Its memory; 0: an equal share of the node's.
    ///
    /// # Units
    /// Bytes.
    #[serde(default)]
    pub memory_bytes: usize,
    /// What can be read from and written to its memory.
    ///
    /// # Units
    /// Bytes a second.
    pub memory_bandwidth: f64,
    /// Operations on matrices.
    #[serde(default)]
    pub peak: Peak,
}

/// `[device.peak]`: the rate of dense matrix products by precision; unknown where it is missing.
///
/// # Units
/// FLOP a second.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peak {
    /// In bfloat16, summed in 32 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16: Option<f64>,
    /// In 32 bits, as matrices of that precision are multiplied by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fp32: Option<f64>,
    /// In 64 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fp64: Option<f64>,
}

/// `[network]`: what joins the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// What one device can send to other nodes, in one direction, while all devices of its node do.
    ///
    /// # Units
    /// Bytes a second.
    pub bandwidth: f64,
    /// From the start of a message between nodes to its arrival, without its bytes.
    ///
    /// # Units
    /// Seconds.
    pub latency: f64,
}

/// `[efficiency]`: which share of the stated rates programs see.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Efficiency {
    /// The share of the peak that matrix products come near to as they grow.
    pub matrix: f64,
    /// The length of a product's dim that halves its rate: a product of `m × k` by `k × n` reaches the share
    /// `matrix · m/(m+half) · n/(n+half) · k/(k+half)`. Tiles that are not full and pipelines that fill cost so.
    ///
    /// # Units
    /// Elements.
    pub matrix_half: f64,
    /// The share of the peak that a fused attention reaches, on the products that it does compute. Where weights are dropped
    /// there is none, and scores and weights go through memory.
    pub attention: f64,
    /// The share of the memory's bandwidth that operations element by element reach.
    pub memory: f64,
    /// The share of `node.bandwidth` that collectives reach.
    pub node: f64,
    /// The share of `network.bandwidth` that collectives and messages reach.
    pub network: f64,
    /// The share of what is sent that moves while the device computes: 1 where links move it by themselves, 0 where the
    /// processor that computes also copies, as on a host, whose MPI moves messages only inside calls.
    pub overlap: f64,
    /// What starting one operation takes on the device.
    ///
    /// # Units
    /// Seconds.
    pub launch: f64,
    /// The share of the rates that operations reach one by one that they reach within a step, where each finds its operands
    /// farther away than when it is repeated. Shares that were fitted on whole steps have it in them: 1.
    pub program: f64,
    /// The share of the memory that is for nothing of the job: what the allocator cannot join, and libraries' own.
    pub reserve: f64,
}

impl Peak {
    /// Returns the rate in a precision, where it is known.
    pub fn of(&self, precision: Precision) -> Option<f64> {
        match precision {
            Precision::Bf16 => self.bf16,
            Precision::Fp32 => self.fp32,
            Precision::Fp64 => self.fp64,
        }
    }
}

impl Cluster {
    /// Counts the devices; each runs one rank.
    pub fn ranks(&self) -> usize {
        self.node.count.saturating_mul(self.node.devices)
    }

    /// Takes as many nodes as `ranks` devices need; fewer devices than a node's are on one.
    #[must_use]
    pub fn with_ranks(mut self, ranks: usize) -> Self {
        self.node.count = ranks.div_ceil(self.node.devices.max(1)).max(1);
        self
    }

    /// Says whether ranks compute in the memory of a host, which they share.
    pub fn is_host(&self) -> bool {
        self.node.memory_bytes > 0
    }

    /// Returns the rate of a device of this name, where this machine was measured and has such: FLOP a second.
    ///
    /// A measured machine's device is named by its processor and the threads of a rank, so that a file from elsewhere does not
    /// tell the rate of the device at hand.
    pub fn measured_peak(&self, device: &str, precision: Precision) -> Option<f64> {
        let known = self.measured.is_some() && self.device.name == device;
        self.device.peak.of(precision).filter(|_| known)
    }

    /// Returns the memory that one rank may fill.
    ///
    /// # Units
    /// Bytes.
    pub fn rank_memory(&self) -> usize {
        self.room().layout_bytes
    }

    /// Says what becomes of a rank's memory; the parts are the whole, unless more is set aside than there is.
    pub fn room(&self) -> Room {
        let share = self.node.memory_bytes / self.node.devices.max(1);
        let whole = match (self.device.memory_bytes, share) {
            (0, share) => share,
            (own, 0) => own,
            (own, share) => own.min(share),
        };
        let usable = ((1.0 - self.efficiency.reserve) * whole as f64) as usize;
        Room {
            memory_bytes: whole,
            reserve_bytes: whole - usable,
            set_aside_bytes: self.set_aside,
            layout_bytes: usable.saturating_sub(self.set_aside),
        }
    }

    /// Checks that such a machine can exist.
    ///
    /// # Errors
    /// [`Error::Cluster`] for a rate, a size or a share that cannot be; it names the key.
    pub fn check(&self) -> Result<()> {
        let Self { node, device, network, efficiency, measured, .. } = self;
        for (key, value) in [("node.count", node.count), ("node.devices", node.devices)] {
            require(value > 0, key, value as f64, "must be at least 1")?;
        }
        let ranks = node.count.checked_mul(node.devices).filter(|&ranks| ranks <= i32::MAX as usize);
        require(ranks.is_some(), "node.count", node.count as f64, "times node.devices must fit 31 bits")?;
        let memory = device.memory_bytes.max(node.memory_bytes);
        require(memory > 0, "device.memory_bytes", 0.0, "must be above 0, here or as node.memory_bytes")?;
        let peak = device.peak;
        let rates = [
            ("node.bandwidth", Some(node.bandwidth)),
            ("device.memory_bandwidth", Some(device.memory_bandwidth)),
            ("network.bandwidth", Some(network.bandwidth)),
            ("device.peak.bf16", peak.bf16),
            ("device.peak.fp32", peak.fp32),
            ("device.peak.fp64", peak.fp64),
        ];
        for (key, rate) in rates {
            let rate = rate.unwrap_or(1.0);
            // Far beyond any machine, and sums of times stay finite.
            require((1.0..=1e24).contains(&rate), key, rate, "must be from 1 to 1e24 a second")?;
        }
        for (key, seconds) in [
            ("node.latency", node.latency),
            ("network.latency", network.latency),
            ("efficiency.launch", efficiency.launch),
        ] {
            require((0.0..=1e6).contains(&seconds), key, seconds, "must be from 0 to 1e6 seconds")?;
        }
        let half = efficiency.matrix_half;
        require((0.0..=1e9).contains(&half), "efficiency.matrix_half", half, "must be a length from 0 to 1e9")?;
        efficiency.check()?;
        measured.as_ref().map_or(Ok(()), measured::Points::check)
    }
}

impl Efficiency {
    fn check(&self) -> Result<()> {
        for (key, share) in [
            ("efficiency.matrix", self.matrix),
            // The engine has its kernel everywhere: memory is counted with it.
            ("efficiency.attention", self.attention),
            ("efficiency.memory", self.memory),
            ("efficiency.node", self.node),
            ("efficiency.network", self.network),
            ("efficiency.program", self.program),
        ] {
            require((1e-6..=1.0).contains(&share), key, share, "must be a share above 0, from 1e-6 up to 1")?;
        }
        let overlap = self.overlap;
        require((0.0..=1.0).contains(&overlap), "efficiency.overlap", overlap, "must be a share from 0 to 1")?;
        require((0.0..1.0).contains(&self.reserve), "efficiency.reserve", self.reserve, "must be in [0, 1)")
    }
}

fn require(holds: bool, key: &'static str, value: f64, rule: &'static str) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::Cluster { key, value, rule }),
    }
}
